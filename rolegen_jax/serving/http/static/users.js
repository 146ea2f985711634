// The search for a user: a combobox whose list stays open where there is room for it.

import { ask } from './api.js';
import { byId, day, h, plural, settled, year } from './dom.js';

const SHOWN = 50;

export class Finder {
  // choose(user_id): called when somebody is picked. fail(error): when the search failed.
  constructor(choose, fail) {
    this.choose = choose;
    this.fail = fail;
    this.users = [];
    this.active = -1; // place in `users`
    this.input = byId('find');
    this.list = byId('found');
    this.dormant = byId('dormant');
    const search = settled(() => this.search(), 120);
    this.input.addEventListener('input', search);
    this.dormant.addEventListener('change', search);
    this.input.addEventListener('keydown', (event) => this.onKey(event));
    // The list must not take the focus, or it would close under the pointer on a phone.
    this.list.addEventListener('pointerdown', (event) => event.preventDefault());
    document.addEventListener('keydown', (event) => {
      const types = event.target.closest('input, textarea, select, dialog');
      if (event.key === '/' && !types && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        this.input.focus();
        this.input.select();
      }
    });
  }

  // Fetches and shows who is found. Returns the users, best first.
  async search() {
    this.running?.abort();
    const running = this.running = new AbortController();
    const asked = { search: this.input.value, dormant: this.dormant.checked, limit: SHOWN };
    try {
      const found = await ask('v1/users', asked, running.signal);
      this.users = found.users;
      this.total = found.total;
      this.active = -1;
      this.draw();
    } catch (error) {
      if (error.name !== 'AbortError') this.fail(error);
    }
    return this.users;
  }

  // Marks the user who is shown.
  select(userId) {
    this.selected = userId;
    this.draw();
  }

  draw() {
    const more = this.total > this.users.length ? `, the first ${this.users.length} listed` : '';
    byId('count').textContent = this.total ? `${plural(this.total, 'user')}${more}` : 'Nobody has such an id';
    this.list.replaceChildren(...this.users.map((user, place) => this.option(user, place)));
    this.mark();
  }

  option(user, place) {
    const last = user.last === null ? '' : `${day(user.last)} ${year(user.last)}`;
    return h('li', {
      id: `found-${place}`,
      role: 'option',
      'aria-selected': user.user_id === this.selected ? 'true' : 'false',
      onclick: () => this.pick(place),
    },
    h('span', { class: 'id' }, h('b', { class: 'clip' }, String(user.user_id)), h('span', { class: 'soft small' }, last)),
    h('span', { class: 'soft small clip' }, `${plural(user.events, 'event')} · ${plural(user.purchases, 'purchase')}`));
  }

  mark() {
    [...this.list.children].forEach((option, place) => option.classList.toggle('active', place === this.active));
    const option = this.list.children[this.active];
    if (option) {
      this.input.setAttribute('aria-activedescendant', option.id);
      option.scrollIntoView({ block: 'nearest' });
    } else this.input.removeAttribute('aria-activedescendant');
  }

  onKey(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    const n = this.users.length;
    if (event.key in steps && n) {
      event.preventDefault();
      const from = this.active < 0 && steps[event.key] < 0 ? n : this.active;
      this.active = (from + steps[event.key] + n) % n;
      this.mark();
    } else if (event.key === 'Enter' && n) {
      event.preventDefault();
      this.pick(Math.max(this.active, 0));
    } else if (event.key === 'Escape') {
      this.input.value = '';
      this.search();
    }
  }

  pick(place) {
    this.active = place;
    this.input.blur();
    this.choose(this.users[place].user_id);
  }
}
