"""Tables that change in place against tables built afresh: the same items under the same IDs, whatever came and went."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import paths, random_codes

from rolegen_jax.semantic_ids.mutable_trie import MutableTrie
from rolegen_jax.semantic_ids.trie import build_trie

LEVELS, CAPACITY = 3, 64


class Shop:
  """A live catalogue and the plain truth about it: {item: ID as a row of `ids`} and regions, changed at random."""

  def __init__(self, seed: int, codes: int, items: int, regions: bool):
    self.rng, self.codes = np.random.default_rng(seed), codes
    self.ids = random_codes(seed, min(codes**LEVELS, 300), LEVELS, codes)
    items = min(items, len(self.ids))
    self.words = np.zeros(CAPACITY, np.uint32)
    self.words[:items] = self.some_regions(items)
    self.row = dict(enumerate(range(items)))
    self.live = MutableTrie(
      self.ids[:items], codes, CAPACITY, self.words[:items] if regions else None
    )

  def some_regions(self, n: int) -> np.ndarray:
    return (1 << self.rng.integers(0, 4, n)).astype(np.uint32) * self.rng.integers(0, 2, n).astype(
      np.uint32
    )  # half of them in none

  def swap(self) -> None:
    remove = self.rng.permutation(sorted(self.row))[: self.rng.integers(0, len(self.row) + 1)]
    left = {item: row for item, row in self.row.items() if item not in set(remove.tolist())}
    free = sorted(set(range(len(self.ids))) - set(left.values()))
    add = self.rng.permutation(free)[
      : self.rng.integers(0, min(CAPACITY - len(left), len(free)) + 1)
    ].astype(int)
    regions = self.some_regions(len(add))
    numbers = self.live.swap(
      self.ids[add], remove, regions if self.live.tables.regions is not None else None
    )
    assert not set(numbers.tolist()) & set(left)
    self.words[numbers] = regions
    self.row = left | dict(zip(numbers.tolist(), add.tolist()))

  def restock(self) -> None:
    items = self.rng.permutation(sorted(self.row))[
      : self.rng.integers(0, len(self.row) + 1)
    ].astype(int)
    self.words[items] = self.some_regions(len(items))
    self.live.set_regions(items, self.words[items])

  def truth(self, allow: int = -1) -> dict:
    seen = (item for item in self.row if allow < 0 or self.words[item] & allow)
    return {tuple(self.ids[self.row[item]].tolist()): item for item in seen}


@settings(max_examples=40, deadline=None)
@given(
  st.integers(0, 10**6), st.sampled_from([3, 9, 70]), st.integers(0, CAPACITY), st.integers(1, 4)
)
def test_equals_tables_built_afresh(seed, codes, items, swaps):
  shop = Shop(seed, codes, items, regions=False)
  shapes = [None if a is None else (a.shape, a.dtype) for a in _tables(shop.live)]
  for _ in range(swaps):
    shop.swap()
  table = np.array(shop.live.tables.item_codes)
  fresh = build_trie(table, codes, CAPACITY, allowed=np.isin(np.arange(CAPACITY), list(shop.row)))
  assert paths(shop.live.tables) == paths(fresh) == shop.truth()
  assert shop.live.items == len(shop.row)
  assert shapes == [None if a is None else (a.shape, a.dtype) for a in _tables(shop.live)]


@settings(max_examples=40, deadline=None)
@given(
  st.integers(0, 10**6), st.sampled_from([3, 9, 70]), st.integers(0, CAPACITY), st.integers(1, 15)
)
def test_requests_see_their_regions(seed, codes, items, allow):
  shop = Shop(seed, codes, items, regions=True)
  for change in (shop.swap, shop.restock, shop.swap, shop.restock):
    change()
  assert paths(shop.live.tables) == shop.truth()
  assert paths(shop.live.tables, allow) == shop.truth(allow)


def _tables(live: MutableTrie):
  t = live.tables
  return [*t.first_child, *t.child_bits, *t.lists, t.item_codes]


def test_lists_without_a_place_are_laid_out_anew():
  """Full catalogues of very different shape, one after the other: runs of one width are of no use for another."""
  writes = []
  of = lambda parents, n: np.stack(
    [np.repeat(parents % 40, n), np.repeat(parents // 40, n), np.tile(np.arange(n), len(parents))],
    axis=1,
  )
  shapes = [of(np.arange(64 // n), n) for n in (32, 2, 16, 4, 8)]
  live = MutableTrie(shapes[0], 40, CAPACITY, send=writes.append)
  for new in shapes[1:] + shapes:
    numbers = live.swap(new, np.flatnonzero(live.listed))
    assert paths(live.tables) == dict(zip(map(tuple, new.tolist()), numbers.tolist()))
  assert any(write.index is None for write in writes)


def test_numbers_never_used_come_first_then_the_longest_gone():
  live = MutableTrie(random_codes(0, 4, LEVELS, 9), 9, 6)
  more = random_codes(1, 60, LEVELS, 9)
  more = more[~(more[:, None] == live.tables.item_codes[None, :4]).all(-1).any(1)]
  assert live.swap(more[:1], [2]).tolist() == [4]
  assert live.swap(more[1:2], [0]).tolist() == [5]
  assert live.tables.item_codes[2].tolist() == random_codes(0, 4, LEVELS, 9)[2].tolist()
  assert live.swap(more[2:4], []).tolist() == [2, 0]


def test_refuses_and_stays_as_it_was():
  codes = random_codes(0, 60, LEVELS, 70)
  free = random_codes(0, 70, LEVELS, 70)[60:]
  live = MutableTrie(codes, 70, CAPACITY)
  live.swap(codes[:0], [7])
  before = paths(live.tables)
  wrong = [
    (r'new item 1 has the ID \[.*\] of item 9', [free[0], codes[9]], [3, 5]),
    (r'new items 0 and 2 share the ID', [free[0], free[1], free[0]], []),
    (r'item 7 is not in the catalogue', [], [7, 3]),
    (r'item 64 is not in the catalogue', [], [64]),
    (r'item 3 is named twice', [], [3, 4, 3]),
    (r'66 items, capacity 64: build it with capacity=128', free[:9], [0, 1]),
    (r'codes from 0 to 70, must be 0 to 69', [[0, 70, 1]], []),
  ]
  for message, add, remove in wrong:
    with pytest.raises(ValueError, match=message):
      live.swap(np.array(add).reshape(-1, LEVELS), remove)
    assert paths(live.tables) == before and live.items == 59
  with pytest.raises(ValueError, match='need regions if, and only if'):
    live.swap(free[:1], [], np.array([1]))
  with pytest.raises(ValueError, match='built without regions'):
    live.set_regions([1], [1])
  live.swap(np.array([codes[9]]), [9])  # an ID is free once its item goes in the same swap
  with pytest.raises(ValueError, match='100 items, capacity 64'):
    MutableTrie(random_codes(0, 100, LEVELS, 70), 70, 64)
  with pytest.raises(ValueError, match='items 0 and 2 share the ID'):
    MutableTrie(codes[[4, 1, 4]], 70)
