"""The catalogue as tables on the device: which codes may follow a prefix, and which item an ID is.

Items are sorted by their codes. The nodes of a level (prefixes of that length; level 0 is the root)
are numbered in that order, so the children of a node are consecutive at the next level. A node
stores the number of its first child and one bit per code: the number of a child is that of the
first child plus the count of lower bits set. Each beam needs one short gather and no search.

Mutable tables (`mutable_tables.py`), which change in place, have the same bitmaps and store
differently where a child is. The functions below read both kinds.

Request masks: every item has 32 bits, its *regions* (a country, a warehouse, "in stock at ..."),
and every node has the regions of all items below it, or-ed. A request with the regions `allow`
(bits again) sees a node if the two have a region in common, so it never enters a dead end. One
table serves all requests of a batch, each with its own `allow`.

All tables are padded to capacities and are run-time ARGUMENTS of a jitted function: a catalogue
that changes within its capacity changes no shape, so nothing recompiles.

Legend: I items, E width of text vectors, L levels, K codes per level, W = ceil(K / 32) bitmap
words, C_l capacity of level l in nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.features.trending import Trending

WORD = 32  # bits

Array = Any  # np.ndarray on the host, jax.Array on the device


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trie:
  """The tables of a catalogue, built by `build_trie` or `mutable_tables.MutableTables`."""

  # Per level l < L: int32 [C_l + 1]; the children of node p are first_child[p]..first_child[p+1]-1.
  first_child: tuple[Array | None, ...]
  # Per level l < L: uint32 [C_l, W]; bit k of a row is set if there is a child of code k.
  child_bits: tuple[Array, ...]
  # int32 [C_L]: the item of each leaf (a node of level L); -1 = padding. None: a leaf's number is
  # its item.
  leaf_item: Array | None
  # int32 [item capacity, L]; 0 in padding. Items left out of the tree keep their codes here.
  item_codes: Array
  # fp32 [item capacity]: training events of each item. 0: what models know of it follows from its
  # codes and its text vector alone.
  item_count: Array
  # fp32 [item capacity, E], text vectors; None: the catalogue has none.
  item_text: Array | None
  # K.
  codes_per_level: int = dataclasses.field(metadata=dict(static=True))
  # Of mutable tables only, per level l < L. None at a level where the child of node p by code k is
  # p * K + k (there first_child is None too). Elsewhere first_child is int32 [C_l, W], and the
  # children of bitmap word w are lists[l][first_child[p, w]] and the entries after it.
  lists: tuple[Array | None, ...] | None = None
  # Per level 0 < l <= L, at index l - 1: uint32 [C_l], the regions of the items below each node.
  regions: tuple[Array, ...] | None = None
  # What is trending day by day; None: nothing is known of that.
  trending: Trending | None = None

  @property
  def levels(self) -> int:
    """L."""
    return len(self.child_bits)

  @property
  def sizes(self) -> tuple[int, int]:
    """Items that there is room for, and the width of their text vectors, 0 without any."""
    return len(self.item_codes), 0 if self.item_text is None else self.item_text.shape[1]


# Shared by both kinds of tables


def default_capacity(items: int) -> int:
  """Return the item capacity of a trie: a quarter above `items`, as a power of two, at least 64."""
  return 1 << (max(64, -(-5 * items // 4)) - 1).bit_length()


def id_order(codes: np.ndarray, codes_per_level: int) -> np.ndarray:
  """Return the permutation int64 [I] that sorts the columns of codes int [L, I] as IDs."""
  # Numbers of 16 bits are sorted digit by digit, in a third of the time of one number per ID.
  narrow = np.uint16 if codes_per_level <= 1 << 16 else codes.dtype
  return np.lexsort(codes[::-1].astype(narrow))


def nodes_by_level(
  sorted_codes: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yield (parent, code, begins) of the nodes of each level from 1, given sorted IDs int [I, L].

  Each is an array over the nodes of the level: the rank of the parent on the level above, the last
  code, and the position among the sorted IDs where the node begins.
  """
  opens = np.zeros(len(sorted_codes), bool)  # whether a node begins at this ID
  opens[:1] = True
  for column in sorted_codes.T:
    rank = np.cumsum(opens)
    opens[1:] |= column[1:] != column[:-1]
    begins = np.flatnonzero(opens)
    yield rank[begins] - 1, column[begins], begins


