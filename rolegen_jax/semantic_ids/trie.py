"""The catalogue as tables on the device: which codes may follow a prefix, and which item a full ID is.

Items are sorted by their codes; the nodes of a level (prefixes of that length, level 0 = the root) are numbered in that
order, so the children of a node are consecutive at the next level. A node holds the number of its first child and one bit
per code: a child's number is the first child's plus the count of lower bits set. One short gather per beam and no search.

Live tables, which change in place (`live_tables.py`), have the same bitmaps and tell in another way where a child is; the
functions below read both kinds.

Masks of requests: every item has 32 bits, its *regions* (a country, a warehouse, "in stock at ..."), and every node has those
of all items below it, or-ed. A request that may be shown regions `allow` (bits again) sees a node if they have one in common,
so it never walks into a dead end. One table serves all requests of a batch, each with its own `allow`.

All tables are padded to capacities and are run-time ARGUMENTS of a jitted function: a catalogue that changes within its
capacity changes no shape, so nothing recompiles.

Legend: I items, L levels, K codes, W = ceil(K / 32) words, C_l capacity of level l in nodes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

WORD = 32  # bits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trie:
  first_child: tuple[
    jax.Array | None, ...
  ]  # per level l < L: int32 [C_l + 1], node p's children are first_child[p] .. first_child[p+1]-1
  child_bits: tuple[
    jax.Array, ...
  ]  # per level l < L: uint32 [C_l, W], bit k of a row = there is a child of code k
  leaf_item: (
    jax.Array | None
  )  # int32 [C_L]: item of each leaf (a node of level L); -1 = padding. None: a leaf's number is its item
  item_codes: (
    jax.Array
  )  # int32 [item capacity, L]; 0 in padding. Left-out items keep their codes here
  codes_per_level: int = dataclasses.field(metadata=dict(static=True))  # K
  # Of live tables. None at a level where node p's child of code k is p * K + k (there first_child is None too); else first_child
  # is int32 [C_l, W] and the children of word w are lists[l][first_child[p, w]] onwards.
  lists: tuple[jax.Array | None, ...] | None = None
  regions: tuple[jax.Array, ...] | None = (
    None  # per level 0 < l <= L, at l - 1: uint32 [C_l], regions of the items below a node
  )

  @property
  def levels(self) -> int:
    return len(self.child_bits)


def default_capacity(items: int) -> int:
  """Items that a trie has place for: a quarter more than there are, as a power of two, at least 64."""
  return 1 << (max(64, -(-5 * items // 4)) - 1).bit_length()


def id_order(codes: np.ndarray, codes_per_level: int) -> np.ndarray:
  """int64 [I]: columns of codes int [L, I] in the order of their IDs."""
  if codes_per_level ** len(codes) > 1 << 64:
    return np.lexsort(codes[::-1])
  key = np.zeros(codes.shape[1], np.uint64)  # one number to sort instead of L columns
  for column in codes:
    key *= np.uint64(codes_per_level)
    key += column.astype(np.uint64)
  return np.argsort(key)


def nodes_by_level(sorted_codes: np.ndarray):
  """Of IDs int [I, L] in order, per level from 1: (parent, code, begins), each [nodes of the level].

  Parents by their rank on the level above, and the position in the sorted IDs where each node begins.
  """
  opens = np.zeros(len(sorted_codes), bool)  # does a node begin here?
  opens[:1] = True
  for column in sorted_codes.T:
    rank = np.cumsum(opens)
    opens[1:] |= column[1:] != column[:-1]
    begins = np.flatnonzero(opens)
    yield rank[begins] - 1, column[begins], begins


def runs_of(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of keys [n] of which equal ones are neighbours: (where each different one begins, the run that each of the n belongs to)."""
  opens = np.ones(len(key), bool)
  np.not_equal(key[1:], key[:-1], out=opens[1:])
  return np.flatnonzero(opens), np.cumsum(opens) - 1


