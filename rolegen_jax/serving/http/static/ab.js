// The A/B test of a simulated run: what each arm sold, and how far RoleGen is ahead, with intervals.

import { ask } from './api.js';
import { byId, count, h, percent, plural, settled, signed, svg } from './dom.js';

const MEASURES = {
  orders: ['Orders', (x) => count(Math.round(x))],
  conversion_rate: ['Conversion rate', (x) => percent(x, 2)],
  daily_active_customers: ['Daily customers', (x) => x.toFixed(1)],
  gmv: ['GMV', (x) => count(Math.round(x))],
};
const CHART = { most: 840, height: 260, left: 52, right: 8, top: 10, bottom: 26 }; // pixels

let measure = 'orders';
let against = null;
let test = null;

export async function showTest() {
  if (!test) {
    test = await ask('v1/ab_test');
    window.addEventListener('resize', settled(() => byId('ab-page').hidden || draw(), 150));
  }
  const others = Object.keys(test.lifts);
  against ??= ['no_reasoner', 'counting', ...others].find((name) => others.includes(name));
  draw();
}

function draw() {
  const page = byId('ab-page');
  const focused = document.activeElement?.id;
  page.replaceChildren(head(), picker(), arms(), ...(against ? [byDay()] : []), figures());
  if (focused) byId(focused)?.focus();
}

function head() {
  const { provenance: from } = test;
  const training = test.training_seeds.length;
  return h('header', { class: 'who' },
    h('h2', {}, 'A/B test ', h('span', { class: 'tag' }, 'simulated')),
    h('p', { class: 'soft' },
      `${test.simulator}. ${plural(test.users, 'dormant user')}, ${plural(test.days, 'day')}, ${test.slate} items a visit, `
      + `${plural(training, 'training seed')}, ${plural(test.seeds, 'noise seed')}.`),
    h('p', { class: 'soft small' }, `${from.intervals}. ${from.when.slice(0, 16).replace('T', ' ')} UTC, ${from.device_kind}, commit ${from.commit}. `
      + 'The users are simulated: these figures say nothing about a real shop.'));
}

function picker() {
  return h('div', { class: 'tabs', role: 'group', 'aria-label': 'Measure' },
    Object.entries(MEASURES).map(([name, [label]]) => h('button', {
      type: 'button',
      id: `measure-${name}`,
      'aria-pressed': name === measure ? 'true' : 'false',
      title: test.measures[name],
      onclick: () => { measure = name; draw(); },
    }, label)));
}