def runs_of(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return (where each run of equal neighbors in `keys` [n] begins, the run of each key [n])."""
  opens = np.ones(len(keys), bool)
  np.not_equal(keys[1:], keys[:-1], out=opens[1:])
  return np.flatnonzero(opens), np.cumsum(opens) - 1


def or_runs(keys: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return (the distinct keys, the or of each one's bits); equal keys [n] must be neighbors."""
  starts = runs_of(keys)[0]
  return keys[starts], np.bitwise_or.reduceat(bits, starts) if len(starts) else bits


def code_bit(code: np.ndarray) -> np.ndarray:
  """Return the bit uint32 [n] of each code in its bitmap word."""
  return np.uint32(1) << (code % WORD).astype(np.uint32)


def check_room(items: int, capacity: int) -> None:
  """Raise ValueError if there are more items than `capacity`."""
  if items > capacity:
    raise ValueError(
      f'trie: {items} items, capacity {capacity}: build it with '
      f'capacity={default_capacity(items)} (recompiles what uses it)'
    )


def check_codes(codes: np.ndarray, codes_per_level: int) -> None:
  """Raise ValueError if a code is out of range."""
  if codes.size and (codes.min() < 0 or codes.max() >= codes_per_level):
    raise ValueError(
      f'trie: codes from {codes.min()} to {codes.max()}, must be 0 to {codes_per_level - 1}'
    )


def check_distinct(items: np.ndarray, codes: np.ndarray, name: str = 'items') -> None:
  """Raise ValueError if two items share an ID.

  Args:
    items: int [n], the item of each ID.
    codes: int [L, n], sorted as IDs.
    name: what the message calls the items.
  """
  same = np.flatnonzero((codes[:, 1:] == codes[:, :-1]).all(axis=0))
  if len(same):
    twins = sorted(items[same[0] : same[0] + 2].tolist())
    raise ValueError(
      f'trie: {name} {twins[0]} and {twins[1]} share the ID {codes[:, same[0]].tolist()}'
    )


# Building


# Long by its docstring, and by tables that are built level by level in one pass.
def build_trie(
  codes: np.ndarray,
  codes_per_level: int,
  capacity: int | None = None,
  allowed: np.ndarray | None = None,
  regions: np.ndarray | None = None,
  counts: np.ndarray | None = None,
  text: np.ndarray | None = None,
) -> Trie:
  """Build the tables of codes int [I, L] as numpy arrays, which move to the device when used.

  Args:
    codes, codes_per_level: [I, L] and K.
    capacity: items that the tables have room for; default `default_capacity(I)`.
    allowed: bool [I]; other items are left out of the tree. Default: all.
    regions: uint32 [I], see the module docstring. Default: no request masks.
    counts: [I], see `Trie.item_count`. Default: 1 each.
    text: fp32 [I, E], text vectors.

  Raises ValueError when I > capacity, a code is out of range, or two allowed items share an ID.
  """
  codes = np.asarray(codes, np.int32)
  n_items, levels = codes.shape
  capacity = default_capacity(n_items) if capacity is None else capacity
  check_room(n_items, capacity)
  check_codes(codes, codes_per_level)
  items = np.arange(n_items) if allowed is None else np.flatnonzero(allowed)
  items = items[id_order(codes[items].T, codes_per_level)]
  sorted_codes = codes[items]
  check_distinct(items, sorted_codes.T)
  capacities = [min(codes_per_level**level, capacity) for level in range(levels + 1)]
  words = -(-codes_per_level // WORD)
  item_regions = None if regions is None else np.asarray(regions, np.uint32)[items]

  first_child, child_bits, node_regions = [], [], []
  for level, (parent, code, begins) in enumerate(nodes_by_level(sorted_codes)):
    first = np.full(capacities[level] + 1, len(parent), np.int32)  # padding nodes: no children
    starts = runs_of(parent)[0]
    first[: len(starts)] = starts
    first_child.append(first)

    bits = np.zeros((capacities[level], words), np.uint32)
    word_index, value = or_runs(parent * words + code // WORD, code_bit(code))
    bits.reshape(-1)[word_index] = value
    child_bits.append(bits)

    if item_regions is not None:
      below = np.zeros(capacities[level + 1], np.uint32)
      if len(begins):
        below[: len(begins)] = np.bitwise_or.reduceat(item_regions, begins)
      node_regions.append(below)

  leaf_item = np.full(capacities[levels], -1, np.int32)
  leaf_item[: len(items)] = items
  item_counts = np.ones(n_items) if counts is None else counts
  return Trie(
    tuple(first_child),
    tuple(child_bits),
    leaf_item,
    padded(codes, capacity, np.int32),
    padded(item_counts, capacity, np.float32),
    None if text is None else padded(text, capacity, np.float32),
    codes_per_level,
    regions=None if regions is None else tuple(node_regions),
  )


def padded(rows: np.ndarray, capacity: int, dtype: Any) -> np.ndarray:
  """Return a table of `capacity` rows that begins with `rows`, then zeros."""
  table = np.zeros((capacity, *rows.shape[1:]), dtype)
  table[: len(rows)] = rows
  return table


# Reading, inside jitted functions


def root(shape: tuple[int, ...] = ()) -> jax.Array:
  """Return the node before the first code, int32 of `shape`."""
  return jnp.zeros(shape, jnp.int32)


def children_mask(
  trie: Trie, level: int, node: jax.Array, allow: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Return (mask bool [..., K] of codes that may come next, child int32 [..., K]: their nodes).

  Children are garbage where the mask is false. To follow one known code, `descend` is cheaper.

  Args:
    trie: the tables.
    level: level of `node` (static, 0 = root).
    node: int32 [...]; a node of -1 has no children.
    allow: uint32, of the leading axes of `node`, e.g. one number per request: regions, of which an
      item below a child must have one.
  """
  codes = jnp.arange(trie.codes_per_level)
  bits = jnp.asarray(trie.child_bits[level])[node]
  is_set = (bits[..., None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1
  mask = is_set.reshape(*node.shape, -1).astype(bool)
  if trie.first_child[level] is None:
    child = node[..., None] * trie.codes_per_level + codes
  else:
    table = jnp.asarray(trie.first_child[level])
    # [..., G]: mutable tables have a list per bitmap word, others one list for all words.
    first = table.reshape(len(table), -1)[node]
    rank = jnp.cumsum(mask.reshape(*first.shape, -1), axis=-1, dtype=jnp.int32) - 1
    entry = (first[..., None] + rank).reshape(mask.shape)[..., : len(codes)]
    child = _child_at(trie, level, entry)
  mask = mask[..., : len(codes)] & (node >= 0)[..., None]
  if _has_single_item_nodes(trie, level):
    item = node - len(trie.child_bits[level])
    is_single = (item >= 0)[..., None]
    next_code = jnp.asarray(trie.item_codes)[item, level][..., None]
    mask = jnp.where(is_single, next_code == codes, mask)
    child = jnp.where(is_single, (_rows(trie, level + 1) + item)[..., None], child)
  if allow is not None:
    allow = allow.reshape(*allow.shape, *(1,) * (child.ndim - allow.ndim))
    mask &= _regions(trie, level + 1, child) & allow != 0
  return mask, child


def descend(trie: Trie, level: int, node: jax.Array, code: jax.Array) -> jax.Array:
  """Return the child int32 [...] of `node` [...] of `level` by `code` [...].

  -1 where there is no such child or the node is -1.
  """
  bits = jnp.asarray(trie.child_bits[level])[node]
  word, bit = code // WORD, (code % WORD).astype(jnp.uint32)
  own_word = jnp.take_along_axis(bits, word[..., None], axis=-1)[..., 0]
  exists = (node >= 0) & ((own_word >> bit) & 1 == 1)
  if trie.first_child[level] is None:
    child = node * trie.codes_per_level + code
  else:
    table = jnp.asarray(trie.first_child[level])
    table = table.reshape(len(table), -1)
    words_per_list = bits.shape[-1] // table.shape[-1]
    own_list, words = word // words_per_list, jnp.arange(bits.shape[-1])
    is_lower = (words < word[..., None]) & (words // words_per_list == own_list[..., None])
    lower_words = jnp.where(is_lower, bits, 0)
    rank = jnp.sum(jax.lax.population_count(lower_words).astype(jnp.int32), axis=-1)
    lower_bits = own_word & ((jnp.uint32(1) << bit) - 1)
    rank += jax.lax.population_count(lower_bits).astype(jnp.int32)
    child = _child_at(trie, level, table[node, own_list] + rank)
  if _has_single_item_nodes(trie, level):
    item = node - len(trie.child_bits[level])
    is_next = jnp.asarray(trie.item_codes)[item, level] == code
    exists = jnp.where(item >= 0, is_next, exists)
    child = jnp.where(item >= 0, _rows(trie, level + 1) + item, child)
  return jnp.where(exists, child, -1)


def leaf(trie: Trie, node: jax.Array) -> jax.Array:
  """Return the item int32 [...] of nodes of the last level; -1 where the node is -1."""
  item = node if trie.leaf_item is None else jnp.asarray(trie.leaf_item)[node]
  return jnp.where(node >= 0, item, -1)


def is_listed(trie: Trie, item: jax.Array, allow: jax.Array | None = None) -> jax.Array:
  """Return whether each item int32 [...] can be decoded: bool [...]; -1 never can.

  With `allow`, uint32 that broadcasts against `item`, it must also be of one of these regions.
  """
  codes = jnp.asarray(trie.item_codes)[jnp.maximum(item, 0)]
  node = root(item.shape)
  for level in range(trie.levels):
    node = descend(trie, level, node, codes[..., level])
  listed = (item >= 0) & (leaf(trie, node) == item)
  if allow is not None:
    listed &= _regions(trie, trie.levels, jnp.maximum(node, 0)) & allow != 0
  return listed


def with_regions(trie: Trie, regions_I: jax.Array) -> Trie:
  """Return the tables with other regions uint32 [item capacity] of the items, for one call.

  Where masks are those of requests, e.g. one region for each request of a batch, they change with
  every call: they are or-ed up the tree here, on the device.
  """
  codes = jnp.asarray(trie.item_codes)
  bits = (regions_I[:, None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1
  bits = jnp.where(is_listed(trie, jnp.arange(len(codes)))[:, None], bits, 0).astype(jnp.uint8)
  node, node_regions = root((len(codes),)), []
  for level in range(trie.levels):
    node = descend(trie, level, node, codes[:, level])
    is_last = level == trie.levels - 1
    rows = len(codes) if is_last else len(trie.child_bits[level + 1])
    # Of a node that is the prefix of one item alone, mutable tables ask for the item's regions.
    place = jnp.where(node >= 0, node, rows)
    below = jnp.zeros((rows, WORD), jnp.uint8).at[place].max(bits, mode='drop')
    words = below.astype(jnp.uint32) << jnp.arange(WORD, dtype=jnp.uint32)
    node_regions.append(words.sum(axis=1, dtype=jnp.uint32))
  return dataclasses.replace(trie, regions=tuple(node_regions))


def _child_at(trie: Trie, level: int, entry: jax.Array) -> jax.Array:
  """Return the child that an entry of the level's lists names; without lists it is the entry."""
  return entry if trie.lists is None else jnp.asarray(trie.lists[level])[entry]


def _rows(trie: Trie, level: int) -> int:
  """Return C_l of mutable tables, which have no rows on the last level."""
  return len(trie.child_bits[level]) if level < trie.levels else 0


def _has_single_item_nodes(trie: Trie, level: int) -> bool:
  """Return whether a node of this level may be a prefix of one item only, numbered C_l + item."""
  return trie.lists is not None and level > 0 and trie.lists[level - 1] is not None


def _regions(trie: Trie, level: int, node: jax.Array) -> jax.Array:
  """Return the regions uint32 [...] of nodes of a level."""
  if trie.regions is None:
    raise ValueError(
      'trie: built without regions, so requests cannot be given masks: '
      'pass regions when you build it'
    )
  node_regions = jnp.asarray(trie.regions[level - 1])[node]
  if level == trie.levels or not _has_single_item_nodes(trie, level):
    return node_regions
  item = node - _rows(trie, level)
  return jnp.where(item >= 0, jnp.asarray(trie.regions[-1])[item], node_regions)
