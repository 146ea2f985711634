"""A catalogue's tables read back as a plain dictionary, by the functions that decoding uses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.semantic_ids import trie as trie_lib


def random_codes(seed, items, levels, codes):
  """Distinct IDs int32 [items, levels]."""
  ids = np.random.default_rng(seed).choice(codes**levels, items, replace=False)
  return (ids[:, None] // codes ** np.arange(levels)[::-1] % codes).astype(np.int32)


@functools.partial(jax.jit, static_argnums=1)
def children(trie, level, node, allow=None):
  """(mask, child by `children_mask`, child by `descend`), [n, K], of nodes [n] and every code."""
  mask, child = trie_lib.children_mask(trie, level, node, allow)
  code = jnp.broadcast_to(jnp.arange(trie.codes_per_level), mask.shape)
  nodes = jnp.broadcast_to(node[:, None], mask.shape)
  return mask, child, trie_lib.descend(trie, level, nodes, code)


def paths(trie, allow: int | None = None, width: int = 64) -> dict[tuple[int, ...], int]:
  """{ID: item} of a catalogue of at most `width` items, walked level by level.

  With `allow`, as a request with these regions sees it.
  """
  allow_n = None if allow is None else jnp.full(width, allow, jnp.uint32)
  prefixes, nodes = [()], [0]
  for level in range(trie.levels):
    node = _padded(nodes, width)
    mask, child, descended = map(np.asarray, children(trie, level, node, allow_n))
    if allow is None:
      np.testing.assert_array_equal(descended, np.where(mask, child, -1))
    assert not mask[len(nodes) :].any()  # a node of -1 has no children
    rows, codes = np.nonzero(mask)
    assert level == 0 or set(rows.tolist()) == set(range(len(nodes)))  # no dead ends
    prefixes = [prefixes[row] + (int(code),) for row, code in zip(rows, codes)]
    nodes = child[rows, codes].tolist()
  items = np.asarray(jax.jit(trie_lib.leaf)(trie, _padded(nodes, width)))
  return dict(zip(prefixes, items.tolist()))


def _padded(nodes, width):
  node = np.full(width, -1, np.int32)
  node[: len(nodes)] = nodes
  return node
