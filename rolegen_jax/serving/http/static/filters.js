// Filters by the columns of the catalogue, applied as they change.

import { count, h, settled } from './dom.js';

const FIRST = ['category_code', 'category_id', 'brand', 'region', 'price'];
const MOST_SHOWN = 100; // values of a menu at once

export class Filters {
  // changed(where): called with the filters of a request.
  constructor(place, changed) {
    this.place = place;
    this.changed = settled(() => changed(this.where()), 150);
    this.chosen = new Map(); // name of a column -> Set of values, or {min, max}
    document.addEventListener('pointerdown', (event) => this.close(event.target));
    document.addEventListener('keydown', (event) => {
      const open = place.querySelector('details[open]');
      if (event.key !== 'Escape' || !open) return;
      open.open = false;
      open.querySelector('summary').focus();
    });
  }

  // Shows the columns in which values group items, or are numbers.
  show(columns) {
    const rank = ({ name }) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
    const useful = columns.filter(({ kind, values, distinct }) => (kind === 'number' ? distinct > 1 : values.length > 1));
    useful.sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name));
    this.clear = h('button', { type: 'button', class: 'plain', disabled: true, onclick: () => this.reset() }, 'Clear');
    this.columns = useful;
    this.menus = new Map(useful.map((column) => [column.name, column.kind === 'number' ? this.range(column) : this.values(column)]));
    this.place.replaceChildren(...this.menus.values(), ...(useful.length ? [this.clear] : []));
  }

  reset() {
    this.chosen.clear();
    this.show(this.columns);
    this.changed();
  }

  where() {
    const filters = [...this.chosen].map(([name, wanted]) => [name, wanted instanceof Set ? [...wanted] : wanted]);
    return Object.fromEntries(filters.filter(([, wanted]) => !Array.isArray(wanted) || wanted.length));
  }

  menu(column, ...content) {
    const state = h('b', { class: 'num' });
    const menu = h('details', { class: 'menu', ontoggle: () => menu.open && menu.querySelector('input')?.focus() },
      h('summary', {}, h('span', {}, column.name.replaceAll('_', ' ')), state),
      h('div', { class: 'sheet' }, content));
    menu.tell = (text) => {
      state.textContent = text;
      menu.classList.toggle('on', Boolean(text));
      this.clear.disabled = ![...this.menus.values()].some((each) => each.classList.contains('on'));
      this.changed();
    };
    return menu;
  }

  values(column) {
    const wanted = new Set();
    const options = h('ul', {});
    const find = h('input', { type: 'search', placeholder: 'Find a value', 'aria-label': `Find a value of ${column.name}`, autocomplete: 'off' });
    const menu = this.menu(column, find, options);
    const toggle = (value, on) => {
      wanted[on ? 'add' : 'delete'](value);
      this.chosen.set(column.name, wanted);
      menu.tell(wanted.size ? String(wanted.size) : '');
    };
    const draw = () => {
      const part = find.value.trim().toLowerCase();
      const fits = column.values.filter(({ value }) => String(value).toLowerCase().includes(part));
      options.replaceChildren(...fits.slice(0, MOST_SHOWN).map(({ value, items }) => h('li', {},
        h('label', {},
          h('input', { type: 'checkbox', checked: wanted.has(value), onchange: (event) => toggle(value, event.target.checked) }),
          h('span', { class: 'clip' }, String(value)),
          h('span', { class: 'soft num' }, count(items))))));
      if (!fits.length) options.append(h('li', { class: 'soft' }, 'None of the most common values'));
    };
    find.addEventListener('input', draw);
    draw();
    return menu;
  }

  range(column) {
    const wanted = {};
    const input = (end, hint) => h('label', {}, end === 'min' ? 'From' : 'To', h('input', {
      type: 'number',
      step: 'any',
      placeholder: hint,
      'aria-label': `${column.name}, ${end === 'min' ? 'from' : 'to'}`,
      oninput: (event) => {
        const value = event.target.valueAsNumber;
        if (Number.isNaN(value)) delete wanted[end];
        else wanted[end] = value;
        if (Object.keys(wanted).length) this.chosen.set(column.name, wanted);
        else this.chosen.delete(column.name);
        const isWrong = wanted.min > wanted.max;
        event.target.setCustomValidity(isWrong ? 'The first must be at most the second' : '');
        event.target.reportValidity();
        if (!isWrong) menu.tell(Object.keys(wanted).length ? `${wanted.min ?? '…'}–${wanted.max ?? '…'}` : '');
      },
    }));
    const menu = this.menu(column, h('div', { class: 'ends' }, input('min', column.min), input('max', column.max)));
    return menu;
  }

  close(target) {
    this.place.querySelectorAll('details[open]').forEach((menu) => {
      if (!menu.contains(target)) menu.open = false;
    });
  }
}
