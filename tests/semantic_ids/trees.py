"""A catalogue's tables read back as a plain dictionary, through the functions that decoding uses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.semantic_ids import trie as trie_lib


def random_codes(seed, items, levels, codes):
  ids = np.random.default_rng(seed).choice(codes**levels, items, replace=False)
  return (ids[:, None] // codes ** np.arange(levels)[::-1] % codes).astype(np.int32)


@functools.partial(jax.jit, static_argnums=1)
def children(trie, level, node, allow=None):
  """(mask, child by `children_mask`, child by `descend`) of nodes [n] and every code: [n, K] each."""
  mask, child = trie_lib.children_mask(trie, level, node, allow)
  code = jnp.broadcast_to(jnp.arange(trie.codes_per_level), mask.shape)
  return (
    mask,
    child,
    trie_lib.descend(trie, level, jnp.broadcast_to(node[:, None], mask.shape), code),
  )


def paths(trie, allow: int | None = None, width: int = 64) -> dict[tuple[int, ...], int]:
  """{ID: item} of a catalogue of at most `width` items, walked level by level; with `allow`, as such a request sees it."""
  prefixes, nodes = [()], [0]
  for level in range(trie.levels):
    node = np.full(width, -1, np.int32)
    node[: len(nodes)] = nodes
    mask, child, descended = map(
      np.asarray,
      children(trie, level, node, None if allow is None else jnp.full(width, allow, jnp.uint32)),
    )
    if allow is None:
      np.testing.assert_array_equal(descended, np.where(mask, child, -1))
    assert not mask[len(nodes) :].any()  # a node of -1 has no children
    rows, codes = np.nonzero(mask)
    assert level == 0 or set(rows.tolist()) == set(range(len(nodes)))  # no dead ends
    prefixes, nodes = (
      [prefixes[r] + (int(c),) for r, c in zip(rows, codes)],
      child[rows, codes].tolist(),
    )
  node = np.full(width, -1, np.int32)
  node[: len(nodes)] = nodes
  return dict(zip(prefixes, np.asarray(jax.jit(trie_lib.leaf)(trie, node)).tolist()))
