"""Planted roles of the simulated world, with the true removal effect of every (occasion, recent event) pair."""

from __future__ import annotations

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES

RECENT = 24  # events before an occasion that get a role
CHUNK = 1024  # occasions whose states are held at once
PURCHASE = EVENT_NAMES.index('purchase')
ANCHOR, COMPARE, REINFORCE = (ROLE_NAMES.index(r) for r in ('ANCHOR', 'COMPARE', 'REINFORCE'))


def contact_roles(world, users, items, codes, times) -> np.ndarray:
  """Role code of every event inside the intent of its own category: ANCHOR, COMPARE or REINFORCE.

  An intent of a user in a category begins with the first event there, ends with a purchase there, and is over after
  `intent_gap_days` without an event there. Its first event is the ANCHOR; an item met for the first time later is
  COMPARE; any further event on an item already met in this intent is REINFORCE. Arrays sorted by user and time.
  """
  category = world.traits.category_I[items]
  order = np.lexsort((times, category, users))
  u, c, t, bought = users[order], category[order], times[order], codes[order] == PURCHASE
  begins = np.ones(len(u), bool)
  begins[1:] = (
    (np.diff(u) != 0)
    | (np.diff(c) != 0)
    | bought[:-1]
    | (np.diff(t) > world.rules.intent_gap_days * 86_400)
  )
  intent = np.cumsum(begins)
  by_item = np.lexsort((t, items[order], intent))
  first = np.ones(len(u), bool)
  first[1:] = (np.diff(intent[by_item]) != 0) | (np.diff(items[order][by_item]) != 0)
  meets = np.empty(len(u), bool)
  meets[by_item] = first
  roles = np.empty(len(u), int)
  roles[order] = np.where(begins, ANCHOR, np.where(meets, COMPARE, REINFORCE))
  return roles


def relative_roles(world, items, codes, contacts, bought) -> np.ndarray:
  """Role codes of events relative to the purchase of `bought`; broadcasts. First rule that holds wins, as documented."""
  t = world.traits
  # An item cannot be an alternative to itself: meeting the bought item for the first time is its entry, an ANCHOR.
  contacts = np.where((contacts == COMPARE) & (items == bought), ANCHOR, contacts)
  own, target = t.category_I[items], t.category_I[bought]
  rules = {
    'CONVERT': codes == PURCHASE,
    'TRIGGER': t.trigger_I[items] == target,
    'DISTRACT': t.distracts_I[items] == t.department_C[target],
    'contact': own == target,
    'COMPLEMENT': t.complement_C[own] == target,
  }
  values = [contacts if name == 'contact' else ROLE_NAMES.index(name) for name in rules]
  return np.select(list(rules.values()), values, ROLE_NAMES.index('EXPLORE'))


def planted(world, users, items, codes, times) -> pl.DataFrame:
  """One row per purchase and each of the RECENT events before it. Arrays sorted by user and time."""
  contacts = contact_roles(world, users, items, codes, times)
  first = np.searchsorted(users, users)  # row of each event's user's first event
  occasions = np.flatnonzero((codes == PURCHASE) & (np.arange(len(users)) > first))
  frames = []
  for at in np.array_split(occasions, max(1, -(-len(occasions) // CHUNK))):
    recent = at[:, None] - np.arange(RECENT, 0, -1)
    here = recent >= first[at, None]
    recent = np.where(here, recent, 0)
    # Every earlier event of the occasion's user, flattened: lengths -> row numbers -> positions in the log.
    lengths = at - first[at]
    row = np.repeat(np.arange(len(at)), lengths)
    past = (
      np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + first[at][row]
    )
    state = world.state_of_rows(users[at], row, items[past], codes[past], times[past])
    shown = np.where(here, items[recent], -1)
    effect = world.removal_effects(state, times[at], items[at], shown, codes[recent], times[recent])
    role = relative_roles(world, items[recent], codes[recent], contacts[recent], items[at][:, None])
    event, repeat = recent[here], np.broadcast_to(at[:, None], here.shape)[here]
    frames.append(
      pl.DataFrame(
        {
          'user_id': users[repeat],
          'occasion_timestamp': times[repeat],
          'timestamp': times[event],
          'item_id': items[event],
          'event': np.array(EVENT_NAMES)[codes[event]],
          'role': np.array(ROLE_NAMES)[role[here]],
          'effect': effect[here],
        }
      )
    )
  return pl.concat(frames)
