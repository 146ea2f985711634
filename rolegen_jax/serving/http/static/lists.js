// The lists of two models side by side: what each expert adds to an item, and why it is there.

import { about, title } from './api.js';
import { h, moment, percent, signed } from './dom.js';
import { chip, expertMeaning } from './roles.js';
import { done } from './worlds.js';

const SEGMENT = 0.02; // nats that are worth drawing

// Returns the section of one list.
// facts: {name, note, experts, answer, scale, other, compared, size, became, open, light}: `other` is
// the answer that it is compared with, or null; `scale` the most nats on either side of zero; `became`
// is what became of the items, (item) -> event or undefined; `open` is the set of the reasons of rows
// that are open, of all lists, and `light` is called with the events that they name.
export function list(facts) {
  const { name, note, answer, size } = facts;
  const rows = answer.items.map((item, place) => row(facts, item, place));
  const empty = answer.items.length ? null
    : h('p', { class: 'soft nothing' }, 'No item of the catalogue passes these filters.');
  return h('section', { class: 'list', 'aria-label': name, style: { '--rows': size } },
    h('h4', {}, name, h('span', { class: 'soft' }, ` ${note}`)),
    h('ol', { class: 'rows' }, rows),
    empty);
}

function row(facts, item, place) {
  const { answer, experts, scale, open, light, became } = facts;
  const { reason } = item;
  const later = became(item.item_id);
  const details = h('details', {
    name: `${facts.name}-rows`,
    ontoggle: () => {
      if (details.open) open.add(reason);
      else open.delete(reason);
      light([...open].flatMap((shown) => shown.carried_by));
    },
  },
  h('summary', {},
    h('span', { class: 'place num' }, String(place + 1), move(facts, item, place)),
    h('span', { class: 'what' },
      h('span', { class: 'clip title' }, title(item.item_id)),
      h('span', { class: 'clip soft small' },
        later ? h('b', { class: 'hit', title: moment(later.timestamp) }, `${later.event} later · `) : null,
        reason.seen ? 'seen · ' : null, about(item.item_id))),
    bar(reason.terms, experts, scale),
    h('span', { class: 'num share' },
      h('span', { title: 'Probability among all items that were scored' }, percent(Math.exp(item.log_prob))),
      h('span', { class: 'soft small', title: 'Interest that contact with the item moves to somewhere new' },
        `opens ${percent(item.opens)}`))),
  why(item, experts, answer));
  return h('li', {}, details);
}

// Where the item is in the other list.
function move({ other, compared }, item, place) {
  if (!other) return null;
  const there = other.items.findIndex((each) => each.item_id === item.item_id);
  if (there < 0) return h('span', { class: 'move only', title: `Not in the list of ${compared}` }, 'only');
  if (there === place) return h('span', { class: 'move same', title: `Same place in the list of ${compared}` }, '=');
  const up = there > place;
  return h('span', { class: up ? 'move up' : 'move down', title: `Place ${there + 1} in the list of ${compared}` },
    `${up ? '▲' : '▼'}${Math.abs(there - place)}`);
}

// What the experts add, less the mean over the list: above to the right of zero, below to the left.
function bar(terms, experts, scale) {
  const known = experts.filter((name) => Math.abs(terms[name] ?? 0) >= SEGMENT);
  const said = known.map((name) => `${name} ${signed(terms[name])}`).join(', ') || 'as the rest of the list';
  const side = (sign) => known.filter((name) => sign * terms[name] > 0).map((name) =>
    h('i', { class: `expert-${name}`, style: { width: `${(100 * Math.abs(terms[name])) / scale}%` } }));
  return h('span', { class: 'terms', role: 'img', 'aria-label': said, title: said },
    h('span', { class: 'below' }, side(-1)), h('span', { class: 'above' }, side(1)));
}

// The most nats that the experts add or take together, over lists.
export function scaleOf(answers, experts) {
  const sums = answers.flatMap((answer) => answer.items.flatMap(({ reason }) => [1, -1].map((sign) =>
    experts.reduce((sum, name) => sum + Math.max(sign * (reason.terms[name] ?? 0), 0), 0))));
  return Math.max(...sums, 0.1);
}

function why(item, experts, answer) {
  const { reason } = item;
  const total = experts.reduce((sum, name) => sum + Math.abs(reason.terms[name] ?? 0), 0) || 1;
  const world = reason.world;
  const named = world < 0 || !answer.reasoned ? null
    : h('p', {}, `A candidate of ${world ? `world ${world}: ` : 'the factual world.'}`
      + (world ? `${done(answer.reasoned, answer.reasoned.worlds[world])}.` : ''));
  const carried = reason.carried_by.map((event) => h('li', {},
    chip(event.role === 'UNKNOWN' ? null : event.role),
    h('span', {}, `${event.event} of ${title(event.item_id)}, ${event.days_ago.toFixed(1)} days before`),
    h('span', { class: 'num', title: 'Nats that the item would lose without the event' }, signed(event.nats))));
  return h('div', { class: 'why' },
    h('table', {},
      h('caption', {}, 'What each expert adds, against the mean of the list'),
      h('thead', {}, h('tr', {}, h('th', {}, 'Expert'), h('th', {}, 'Nats'), h('th', {}, 'Share'))),
      h('tbody', {}, experts.map((name) => h('tr', { title: expertMeaning(name) },
        h('th', { scope: 'row' }, h('span', { class: `dot expert-${name}` }), ` ${name}`),
        h('td', {}, signed(reason.terms[name] ?? 0)),
        h('td', {}, percent(Math.abs(reason.terms[name] ?? 0) / total, 0)))))),
    h('div', { class: 'reasons' },
      h('h5', {}, 'Carried by'),
      carried.length ? h('ul', { class: 'carried' }, carried)
        : h('p', { class: 'soft' }, answer.reasoned ? 'No single event: without any one of them the item would be about as likely.'
          : 'The backbone alone names no events.'),
      named,
      h('p', { class: 'soft' }, `${reason.seen ? 'The user has touched it before.' : 'New to the user.'}`)));
}