def or_runs(key: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(the different keys, the or of each one's bits) of keys [n] of which equal ones are neighbours."""
  starts = runs_of(key)[0]
  return key[starts], np.bitwise_or.reduceat(bits, starts) if len(starts) else bits


def code_bit(code: np.ndarray) -> np.ndarray:
  """uint32 [n]: the bit of each code in its word."""
  return np.uint32(1) << (code % WORD).astype(np.uint32)


def check_room(items: int, capacity: int) -> None:
  if items > capacity:
    raise ValueError(
      f'trie: {items} items, capacity {capacity}: build it with capacity={default_capacity(items)} (recompiles what uses it)'
    )


def check_codes(codes: np.ndarray, codes_per_level: int) -> None:
  if codes.size and (codes.min() < 0 or codes.max() >= codes_per_level):
    raise ValueError(
      f'trie: codes from {codes.min()} to {codes.max()}, must be 0 to {codes_per_level - 1}'
    )


def check_distinct(item: np.ndarray, codes: np.ndarray, name: str = 'items') -> None:
  """Raises ValueError when two items have one ID: codes [L, n] in the order of their IDs, `item` [n] whose they are."""
  same = np.flatnonzero((codes[:, 1:] == codes[:, :-1]).all(axis=0))
  if len(same):
    twins = sorted(item[same[0] : same[0] + 2].tolist())
    raise ValueError(
      f'trie: {name} {twins[0]} and {twins[1]} share the ID {codes[:, same[0]].tolist()}'
    )


def build_trie(
  codes: np.ndarray,
  codes_per_level: int,
  capacity: int | None = None,
  allowed: np.ndarray | None = None,
  regions: np.ndarray | None = None,
) -> Trie:
  """Numpy tables (they move to the device with the call that takes them) of codes int [I, L].

  Args:
    capacity: items that the tables have place for; default `default_capacity(I)`.
    allowed: bool [I], items outside are left out of the tree; default all.
    regions: uint32 [I], see the module's first lines; default: no masks of requests.

  Raises ValueError when I > capacity, a code is out of range, or two allowed items share an ID.
  """
  codes = np.asarray(codes, np.int32)
  n_items, levels = codes.shape
  capacity = default_capacity(n_items) if capacity is None else capacity
  check_room(n_items, capacity)
  check_codes(codes, codes_per_level)
  item = np.arange(n_items) if allowed is None else np.flatnonzero(allowed)
  item = item[id_order(codes[item].T, codes_per_level)]
  sorted_codes = codes[item]
  check_distinct(item, sorted_codes.T)
  capacities = [min(codes_per_level**level, capacity) for level in range(levels + 1)]
  words = -(-codes_per_level // WORD)

  first_child, child_bits, node_regions = [], [], []
  for level, (parent, code, begins) in enumerate(nodes_by_level(sorted_codes)):
    first = np.full(capacities[level] + 1, len(parent), np.int32)  # padding nodes: no children
    starts = runs_of(parent)[0]
    first[: len(starts)] = starts
    bits = np.zeros((capacities[level], words), np.uint32)
    at, value = or_runs(parent * words + code // WORD, code_bit(code))
    bits.reshape(-1)[at] = value
    first_child.append(first)
    child_bits.append(bits)
    if regions is not None:
      node_regions.append(np.zeros(capacities[level + 1], np.uint32))
      if len(begins):
        node_regions[-1][: len(begins)] = np.bitwise_or.reduceat(
          np.asarray(regions, np.uint32)[item], begins
        )
  leaf_item = np.full(capacities[levels], -1, np.int32)
  leaf_item[: len(item)] = item
  item_codes = np.zeros((capacity, levels), np.int32)
  item_codes[:n_items] = codes
  found = None if regions is None else tuple(node_regions)
  return Trie(
    tuple(first_child), tuple(child_bits), leaf_item, item_codes, codes_per_level, regions=found
  )


def root(shape: tuple[int, ...] = ()) -> jax.Array:
  """The node before the first code, int32 of `shape`."""
  return jnp.zeros(shape, jnp.int32)


def children_mask(
  trie: Trie, level: int, node: jax.Array, allow: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """(mask bool [..., K]: codes that may come next, child int32 [..., K]: their nodes, garbage where not mask).

  `node` int32 [...] of `level` (static, 0 = root); a node of -1 has no children. `allow` uint32 of the first axes of `node`, such
  as one number a request: only children with an item of one of these regions. Where one child alone is asked for, `descend` is cheaper.
  """
  codes = jnp.arange(trie.codes_per_level)
  bits = jnp.asarray(trie.child_bits[level])[node]
  mask = (
    ((bits[..., None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1)
    .reshape(*node.shape, -1)
    .astype(bool)
  )
  if trie.first_child[level] is None:
    child = node[..., None] * trie.codes_per_level + codes
  else:
    table = jnp.asarray(trie.first_child[level])
    first = table.reshape(len(table), -1)[
      node
    ]  # [..., G]: live tables have a list for each word, others one for all words
    before = jnp.cumsum(mask.reshape(*first.shape, -1), axis=-1, dtype=jnp.int32) - 1
    child = _child_at(
      trie, level, (first[..., None] + before).reshape(mask.shape)[..., : len(codes)]
    )
  mask = mask[..., : len(codes)] & (node >= 0)[..., None]
  if _has_lone(trie, level):
    item = node - len(trie.child_bits[level])
    is_lone = (item >= 0)[..., None]
    mask = jnp.where(is_lone, jnp.asarray(trie.item_codes)[item, level][..., None] == codes, mask)
    child = jnp.where(is_lone, (_rows(trie, level + 1) + item)[..., None], child)
  if allow is not None:
    mask &= (
      _regions(trie, level + 1, child)
      & allow.reshape(*allow.shape, *(1,) * (child.ndim - allow.ndim))
      != 0
    )
  return mask, child


def descend(trie: Trie, level: int, node: jax.Array, code: jax.Array) -> jax.Array:
  """Child of `node` [...] of `level` by `code` [...], int32; -1 where there is none or the node is -1."""
  bits = jnp.asarray(trie.child_bits[level])[node]
  word, bit = code // WORD, (code % WORD).astype(jnp.uint32)
  own = jnp.take_along_axis(bits, word[..., None], axis=-1)[..., 0]
  exists = (node >= 0) & ((own >> bit) & 1 == 1)
  if trie.first_child[level] is None:
    child = node * trie.codes_per_level + code
  else:
    table = jnp.asarray(trie.first_child[level])
    table = table.reshape(len(table), -1)
    group_words = bits.shape[-1] // table.shape[-1]
    group, each = word // group_words, jnp.arange(bits.shape[-1])
    lower = jnp.where((each < word[..., None]) & (each // group_words == group[..., None]), bits, 0)
    rank = jnp.sum(jax.lax.population_count(lower).astype(jnp.int32), axis=-1)
    rank += jax.lax.population_count(own & ((jnp.uint32(1) << bit) - 1)).astype(jnp.int32)
    child = _child_at(trie, level, table[node, group] + rank)
  if _has_lone(trie, level):
    item = node - len(trie.child_bits[level])
    exists = jnp.where(item >= 0, jnp.asarray(trie.item_codes)[item, level] == code, exists)
    child = jnp.where(item >= 0, _rows(trie, level + 1) + item, child)
  return jnp.where(exists, child, -1)


def leaf(trie: Trie, node: jax.Array) -> jax.Array:
  """Item int32 [...] of nodes of the last level; -1 where the node is -1."""
  return jnp.where(
    node >= 0, node if trie.leaf_item is None else jnp.asarray(trie.leaf_item)[node], -1
  )


def _child_at(trie: Trie, level: int, place: jax.Array) -> jax.Array:
  return place if trie.lists is None else jnp.asarray(trie.lists[level])[place]


def _rows(trie: Trie, level: int) -> int:
  """C_l of live tables, which have no rows on the last level."""
  return len(trie.child_bits[level]) if level < trie.levels else 0


def _has_lone(trie: Trie, level: int) -> bool:
  """May a node of this level be a prefix of one item alone, numbered C_l + item?"""
  return trie.lists is not None and level > 0 and trie.lists[level - 1] is not None


def _regions(trie: Trie, level: int, node: jax.Array) -> jax.Array:
  """uint32 [...]: the regions of nodes of a level."""
  if trie.regions is None:
    raise ValueError(
      'trie: built without regions, so requests cannot be given masks: pass regions when you build it'
    )
  found = jnp.asarray(trie.regions[level - 1])[node]
  if level == trie.levels or not _has_lone(trie, level):
    return found
  item = node - _rows(trie, level)
  return jnp.where(item >= 0, jnp.asarray(trie.regions[-1])[item], found)
