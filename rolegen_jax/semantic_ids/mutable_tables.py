"""Catalogue tables that change in place, on the host: children come and go, many at a time.

Where nodes and lists lie is in `mutable_layout.py`. What changed is told by `changes`, as `Write`s
that bring a copy of the tables to the same state.

Legend: as in trie.py, C_l = rows of level l; n changes, passed as arrays. Changes of one row are
neighbors, in the order of their codes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from rolegen_jax.semantic_ids.allocator import concatenated_ranges
from rolegen_jax.semantic_ids.mutable_layout import WIDTH, Layout, build_tables, lay_out_lists
from rolegen_jax.semantic_ids.trie import code_bit, runs_of


class Write(NamedTuple):
  """What changed in one table."""

  # A field of Trie.
  table: str
  # Which of the field's tables; None: the field is a single table.
  level: int | None
  # int [n], of its rows where `value` has rows, else into the flattened table; may name one more
  # than once. None: the whole table is replaced.
  entries: np.ndarray | None
  # [n] or [n, width], what they are now.
  value: np.ndarray


class MutableTables:
  """The current state, as a Trie of numpy arrays in `tables`."""

  def __init__(
    self,
    codes: np.ndarray,
    layout: Layout,
    regions: np.ndarray | None,
  ) -> None:
    """Build the tables of IDs int32 [I, L]; item i is row i.

    Raises ValueError when two IDs are the same.
    """
    self.layout = layout
    # By table and level, since `changes`: what was written where; None = all of it.
    self._written: dict[tuple[str, int | None], list[tuple[np.ndarray, np.ndarray]] | None] = {}
    self.tables, allocators = build_tables(codes, layout, regions)
    self._row_allocators, self._run_allocators = allocators
    every_code = np.arange(layout.codes_per_level)
    self._bit = code_bit(every_code)
    self._lower_bits = self._bit - np.uint32(1)

  # Reading

  def find_child(self, level: int, row: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Return the child int64 [n] by `code` [n] of each row [n] of a level with lists; -1 = none."""
    word = self.layout.word_index(row, code)
    bits = self._flat_bits(level).take(word)
    exists = bits & self._bit.take(code) != 0
    rank = np.bitwise_count(bits & self._lower_bits.take(code))
    entry = self._flat_first(level).take(word) + rank
    return np.where(exists, self._lists(level).take(np.where(exists, entry, 0)), -1)

  def children(self, level: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (the children of rows [n], concatenated; how many each row has, int64 [n]).

    For levels with lists.
    """
    word = (row[:, None] * self.layout.words + np.arange(self.layout.words)).reshape(-1)
    counts = np.bitwise_count(self._flat_bits(level).take(word))
    entries = concatenated_ranges(self._flat_first(level).take(word), counts)
    per_row = counts.reshape(-1, self.layout.words).sum(axis=1, dtype=np.int64)
    return self._lists(level).take(entries), per_row

  def is_childless(self, level: int, row: np.ndarray) -> np.ndarray:
    """Return whether each row [n] has no child, as bool [n]."""
    return functools.reduce(np.bitwise_or, self.tables.child_bits[level][row].T) == 0

  def regions(self, level: int) -> np.ndarray:
    """Return the table of the regions, uint32 [C_l], of the nodes of a level >= 1."""
    assert self.tables.regions is not None, 'built without regions'
    return self.tables.regions[level - 1]

  def regions_below(self, level: int, row: np.ndarray) -> np.ndarray:
    """Return the or of the regions of the children of rows [n], uint32 [n]; each row has some."""
    node_regions = self.regions(level + 1)
    if level not in self._run_allocators:
      by_prefix = node_regions.reshape(-1, self.layout.codes_per_level)  # 0 where there is no child
      bitwise_or: Any = np.bitwise_or  # NumPy's own types for `reduce` differ by version
      return bitwise_or.reduce(by_prefix[row], axis=1)
    child, counts = self.children(level, row)
    rows = self.layout.rows[level + 1]
    below = self.regions(self.layout.levels).take(np.maximum(child - rows, 0))
    if rows:
      below = np.where(child < rows, node_regions.take(np.minimum(child, rows - 1)), below)
    return np.bitwise_or.reduceat(below, np.cumsum(counts) - counts) if len(row) else below

  # Writing

  def write(self, table: str, level: int | None, entries: np.ndarray, value: np.ndarray) -> None:
    """Set entries int [n] to value, see `Write`."""
    if len(entries):
      self._entries(table, level)[entries] = value
      written = self._written.setdefault((table, level), [])
      if written is not None:
        written.append((entries, value))

  def changes(self) -> list[Write]:
    """Return what changed since the last call, a write for each table that did."""
    written, self._written = self._written, {}
    return [self._change(*where, parts) for where, parts in written.items()]

  def _change(self, table: str, level: int | None, parts: list | None) -> Write:
    if parts is None:
      return Write(table, level, None, self._field(table, level))
    if len(parts) == 1:
      return Write(table, level, *parts[0])
    entries = np.concatenate([where for where, _ in parts])  # of which some may have changed twice
    return Write(table, level, entries, self._entries(table, level).take(entries, axis=0))

  def _field(self, table: str, level: int | None) -> np.ndarray:
    field = getattr(self.tables, table)
    return field if level is None else field[level]

  def _entries(self, table: str, level: int | None) -> np.ndarray:
    """Return the entries of a table as one axis; those of codes are items."""
    field = self._field(table, level)
    return field if table == 'item_codes' else field.reshape(-1)

  def renumber_children(
    self, level: int, row: np.ndarray, code: np.ndarray, child: np.ndarray
  ) -> None:
    """Give the children that rows [n] have by `code` [n] the numbers `child` [n]."""
    word = self.layout.word_index(row, code)
    rank = np.bitwise_count(self._flat_bits(level).take(word) & self._lower_bits.take(code))
    entry = self._flat_first(level).take(word) + rank
    self.write('lists', level, entry, child.astype(np.int32))

  def add_children(
    self, level: int, row: np.ndarray, code: np.ndarray, child: np.ndarray
  ) -> np.ndarray:
    """Give rows [n] of a level with lists, by `code` [n], new children `child` [n].

    Returns bool [n]: whether the row had no child in this word of its bitmap before.
    """
    word_of_change, bit = self.layout.word_index(row, code), self._bit.take(code)
    words, run_of, added = _or_by_word(word_of_change, bit)
    old = self._flat_bits(level).take(words)
    new = old | added
    before, after = np.bitwise_count(old), np.bitwise_count(new)
    width = WIDTH.take(after)
    moved = np.flatnonzero(WIDTH.take(before) != width)
    if self._run_allocators[level].lacks_space(np.bincount(width[moved], minlength=1)):
      self._repack(level, words, after)
      moved = moved[:0]
    run = self._flat_first(level).take(words).astype(np.int64)
    old_children = self._lists(level).take(concatenated_ranges(run, before))
    self._release_runs(level, run[moved], WIDTH.take(before[moved]))
    for size in np.flatnonzero(np.bincount(width[moved])):
      resized = moved[width[moved] == size]
      run[resized] = self._run_allocators[level].allocate(int(size), len(resized))

    # The new lists, one after the other: where the new children go, the old ones fill the rest.
    list_start = np.cumsum(after, dtype=np.int64) - after
    rank = np.bitwise_count(new.take(run_of) & self._lower_bits.take(code))
    new_slots = list_start.take(run_of) + rank
    is_old = np.ones(len(old_children) + len(child), bool)
    is_old[new_slots] = False
    entries = np.empty(len(is_old), np.int32)
    entries[new_slots] = child
    entries[np.flatnonzero(is_old)] = old_children

    self.write('child_bits', level, words, new)
    self.write('first_child', level, words[moved], run[moved].astype(np.int32))
    self.write('lists', level, concatenated_ranges(run, after), entries)
    return (old == 0).take(run_of)

  def add_direct_children(self, level: int, row: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Do `add_children` where children are numbered by prefix; they may exist already."""
    words, run_of, added = _or_by_word(self.layout.word_index(row, code), self._bit.take(code))
    old = self._flat_bits(level).take(words)
    changed = np.flatnonzero(old | added != old)
    self.write('child_bits', level, words[changed], (old | added)[changed])
    return (old == 0).take(run_of)

  def remove_children(self, level: int, row: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Remove the children by `code` [n] of rows [n].

    Returns bool [n]: whether the row has no child left at all.
    """
    words, run_of, removed = _or_by_word(self.layout.word_index(row, code), self._bit.take(code))
    old = self._flat_bits(level).take(words)
    new = old & ~removed
    self.write('child_bits', level, words, new)
    if level in self._run_allocators:
      before, after = np.bitwise_count(old), np.bitwise_count(new)
      run = self._flat_first(level).take(words).astype(np.int64)
      list_start = np.cumsum(before, dtype=np.int64) - before
      rank = np.bitwise_count(old.take(run_of) & self._lower_bits.take(code))
      stays = np.ones(before.sum(dtype=np.int64), bool)
      stays[list_start.take(run_of) + rank] = False
      children = self._lists(level).take(concatenated_ranges(run, before).compress(stays))
      self.write('lists', level, concatenated_ranges(run, after), children)
      self._shrink_runs(level, run, WIDTH.take(before), WIDTH.take(after))
    is_empty = new == 0
    empty_words = np.flatnonzero(is_empty)
    is_empty[empty_words] = self.is_childless(level, words[empty_words] // self.layout.words)
    return is_empty.take(run_of)

  def allocate_rows(self, level: int, n: int) -> np.ndarray:
    """Return n free rows int64 [n] of a level."""
    return self._row_allocators[level].allocate(1, n)

  def release_rows(self, level: int, row: np.ndarray) -> None:
    """Take back rows [n] that have neither children nor a parent any more."""
    if level > self.layout.last_direct:
      self._row_allocators[level].release(1, row)
    if self.tables.regions is not None:
      self.write('regions', level - 1, row, np.zeros(len(row), np.uint32))

  # Inside

  def _flat_bits(self, level: int) -> np.ndarray:
    return self.tables.child_bits[level].reshape(-1)

  def _flat_first(self, level: int) -> np.ndarray:
    return self._first_child(level).reshape(-1)

  def _first_child(self, level: int) -> np.ndarray:
    first_child = self.tables.first_child[level]
    assert first_child is not None, f'level {level} has no lists'
    return first_child

  def _lists(self, level: int) -> np.ndarray:
    lists = None if self.tables.lists is None else self.tables.lists[level]
    assert lists is not None, f'level {level} has no lists'
    return lists

  def _shrink_runs(
    self, level: int, run: np.ndarray, before: np.ndarray, after: np.ndarray
  ) -> None:
    """Shrink runs of widths `before` to their first `after` entries.

    The rest is released as runs of powers of two.
    """
    empty = np.flatnonzero(after == 0)
    self._release_runs(level, run[empty], before[empty])
    shrinking = np.flatnonzero((after < before) & (after > 0))
    while len(shrinking):
      run, before, after = run[shrinking], before[shrinking] // 2, after[shrinking]
      self._release_runs(level, run + before, before)
      shrinking = np.flatnonzero(after < before)

  def _release_runs(self, level: int, run: np.ndarray, width: np.ndarray) -> None:
    for size in np.flatnonzero(np.bincount(width)[1:]) + 1:
      self._run_allocators[level].release(int(size), run[width == size])

  def _repack(self, level: int, words: np.ndarray, after: np.ndarray) -> None:
    """Lay the lists of a level out anew without gaps, those of `words` with room for `after`."""
    first, lists = self._first_child(level), self._lists(level)
    used_words = np.union1d(np.flatnonzero(self._flat_bits(level)), words)
    counts = np.bitwise_count(self._flat_bits(level)[used_words])
    room = counts.copy()
    room[np.searchsorted(used_words, words)] = after
    children = lists[concatenated_ranges(self._flat_first(level)[used_words], counts)]
    self._run_allocators[level] = lay_out_lists(first, lists, used_words, counts, room, children)
    self._written['first_child', level] = self._written['lists', level] = None


def _or_by_word(words: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return (the distinct words, which of them each of the n is, the or of each one's bits)."""
  starts, run_of = runs_of(words)
  return words[starts], run_of, np.bitwise_or.reduceat(bits, starts) if len(starts) else bits
