// What the functional roles, events and experts are called and look like.

import { h } from './dom.js';

// As the annotators of `text/prompts.toml` are told them.
const ROLES = {
  TRIGGER: ['Tr', 'opened an interest that was not there before'],
  ANCHOR: ['An', 'first contact with the kind of thing that is wanted'],
  COMPARE: ['Cm', 'an alternative to what is wanted'],
  REINFORCE: ['Re', 'repeated contact with the same item'],
  COMPLEMENT: ['Cp', 'another kind of thing that goes together with what is wanted'],
  EXPLORE: ['Ex', 'browsing without effect'],
  DISTRACT: ['Di', 'led away from what is wanted'],
  CONVERT: ['Cv', 'a purchase'],
};

const EXPERTS = {
  generative: "the item's semantic ID, by the depth decoder",
  dense: 'the state of the query against the vector of the item',
  history: 'past events with this very item',
  popularity: 'how often all users act on the item',
  trending: 'what all users have acted on lately',
  intent: "the reasoner's intent: the group that the item belongs to",
  retrieved: 'what the reasoner retrieves from the history',
  candidates: 'the candidates of the worlds',
};

const lower = (name) => name.toLowerCase();

// A role under an event; an empty place of the same height where there is none.
export function chip(role) {
  if (!role) return h('span', { class: 'role none' }, '\u00a0');
  return h('span', { class: `role ${lower(role)}`, title: ROLES[role]?.[1] ?? null }, lower(role));
}

// One cell of a strip of roles. look: set = by the intervention, changed = in its wake, or nothing.
export function cell(role, look, label) {
  const short = role ? (ROLES[role]?.[0] ?? role.slice(0, 2)) : '–';
  const kind = role ? `role ${lower(role)}` : 'none';
  return h('li', { class: `cell ${kind} ${look}`, title: label, 'aria-label': label }, short);
}

export function roleLegend(roles) {
  return h('ul', { class: 'legend', 'aria-label': 'Roles' },
    roles.map((role) => h('li', { title: ROLES[role]?.[1] ?? null },
      h('span', { class: `cell role ${lower(role)}` }, ROLES[role]?.[0] ?? role.slice(0, 2)), ` ${lower(role)}`)));
}

export const expertMeaning = (name) => EXPERTS[name] ?? '';

export function expertLegend(names) {
  return h('ul', { class: 'legend', 'aria-label': 'Experts' },
    names.map((name) => h('li', { title: expertMeaning(name) }, h('span', { class: `dot expert-${name}` }), ` ${name}`)));
}
