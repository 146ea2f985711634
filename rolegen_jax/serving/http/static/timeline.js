// The trajectory: one column per row of the history, roles under the events that have some.

import { title } from './api.js';
import { byId, day, h, moment, plural, span, year } from './dom.js';
import { chip } from './roles.js';

const DAY = 86400;

export class Timeline {
  // leap(time): called to see what would have been recommended just before an event.
  constructor(leap) {
    this.leap = leap;
    this.track = h('ol', { class: 'track', tabindex: '0', 'aria-label': 'Events, oldest first' });
    this.note = h('p', { class: 'soft small note' }, '\u00a0');
    byId('timeline').append(this.track, this.note);
  }

  // Shows the latest events of a user. total: how many there are.
  show(events, total) {
    this.events = events;
    this.slots = events.map((event, place) => this.slot(event, events[place - 1], events[place + 1]));
    this.track.replaceChildren(...this.slots.map((slot) => slot.li));
    this.track.scrollLeft = this.track.scrollWidth;
    this.left = total - events.length;
  }

  slot(event, previous, next) {
    const gap = next ? next.timestamp - event.timestamp : 0;
    const isNewYear = !previous || year(previous.timestamp) !== year(event.timestamp);
    const isNewDay = !previous || day(previous.timestamp) !== day(event.timestamp) || isNewYear;
    const when = isNewDay ? `${day(event.timestamp)}${isNewYear ? ` ${year(event.timestamp)}` : ''}` : '\u00a0';
    const times = event.count > 1 ? ` ×${event.count}` : '';
    const role = h('span', { class: 'slot-role' }, chip(null));
    const what = `${event.event}${times} of ${title(event.item_id)}, ${moment(event.timestamp)}`;
    const button = h('button', {
      type: 'button',
      title: `${what}. Press to see what would have been recommended just before it.`,
      onclick: () => this.leap(event.timestamp),
    },
    h('span', { class: 'when' }, when),
    h('span', { class: 'rail' },
      gap >= DAY ? h('span', { class: 'gap' }, `${Math.round(gap / DAY)} d`) : null,
      h('span', { class: `mark ${event.event}` })),
    h('span', { class: 'kind' }, `${event.event}${times}`),
    h('span', { class: 'item' }, title(event.item_id)));
    return { li: h('li', {}, button, role), role, button, what };
  }

  // Shows the roles of a world. time: events from there on were not read; null = all were.
  tell(reasoned, world, time) {
    const { events } = this;
    const end = time === null ? events.length : events.findIndex((event) => event.timestamp >= time);
    const read = end < 0 ? events.length : end;
    const said = reasoned ? this.places(reasoned.events, read) : [];
    const roleOf = new Map(said.map((place, i) => [place, reasoned.worlds[world].roles[i]]));
    const change = reasoned?.worlds[world].intervention;
    const removed = change?.kind === 'remove' ? said[change.event] : -1;
    this.slots.forEach(({ li, role, button, what }, place) => {
      li.classList.toggle('later', place >= read);
      li.classList.toggle('removed', place === removed);
      li.classList.toggle('here', place === read && time !== null);
      role.replaceChildren(place === removed ? h('span', { class: 'role gone' }, 'removed') : chip(roleOf.get(place)));
      const part = place === removed ? ', removed' : roleOf.get(place) ? `, ${roleOf.get(place).toLowerCase()}` : '';
      button.setAttribute('aria-label', `${what}${part}. Recommend as of just before it.`);
    });
    const earlier = this.left > 0 ? `${plural(this.left, 'earlier event')} not drawn. ` : '';
    const roles = said.length ? `Roles of ${world ? `world ${world}` : 'the factual world'}; ` : '';
    this.note.textContent = `${earlier}${roles}press an event to see what would have been recommended just before it.`;
  }

  // Where the events of an answer are among those that are drawn: both are in the order of the log.
  // -1 = not drawn: the answer may know of an event that the history did not have yet.
  places(events, read) {
    const same = (a, b) => a.item_id === b.item_id && a.timestamp === b.timestamp && a.event === b.event;
    const found = [];
    let end = read;
    for (let i = events.length - 1; i >= 0; i--) {
      const place = this.events.slice(0, end).findLastIndex((event) => same(event, events[i]));
      found.unshift(place);
      if (place >= 0) end = place;
    }
    return found;
  }

  // Marks the events that carried an item; none = nothing is marked.
  light(carriers, time) {
    const carries = (event) => carriers.some((carrier) =>
      carrier.item_id === event.item_id && carrier.event === event.event
      && Math.abs((time - event.timestamp) / DAY - carrier.days_ago) < 0.051);
    this.slots.forEach(({ li }, place) => li.classList.toggle('lit', carries(this.events[place])));
  }

  // What the user did with an item after a time: a purchase if there was one, else the first event.
  after(itemId, time) {
    const later = this.events.filter((event) => event.item_id === itemId && event.timestamp >= time);
    return later.find((event) => event.event === 'purchase') ?? later[0];
  }

  // How long ago the latest event before a time was, as text.
  since(time) {
    const before = this.events.filter((event) => event.timestamp < time);
    return before.length ? span(time - before[before.length - 1].timestamp) : '';
  }
}
