"""Fixed-shape rows of trajectories: what a model reads. Numpy on the host, jax on the device, the same structure."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy.ndarray on the host, jax.Array on the device


class Trajectories(NamedTuple):
  """B rows of n events in time order. A row may hold several users' windows (packed), told apart by `segment`."""

  item: Array  # int32 [B, n], item index; -1 = padding
  event: Array  # int32 [B, n], index in EVENT_NAMES
  count: Array  # int32 [B, n], how often the event occurred at that time
  timestamp: Array  # int32 [B, n], seconds UTC
  segment: Array  # int32 [B, n], 1.. per window; 0 = padding


class Excites(NamedTuple):
  """What each event of a history leads to, as `features/excitation.py` counts it."""

  code: Array  # int32 [B, n, R], coarse codes (coarse codes)
  weight: Array  # fp32 [B, n, R], share above the base rate; 0 = nothing
  shift: Array  # fp32 [B, n, R], share after the event less share before it
  next_item: Array  # int32 [B, n, S], items that follow
  share: Array  # fp32 [B, n, S], how much more often than at large; 0 = nothing


class Examples(NamedTuple):
  """B occasions: a history (right-aligned, strictly before the occasion), its time, and what is known of its outcome.

  `target` and everything below never enters a prompt; at inference they are -1.
  """

  history: Trajectories
  timestamp: Array  # int32 [B]
  excites: Excites
  target: Array  # int32 [B], an item bought at the occasion; -1 = none
  roles: Array  # int32 [B, M], hindsight role of each of the last M events; -1 = unknown or padding
  path: Array  # int32 [B, P], items that the user went on to buy or engage with, target first; -1 = nothing more


def pack_windows(
  offsets: np.ndarray, ends: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts each user's rows offsets[u]:ends[u] into windows of at most `width` events and packs them into rows, first-fit.

  Long histories become windows that overlap by half, so that a position late in a window has context. Returns
  (row, start column, first log row, length) stacked as int64 [4, windows] sorted by row; the number of rows is row.max() + 1.
  """
  start, length = [], []
  for begin, end in zip(offsets[:-1], ends):
    n = int(end - begin)
    if n < 2:
      continue  # nothing to predict from
    firsts = [0] if n <= width else [*range(0, n - width, width // 2), n - width]
    start += [int(begin) + f for f in firsts]
    length += [min(n, width)] * len(firsts)
  start, length = np.array(start, np.int64), np.array(length, np.int64)
  order = np.argsort(-length, kind='stable')
  by_room: dict[
    int, list[int]
  ] = {}  # free positions -> rows; first-fit by best fit over at most `width` sizes
  row, column, rows = np.zeros(len(start), np.int64), np.zeros(len(start), np.int64), 0
  for i in order:
    need = int(length[i])
    room = next((r for r in range(need, width + 1) if by_room.get(r)), None)
    if room is None:
      room, target, rows = width, rows, rows + 1
    else:
      target = by_room[room].pop()
    row[i], column[i] = target, width - room
    by_room.setdefault(room - need, []).append(target)
  packed = np.stack([row, column, start, length])
  return packed[:, np.lexsort((column, row))]


def packed_rows(log, packed: np.ndarray, rows: np.ndarray, width: int) -> Trajectories:
  """The packed rows of the given numbers, as arrays [len(rows), width]."""
  blank = lambda fill: np.full((len(rows), width), fill, np.int32)
  item, event, count, timestamp, segment = blank(-1), blank(0), blank(0), blank(0), blank(0)
  first, last = np.searchsorted(packed[0], rows), np.searchsorted(packed[0], rows, side='right')
  for b, (f, l) in enumerate(zip(first, last)):
    for number, (_, column, start, length) in enumerate(packed[:, f:l].T, 1):
      to, take = slice(column, column + length), slice(start, start + length)
      item[b, to], event[b, to], count[b, to] = log.item[take], log.event[take], log.count[take]
      timestamp[b, to], segment[b, to] = log.timestamp[take], number
  return Trajectories(item, event, count, timestamp, segment)


def histories(log, user: np.ndarray, end: np.ndarray, width: int) -> Trajectories:
  """The last `width` events of each user before absolute log row `end`, right-aligned, [len(user), width]."""
  index = end[:, None] - width + np.arange(width)
  real = index >= log.offsets[user][:, None]
  index = np.where(real, index, 0)
  pick = lambda a, fill: np.where(real, a[index], fill).astype(np.int32)
  return Trajectories(
    pick(log.item, -1),
    pick(log.event, 0),
    pick(log.count, 0),
    pick(log.timestamp, 0),
    real.astype(np.int32),
  )


def append(history: Trajectories, row: np.ndarray, item, event, timestamp) -> Trajectories:
  """Right-aligned histories [B, n] with E further events at their ends, [E] each, sorted by `row` and time; the oldest fall out."""
  width, size = history.item.shape[1], len(history.item)
  first, last = (
    np.searchsorted(row, np.arange(size)),
    np.searchsorted(row, np.arange(size), side='right'),
  )
  grows = np.flatnonzero(last > first)
  index = np.arange(width) + (last - first)[grows, None]  # into the old row and the events after it
  old = index < width
  new = np.where(old, 0, first[grows, None] + index - width)

  def grown(before, values):
    after = before.copy()
    after[grows] = np.where(
      old, np.take_along_axis(before[grows], np.minimum(index, width - 1), 1), values[new]
    )
    return after

  ones = np.ones(len(row), np.int32)
  return Trajectories(*map(grown, history, (item, event, ones, timestamp, ones)))
