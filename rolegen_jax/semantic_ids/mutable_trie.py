"""A catalogue that changes while it serves, on the host: which items there are, and what a swap of items does to the tables.

A swap removes items, then adds new ones; afterwards the tables say what tables built afresh would say, and only the places
that changed were written. Legend: as in trie.py; n changed items, sorted by ID, their codes as columns [L, n].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rolegen_jax.semantic_ids import trie as trie_lib
from rolegen_jax.semantic_ids.allocator import Numbers
from rolegen_jax.semantic_ids.mutable_tables import MutableTables, Write
from rolegen_jax.semantic_ids.trie import Trie, runs_of


class Path(NamedTuple):
  """How far the tables know each of n IDs."""

  rows: list[np.ndarray]  # per level l < L, int64 [n]: the row of the first l codes, -1 = none
  depth: np.ndarray  # int64 [n]: the deepest level with a row
  item: np.ndarray  # int64 [n]: the only item that begins with the codes up to depth and the next one, -1 = none does


class MutableTrie:
  """`tables` is a Trie of numpy arrays; `send` is called with everything that is written into it, in order."""

  def __init__(
    self,
    codes: np.ndarray,
    codes_per_level: int,
    capacity: int | None = None,
    regions: np.ndarray | None = None,
    send: Callable[[Write], None] = lambda write: None,
  ):
    """Arguments and errors of `build_trie`; items are numbered as the rows of `codes` [I, L]."""
    codes = np.asarray(codes, np.int32)
    n_items, self.levels = codes.shape
    self.capacity = trie_lib.default_capacity(n_items) if capacity is None else capacity
    trie_lib.check_room(n_items, self.capacity)
    trie_lib.check_codes(codes, codes_per_level)
    self.codes_per_level = codes_per_level
    self.listed = (
      np.arange(self.capacity) < n_items
    )  # bool [capacity]: which numbers are items of the catalogue
    self._numbers = Numbers(n_items, self.capacity)
    self._live = MutableTables(
      codes,
      codes_per_level,
      self.capacity,
      None if regions is None else _words(regions, n_items),
      send,
    )

  @property
  def tables(self) -> Trie:
    return self._live.tables

  @property
  def items(self) -> int:
    return self.capacity - len(self._numbers)

  def swap(
    self, add: np.ndarray, remove: np.ndarray, regions: np.ndarray | None = None
  ) -> np.ndarray:
    """Removes items int [m], then adds items of codes int [n, L] and regions uint32 [n]. Returns the new ones' numbers, int64 [n].

    Numbers never used come first, then those of removed items, the longest gone first; until then a removed item keeps its
    codes. Raises ValueError, the catalogue being as before, for a code out of range, an ID that is taken or given twice, an item
    to remove that is not there or is named twice, more items than capacity, and regions missing or given in vain.
    """
    add, remove = np.asarray(add, np.int32).reshape(-1, self.levels), np.asarray(remove, np.int64)
    self._check_listed(remove)
    trie_lib.check_room(self.items - len(remove) + len(add), self.capacity)
    trie_lib.check_codes(add, self.codes_per_level)
    if (regions is None) != (self.tables.regions is None):
      raise ValueError(
        'trie: new items need regions if, and only if, the catalogue was built with regions'
      )
    new, order = self._by_id(add.T)
    trie_lib.check_distinct(order, new, 'new items')
    words = None if regions is None else _words(regions, len(add))[order]
    old, old_order = self._by_id(self._codes(remove))

    self._remove(old)
    path = self._path(new)
    at = np.flatnonzero(path.item >= 0)
    taken = at[(self._codes(path.item[at]) == new[:, at]).all(axis=0)]
    if len(taken):
      gone = remove[old_order]
      self._insert(
        gone, old, self._path(old), None if words is None else self.tables.regions[-1][gone]
      )
      row = taken[0]
      raise ValueError(
        f'trie: new item {order[row]} has the ID {new[:, row].tolist()} of item {path.item[row]}'
      )
    self.listed[remove] = False
    self._numbers.give(remove)
    numbers = self._numbers.take(len(add))
    self.listed[numbers] = True
    self._live.put(
      'item_codes',
      None,
      (numbers[:, None] * self.levels + np.arange(self.levels)).reshape(-1),
      add.reshape(-1),
    )
    self._insert(numbers[order], new, path, words)
    return numbers

  def set_regions(self, items: np.ndarray, regions: np.ndarray) -> None:
    """Gives items int [n] regions uint32 [n]: gone from one store, back in another. Raises ValueError as `swap` does."""
    items = np.asarray(items, np.int64)
    self._check_listed(items)
    if self.tables.regions is None:
      raise ValueError('trie: the catalogue was built without regions')
    words = _words(regions, len(items))
    codes, order = self._by_id(self._codes(items))
    self._live.put('regions', self.levels - 1, items[order], words[order])
    self._refresh(self._path(codes))

  def _check_listed(self, items: np.ndarray) -> None:
    known = (items >= 0) & (items < self.capacity)
    known[known] = self.listed[items[known]]
    if not known.all():
      raise ValueError(
        f'trie: item {items[~known][0]} is not in the catalogue, nor are {(~known).sum() - 1} others that were named'
      )
    ordered = np.sort(items)
    if (ordered[1:] == ordered[:-1]).any():
      raise ValueError(f'trie: item {ordered[1:][ordered[1:] == ordered[:-1]][0]} is named twice')

  def _codes(self, items: np.ndarray) -> np.ndarray:
    """int32 [L, n]: the codes of items [n]."""
    flat = self.tables.item_codes.reshape(-1)
    return np.stack([flat.take(items * self.levels + level) for level in range(self.levels)])

  def _by_id(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes int64 [L, n] in the order of their IDs, that order [n]) of codes [L, n]."""
    order = trie_lib.id_order(codes, self.codes_per_level)
    return np.stack([column.take(order).astype(np.int64) for column in codes]), order

  def _path(self, codes: np.ndarray) -> Path:
    n, first = codes.shape[1], self._live.last_direct
    rows = [np.zeros(n, np.int64)]
    for level in range(self.levels - 1):
      rows.append(
        rows[level] * self.codes_per_level + codes[level] if level < first else np.full(n, -1)
      )
    path = Path(rows, np.full(n, first), np.full(n, -1))
    at = np.arange(n)
    for level in range(first, self.levels):
      at = self._step(path, codes, level, at)
    return path

  def _step(self, path: Path, codes: np.ndarray, level: int, at: np.ndarray) -> np.ndarray:
    """Follows IDs `at`, which have a row at this level, to the next; returns those that have one there."""
    child, rows = (
      self._live.find(level, path.rows[level][at], codes[level, at]),
      self._live.rows[level + 1],
    )
    path.item[at] = np.where(child >= rows, child - rows, -1)
    on = np.flatnonzero((child >= 0) & (child < rows))
    if len(on):
      path.rows[level + 1][at[on]] = child[on]
      path.depth[at[on]] = level + 1
    return at[on]

  def _remove(self, codes: np.ndarray) -> None:
    """Takes the items of `codes` out of the tables, every row that is left empty, and every row that is left with one item."""
    path, live = self._path(codes), self._live
    gone, lone = (
      np.arange(0),
      np.arange(0),
    )  # IDs, one for each row of the level below that went, or made way for its only item
    for level in reversed(range(live.last_direct, self.levels)):
      gone = np.sort(np.concatenate([np.flatnonzero(path.depth == level), gone]))
      empty = live.unlink(level, path.rows[level][gone], codes[level, gone])
      if level == live.last_direct:
        break
      touched = np.sort(np.concatenate([gone, lone]))
      row = path.rows[level][touched]
      starts = runs_of(row)[0]
      touched, row = touched[starts], row[starts]
      child, count = live.children(level, row)
      only = np.full(len(row), -1)
      only[count > 0] = child[(np.cumsum(count) - count)[count > 0]]
      gone = touched[count == 0]
      one = np.flatnonzero((count == 1) & (only >= live.rows[level + 1]))
      item, lone = only[one] - live.rows[level + 1], touched[one]
      live.unlink(level, row[one], self._codes(item)[level].astype(np.int64))
      live.relabel(
        level - 1, path.rows[level - 1][lone], codes[level - 1, lone], live.rows[level] + item
      )
      live.free_rows(level, np.concatenate([row[count == 0], row[one]]))
    for level in reversed(range(live.last_direct)):
      row = path.rows[level + 1][gone]
      gone = gone[empty]
      gone = gone[runs_of(path.rows[level + 1][gone])[0]]
      if not len(gone):
        break
      live.free_rows(level + 1, path.rows[level + 1][gone])
      empty = live.unlink(level, path.rows[level][gone], codes[level, gone])
    if self.tables.regions is not None:
      self._refresh(path)

  def _insert(
    self, items: np.ndarray, codes: np.ndarray, path: Path, words: np.ndarray | None
  ) -> None:
    """Puts items [n] of `codes` and regions `words` [n], none of which is there, into the tables."""
    live, opens = self._live, _opens(codes)
    for level in range(
      live.last_direct, self.levels - 1
    ):  # where an item had a prefix for itself, it gets a row
      at = np.flatnonzero((path.depth == level) & (path.item >= 0))
      starts, run_of = runs_of(path.item[at])
      there, met = path.item[at[starts]], at[starts]
      row = live.take_rows(level + 1, len(there))
      live.relabel(level, path.rows[level][met], codes[level, met], row)
      live.link(
        level + 1, row, self._codes(there)[level + 1].astype(np.int64), live.rows[level + 2] + there
      )
      if words is not None:
        live.put('regions', level, row, self.tables.regions[-1][there])
      path.rows[level + 1][at], path.depth[at] = row[run_of], level + 1
      self._step(path, codes, level + 1, at)
    for level in range(live.last_direct, self.levels):
      at = np.flatnonzero(path.depth == level)
      starts = np.flatnonzero(opens[level + 1][at])
      first = at[starts]
      number = live.rows[level + 1] + items[first]
      size = np.diff(starts, append=len(at))
      shared = np.flatnonzero(size > 1)
      if len(shared):
        number[shared] = live.take_rows(level + 1, len(shared))
        several = np.repeat(size > 1, size)
        path.rows[level + 1][at[several]], path.depth[at[several]] = (
          np.repeat(number, size)[several],
          level + 1,
        )
      was_empty = live.link(level, path.rows[level][first], codes[level, first], number)
      if level == live.last_direct:
        for above in reversed(
          range(level)
        ):  # a row that had no child may be unknown to those above
          first = first[was_empty]
          was_empty = live.link_direct(above, path.rows[above][first], codes[above, first])
    if words is not None:
      live.put('regions', self.levels - 1, items, words)
      for level in range(1, self.levels):
        at = np.flatnonzero(path.rows[level] >= 0)
        starts = np.flatnonzero(opens[level][at])
        row = path.rows[level][at[starts]]
        if len(row):
          live.put(
            'regions',
            level - 1,
            row,
            self.tables.regions[level - 1][row] | np.bitwise_or.reduceat(words[at], starts),
          )

  def _refresh(self, path: Path) -> None:
    """Brings the regions of the rows on `path`, below which something changed or went, up to date."""
    changed = np.arange(len(path.depth))  # one ID for each node of the level below that changed
    for level in reversed(range(1, self.levels)):
      at = np.flatnonzero(path.rows[level][changed] >= 0)
      rest, at = np.delete(changed, at), changed[at]
      at = at[runs_of(path.rows[level][at])[0]]
      row = path.rows[level][at]
      alive = ~self._live.childless(level, row)
      now = np.zeros(len(row), np.uint32)
      now[alive] = self._live.regions_below(level, row[alive])
      other = alive & (now != self.tables.regions[level - 1][row])
      self._live.put('regions', level - 1, row[other], now[other])
      changed = np.sort(np.concatenate([rest, at[~alive | other]]))


def _words(regions: np.ndarray, n: int) -> np.ndarray:
  regions = np.asarray(regions, np.uint32)
  if regions.shape != (n,):
    raise ValueError(
      f'trie: regions of shape {regions.shape}, must be one number for each of {n} items'
    )
  return regions


def _opens(codes: np.ndarray) -> np.ndarray:
  """bool [L + 1, n]: is item i the first of sorted codes [L, n] with its first l codes?"""
  opens = np.zeros((len(codes) + 1, codes.shape[1]), bool)
  opens[:, :1] = True
  for level, column in enumerate(codes):
    opens[level + 1, 1:] = opens[level, 1:] | (column[1:] != column[:-1])
  return opens