// A figure with its interval, for each arm, best first; beside it the lift of the tested arm.
function arms() {
  const [label, text] = MEASURES[measure];
  const names = Object.keys(test.arms).sort((a, b) => test.arms[b][measure].mean - test.arms[a][measure].mean);
  const all = names.map((name) => test.arms[name][measure]);
  const low = Math.min(...all.map((x) => x.low));
  const high = Math.max(...all.map((x) => x.high));
  const at = (x) => 2 + (96 * (x - low)) / (high - low || 1);
  return h('section', { 'aria-labelledby': 'arms-title' },
    h('h3', { id: 'arms-title' }, `${label} by arm`),
    h('div', { class: 'scroll' }, h('table', { class: 'arms' },
      h('thead', {}, h('tr', {}, ['Arm', label, '95 % interval', '', 'Lift of RoleGen over it', ''].map((name) => h('th', {}, name)))),
      h('tbody', {}, names.map((name) => {
        const { mean, low: from, high: to } = test.arms[name][measure];
        const lift = test.lifts[name]?.[measure];
        return h('tr', { class: name.startsWith(test.tested) ? 'tested' : null },
          h('th', { scope: 'row' }, name.replaceAll('_', ' ')),
          h('td', {}, text(mean)),
          h('td', { class: 'soft' }, `${text(from)} to ${text(to)}`),
          h('td', { class: 'plot' }, svg('svg', { viewBox: '0 0 100 12', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
            svg('line', { x1: at(from), x2: at(to), y1: 6, y2: 6 }),
            svg('rect', { x: at(mean) - 0.7, y: 1.5, width: 1.4, height: 9 }))),
          h('td', {}, lift ? h('b', { class: verdict(lift) }, `${signed(100 * lift.mean, 1)} %`) : ''),
          h('td', { class: 'soft' }, lift ? `${signed(100 * lift.low, 1)} to ${signed(100 * lift.high, 1)}` : ''));
      })))),
    h('p', { class: 'soft small' }, 'Lifts are like for like: arms that show slates against RoleGen\u2019s slates. '
      + 'Green and red: the interval is on one side of zero.'));
}

function verdict(lift) {
  if (lift.low > 0) return 'ahead';
  return lift.high < 0 ? 'behind' : 'open';
}

function byDay() {
  const lift = test.lifts[against];
  const known = lift.orders_by_day.map((each, day) => each && { day: day + 1, ...each }).filter(Boolean);
  const choice = h('select', { id: 'against', onchange: (event) => { against = event.target.value; draw(); } },
    Object.keys(test.lifts).map((name) => h('option', { value: name, selected: name === against }, name.replaceAll('_', ' '))));
  const title = `${lift.tested.replaceAll('_', ' ')} over ${against.replaceAll('_', ' ')}: lift in orders so far`;
  return h('section', { 'aria-labelledby': 'days-title' },
    h('div', { class: 'bar' }, h('h3', { id: 'days-title' }, 'Lift in orders so far'), h('label', {}, 'over ', choice)),
    known.length ? chart(known, title) : h('p', { class: 'soft' }, 'That arm sold nothing to compare with.'));
}

function chart(days, title) {
  const { most: widest, height, left, right, top, bottom } = CHART;
  const style = getComputedStyle(byId('ab-page'));
  const room = byId('ab-page').clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const width = Math.max(Math.min(room, widest), 240);
  // The first days have few orders and wide intervals, which would flatten the rest.
  const rest = days.slice(Math.floor(days.length / 4));
  const most = Math.max(...rest.map((x) => x.high), ...days.map((x) => x.mean), 0.01);
  const least = Math.min(...rest.map((x) => x.low), ...days.map((x) => x.mean), -0.01);
  const x = (day) => left + ((width - left - right) * (day - 1)) / Math.max(test.days - 1, 1);
  const y = (value) => top + ((height - top - bottom) * (most - Math.min(Math.max(value, least), most))) / (most - least);
  const points = (key) => days.map((each) => `${x(each.day)},${y(each[key])}`);
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5].find((each) => (most - least) / each <= 6) ?? 10;
  const ticks = [];
  for (let value = Math.ceil(least / step) * step; value <= most + 1e-9; value += step) ticks.push(value);
  const { mean, low, high } = days[days.length - 1];
  const said = `${title}, at the end ${signed(100 * mean, 1)} %, interval ${signed(100 * low, 1)} to ${signed(100 * high, 1)} %`;
  return h('figure', {},
    svg('svg', { class: 'days', width, height, role: 'img', 'aria-label': said },
      ticks.map((value) => [
        svg('line', { class: Math.abs(value) < 1e-9 ? 'zero' : 'grid', x1: left, x2: width - right, y1: y(value), y2: y(value) }),
        svg('text', { x: left - 6, y: y(value) + 4, 'text-anchor': 'end' }, `${signed(100 * value, 0)} %`)]),
      svg('polygon', { points: [...points('low'), ...points('high').reverse()].join(' ') }),
      svg('polyline', { points: points('mean').join(' ') }),
      [1, Math.ceil(test.days / 2), test.days].map((day) => svg('text', { x: x(day), y: height - 8, 'text-anchor': day === 1 ? 'start' : day === test.days ? 'end' : 'middle' }, `day ${day}`))),
    h('figcaption', { class: 'soft small' }, `${said}. The band is the 95 % interval.`));
}

function figures() {
  return h('details', { class: 'figures' },
    h('summary', {}, 'All figures'),
    h('div', { class: 'scroll' }, h('table', {},
      h('thead', {}, h('tr', {}, ['Arm', ...Object.values(MEASURES).map(([label]) => label), 'Views a visit', 'Orders a visit'].map((name) => h('th', {}, name)))),
      h('tbody', {}, Object.entries(test.arms).map(([name, arm]) => h('tr', {},
        h('th', { scope: 'row' }, name.replaceAll('_', ' ')),
        Object.entries(MEASURES).map(([key, [, text]]) => h('td', {}, text(arm[key].mean),
          h('span', { class: 'soft small' }, ` ${text(arm[key].low)}–${text(arm[key].high)}`))),
        h('td', {}, arm.shown_view_rate.toFixed(3)),
        h('td', {}, arm.shown_order_rate.toFixed(4))))))));
}
