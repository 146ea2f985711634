"""What trends while the server runs: events that come in join those of the log.

As in training (`features/trending.py`), a day knows all events strictly before it: what comes today
counts from tomorrow on, and what comes late, about days that are over, within a minute, as does an
item that comes back to the catalogue. Days of the log know what they knew.

Shapes: N item numbers, D days, A items listed a day.
"""

from __future__ import annotations

import collections
import math
import threading
import time

import numpy as np

from rolegen_jax.data.log import InteractionLog
from rolegen_jax.features import trending
from rolegen_jax.features.trending import DAY, IMPRESSION, NO_MORE, PAGE, Trending
from rolegen_jax.serving.http.columns import grown
from rolegen_jax.serving.http.items import Items
from rolegen_jax.serving.http.users import History

EVERY = 60.0  # seconds between two looks at what came late
MORE_ROOM = PAGE // 4  # rows that are dropped at once
DAYS_KEPT = 7  # by which events may be late and count as exactly; older ones fade from there


class Trends:
  """The table of a catalogue, kept up to date. One thread adds events, another reads them."""

  def __init__(
    self, log: InteractionLog, half_life: float, table: Trending, items: Items, every: float = EVERY
  ):
    """half_life: in days. table: of the log, padded. items: that it is about."""
    self._half_life, self._items, self._every = half_life, items, every
    self._table = Trending(*(x.copy() for x in table))
    self._number = table.item.copy()  # of whom the entries are: a number is a slot at first
    # What there is of each number by the end of a day, fp64 [N]; and of each day after it, how many
    # events each number had.
    self._end, self._mass = trending.mass(log, half_life)
    self._days: dict[int, collections.Counter[int]] = {}
    self._lock = threading.Lock()  # of what came since it was looked at, by day
    self._came: dict[int, collections.Counter[int]] = {}
    self._since: float = math.inf  # the earliest day with events that the table does not know
    self._known, self._written = self._end, -math.inf  # the latest day asked for; when it was
    self._version = -1  # of the catalogue, when rows were written; -1 = none was

  def add(self, events: History) -> None:
    """Take note of events that were not there before."""
    acted = events.event != IMPRESSION
    day, number = events.timestamp[acted] // DAY, events.item[acted]
    with self._lock:
      for at, item in zip(day.tolist(), number.tolist()):
        self._came.setdefault(at, collections.Counter())[item] += 1

  def refresh(self, day: int) -> None:
    """Bring the table up to what a day, in days since 1970, may know."""
    self._collect()
    if 0 <= self._version < self._items.version:  # rows that were written know who was listed then
      self._since = min(self._since, self._end)
    if day <= self._since:  # what came is of days that are not over by then
      return
    now = time.monotonic()
    if day <= self._known and now < self._written + self._every:
      return
    self._rewrite()
    table = Trending(*(x.copy() for x in self._table))
    self._items.tables.set_trending(table, self._number.copy())
    self._since, self._version = math.inf, self._items.version
    self._known, self._written = max(day, self._known), now
    self._fold()

  def _collect(self) -> None:
    with self._lock:
      came, self._came = self._came, {}
    self._mass = grown(self._mass, len(self._items.ids), 0.0)
    for day, counts in came.items():
      if day > self._end:
        self._days.setdefault(day, collections.Counter()).update(counts)
      else:
        _count(self._mass, counts, 0.5 ** ((self._end - day) / self._half_life))
      self._since = min(self._since, max(day, self._end))

  def _rewrite(self) -> None:
    """Write the rows of the days after `_since`, after the others."""
    mass, at, days = self._mass, self._end, sorted(self._days)
    rows = int(np.searchsorted(self._table.day, self._since, side='right'))
    self._table.day[rows:] = NO_MORE
    if self._since <= at:
      self._write(at + 1, mass)
    for day in days:
      mass = mass * 0.5 ** ((day - at) / self._half_life)
      _count(mass, self._days[day])
      at = day
      if day >= self._since:
        self._write(day + 1, mass)

  def _fold(self) -> None:
    """Keep the days that are long over as one."""
    for day in sorted(self._days):
      if day <= max(self._days) - DAYS_KEPT:
        self._mass = self._mass * 0.5 ** ((day - self._end) / self._half_life)
        _count(self._mass, self._days.pop(day))
        self._end = day

  def _write(self, day: int, mass_N: np.ndarray) -> None:
    """Write what is known from a day on, as the last row."""
    self._make_room()
    slot_N = self._items.slots(np.arange(len(self._items.ids)))
    there = np.where(slot_N >= 0, mass_N[: len(slot_N)], 0.0)
    number, share = trending.largest_shares(there, self._number.shape[1])
    share = share * (there.sum() / max(mass_N.sum(), 1e-300))
    slot = np.where(number < NO_MORE, slot_N[np.minimum(number, len(slot_N) - 1)], NO_MORE)
    order, row = np.argsort(slot, kind='stable'), self._rows()
    self._table.day[row] = day
    self._table.item[row], self._table.share[row] = slot[order], share[order]
    self._number[row] = number[order]

  def _rows(self) -> int:
    return int(np.sum(self._table.day < NO_MORE))

  def _make_room(self) -> None:
    """Drop the oldest rows where there is no more room; times before the others know nothing."""
    if self._rows() < len(self._table.day):
      return
    for x in (*self._table, self._number):
      x[:-MORE_ROOM] = x[MORE_ROOM:]
    self._table.day[-MORE_ROOM:] = NO_MORE
    self._table.share[0] = 0.0


def _count(mass_N: np.ndarray, counts: collections.Counter[int], worth: float = 1.0) -> None:
  mass_N[list(counts)] += worth * np.array(list(counts.values()))
