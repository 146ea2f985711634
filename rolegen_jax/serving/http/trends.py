"""What trends while the server runs: events that come in join those of the log.

As in training (`features/trending.py`), a day knows all events strictly before it: what comes today
counts from tomorrow on, and what comes late, about days that are over, within a minute. Times
before the end of the log know what they knew.

Shapes: N item numbers, D days, A items listed a day.
"""

from __future__ import annotations

import collections
import math
import time

import numpy as np

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.features import trending
from rolegen_jax.features.trending import DAY, NO_MORE, Trending
from rolegen_jax.serving.http.columns import grown
from rolegen_jax.serving.http.items import Items
from rolegen_jax.serving.http.users import History

EVERY = 60.0  # seconds between two looks at what came late
_IMPRESSION = EVENT_NAMES.index('impression')


class Trends:
  """The table of a catalogue, kept up to date. One thread adds events, another reads them."""

  def __init__(
    self, log: InteractionLog, half_life: float, table: Trending, items: Items, every: float = EVERY
  ):
    """half_life: in days. table: of the log, padded. items: that it is about."""
    self._half_life, self._items, self._every = half_life, items, every
    self._end, self._mass = trending.mass(log, half_life)  # the log's last day; fp64 [N]
    self._first = int(table.first_day)
    self._slot, self._share = table.item.copy(), table.share.copy()
    self._number = table.item.copy()  # of whom the entries are: a number is a slot at first
    self._came: collections.deque[tuple[int, int]] = collections.deque()  # day and number
    self._days: dict[int, list[int]] = {}  # numbers of the events of each day after the log
    self._since: float = math.inf  # the earliest day with events that the table does not know
    self._known, self._written = self._end, -math.inf  # the latest day asked for; when it was

  def add(self, events: History) -> None:
    """Take note of events that were not there before."""
    acted = events.event != _IMPRESSION
    day, number = events.timestamp[acted] // DAY, events.item[acted]
    self._came.extend(zip(day.tolist(), number.tolist()))

  def refresh(self, day: int) -> None:
    """Bring the table up to what a day, in days since 1970, may know."""
    self._collect()
    if day <= self._since:  # what came is of days that are not over by then
      return
    now = time.monotonic()
    if day <= self._known and now < self._written + self._every:
      return
    self._known, self._written = max(day, self._known), now
    self._rewrite()
    table = Trending(np.int32(self._first), self._slot.copy(), self._share.copy())
    self._items.tables.set_trending(table, self._number.copy())

  def _collect(self) -> None:
    self._mass = grown(self._mass, len(self._items.ids), 0.0)
    while self._came:
      day, number = self._came.popleft()
      if day > self._end:
        self._days.setdefault(day, []).append(number)
      else:
        self._mass[number] += 0.5 ** ((self._end - day) / self._half_life)
      self._since = min(self._since, max(day, self._end))

  def _rewrite(self) -> None:
    """Write the rows of the days after `_since`."""
    mass, at = self._mass.copy(), self._end
    for day in sorted({self._end, *self._days}):
      mass *= 0.5 ** ((day - at) / self._half_life)
      at = day
      np.add.at(mass, self._days.get(day, []), 1.0)
      if day >= self._since:
        self._write(day + 1, mass)
    self._since = math.inf

  def _write(self, day: int, mass_N: np.ndarray) -> None:
    """Write what a day knows; later ones know as much, until more is known of them."""
    self._make_room(day)
    number, share = trending.largest_shares(mass_N, self._slot.shape[1])
    slot = self._items.slots(np.where(number < NO_MORE, number, -1))
    slot = np.where(slot >= 0, slot, NO_MORE)
    order = np.argsort(slot, kind='stable')
    rows = slice(day - self._first, None)
    self._slot[rows], self._number[rows] = slot[order], number[order]
    self._share[rows] = np.where(slot < NO_MORE, share, 0)[order]

  def _make_room(self, day: int) -> None:
    """Drop the oldest days where a day has no row; times before all rows know nothing then."""
    rows, place = len(self._slot), day - self._first
    if place < rows:
      return
    drop = place - rows // 2
    self._first += drop
    latest = np.minimum(drop + np.arange(rows), rows - 1)
    self._slot, self._number, self._share = (
      x[latest] for x in (self._slot, self._number, self._share)
    )
    self._share[0] = 0.0
