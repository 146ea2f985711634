"""Tables that change in place mean what tables built afresh mean, whatever came and went."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.semantic_ids.mutable_trie import MutableTrie
from rolegen_jax.semantic_ids.trie import build_trie
from tests.semantic_ids.trees import paths, random_codes

LEVELS, CAPACITY = 3, 64


class Shop:
  """A mutable catalogue, changed at random, and what it should hold as plain Python values."""

  def __init__(self, seed: int, codes: int, items: int, with_regions: bool):
    self.rng = np.random.default_rng(seed)
    self.ids = random_codes(seed, min(codes**LEVELS, 300), LEVELS, codes)
    items = min(items, len(self.ids))
    self.regions = np.zeros(CAPACITY, np.uint32)
    self.regions[:items] = self.random_regions(items)
    self.row_of_item = dict(enumerate(range(items)))  # item -> row of `ids`
    initial_regions = self.regions[:items] if with_regions else None
    self.catalogue = MutableTrie(self.ids[:items], codes, CAPACITY, initial_regions)

  def random_regions(self, n: int) -> np.ndarray:
    """One region each for half of the items, none for the others."""
    region = (1 << self.rng.integers(0, 4, n)).astype(np.uint32)
    return region * self.rng.integers(0, 2, n).astype(np.uint32)

  def random_items(self) -> np.ndarray:
    n = self.rng.integers(0, len(self.row_of_item) + 1)
    return self.rng.permutation(sorted(self.row_of_item))[:n].astype(int)

  def swap(self) -> None:
    remove = self.random_items()
    removed = set(remove.tolist())
    left = {item: row for item, row in self.row_of_item.items() if item not in removed}
    free = sorted(set(range(len(self.ids))) - set(left.values()))
    n_add = self.rng.integers(0, min(CAPACITY - len(left), len(free)) + 1)
    add = self.rng.permutation(free)[:n_add].astype(int)
    regions = self.random_regions(len(add))
    has_regions = self.catalogue.tables.regions is not None
    given, counts = self.random_indices(left, len(add)), self.rng.uniform(size=len(add))
    new = self.catalogue.swap(
      self.ids[add], remove, regions if has_regions else None, given, counts
    )
    assert not set(new.tolist()) & set(left) and len(set(new.tolist())) == len(add)
    if given is not None:
      np.testing.assert_array_equal(new[given >= 0], given[given >= 0])
    np.testing.assert_array_equal(self.catalogue.tables.item_count[new], counts.astype(np.float32))
    np.testing.assert_array_equal(self.catalogue.find(self.ids[add]), new)
    others = np.setdiff1d(np.arange(len(self.ids)), [*left.values(), *add])
    assert (self.catalogue.find(self.ids[others]) == -1).all()
    self.regions[new] = regions
    self.row_of_item = left | dict(zip(new.tolist(), add.tolist()))

  def random_indices(self, left: dict[int, int], n: int) -> np.ndarray | None:
    """Free indices for some of n items, -1 for the others; or none asked for."""
    if self.rng.random() < 0.5:
      return None
    free = self.rng.permutation(sorted(set(range(CAPACITY)) - set(left)))[:n]
    return np.where(self.rng.random(n) < 0.5, free, -1)

  def restock(self) -> None:
    items = self.random_items()
    self.regions[items] = self.random_regions(len(items))
    self.catalogue.set_regions(items, self.regions[items])

  def expected_paths(self, allow: int = -1) -> dict:
    return {
      tuple(self.ids[row].tolist()): item
      for item, row in self.row_of_item.items()
      if allow < 0 or self.regions[item] & allow
    }


def table_types(catalogue: MutableTrie):
  tables = catalogue.tables
  arrays = [*tables.first_child, *tables.child_bits, *tables.lists, tables.item_codes]
  return [None if array is None else (array.shape, array.dtype) for array in arrays]


@settings(max_examples=40, deadline=None)
@given(
  st.integers(0, 10**6), st.sampled_from([3, 9, 70]), st.integers(0, CAPACITY), st.integers(1, 4)
)
def test_swaps_equal_tables_built_afresh(seed, codes, items, swaps):
  shop = Shop(seed, codes, items, with_regions=False)
  types = table_types(shop.catalogue)
  for _ in range(swaps):
    shop.swap()
  table = np.array(shop.catalogue.tables.item_codes)
  listed = np.isin(np.arange(CAPACITY), list(shop.row_of_item))
  fresh = build_trie(table, codes, CAPACITY, allowed=listed)
  assert paths(shop.catalogue.tables) == paths(fresh) == shop.expected_paths()
  assert shop.catalogue.items == len(shop.row_of_item)
  assert table_types(shop.catalogue) == types


@settings(max_examples=40, deadline=None)
@given(
  st.integers(0, 10**6), st.sampled_from([3, 70]), st.integers(0, CAPACITY), st.integers(1, 15)
)
def test_requests_see_the_items_of_their_regions(seed, codes, items, allow):
  shop = Shop(seed, codes, items, with_regions=True)
  for change in (shop.swap, shop.restock, shop.swap, shop.restock):
    change()
  assert paths(shop.catalogue.tables) == shop.expected_paths()
  assert paths(shop.catalogue.tables, allow) == shop.expected_paths(allow)


def test_lists_without_space_are_laid_out_anew():
  """Full catalogues of very different shape in turn: released runs are of no use for others."""
  writes = []

  def full_catalogue(children):
    parents = np.arange(64 // children)
    columns = (
      np.repeat(parents % 40, children),
      np.repeat(parents // 40, children),
      np.tile(np.arange(children), len(parents)),
    )
    return np.stack(columns, axis=1)

  catalogues = [full_catalogue(children) for children in (32, 2, 16, 4, 8)]
  trie = MutableTrie(catalogues[0], 40, CAPACITY)
  for codes in catalogues[1:] + catalogues:
    items = trie.swap(codes, np.flatnonzero(trie.listed))
    writes += trie.changes()
    assert paths(trie.tables) == dict(zip(map(tuple, codes.tolist()), items.tolist()))
  assert any(write.entries is None for write in writes)


def test_what_several_changes_wrote_brings_a_copy_to_the_same_state():
  codes = random_codes(0, 40, LEVELS, 9)
  trie = MutableTrie(codes[:20], 9, CAPACITY)
  fields = ('item_codes', 'item_count', 'first_child', 'child_bits', 'lists')
  copy = {name: jax.tree.map(np.copy, getattr(trie.tables, name)) for name in fields}
  trie.swap(codes[20:30], np.arange(5))
  trie.swap(codes[30:], np.arange(3, 12) + 3, indices=np.array([3] + 9 * [-1]))
  for table, level, entries, value in trie.changes():
    field = copy[table] if level is None else copy[table][level]
    if entries is None:
      field[:] = value
    else:
      field.reshape(-1, *value.shape[1:])[entries] = value
  for name in fields:
    jax.tree.map(np.testing.assert_array_equal, copy[name], getattr(trie.tables, name))
  assert not trie.changes()


def test_indices_never_used_come_first_then_the_longest_released():
  first_ids = random_codes(0, 4, LEVELS, 9)
  trie = MutableTrie(first_ids, 9, 6)
  new_ids = random_codes(1, 60, LEVELS, 9)
  is_present = (new_ids[:, None] == trie.tables.item_codes[None, :4]).all(-1).any(1)
  new_ids = new_ids[~is_present]
  assert trie.swap(new_ids[:1], [2]).tolist() == [4]
  assert trie.swap(new_ids[1:2], [0]).tolist() == [5]
  assert trie.tables.item_codes[2].tolist() == first_ids[2].tolist()
  assert trie.swap(new_ids[2:4], []).tolist() == [2, 0]


def test_a_refused_swap_changes_nothing():
  codes = random_codes(0, 60, LEVELS, 70)
  free = random_codes(0, 70, LEVELS, 70)[60:]
  trie = MutableTrie(codes, 70, CAPACITY)
  trie.swap(codes[:0], [7])
  before = paths(trie.tables)
  cases = [
    (r'new item 1 has the ID \[.*\] of item 9', [free[0], codes[9]], [3, 5]),
    (r'new items 0 and 2 share the ID', [free[0], free[1], free[0]], []),
    (r'item 7 is not in the catalogue', [], [7, 3]),
    (r'item 64 is not in the catalogue', [], [64]),
    (r'item 3 is named twice', [], [3, 4, 3]),
    (r'66 items, capacity 64: build it with capacity=128', free[:9], [0, 1]),
    (r'codes from 0 to 70, must be 0 to 69', [[0, 70, 1]], []),
  ]
  for message, add, remove in cases:
    with pytest.raises(ValueError, match=message):
      trie.swap(np.array(add).reshape(-1, LEVELS), remove)
    assert paths(trie.tables) == before and trie.items == 59
  for message, indices in (
    (r'index 8 is that of an item', [8]),
    (r'must be 1 different ones below 64, or -1', [64]),
    (r'must be 1 different ones', [60, 61]),
  ):
    with pytest.raises(ValueError, match=message):
      trie.swap(free[:1], [], indices=np.array(indices))
    assert paths(trie.tables) == before and trie.items == 59
  with pytest.raises(ValueError, match='need regions if, and only if'):
    trie.swap(free[:1], [], np.array([1]))
  with pytest.raises(ValueError, match='built without regions'):
    trie.set_regions([1], [1])
  trie.swap(np.array([codes[9]]), [9])  # an ID is free once its item goes in the same swap


def test_bad_first_tables_are_refused():
  codes = random_codes(0, 60, LEVELS, 70)
  with pytest.raises(ValueError, match='100 items, capacity 64'):
    MutableTrie(random_codes(0, 100, LEVELS, 70), 70, 64)
  with pytest.raises(ValueError, match='items 0 and 2 share the ID'):
    MutableTrie(codes[[4, 1, 4]], 70)
