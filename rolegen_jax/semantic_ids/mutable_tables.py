"""Catalogue tables that change in place: nodes and their lists of children, on the host, many at a time.

`build_trie` numbers nodes in order, so one new item moves all behind it. Here a node keeps its number while it lives, and the
children of each word of its bitmap are a list that may lie anywhere. A new child then rewrites one list of at most 32: the cost
follows the change, not the catalogue.

On the first levels, where there is a place for every prefix, a node's number is its prefix and no list is needed. Further down
only a prefix that several items share has a row of bits, at most one for two items; below a prefix of one item alone there are
no rows, and that node's number is C_l + item. (On level L all are such, C_L = 0: an item's number.) A list of n children occupies
a run of the next power of two of places. Shapes depend on capacity, codes and levels only.

A change is a series of `Write`s; the same writes in the same order bring a copy of the tables to the same state.
Legend: as in trie.py, C_l = rows of level l; n changes. Those of one row are neighbours, in the order of their codes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rolegen_jax.semantic_ids.allocator import Runs, each_of
from rolegen_jax.semantic_ids.trie import (
  WORD,
  Trie,
  check_distinct,
  code_bit,
  id_order,
  nodes_by_level,
  or_runs,
  runs_of,
)

WIDTH = np.array(
  [0] + [1 << (n - 1).bit_length() for n in range(1, WORD + 1)]
)  # places that a list of n children occupies


class Write(NamedTuple):
  table: str  # field of Trie
  level: int | None  # which of the field's tables; None: the field is one table
  index: (
    np.ndarray | None
  )  # int [n] into the flattened table, all different; None: the whole table is new
  value: np.ndarray  # [n]


class MutableTables:
  """`tables` is a Trie of numpy arrays, the state after all writes. `send` is called with every one."""

  def __init__(
    self,
    codes: np.ndarray,
    codes_per_level: int,
    capacity: int,
    regions: np.ndarray | None,
    send: Callable[[Write], None],
  ):
    """Tables of IDs int32 [I, L], items numbered as the rows. Raises ValueError when two are the same."""
    n_items, self.levels = codes.shape
    self.send, self.codes_per_level, self.words = send, codes_per_level, -(-codes_per_level // WORD)
    self.last_direct = max(
      level for level in range(self.levels) if codes_per_level**level <= capacity
    )  # nodes are numbered by prefix up to here
    direct = lambda level: level <= self.last_direct
    self.rows = [
      codes_per_level**level if direct(level) else max(capacity // 2, 1)
      for level in range(self.levels)
    ] + [0]
    every = np.arange(codes_per_level)
    self._bit, self._lower = code_bit(every), code_bit(every) - np.uint32(1)
    self._free_rows = {
      level: Runs(self.rows[level], 0) for level in range(self.last_direct + 1, self.levels)
    }
    self._runs: dict[int, Runs] = {}  # of each level with lists
    order = id_order(codes.T, codes_per_level)
    codes_by_id = codes[order]
    check_distinct(order, codes_by_id.T)
    bits, first, lists, node_regions = [], [], [], []
    above = np.zeros(
      1, np.int64
    )  # number of each prefix of the level above; -1: not in the tables, being below a prefix of one item
    for level, (parent, code, begins) in enumerate(nodes_by_level(codes_by_id)):
      child_rows = self.rows[level + 1]
      above = above[parent]
      inside = np.flatnonzero((above >= 0) & (above < self.rows[level]))
      bits.append(np.zeros((self.rows[level], self.words), np.uint32))
      at, value = or_runs(above[inside] * self.words + code[inside] // WORD, code_bit(code[inside]))
      bits[-1].reshape(-1)[at] = value
      number = np.full(len(begins), -1)
      if direct(level + 1):
        number[:] = above * codes_per_level + code
        first.append(None), lists.append(None)
      else:
        number[inside] = child_rows + order[begins[inside]]
        if child_rows:
          shared = inside[np.diff(begins, append=n_items)[inside] > 1]
          number[shared] = self._free_rows[level + 1].take(1, len(shared))
        first.append(np.zeros((self.rows[level], self.words), np.int32))
        lists.append(
          np.zeros(2 * min(codes_per_level ** (level + 1), capacity), np.int32)
        )  # a run has less than two places an entry
        counts = np.bitwise_count(value)
        self._runs[level] = _lay_out(first[-1], lists[-1], at, counts, counts, number[inside])
      if regions is not None:
        node_regions.append(np.zeros(child_rows or capacity, np.uint32))
        if not child_rows:
          node_regions[-1][:n_items] = regions
        elif n_items:
          has_row = np.flatnonzero((number >= 0) & (number < child_rows))
          node_regions[-1][number[has_row]] = np.bitwise_or.reduceat(regions[order], begins)[
            has_row
          ]
      above = number
    item_codes = np.zeros((capacity, self.levels), np.int32)
    item_codes[:n_items] = codes
    found = None if regions is None else tuple(node_regions)
    self.tables = Trie(
      tuple(first), tuple(bits), None, item_codes, codes_per_level, tuple(lists), found
    )

  def put(self, table: str, level: int | None, index: np.ndarray, value: np.ndarray) -> None:
    """Writes value [n] at index [n] of a flattened table, here and through `send`."""
    if len(index):
      field = getattr(self.tables, table)
      (field if level is None else field[level]).reshape(-1)[index] = value
      self.send(Write(table, level, index, value))

  def find(self, level: int, row: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Child int64 [n] by `code` [n] of each row [n] of a level with lists; -1 = none."""
    at = self._word(row, code)
    own = self._bits(level).take(at)
    exists = own & self._bit.take(code) != 0
    place = self._first(level).take(at) + np.bitwise_count(own & self._lower.take(code))
    return np.where(exists, self.tables.lists[level].take(np.where(exists, place, 0)), -1)

  def relabel(self, level: int, row: np.ndarray, code: np.ndarray, child: np.ndarray) -> None:
    """The children that rows [n] have by `code` [n] get numbers `child` [n]."""
    at = self._word(row, code)
    place = self._first(level).take(at) + np.bitwise_count(
      self._bits(level).take(at) & self._lower.take(code)
    )
    self.put('lists', level, place, child.astype(np.int32))

  def link(self, level: int, row: np.ndarray, code: np.ndarray, child: np.ndarray) -> np.ndarray:
    """Gives rows [n] of a level with lists, by `code` [n], where they have none, a child `child` [n].

    Returns bool [n]: had the row no child in this word of its bitmap before?
    """
    at, bit = self._word(row, code), self._bit.take(code)
    words, run_of, added = _or_by(at, bit)
    old = self._bits(level).take(words)
    new = old | added
    before, after = np.bitwise_count(old), np.bitwise_count(new)
    width = WIDTH.take(after)
    moves = np.flatnonzero(WIDTH.take(before) != width)
    if self._runs[level].lacks(np.bincount(width[moves], minlength=1)):
      self._repack(level, words, after)
      moves = moves[:0]
    run = self._first(level).take(words).astype(np.int64)
    kept = self.tables.lists[level].take(each_of(run, before))
    self._give(level, run[moves], WIDTH.take(before[moves]))
    for size in np.flatnonzero(np.bincount(width[moves])):
      rows = moves[width[moves] == size]
      run[rows] = self._runs[level].take(int(size), len(rows))
    fresh = (np.cumsum(after, dtype=np.int64) - after).take(run_of) + np.bitwise_count(
      new.take(run_of) & self._lower.take(code)
    )
    is_old = np.ones(len(kept) + len(child), bool)
    is_old[fresh] = False
    entries = np.empty(len(is_old), np.int32)
    entries[fresh], entries[np.flatnonzero(is_old)] = child, kept
    self.put('child_bits', level, words, new)
    self.put('first_child', level, words[moves], run[moves].astype(np.int32))
    self.put('lists', level, each_of(run, after), entries)
    return (old == 0).take(run_of)

  def link_direct(self, level: int, row: np.ndarray, code: np.ndarray) -> np.ndarray:
    """`link` where children are numbered by prefix; they may be there already."""
    words, run_of, added = _or_by(self._word(row, code), self._bit.take(code))
    old = self._bits(level).take(words)
    more = np.flatnonzero(old | added != old)
    self.put('child_bits', level, words[more], (old | added)[more])
    return (old == 0).take(run_of)

  def unlink(self, level: int, row: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Takes from rows [n] their children by `code` [n]. Returns bool [n]: has the row no child left at all?"""
    words, run_of, removed = _or_by(self._word(row, code), self._bit.take(code))
    old = self._bits(level).take(words)
    new = old & ~removed
    self.put('child_bits', level, words, new)
    if level in self._runs:
      before, after = np.bitwise_count(old), np.bitwise_count(new)
      run = self._first(level).take(words).astype(np.int64)
      stays = np.ones(before.sum(dtype=np.int64), bool)
      stays[
        (np.cumsum(before, dtype=np.int64) - before).take(run_of)
        + np.bitwise_count(old.take(run_of) & self._lower.take(code))
      ] = False
      self.put(
        'lists',
        level,
        each_of(run, after),
        self.tables.lists[level].take(each_of(run, before).compress(stays)),
      )
      self._shrink(level, run, WIDTH.take(before), WIDTH.take(after))
    bare = new == 0
    at = np.flatnonzero(bare)
    bare[at] = self.childless(level, words[at] // self.words)
    return bare.take(run_of)

  def childless(self, level: int, row: np.ndarray) -> np.ndarray:
    """bool [n]: has the row no child?"""
    return functools.reduce(np.bitwise_or, self.tables.child_bits[level][row].T) == 0

  def children(self, level: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the children of rows [n] of a level with lists one row after the other, how many each has int64 [n])."""
    at = (row[:, None] * self.words + np.arange(self.words)).reshape(-1)
    counts = np.bitwise_count(self._bits(level).take(at))
    found = self.tables.lists[level].take(each_of(self._first(level).take(at), counts))
    return found, counts.reshape(-1, self.words).sum(axis=1, dtype=np.int64)

  def take_rows(self, level: int, n: int) -> np.ndarray:
    return self._free_rows[level].take(1, n)

  def free_rows(self, level: int, row: np.ndarray) -> None:
    """Gives rows [n] back that have no children and no parent any more."""
    if level > self.last_direct:
      self._free_rows[level].give(1, row)
    if self.tables.regions is not None:
      self.put('regions', level - 1, row, np.zeros(len(row), np.uint32))

  def regions_below(self, level: int, row: np.ndarray) -> np.ndarray:
    """uint32 [n]: the regions of all children of rows [n], each of which has some, or-ed."""
    words = self.tables.regions[level]
    if level not in self._runs:
      return np.bitwise_or.reduce(
        words.reshape(-1, self.codes_per_level)[row], axis=1
      )  # 0 where there is no child
    child, counts = self.children(level, row)
    rows = self.rows[level + 1]
    below = self.tables.regions[-1].take(np.maximum(child - rows, 0))
    if rows:
      below = np.where(child < rows, words.take(np.minimum(child, rows - 1)), below)
    return np.bitwise_or.reduceat(below, np.cumsum(counts) - counts) if len(row) else below

  def _word(self, row: np.ndarray, code: np.ndarray) -> np.ndarray:
    """int64 [n]: where the word of `code` is in the flattened bitmaps, and its list in the flattened first_child."""
    return row * self.words + (code >> 5)

  def _bits(self, level: int) -> np.ndarray:
    return self.tables.child_bits[level].reshape(-1)

  def _first(self, level: int) -> np.ndarray:
    return self.tables.first_child[level].reshape(-1)

  def _shrink(self, level: int, run: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """Runs at `run` of widths `before` keep their first `after` places; the rest is given back, as runs of powers of two."""
    none = np.flatnonzero(after == 0)
    self._give(level, run[none], before[none])
    less = np.flatnonzero((after < before) & (after > 0))
    while len(less):
      run, before, after = run[less], before[less] // 2, after[less]
      self._give(level, run + before, before)
      less = np.flatnonzero(after < before)

  def _give(self, level: int, run: np.ndarray, width: np.ndarray) -> None:
    for size in np.flatnonzero(np.bincount(width)[1:]) + 1:
      self._runs[level].give(int(size), run[width == size])

  def _repack(self, level: int, words: np.ndarray, after: np.ndarray) -> None:
    """Lays the lists of a level out anew, without gaps, those of `words` with room for `after` entries."""
    first, lists = self.tables.first_child[level], self.tables.lists[level]
    where = np.union1d(np.flatnonzero(self._bits(level)), words)
    counts = np.bitwise_count(self._bits(level)[where])
    room = counts.copy()
    room[np.searchsorted(where, words)] = after
    children = lists[each_of(self._first(level)[where], counts)]
    self._runs[level] = _lay_out(first, lists, where, counts, room, children)
    self.send(Write('first_child', level, None, first))
    self.send(Write('lists', level, None, lists))


def _or_by(at: np.ndarray, bit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(the different values of at [n], which of them each of the n is, the or of each one's bits)."""
  starts, run_of = runs_of(at)
  return at[starts], run_of, np.bitwise_or.reduceat(bit, starts) if len(starts) else bit


def _lay_out(first, lists, where, counts, room, children) -> Runs:
  """Puts the lists of words `where`, of `counts` children with room for `room`, one after the other; `children` in that order."""
  width = WIDTH[room]
  start = np.cumsum(width) - width
  first.reshape(-1)[where] = start
  lists[each_of(start, counts)] = children
  return Runs(len(lists), int(width.sum()))
