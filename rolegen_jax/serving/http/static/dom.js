// Elements, and numbers and times as text. Text is only ever set as text: nothing on this page
// makes HTML of it, whatever a title of a log contains.

const SVG = 'http://www.w3.org/2000/svg';
const DATE = new Intl.DateTimeFormat('en', { day: 'numeric', month: 'short', timeZone: 'UTC' });
const LONG = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeStyle: 'short', timeZone: 'UTC' });
const COUNT = new Intl.NumberFormat('en');

export const byId = (id) => document.getElementById(id);

// An element: `on*` are listeners, `style` is a map, what is null or false is left out.
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'style') {
      for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    } else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export const count = (n) => COUNT.format(n);
export const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? '' : 's'}`;
export const day = (seconds) => DATE.format(seconds * 1000);
export const year = (seconds) => new Date(seconds * 1000).getUTCFullYear();
export const moment = (seconds) => `${LONG.format(seconds * 1000)} UTC`;
export const minus = (text) => text.replace('-', '\u2212');

export function signed(x, digits = 2) {
  const text = x.toFixed(digits);
  return Number(text) === 0 ? text.replace('-', '') : minus(x > 0 ? `+${text}` : text);
}

export function percent(share, digits = 1) {
  const value = 100 * share;
  return value > 0 && value < 0.1 ** digits ? `< ${(0.1 ** digits).toFixed(digits)} %` : `${minus(value.toFixed(digits))} %`;
}

export function span(seconds) {
  const days = seconds / 86400;
  if (days >= 1) return plural(Math.round(days), 'day');
  const hours = seconds / 3600;
  return hours >= 1 ? plural(Math.round(hours), 'hour') : plural(Math.max(Math.round(seconds / 60), 1), 'minute');
}

// Calls `work` once nobody has called for a moment.
export function settled(work, milliseconds) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), milliseconds);
  };
}
