"""Planted roles of a simulated log, with the true removal effect of every planted pair.

A pair is an occasion and one of the M = RECENT events before it. N events of the log, O occasions,
H events before them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.simulator.rules import DAY

if TYPE_CHECKING:
  from rolegen_jax.simulator.base import World

RECENT = 24  # events before an occasion that get a role
CHUNK = 1024  # occasions whose pairs are held at once
PURCHASE = EVENT_NAMES.index('purchase')
ANCHOR, COMPARE, REINFORCE = map(ROLE_NAMES.index, ('ANCHOR', 'COMPARE', 'REINFORCE'))


@dataclasses.dataclass(frozen=True)
class Pairs:
  """The pairs of O occasions, and the whole histories behind them."""

  users: np.ndarray  # [O]
  times: np.ndarray  # [O], of the purchases
  bought: np.ndarray  # [O], items
  items: np.ndarray  # [O, M], -1 = no event
  codes: np.ndarray  # [O, M]
  event_times: np.ndarray  # [O, M]
  contacts: np.ndarray  # [O, M], by `contact_roles`
  past: tuple[np.ndarray, ...]  # [H] each: occasion, item, event code, time


def contact_roles(
  world: World, users: np.ndarray, items: np.ndarray, codes: np.ndarray, times: np.ndarray
) -> np.ndarray:
  """Return the role of every event inside the intent of its own category, [N].

  An intent of a user in a category begins with the first event there, ends with a purchase there,
  and is over after `intent_gap_days` without an event there. Its first event is the ANCHOR; an item
  met for the first time later is COMPARE; any further event on an item already met in this intent
  is REINFORCE.

  users, items, codes, times: [N], sorted by user and time.
  """
  category = world.traits.category_I[items]
  order = np.lexsort((times, category, users))
  user, category, item, time = users[order], category[order], items[order], times[order]
  is_purchase = codes[order] == PURCHASE
  is_anchor = np.ones(len(user), bool)
  is_anchor[1:] = (
    (np.diff(user) != 0)
    | (np.diff(category) != 0)
    | is_purchase[:-1]
    | (np.diff(time) > world.rules.intent_gap_days * DAY)
  )
  intent = np.cumsum(is_anchor)
  by_item = np.lexsort((time, item, intent))
  is_first = np.ones(len(user), bool)
  is_first[1:] = (np.diff(intent[by_item]) != 0) | (np.diff(item[by_item]) != 0)
  is_first_meeting = np.empty(len(user), bool)
  is_first_meeting[by_item] = is_first
  roles = np.empty(len(user), int)
  roles[order] = np.where(is_anchor, ANCHOR, np.where(is_first_meeting, COMPARE, REINFORCE))
  return roles


def planted(
  world: World, users: np.ndarray, items: np.ndarray, codes: np.ndarray, times: np.ndarray
) -> pl.DataFrame:
  """Return one row per purchase and each of the RECENT events before it.

  users, items, codes, times: [N], sorted by user and time.
  """
  contacts = contact_roles(world, users, items, codes, times)
  first = np.searchsorted(users, users)  # row of each event's user's first event
  occasions = np.flatnonzero((codes == PURCHASE) & (np.arange(len(users)) > first))
  frames = []
  for rows_O in np.array_split(occasions, max(1, -(-len(occasions) // CHUNK))):
    recent_OxM = rows_O[:, None] - np.arange(RECENT, 0, -1)
    is_event = recent_OxM >= first[rows_O, None]
    recent_OxM = np.where(is_event, recent_OxM, 0)
    past, occasion = ranges(first[rows_O], rows_O - first[rows_O])
    pairs = Pairs(
      users=users[rows_O],
      times=times[rows_O],
      bought=items[rows_O],
      items=np.where(is_event, items[recent_OxM], -1),
      codes=codes[recent_OxM],
      event_times=times[recent_OxM],
      contacts=contacts[recent_OxM],
      past=(occasion, items[past], codes[past], times[past]),
    )
    role, effect = world.roles_and_effects(pairs)
    event_row = recent_OxM[is_event]
    occasion_row = np.broadcast_to(rows_O[:, None], is_event.shape)[is_event]
    frames.append(
      pl.DataFrame(
        {
          'user_id': users[occasion_row],
          'occasion_timestamp': times[occasion_row],
          'timestamp': times[event_row],
          'item_id': items[event_row],
          'event': np.array(EVENT_NAMES)[codes[event_row]],
          'role': np.array(ROLE_NAMES)[role[is_event]],
          'effect': effect[is_event],
        }
      )
    )
  return pl.concat(frames)


def ranges(first_O: np.ndarray, lengths_O: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return the members of O ranges of rows, flattened, and the range that each belongs to."""
  owner = np.repeat(np.arange(len(first_O)), lengths_O)
  position = np.arange(lengths_O.sum()) - np.repeat(np.cumsum(lengths_O) - lengths_O, lengths_O)
  return position + first_O[owner], owner
