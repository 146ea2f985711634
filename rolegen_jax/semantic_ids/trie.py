"""The catalogue as tables on the device: which codes may follow a prefix, and which item a full ID is.

Items are sorted by their codes; the nodes of a level (prefixes of that length, level 0 = the root) are numbered in that
order, so the children of a node are consecutive at the next level. A node holds the number of its first child and one bit
per code: a child's number is the first child's plus the count of lower bits set. One short gather per beam and no search.

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
  first_child: tuple[jax.Array, ...]  # per level l < L: int32 [C_l + 1], node p's children are first_child[p] .. first_child[p+1]-1
  child_bits: tuple[jax.Array, ...]  # per level l < L: uint32 [C_l, W], bit k of a row = there is a child of code k
  leaf_item: jax.Array  # int32 [C_L]: item of each leaf (a node of level L); -1 = padding
  item_codes: jax.Array  # int32 [item capacity, L]; 0 in padding. Left-out items keep their codes here
  codes_per_level: int = dataclasses.field(metadata=dict(static=True))  # K

  @property
  def levels(self) -> int:
    return len(self.first_child)


def default_capacity(items: int) -> int:
  """Items that a trie has place for: a quarter more than there are, as a power of two, at least 64."""
  return 1 << (max(64, -(-5 * items // 4)) - 1).bit_length()


def build_trie(codes: np.ndarray, codes_per_level: int, capacity: int | None = None, allowed: np.ndarray | None = None) -> Trie:
  """Numpy tables (they move to the device with the call that takes them) of codes int [I, L].

  Args:
    capacity: items that the tables have place for; default `default_capacity(I)`.
    allowed: bool [I], items outside are left out of the tree; default all.

  Raises ValueError when I > capacity, a code is out of range, or two allowed items share an ID.
  """
  codes = np.asarray(codes, np.int32)
  n_items, levels = codes.shape
  capacity = default_capacity(n_items) if capacity is None else capacity
  if n_items > capacity:
    raise ValueError(f'trie: {n_items} items, capacity {capacity}: build it with a greater capacity (recompiles what uses it)')
  if codes.size and (codes.min() < 0 or codes.max() >= codes_per_level):
    raise ValueError(f'trie: codes from {codes.min()} to {codes.max()}, must be 0 to {codes_per_level - 1}')
  item = np.arange(n_items) if allowed is None else np.flatnonzero(allowed)
  item = item[np.lexsort(codes[item].T[::-1])]
  sorted_codes = codes[item]
  capacities = [min(codes_per_level**level, capacity) for level in range(levels + 1)]
  words = -(-codes_per_level // WORD)

  first_child, child_bits = [], []
  starts = np.zeros(min(len(item), 1), np.int64)  # position in the sorted items where each node of the level begins
  opens = np.zeros(len(item), bool)  # does a node begin here?
  opens[:1] = True
  for level in range(levels):
    column = sorted_codes[:, level]
    opens = opens | np.concatenate([[True], column[1:] != column[:-1]])[:len(item)]
    child_starts = np.flatnonzero(opens)
    first = np.full(capacities[level] + 1, len(child_starts), np.int32)  # padding nodes: no children
    first[:len(starts)] = np.searchsorted(child_starts, starts)
    parent = np.searchsorted(starts, child_starts, side='right') - 1
    code = column[child_starts]
    bits = np.zeros((capacities[level], words), np.uint32)
    np.bitwise_or.at(bits, (parent, code // WORD), np.uint32(1) << (code % WORD).astype(np.uint32))
    first_child.append(first)
    child_bits.append(bits)
    starts = child_starts
  if len(starts) != len(item):
    twin = int(np.flatnonzero(~opens)[0])
    raise ValueError(f'trie: items {item[twin - 1]} and {item[twin]} share the ID {sorted_codes[twin].tolist()}')
  leaf_item = np.full(capacities[levels], -1, np.int32)
  leaf_item[:len(item)] = item
  item_codes = np.zeros((capacity, levels), np.int32)
  item_codes[:n_items] = codes
  return Trie(tuple(first_child), tuple(child_bits), leaf_item, item_codes, codes_per_level)


def root(shape: tuple[int, ...] = ()) -> jax.Array:
  """The node before the first code, int32 of `shape`."""
  return jnp.zeros(shape, jnp.int32)


def children_mask(trie: Trie, level: int, node: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(mask bool [..., K]: codes that may come next, child int32 [..., K]: their nodes, garbage where not mask).

  `node` int32 [...] of `level` (static, 0 = root); a node of -1 has no children.
  """
  bits = jnp.asarray(trie.child_bits[level])[node]
  mask = (bits[..., None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1
  mask = mask.reshape(*node.shape, -1)[..., :trie.codes_per_level].astype(bool) & (node >= 0)[..., None]
  before = jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1
  return mask, jnp.asarray(trie.first_child[level])[node][..., None] + before


def descend(trie: Trie, level: int, node: jax.Array, code: jax.Array) -> jax.Array:
  """Child of `node` [...] of `level` by `code` [...], int32; -1 where there is none or the node is -1."""
  bits = jnp.asarray(trie.child_bits[level])[node]
  word, bit = code // WORD, (code % WORD).astype(jnp.uint32)
  own = jnp.take_along_axis(bits, word[..., None], axis=-1)[..., 0]
  lower = jnp.where(jnp.arange(bits.shape[-1]) < word[..., None], bits, 0)
  rank = jnp.sum(jax.lax.population_count(lower).astype(jnp.int32), axis=-1)
  rank += jax.lax.population_count(own & ((jnp.uint32(1) << bit) - 1)).astype(jnp.int32)
  exists = (node >= 0) & ((own >> bit) & 1 == 1)
  return jnp.where(exists, jnp.asarray(trie.first_child[level])[node] + rank, -1)


def leaf(trie: Trie, node: jax.Array) -> jax.Array:
  """Item int32 [...] of nodes of the last level; -1 where the node is -1."""
  return jnp.where(node >= 0, jnp.asarray(trie.leaf_item)[node], -1)
