// The page: who is looked at, as of when and under which filters, and what follows from that.
// The address names the user, so that a link opens the same view: #user=7

import { ask, json, learn, parse } from './api.js';
import { showTest } from './ab.js';
import { byId, count, day, h, moment, plural, year } from './dom.js';
import { Filters } from './filters.js';
import { list, scaleOf } from './lists.js';
import { expertLegend } from './roles.js';
import { Timeline } from './timeline.js';
import { Finder } from './users.js';
import { Worlds } from './worlds.js';

const HISTORY = 200; // events that are drawn
const THEMES = { system: 'light dark', light: 'light', dark: 'dark' };

const view = { user: undefined, time: null, where: {}, world: 0, past: null, answers: null };
let run = null;
let timeline = null;
let worlds = null;
let finder = null;
let asking = null; // of the latest question, which ends the one before

async function start() {
  theme();
  try {
    run = await ask('v1/run');
    byId('run').textContent = `${run.name}${run.simulated ? ', simulated data' : ''} · ${plural(run.items, 'item')} · `
      + `${plural(run.users, 'user')} · log to ${day(run.last)} ${year(run.last)}`;
    byId('to-ab').hidden = !run.ab_test;
    timeline = new Timeline((time) => leap(view.time === time ? null : time));
    worlds = new Worlds(run, (world) => { view.world = world; drawReasons(); });
    byId('legend').append(expertLegend(experts()));
    byId('both').style.setProperty('--rows', run.top);
    const filters = new Filters(byId('filters'), (where) => { view.where = where; recommend(); });
    finder = new Finder((user) => { location.hash = `user=${encodeURIComponent(json(user))}`; }, fail);
    byId('compare').addEventListener('change', recommend);
    byId('compare').closest('label').hidden = !run.reasons;
    window.addEventListener('hashchange', route);
    const [{ columns }, found] = await Promise.all([ask('v1/columns'), finder.search()]);
    filters.show(columns);
    document.body.classList.remove('starting');
    if (!location.hash && found.length) history.replaceState(null, '', `#user=${encodeURIComponent(json(found[0].user_id))}`);
    await route();
  } catch (error) {
    fail(error);
  }
}

const experts = () => [...run.backbone_experts, ...(run.reasons ? run.reasoner_experts : [])];

