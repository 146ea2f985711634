// The worlds side by side: what is done in each, its intents, roles and candidates.

import { group, title } from './api.js';
import { byId, h, percent } from './dom.js';
import { cell, roleLegend } from './roles.js';

export class Worlds {
  // choose(world): called when the roles of a world are to be shown in the timeline.
  constructor(run, choose) {
    this.choose = choose;
    this.cards = h('ul', { class: 'cards' });
    const legend = run.reasons ? roleLegend(run.roles) : null;
    byId('worlds').append(...[legend, this.cards].filter(Boolean));
    byId('worlds').style.setProperty('--intents', run.intents);
    byId('worlds').style.setProperty('--steps', run.candidates);
    this.cards.style.setProperty('--worlds', run.worlds);
    this.empty(run.reasons ? '' : 'This server was started without a reasoner: there are no worlds.');
  }

  empty(why) {
    this.cards.replaceChildren(h('li', { class: 'soft' }, why || '\u00a0'));
  }

  // Shows what was reasoned. rank: (item) -> place in the list from 1, 0 = not listed.
  show(reasoned, chosen, rank) {
    if (!reasoned) {
      this.empty('The backbone answered alone: there are no worlds.');
      return;
    }
    const focused = [...this.cards.querySelectorAll('button')].indexOf(document.activeElement);
    this.cards.replaceChildren(...reasoned.worlds.map((world, i) => this.card(reasoned, world, i, chosen, rank)));
    if (focused >= 0) this.cards.querySelectorAll('button')[focused]?.focus();
  }

  card(reasoned, world, place, chosen, rank) {
    const name = place ? `World ${place}` : 'Factual';
    const factual = reasoned.worlds[0].roles;
    const removed = world.intervention?.kind === 'remove' ? world.intervention.event : -1;
    return h('li', { class: place === chosen ? 'card chosen' : 'card' },
      h('button', {
        type: 'button',
        'aria-pressed': place === chosen ? 'true' : 'false',
        title: 'Show the roles of this world in the trajectory',
        onclick: () => this.choose(place),
      }, name),
      h('p', { class: 'done clip2' }, done(reasoned, world)),
      h('h4', {}, 'Intent'),
      h('ul', { class: 'intents' }, world.intents.map((intent, i) => h('li', {
        class: i ? 'clip soft' : 'clip',
        title: `Coarse code ${intent.code}: ${intent.items.map(title).join(', ')}`,
      }, group(intent.items)))),
      h('h4', {}, 'Roles'),
      h('ol', { class: 'strip', 'aria-label': `Roles in ${name.toLowerCase()}` }, world.roles.map((role, i) => {
        const event = reasoned.events[i];
        const shown = i === removed ? null : role;
        const said = i === removed ? 'removed' : role ? role.toLowerCase() : 'no role';
        const look = i === world.intervention?.event ? 'set' : role !== factual[i] ? 'changed' : '';
        return cell(shown, look,
          `${event.event} of ${title(event.item_id)}: ${said}`);
      })),
      h('h4', {}, 'Candidates'),
      h('ol', { class: 'candidates' }, world.candidates.map((candidate) => {
        const at = rank(candidate.item_id);
        return h('li', {},
          h('span', { class: 'clip', title: title(candidate.item_id) }, title(candidate.item_id)),
          h('span', { class: 'soft num', title: 'Probability of the item in this world' }, percent(Math.exp(candidate.log_prob), 0)),
          h('span', { class: at ? 'rank' : 'rank none', title: at ? `Place ${at} of the list` : 'Not in the list' },
            at ? `#${at}` : '–'));
      })));
  }
}

// What is done in a world, in words.
export function done(reasoned, world) {
  const what = world.intervention;
  if (!what) return 'No intervention';
  if (what.kind === 'intent') {
    const intent = world.intents.find((each) => each.code === what.code);
    return `Intent set to ${intent ? group(intent.items) : `code ${what.code}`}`;
  }
  const event = reasoned.events[what.event];
  const named = `${event.event} of ${title(event.item_id)}`;
  return what.kind === 'remove' ? `Without the ${named}` : `The ${named} as ${what.role.toLowerCase()}`;
}
