"""The items that a load test removes, brings back, adds and tags, and what may be listed when.

A server may have been changed before, by a load test even: `start` is told which items it lists.
An item is gone from when its removal was acknowledged until its return is asked for. In between it
may be there or not: the server is free to do a change at any time before it acknowledges it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rolegen_jax.serving.load.plan import Id, Shop

MOST_ITEMS, MOST_NEW, SHARE = 256, 64, 0.1  # that come and go; share of the catalogue

LISTED, REMOVED = 'listed', 'removed'


@dataclasses.dataclass
class _Spell:
  """A time without an item, by the clock of the load test; end: its return was asked for."""

  start: float
  end: float = math.inf


@dataclasses.dataclass
class Change:
  """A change that is under way."""

  item: Id
  body: dict[str, Any]
  leaves: str  # LISTED or REMOVED


class Shelf:
  """Draws changes that the server has to accept, and says which lists it may not answer."""

  def __init__(self, shop: Shop, seed: int):
    self._rng = np.random.default_rng((seed, 1))
    ids = list(shop.items)
    n = max(1, min(MOST_ITEMS, int(SHARE * len(ids))))
    chosen = [ids[i] for i in self._rng.choice(len(ids), n, replace=False)]
    number = max(ids) + 1 if isinstance(ids[0], int) else 0  # type: ignore[type-var, operator]
    # Whatever the seed: another load test of the same server then knows what they are.
    new: list[Id] = [
      number + i if isinstance(ids[0], int) else f'loadtest-{i}' for i in range(min(MOST_NEW, n))
    ]
    others = [item for item in ids if item not in set(chosen)][: len(new)]
    self._like = dict(
      zip(new, others)
    )  # of new items that the server does not know: ones that stay
    self.of_run, self.new = [*chosen, *others], new
    self._columns = {item: shop.items[item] for item in chosen}
    self._columns |= {item: shop.items[chosen[i]] for i, item in enumerate(new)}
    self._state = {item: LISTED for item in chosen} | {item: REMOVED for item in new}
    self._is_changing: set[Id] = set()
    self._spells: dict[Id, list[_Spell]] = {item: [] for item in chosen}
    self._spells |= {item: [_Spell(-math.inf)] for item in new}
    self._ids = set(ids) | set(new)

  def start(self, listed: Mapping[Id, bool]) -> None:
    """Take note of which items the server lists, of those it knows; the rest is as in the run."""
    for item, is_listed in listed.items():
      if item in self._state:
        self._state[item] = LISTED if is_listed else REMOVED
        self._spells[item] = [] if is_listed else [_Spell(-math.inf)]
        self._like.pop(item, None)
    self._like = {item: like for item, like in self._like.items() if listed.get(like, True)}

  def draw(self, now: float) -> Change | None:
    """Return a change to send now; None where all items are being changed."""
    free = [item for item in self._state if item not in self._is_changing]
    if not free:
      return None
    item = free[int(self._rng.integers(len(free)))]
    self._is_changing.add(item)
    if self._state[item] == REMOVED:
      if self._spells[item]:
        self._spells[item][-1].end = now
      add = dict(item_id=item, columns=self._columns[item])
      if item in self._like:
        add['like'] = self._like[item]
      return Change(item, dict(add=[add]), LISTED)
    if self._rng.uniform() < 0.5:
      return Change(item, dict(remove=[item]), REMOVED)
    tag = {'loadtest': int(self._rng.integers(1000))}
    return Change(item, dict(tag=[dict(item_id=item, columns=tag)]), LISTED)

  def settle(self, change: Change, now: float, done: bool) -> None:
    """Take note of an answer. Where nobody knows what was done, the item is left alone for good."""
    if not done:
      return
    self._is_changing.discard(change.item)
    if change.leaves == REMOVED and self._state[change.item] == LISTED:
      self._spells[change.item].append(_Spell(now))
    if change.leaves == LISTED:
      self._like.pop(change.item, None)
    self._state[change.item] = change.leaves

  def fault(self, items: list[Id], k: int, sent: float, answered: float) -> str | None:
    """Return what is wrong with a list that was asked for and answered then, None if nothing."""
    if not items:
      return 'an empty list'
    if len(items) > k:
      return 'too long a list'
    if len(set(items)) < len(items):
      return 'an item twice'
    for item in items:
      if item not in self._ids:
        return 'an unknown item'
      if any(s.start <= sent and s.end >= answered for s in self._spells.get(item, ())):
        return 'a removed item'
    return None
