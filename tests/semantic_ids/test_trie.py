"""The tables that constrain decoding, against Python sets of prefixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.semantic_ids import trie as trie_lib
from rolegen_jax.semantic_ids.mutable_trie import MutableTrie
from tests.semantic_ids.trees import children, random_codes


@jax.jit
def walk(trie, codes_L):
  """The node of a whole ID, by `descend`."""
  node = trie_lib.root()
  for level, code in enumerate(codes_L):
    node = trie_lib.descend(trie, level, node, code)
  return node


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([3, 70]), st.booleans())
def test_tables_agree_with_python_sets(seed, items, codes, restrict):
  levels, items = 3, min(items, codes**3)
  table = random_codes(seed, items, levels, codes)
  allowed = np.ones(items, bool)
  if restrict:
    allowed = np.random.default_rng(seed).random(items) < 0.5
  trie = trie_lib.build_trie(table, codes, capacity=64, allowed=allowed if restrict else None)
  ids = {tuple(row): item for item, row in enumerate(table.tolist()) if allowed[item]}
  nodes = {(): 0} if ids else {}  # prefix -> node
  for level in range(levels):
    every_node = jnp.arange(trie.child_bits[level].shape[0])
    mask, child, descended = map(np.asarray, children(trie, level, every_node))
    np.testing.assert_array_equal(descended, np.where(mask, child, -1))
    # Padding nodes have no children.
    assert mask.sum() == len({codes_of_id[: level + 1] for codes_of_id in ids})
    deeper = {}
    for prefix, node in nodes.items():
      expected = {codes_of_id[level] for codes_of_id in ids if codes_of_id[:level] == prefix}
      assert set(np.flatnonzero(mask[node]).tolist()) == expected
      deeper |= {prefix + (code,): int(child[node, code]) for code in expected}
    nodes = deeper
  last = np.full(64, -1, np.int32)  # one shape: one compilation
  last[: len(ids)] = [nodes[codes_of_id] for codes_of_id in ids]
  leaves = np.asarray(trie_lib.leaf(trie, jnp.asarray(last)))
  assert leaves.tolist() == [*ids.values()] + [-1] * (64 - len(ids))


def test_a_dead_end_has_no_children_and_no_item():
  trie = trie_lib.build_trie(np.array([[0, 1, 2], [3, 1, 2]]), 4)
  assert int(walk(trie, jnp.asarray([3, 1, 2]))) >= 0
  dead = walk(trie, jnp.asarray([1, 1, 2]))
  assert int(dead) == -1 and int(trie_lib.leaf(trie, dead)) == -1
  assert not trie_lib.children_mask(trie, 1, jnp.asarray([-1]))[0].any()


def test_a_change_within_capacity_does_not_recompile():
  table = random_codes(0, 1000, 3, 16)

  @jax.jit
  def first_item(trie):
    node = trie_lib.root((1,))
    for level in range(trie.levels):
      mask, child = trie_lib.children_mask(trie, level, node)
      node = jnp.take_along_axis(child, jnp.argmax(mask, axis=-1)[:, None], axis=-1)[:, 0]
    return trie_lib.leaf(trie, node)[0]

  before = trie_lib.build_trie(table, 16)
  changed = np.concatenate([table[100:], random_codes(1, 4096, 3, 16)])
  changed = changed[np.sort(np.unique(changed, axis=0, return_index=True)[1])][:1040]
  after = trie_lib.build_trie(changed, 16)
  for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
    assert (old.shape, old.dtype) == (new.shape, new.dtype)
  for trie, codes in ((before, table), (after, changed)):
    assert int(first_item(trie)) == np.lexsort(codes.T[::-1])[0]
  assert first_item._cache_size() == 1


def test_empty_and_full_catalogues():
  empty = trie_lib.build_trie(np.zeros((5, 2), np.int32), 4, allowed=np.zeros(5, bool))
  assert not trie_lib.children_mask(empty, 0, trie_lib.root((1,)))[0].any()
  full = trie_lib.build_trie(random_codes(0, 16, 2, 4), 4)
  assert trie_lib.children_mask(full, 0, trie_lib.root((1,)))[0].all()
  assert [first.shape for first in full.first_child] == [(2,), (5,)]
  assert full.leaf_item.shape == (16,)


def test_bad_codes_are_refused():
  with pytest.raises(ValueError, match=r'items 0 and 2 share the ID \[1, 2\]'):
    trie_lib.build_trie(np.array([[1, 2], [1, 3], [1, 2]]), 4)
  with pytest.raises(ValueError, match='3 items, capacity 2'):
    trie_lib.build_trie(np.array([[1, 2], [1, 3], [1, 1]]), 4, capacity=2)
  with pytest.raises(ValueError, match='codes from 1 to 4, must be 0 to 3'):
    trie_lib.build_trie(np.array([[1, 4]]), 4)


def tables(mutable: bool, codes, allowed, regions):
  """Those of 20 items, of which only `allowed` ones are in the tree."""
  if not mutable:
    return trie_lib.build_trie(codes, 4, 32, allowed, regions)
  trie = MutableTrie(codes, 4, 32, regions)
  none = np.zeros((0, codes.shape[1]), np.int32)
  trie.swap(none, np.flatnonzero(~allowed), np.zeros(0, np.uint32))
  return trie.tables


@pytest.mark.parametrize('mutable', [False, True])
def test_what_is_listed(mutable):
  """Items in the tree, with a mask those of its regions; neither padding, nor -1, nor gone."""
  rng = np.random.default_rng(0)
  codes, allowed = random_codes(0, 20, 3, 4), rng.random(20) < 0.6
  codes[(codes == 0).all(1)], codes[7] = codes[7].copy(), 0  # padding has these codes too
  regions = rng.integers(1, 8, 20).astype(np.uint32)
  trie = tables(mutable, codes, allowed, regions)
  item = jnp.arange(-1, 32)
  expected = np.zeros(33, bool)
  expected[1 + np.flatnonzero(allowed)] = True
  np.testing.assert_array_equal(trie_lib.is_listed(trie, item), expected)
  allow = jnp.array([[1], [6], [0]], jnp.uint32)
  of_region = np.zeros((3, 33), bool)
  of_region[:, 1:21] = regions & np.asarray(allow) != 0
  np.testing.assert_array_equal(
    trie_lib.is_listed(trie, jnp.tile(item, (3, 1)), allow), expected & of_region
  )


def test_what_is_known_of_items_is_padded_to_the_capacity():
  codes, text = random_codes(0, 5, 2, 4), np.ones((5, 3), np.float32)
  trie = trie_lib.build_trie(codes, 4, 8, counts=np.arange(5), text=text)
  assert trie.sizes == (8, 3)
  assert trie.item_count.tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
  assert trie.item_text.sum(1).tolist() == [3] * 5 + [0] * 3
  plain = trie_lib.build_trie(codes, 4, 8)
  assert plain.sizes == (8, 0) and plain.item_text is None
  assert plain.item_count.tolist() == [1] * 5 + [0] * 3
