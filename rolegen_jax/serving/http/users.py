"""Histories by user: those of the run's log, and the events appended since.

Items are numbers (`items.py`), which are never used again for another item. Rows are as in the log:
sorted by time, event and item, equal rows counted.

Shapes: N rows of a history.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rolegen_jax.data.events import FIRST_TIMESTAMP, MAX_TIMESTAMP
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.serving.http.schema import Refused

# Rows of the users to whom events were appended, some 20 bytes each: of all of them, and of one, or
# as many as the models read. A user's oldest rows go first.
MOST_HELD = 10_000_000
MOST_OF_USER = 1000
AHEAD = 86_400  # seconds by which an event may be ahead of the clock, or of the run's log


class History(NamedTuple):
  """The rows of one user; arrays are replaced, never written into."""

  item: np.ndarray  # int32 [N], item numbers
  event: np.ndarray  # int8 [N], index in EVENT_NAMES
  timestamp: np.ndarray  # int64 [N], seconds UTC
  count: Any  # int32 [N]; a tuple has a method of that name

  def before(self, time: int) -> History:
    """Return the rows strictly before a time."""
    end = int(np.searchsorted(self.timestamp, time))
    return History(*(field[:end] for field in self))

  def picked(self, rows: np.ndarray | slice) -> History:
    """Return some of the rows."""
    return History(*(field[rows] for field in self))


def merged(*histories: History) -> History:
  """Return all rows in the order of a log; equal ones become one, their counts added up."""
  item, event, timestamp, count = (np.concatenate(parts) for parts in zip(*histories))
  order = np.lexsort((item, event, timestamp))
  rows = History(item[order], event[order], timestamp[order], count[order])
  differs = np.ones(len(order), bool)
  for field in rows[:3]:
    differs[1:] &= field[1:] == field[:-1]
  differs[1:] = ~differs[1:]
  first = np.flatnonzero(differs)
  if len(first) == len(order):
    return rows
  return rows.picked(first)._replace(count=np.add.reduceat(rows.count, first))


class Users:
  """The histories of all users. One thread appends, others may read meanwhile."""

  def __init__(self, log: InteractionLog, read: int = 0):
    """read: how many of a history's latest events the models read."""
    self._log, self._most = log, max(read, MOST_OF_USER)
    self.ids: list[int | str] = log.users.to_list()  # by index
    self._index = {user: i for i, user in enumerate(self.ids)}
    self._kind = type(self.ids[0])
    self._changed: dict[int, History] = {}
    self._rows = 0  # of those that changed
    self._first, self._last = int(log.timestamp.min()), int(log.timestamp.max())
    self.latest = self._last  # seconds UTC, of all events

  def index(self, user_id: int | str) -> int | None:
    """Return the user's index, None where there is no such user."""
    # True == 1, and 1.0: only an id of the log's own type is one.
    return self._index.get(user_id) if type(user_id) is self._kind else None

  def bounds(self, now: int) -> tuple[int, int]:
    """Return the first and the last second of events that are accepted at `now`, seconds UTC.

    Appended events move neither, or one a day later each time would take the last to any time.
    """
    # As `data/events.py` has it: a log whose seconds are from another origin has no 1990.
    first = FIRST_TIMESTAMP if self._first >= FIRST_TIMESTAMP else 1
    return first, min(max(now, self._last) + AHEAD, MAX_TIMESTAMP)

  def history(self, user: int) -> History:
    """Return the rows of a user by index."""
    if user in self._changed:
      return self._changed[user]
    log = self._log
    rows = slice(log.offsets[user], log.offsets[user + 1])
    return History(log.item[rows], log.event[rows], log.timestamp[rows], log.count[rows])

  def append(self, user_id: int | str, events: History) -> tuple[int, History]:
    """Append events in any order to a user, who is new if need be.

    Returns how many rows are kept of the user, and which of them were not there before. Raises
    Refused where the id is not of the log's type, or memory for events is used up.
    """
    if type(user_id) is not self._kind:
      right = 'a whole number' if self._kind is int else 'text'
      raise Refused(422, 'user_id', f'must be {right}, as the ids of the log are')
    user = self._index.get(user_id)
    before = None if user is None else self.history(user)
    rows = merged(events) if before is None else merged(before, events)
    rows = rows.picked(slice(max(len(rows.item) - self._most, 0), None))
    held = 0 if before is None or user not in self._changed else len(before.item)
    if self._rows + len(rows.item) - held > MOST_HELD:
      raise Refused(507, 'events', f'no room: {MOST_HELD} rows of histories that changed are held')
    user = len(self.ids) if user is None else user
    self._changed[user] = rows  # first the rows, then the name by which they are found
    if user == len(self.ids):
      self.ids.append(user_id)
      self._index[user_id] = user
    self._rows += len(rows.item) - held
    self.latest = max(self.latest, int(events.timestamp.max()))
    return len(rows.item), _new(rows, events, before)


def _new(rows: History, events: History, before: History | None) -> History:
  """Return the rows that are of the events and were not there before.

  What is too old to be kept is none of them: whether it came before is not known any more.
  """
  came, there = _keys(events), [] if before is None else _keys(_at_times_of(events, before))
  new, some = set(came).difference(there), _at_times_of(events, rows)
  return some.picked(np.array([key in new for key in _keys(some)], bool))


def _at_times_of(events: History, rows: History) -> History:
  return rows.picked(np.flatnonzero(np.isin(rows.timestamp, events.timestamp)))


def _keys(rows: History) -> list[tuple[int, int, int]]:
  return list(zip(*(field.tolist() for field in rows[:3])))
