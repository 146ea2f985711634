"""Fixed-shape rows of trajectories: what a model reads.

Numpy on the host, jax on the device, the same structure. B rows, n events of a row, R coarse codes
and S items per event, M role events, P path items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # the models import this module and need no reader of tables
  from rolegen_jax.data.log import InteractionLog

Array = Any  # numpy.ndarray on the host, jax.Array on the device


class Trajectories(NamedTuple):
  """B rows of n events in time order.

  A row may hold several users' windows (packed), told apart by `segment`.
  """

  item: Array  # int32 [B, n], item index; -1 = padding
  event: Array  # int32 [B, n], index in EVENT_NAMES
  count: Array  # int32 [B, n], how often the event occurred at that time
  timestamp: Array  # int32 [B, n], seconds UTC
  segment: Array  # int32 [B, n], 1.. per window; 0 = padding


class Excites(NamedTuple):
  """What each event of a history leads to, as `features/excitation.py` counts it."""

  code: Array  # int32 [B, n, R], coarse codes
  weight: Array  # fp32 [B, n, R], share above the base rate; 0 = nothing
  shift: Array  # fp32 [B, n, R], share after the event less share before it
  next_item: Array  # int32 [B, n, S], items that follow
  share: Array  # fp32 [B, n, S], how much more often than at large; 0 = nothing
  # int32 [B, n, A], attributes of the event's item; -1 = no more. None = without kinds of users.
  attribute: Any = None


class Examples(NamedTuple):
  """B occasions: a history, the time of the occasion, and what is known of its outcome.

  Histories are right-aligned and strictly before the occasion. `target` and everything below never
  enters a prompt; at inference they are -1.
  """

  history: Trajectories
  timestamp: Array  # int32 [B]
  excites: Excites
  target: Array  # int32 [B], an item bought at the occasion; -1 = none
  roles: Array  # int32 [B, M], hindsight role of each of the last M events; -1 = none
  # int32 [B, P], items that the user went on to buy or engage with, target first; -1 = no more
  path: Array
  # text.packing.Packed, [B, tokens]: words to learn beside each occasion; None = none
  words: Any = None


def pack_windows(
  offsets: np.ndarray,
  ends: np.ndarray,
  width: int,
  pick: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
  """Cut each user's rows offsets[u]:ends[u] into windows and pack these into rows of `width`.

  Long histories become windows of `width` events that overlap by half, so that a position late in a
  window has context. pick: last log row of each window -> which windows to pack; None = all.

  Returns int64 [4, windows]: (row, start column, first log row, length) of each window, sorted by
  row and column. The number of rows is packed[0].max() + 1.
  """
  start, length = _windows(offsets, ends, width)
  if pick is not None:
    picked = pick(start + length - 1)
    start, length = start[picked], length[picked]
  row, column = _first_fit(length, width)
  packed = np.stack([row, column, start, length])
  return packed[:, np.lexsort((column, row))]


def _windows(offsets: np.ndarray, ends: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Return (first log row, length) of every window, int64 [windows] each."""
  start: list[int] = []
  length: list[int] = []
  for begin, end in zip(offsets[:-1], ends):
    n_events = int(end - begin)
    if n_events < 2:
      continue  # nothing to predict from
    firsts = [0]
    if n_events > width:
      firsts = [*range(0, n_events - width, width // 2), n_events - width]
    start += [int(begin) + first for first in firsts]
    length += [min(n_events, width)] * len(firsts)
  return np.array(start, np.int64), np.array(length, np.int64)


def _first_fit(length: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Place windows of these lengths, longest first, into the fullest row that has room for them.

  Returns (row, start column) of every window, int64 [windows] each.
  """
  row, column = np.zeros(len(length), np.int64), np.zeros(len(length), np.int64)
  rows_by_room: dict[int, list[int]] = {}  # free positions -> rows; at most `width` sizes
  n_rows = 0
  for i in np.argsort(-length, kind='stable'):
    needed = int(length[i])
    room = next((r for r in range(needed, width + 1) if rows_by_room.get(r)), None)
    if room is None:
      room, target_row = width, n_rows
      n_rows += 1
    else:
      target_row = rows_by_room[room].pop()
    row[i], column[i] = target_row, width - room
    rows_by_room.setdefault(room - needed, []).append(target_row)
  return row, column


def packed_rows(
  log: InteractionLog, packed: np.ndarray, rows: np.ndarray, width: int
) -> Trajectories:
  """Return the packed rows of the given numbers, arrays [len(rows), width].

  packed: what `pack_windows` returned.
  """

  def filled(value: int) -> np.ndarray:
    return np.full((len(rows), width), value, np.int32)

  item, event, count, timestamp, segment = filled(-1), filled(0), filled(0), filled(0), filled(0)
  first = np.searchsorted(packed[0], rows)
  last = np.searchsorted(packed[0], rows, side='right')
  for b in range(len(rows)):
    windows = packed[:, first[b] : last[b]].T
    for number, (_, column, start, length) in enumerate(windows, 1):
      columns, source = slice(column, column + length), slice(start, start + length)
      item[b, columns] = log.item[source]
      event[b, columns] = log.event[source]
      count[b, columns] = log.count[source]
      timestamp[b, columns] = log.timestamp[source]
      segment[b, columns] = number
  return Trajectories(item, event, count, timestamp, segment)


def histories(log: InteractionLog, user: np.ndarray, end: np.ndarray, width: int) -> Trajectories:
  """Return the last `width` events of each user before log row `end`, right-aligned.

  user, end: [B]. `end` are absolute rows of the log.
  """
  index = end[:, None] - width + np.arange(width)
  is_event = index >= log.offsets[user][:, None]
  index = np.where(is_event, index, 0)

  def gathered(column: np.ndarray, padding: int) -> np.ndarray:
    return np.where(is_event, column[index], padding).astype(np.int32)

  return Trajectories(
    gathered(log.item, -1),
    gathered(log.event, 0),
    gathered(log.count, 0),
    gathered(log.timestamp, 0),
    is_event.astype(np.int32),
  )


def append(
  history: Trajectories,
  row: np.ndarray,
  item: np.ndarray,
  event: np.ndarray,
  timestamp: np.ndarray,
) -> Trajectories:
  """Append E events to right-aligned histories [B, n]; the oldest events fall out.

  row, item, event, timestamp: [E], sorted by `row` (the history's number) and time.
  """
  n_rows, width = history.item.shape
  first = np.searchsorted(row, np.arange(n_rows))
  last = np.searchsorted(row, np.arange(n_rows), side='right')
  changed = np.flatnonzero(last > first)
  index = np.arange(width) + (last - first)[changed, None]  # into the old row, then the new events
  is_old = index < width
  old_column = np.minimum(index, width - 1)
  new_event = np.where(is_old, 0, first[changed, None] + index - width)

  def appended(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    result = old.copy()
    shifted = np.take_along_axis(old[changed], old_column, axis=1)
    result[changed] = np.where(is_old, shifted, new[new_event])
    return result

  ones = np.ones(len(row), np.int32)
  return Trajectories(*map(appended, history, (item, event, ones, timestamp, ones)))
