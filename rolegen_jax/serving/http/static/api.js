// Requests to the server's documented API, the token that they carry, and the items they name.

import { byId } from './dom.js';

const KEPT = 'rolegen-token'; // in sessionStorage: gone with the tab, never part of a URL
const MOST_ITEMS = 1000; // of a request
const MOST_KEPT = 20000; // items
const BUSY = [429, 503];
const TRIES = 4;

export class Refused extends Error {
  constructor(status, field, message) {
    super(field ? `${field}: ${message}` : message);
    this.status = status;
  }
}

// Ids beyond 2^53 stay what they are where the browser shows us the text of a number.
function parsed(text) {
  return JSON.parse(text, (key, value, context) =>
    typeof value === 'number' && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? '')
      ? BigInt(context.source)
      : value);
}

export function json(value) {
  return JSON.stringify(value, (key, part) => (typeof part === 'bigint' ? JSON.rawJSON(String(part)) : part));
}

export const parse = parsed;

// Returns the answer. Asks for the token where one is missing, and again where the server is busy.
export async function ask(path, body, signal) {
  for (let tried = 1; ; tried++) {
    const headers = { 'content-type': 'application/json' };
    const token = sessionStorage.getItem(KEPT);
    if (token) headers.authorization = `Bearer ${token}`;
    const request = body === undefined ? { headers, signal } : { method: 'POST', body: json(body), headers, signal };
    const response = await fetched(path, request);
    if (response.ok) return parsed(await response.text());
    if (response.status === 401) {
      await tokenAfter(token);
      continue;
    }
    if (BUSY.includes(response.status) && tried < TRIES) {
      const seconds = Number(response.headers.get('retry-after') ?? 1);
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      signal?.throwIfAborted();
      continue;
    }
    throw await refusal(response);
  }
}

async function fetched(path, request) {
  try {
    return await fetch(path, { ...request, cache: 'no-store', credentials: 'omit' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refused(0, '', 'The server does not answer. Is it still running?');
  }
}

async function refusal(response) {
  try {
    const problem = JSON.parse(await response.text());
    return new Refused(response.status, problem.field, problem.message);
  } catch {
    return new Refused(response.status, '', `The server answered with status ${response.status}.`);
  }
}

// The token

let entering = null; // one dialog for all requests that wait

function tokenAfter(wrong) {
  if (sessionStorage.getItem(KEPT) !== wrong) return Promise.resolve(); // another has got it since
  entering ??= entered(Boolean(wrong)).finally(() => { entering = null; });
  return entering;
}

function entered(wasWrong) {
  const dialog = byId('token');
  const input = byId('token-input');
  byId('token-wrong').hidden = !wasWrong;
  input.value = '';
  dialog.showModal();
  input.focus();
  return new Promise((done) => {
    dialog.oncancel = (event) => event.preventDefault(); // there is nothing to see without it
    byId('token-form').onsubmit = (event) => {
      event.preventDefault();
      // A header holds no more; what the server takes as a token is printable ASCII.
      sessionStorage.setItem(KEPT, input.value.replace(/[^\x21-\x7e]/g, ''));
      dialog.close();
      done();
    };
  });
}

// Items

const rows = new Map();
let version = null;

// Fetches the items that are not known yet; `asOf`: the version of the catalogue of the answer that
// names them, for another may call them otherwise.
export async function learn(ids, asOf, signal) {
  if (asOf !== undefined && asOf !== version) {
    rows.clear();
    version = asOf;
  }
  if (rows.size > MOST_KEPT) rows.clear();
  const missing = [...new Set(ids)].filter((id) => !rows.has(id));
  for (let start = 0; start < missing.length; start += MOST_ITEMS) {
    const found = await ask('v1/items', { item_ids: missing.slice(start, start + MOST_ITEMS) }, signal);
    for (const row of found.items) rows.set(row.item_id, row);
  }
}

export const columns = (id) => rows.get(id)?.columns ?? {};
export const title = (id) => String(columns(id).title ?? `Item ${id}`);

export function about(id) {
  const { category_code: path, category_id: category, brand, price } = columns(id);
  const place = path ?? (category === undefined ? undefined : `category ${category}`);
  return [place, brand, typeof price === 'number' ? price.toFixed(2) : price]
    .filter((part) => part !== undefined)
    .join(' · ');
}

// What a group of items is called: what most of them share, or its first item.
export function group(ids) {
  for (const name of ['category_code', 'category_id', 'brand']) {
    const values = ids.map((id) => columns(id)[name]).filter((value) => value !== undefined);
    const most = values.find((value) => 2 * values.filter((other) => other === value).length > ids.length);
    if (most !== undefined) return String(most);
  }
  return ids.length ? title(ids[0]) : 'no item';
}