async function route() {
  const isTest = location.hash === '#ab' && run.ab_test;
  byId('users-page').hidden = Boolean(isTest);
  byId('ab-page').hidden = !isTest;
  byId('to-ab').toggleAttribute('aria-current', isTest);
  byId('to-users').toggleAttribute('aria-current', !isTest);
  try {
    if (isTest) return await showTest();
    const [, named] = location.hash.match(/^#user=(.+)$/) ?? [];
    if (named !== undefined) await show(parse(decodeURIComponent(named)));
    else if (view.user !== undefined) history.replaceState(null, '', `#user=${encodeURIComponent(json(view.user))}`);
    else byId('user').setAttribute('aria-busy', 'false');
  } catch (error) {
    fail(error instanceof SyntaxError || error instanceof URIError ? new Error('This address names no user.') : error);
  }
}

// Shows a user.
async function show(user) {
  const isNew = user !== view.user;
  Object.assign(view, { user, time: isNew ? null : view.time, world: 0 });
  finder.select(user);
  await recommend();
}

// Shows what would have been recommended just before a time; null = now.
function leap(time) {
  view.time = time;
  view.world = 0;
  recommend();
}

async function recommend() {
  if (view.user === undefined) return;
  asking?.abort();
  const mine = asking = new AbortController();
  byId('user').setAttribute('aria-busy', 'true');
  try {
    const started = performance.now();
    const question = { user_id: view.user, k: run.top, explain: true, worlds: true, where: view.where };
    if (view.time !== null) question.time = view.time;
    const compares = run.reasons && byId('compare').checked;
    const [past, ours, alone] = await Promise.all([
      ask('v1/history', { user_id: view.user, limit: HISTORY }, mine.signal),
      ask('v1/recommend', { ...question, reasoning: run.reasons ? 'cached' : 'off' }, mine.signal),
      compares ? ask('v1/recommend', { ...question, reasoning: 'off' }, mine.signal) : null,
    ]);
    const took = performance.now() - started;
    await learn(named(past, [ours, alone]), ours.catalogue_version, mine.signal);
    view.answers = { ours, alone, took };
    byId('problem').hidden = true;
    if (json(past) !== json(view.past)) { // another user, or events since
      view.past = past;
      timeline.show(past.events, past.user.events);
    }
    draw();
    byId('user').setAttribute('aria-busy', 'false');
  } catch (error) {
    if (error.name !== 'AbortError') fail(error);
  }
}

// The items that a view names.
function named(past, answers) {
  return [past.events, ...answers.filter(Boolean).flatMap(({ items, reasoned }) => [
    items,
    items.flatMap(({ reason }) => reason.carried_by),
    reasoned?.events ?? [],
    ...(reasoned?.worlds ?? []).flatMap((world) => [
      world.candidates,
      world.intents.flatMap((intent) => intent.items.map((item_id) => ({ item_id }))),
    ]),
  ])].flat().map(({ item_id: id }) => id);
}

function draw() {
  const { user } = view.past;
  byId('name').textContent = `User ${user.user_id}`;
  document.title = `User ${user.user_id} – RoleGen-JAX`;
  byId('facts').textContent = [
    plural(user.events, 'event'),
    plural(user.purchases, 'purchase') + (user.last_purchase ? `, the last on ${day(user.last_purchase)} ${year(user.last_purchase)}` : ''),
    user.last === null ? 'no event' : `last seen ${moment(user.last)}`,
    user.dormant ? 'dormant at the end of the log' : 'not dormant at the end of the log',
  ].join(' · ');
  drawMoment();
  drawReasons();
  drawLists();
}

function drawMoment() {
  const { time } = view;
  const since = time === null ? '' : timeline.since(time);
  byId('moment').replaceChildren(...(time === null ? ['As of now: all events were read.'] : [
    `As of ${moment(time)}${since ? `, ${since} after the event before` : ''}. `,
    h('button', { type: 'button', class: 'plain', onclick: () => leap(null) }, 'Back to now'),
  ]));
}

function drawReasons() {
  const { ours } = view.answers;
  const world = ours.reasoned ? Math.min(view.world, ours.reasoned.worlds.length - 1) : 0;
  timeline.tell(ours.reasoned, world, view.time);
  worlds.show(ours.reasoned, world, (id) => ours.items.findIndex((item) => item.item_id === id) + 1);
}

function drawLists() {
  const { ours, alone, took } = view.answers;
  const both = [ours, alone].filter(Boolean);
  const common = {
    experts: experts(),
    scale: scaleOf(both, experts()),
    size: run.top,
    open: new Set(),
    light: (carriers) => timeline.light(carriers, ours.time),
    became: (id) => (view.time === null ? undefined : timeline.after(id, view.time)),
  };
  const names = ['RoleGen', 'Backbone alone'];
  const ourName = ours.reasoned ? names[0] : names[1];
  const notes = { online: 'worlds rolled out now', cached: 'worlds as rolled out before', off: 'without the reasoner', late: 'reasons came too late' };
  const shown = [list({ ...common, name: ourName, note: notes[ours.reasoning], answer: ours, other: alone, compared: names[1] })];
  if (alone) shown.push(list({ ...common, name: names[1], note: notes.off, answer: alone, other: ours, compared: names[0] }));
  timeline.light([], ours.time);
  byId('both').replaceChildren(...shown);
  const shared = alone?.items.filter((item) => ours.items.some((other) => other.item_id === item.item_id)).length;
  byId('summary').textContent = [
    alone ? `${shared} of ${ours.items.length} items are in both lists` : null,
    `answered in ${count(Math.round(took))} ms`,
    `catalogue version ${ours.catalogue_version}`,
  ].filter(Boolean).join(' · ');
}

function fail(error) {
  byId('problem').textContent = error.message;
  byId('problem').hidden = false;
  byId('user').setAttribute('aria-busy', 'false');
  if (!(error instanceof Error) || error.status === undefined) console.error(error);
}

// Light, dark, or as the system has it; kept for the next visit.
function theme() {
  const button = byId('theme');
  const names = Object.keys(THEMES);
  let chosen = localStorage.getItem('rolegen-theme');
  if (!names.includes(chosen)) chosen = 'system';
  const apply = () => {
    document.documentElement.style.colorScheme = THEMES[chosen];
    button.textContent = `Theme: ${chosen}`;
  };
  button.addEventListener('click', () => {
    chosen = names[(names.indexOf(chosen) + 1) % names.length];
    localStorage.setItem('rolegen-theme', chosen);
    apply();
  });
  apply();
}

start();
