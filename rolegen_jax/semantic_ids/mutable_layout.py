"""Tables that change in place: where nodes and lists of children lie, and the first tables.

`build_trie` numbers nodes in order, so one new item moves all nodes behind it. Here a node keeps
its number while it exists, and the children of each word of its bitmap are a list that may lie
anywhere. A new child rewrites one list of at most 32 entries: the cost follows the change, not the
size of the catalogue.

On the first levels, where the table has a row for every prefix, a node's number is its prefix and
no list is needed. Further down only a prefix that several items share has a row of bits, so there
is at most one row for two items. Below a prefix of a single item there are no rows: the number of
that node is C_l + item. (On level L all nodes are such, and C_L = 0: the number is the item.) A
list of n children occupies a run of the next power of two of entries. Shapes depend on capacity,
codes and levels only.

Legend: as in trie.py, C_l = rows of level l.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from rolegen_jax.semantic_ids.allocator import RunAllocator, concatenated_ranges
from rolegen_jax.semantic_ids.trie import (
  WORD,
  Trie,
  check_distinct,
  code_bit,
  id_order,
  nodes_by_level,
  or_runs,
)

# Entries that a list of n children occupies.
WIDTH = np.array([0] + [1 << (n - 1).bit_length() for n in range(1, WORD + 1)])


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the shapes of the tables depend on, and what follows from it."""

  levels: int
  codes_per_level: int
  capacity: int  # items

  @functools.cached_property
  def words(self) -> int:
    """Words of a bitmap."""
    return -(-self.codes_per_level // WORD)

  @functools.cached_property
  def last_direct(self) -> int:
    """The last level whose nodes are numbered by their prefix."""
    return max(
      level for level in range(self.levels) if self.codes_per_level**level <= self.capacity
    )

  @functools.cached_property
  def rows(self) -> list[int]:
    """C_l of each level l <= L."""
    rows = [
      self.codes_per_level**level if level <= self.last_direct else max(self.capacity // 2, 1)
      for level in range(self.levels)
    ]
    return rows + [0]

  def word_index(self, row: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Return the index int64 [n] of the word of `code` in the flattened bitmaps and first_child."""
    return row * self.words + (code >> 5)


class Allocators(NamedTuple):
  """What is free in the tables, by level."""

  rows: dict[int, RunAllocator]  # of each level after `last_direct`
  lists: dict[int, RunAllocator]  # of each level with lists


class _Nodes(NamedTuple):
  """The n nodes of a level while the tables are built, in the order of their IDs."""

  # int64: the number of the parent; -1: not in the tables, being below a prefix of a single item.
  parent: np.ndarray
  # int: the last code.
  code: np.ndarray
  # int64: the position among the sorted IDs where the node begins.
  begins: np.ndarray


def build_tables(
  codes: np.ndarray, layout: Layout, regions: np.ndarray | None
) -> tuple[Trie, Allocators]:
  """Build the tables, as numpy arrays, of IDs int32 [I, L] and regions uint32 [I].

  Raises ValueError when two IDs are the same.
  """
  order = id_order(codes.T, layout.codes_per_level)
  codes_by_id = codes[order]
  check_distinct(order, codes_by_id.T)
  list_levels = range(layout.last_direct + 1, layout.levels)
  allocators = Allocators({level: RunAllocator(layout.rows[level], 0) for level in list_levels}, {})
  first_child: list[np.ndarray | None] = []
  child_bits: list[np.ndarray] = []
  lists: list[np.ndarray | None] = []
  node_regions: list[np.ndarray] = []
  number = np.zeros(1, np.int64)  # of the root
  for level, (parent, code, begins) in enumerate(nodes_by_level(codes_by_id)):
    nodes = _Nodes(number[parent], code, begins)
    number = _number_nodes(layout, level + 1, nodes, order, allocators)
    has_row = (nodes.parent >= 0) & (nodes.parent < layout.rows[level])
    inside = np.flatnonzero(has_row)

    bits = np.zeros((layout.rows[level], layout.words), np.uint32)
    words, word_bits = or_runs(
      layout.word_index(nodes.parent[inside], code[inside]), code_bit(code[inside])
    )
    bits.reshape(-1)[words] = word_bits
    child_bits.append(bits)

    if level + 1 <= layout.last_direct:
      first_child.append(None)
      lists.append(None)
    else:
      first = np.zeros((layout.rows[level], layout.words), np.int32)
      # A run has less than two entries per child.
      most_children = min(layout.codes_per_level ** (level + 1), layout.capacity)
      entries = np.zeros(2 * most_children, np.int32)
      counts = np.bitwise_count(word_bits)
      allocators.lists[level] = lay_out_lists(first, entries, words, counts, counts, number[inside])
      first_child.append(first)
      lists.append(entries)

    if regions is not None:
      node_regions.append(_regions_of_nodes(layout, level + 1, number, begins, regions, order))

  item_codes = np.zeros((layout.capacity, layout.levels), np.int32)
  item_codes[: len(codes)] = codes
  tables = Trie(
    tuple(first_child),
    tuple(child_bits),
    None,
    item_codes,
    (np.arange(layout.capacity) < len(codes)).astype(np.float32),
    None,
    layout.codes_per_level,
    tuple(lists),
    None if regions is None else tuple(node_regions),
  )
  return tables, allocators


def _number_nodes(
  layout: Layout, level: int, nodes: _Nodes, order: np.ndarray, allocators: Allocators
) -> np.ndarray:
  """Return the numbers int64 [n] of the nodes of a level >= 1; -1 where the parent has no row.

  order: int64 [I], the items in the order of their IDs.
  """
  if level <= layout.last_direct:
    return nodes.parent * layout.codes_per_level + nodes.code
  number = np.full(len(nodes.code), -1)
  inside = np.flatnonzero((nodes.parent >= 0) & (nodes.parent < layout.rows[level - 1]))
  number[inside] = layout.rows[level] + order[nodes.begins[inside]]
  if layout.rows[level]:
    sizes = np.diff(nodes.begins, append=len(order))
    shared = inside[sizes[inside] > 1]
    number[shared] = allocators.rows[level].allocate(1, len(shared))
  return number


def _regions_of_nodes(
  layout: Layout,
  level: int,
  number: np.ndarray,
  begins: np.ndarray,
  regions: np.ndarray,
  order: np.ndarray,
) -> np.ndarray:
  """Return the regions uint32 [C_l] of the nodes of a level (on the last level: [capacity])."""
  n_items, rows = len(order), layout.rows[level]
  node_regions = np.zeros(rows or layout.capacity, np.uint32)
  if not rows:
    node_regions[:n_items] = regions
  elif n_items:
    has_row = np.flatnonzero((number >= 0) & (number < rows))
    below = np.bitwise_or.reduceat(regions[order], begins)
    node_regions[number[has_row]] = below[has_row]
  return node_regions


def lay_out_lists(
  first: np.ndarray,
  lists: np.ndarray,
  words: np.ndarray,
  counts: np.ndarray,
  room: np.ndarray,
  children: np.ndarray,
) -> RunAllocator:
  """Write the lists of `words`, one after the other, and return the allocator of their runs.

  Args:
    first: int32 [C_l, W], written.
    lists: int32 [entries], written.
    words: int [n], indices into flattened `first`.
    counts: int [n], children of each word.
    room: int [n], children that each list must have room for.
    children: int [sum of counts], in the order of `words`.
  """
  width = WIDTH[room]
  start = np.cumsum(width) - width
  first.reshape(-1)[words] = start
  lists[concatenated_ranges(start, counts)] = children
  return RunAllocator(len(lists), int(width.sum()))
