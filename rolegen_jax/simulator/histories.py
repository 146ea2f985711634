"""Histories as flat arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES


class Moments(NamedTuple):
  """When something is asked of shoppers' histories."""

  log: pl.DataFrame  # events of the simulated log
  users: np.ndarray  # [O]
  timestamps: np.ndarray  # [O], of purchases; what happened before counts
  categories: np.ndarray | None = None  # [O], what is bought, where that is told


def event_codes(events: pl.Series) -> np.ndarray:
  """Return indices into EVENT_NAMES.

  Raises polars.exceptions.InvalidOperationError for an unknown name.
  """
  codes = events.cast(pl.String).replace_strict(
    list(EVENT_NAMES), range(len(EVENT_NAMES)), return_dtype=pl.Int64
  )
  return codes.to_numpy()


def rows_of_users(
  histories: pl.DataFrame, users: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Return (rows, items, event codes, timestamps) of the events of `users` [N], flat.

  rows: indices into `users`. Events of other users are left out.
  """
  row_of_user = pl.DataFrame(
    {'user_id': users, 'row': np.arange(len(users))}, schema_overrides={'user_id': pl.Int64}
  )
  events = histories.join(row_of_user, on='user_id')
  row, item, time = (events[name].to_numpy() for name in ('row', 'item_id', 'timestamp'))
  return row, item, event_codes(events['event']), time


def positions(rows: np.ndarray, timestamps: np.ndarray) -> Iterator[np.ndarray]:
  """Yield the indices of each row's first event, then of each row's second, and so on."""
  order = np.lexsort((timestamps, rows))
  sorted_rows = rows[order]
  first = np.searchsorted(sorted_rows, sorted_rows)
  position = np.arange(len(rows)) - first
  by_position = np.argsort(position, kind='stable')
  counts = np.bincount(position)
  yield from np.split(order[by_position], np.cumsum(counts)[:-1]) if len(rows) else ()
