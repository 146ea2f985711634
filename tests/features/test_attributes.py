"""Words that items share, as numbers."""

import numpy as np
import polars as pl

from rolegen_jax.features.attributes import FEWEST, PER_ITEM, attributes_of, choose_words

ITEMS = 4 * FEWEST


def items(**columns) -> pl.DataFrame:
  return pl.DataFrame(dict(item_id=range(ITEMS)) | columns)


def test_words_that_enough_items_share_and_at_most_half_the_most_frequent_first():
  every = [f'Gift, for all {"Red-hot" if i % 2 else "blue"}' for i in range(ITEMS)]
  few = ['rare'] * (FEWEST - 1) + [''] * (ITEMS - FEWEST + 1)
  brand = ['Acme'] * FEWEST + [None] * (ITEMS - FEWEST)
  catalogue = items(title=every, category_code=few, brand=brand)
  assert choose_words(catalogue, 9) == ('blue', 'hot', 'red', 'acme')
  assert choose_words(catalogue, 2) == ('blue', 'hot')
  table = attributes_of(catalogue, ('blue', 'hot', 'acme'), np.zeros(ITEMS, np.int32), 9)
  assert table.dtype == np.int32 and table.shape == (ITEMS, PER_ITEM)
  assert [sorted(set(row) - {-1}) for row in table[[0, 1, ITEMS - 1]]] == [[0, 2], [1, 2], [1]]


def test_an_item_of_many_words_keeps_the_rarest():
  words = tuple(f'w{i}' for i in range(PER_ITEM + 2))
  table = attributes_of(items(title=[' '.join(words)] * ITEMS), words, np.zeros(ITEMS), 99)
  assert sorted(table[0]) == list(range(2, PER_ITEM + 2))


def test_without_words_an_items_attribute_is_its_coarse_code():
  coarse = np.arange(ITEMS) % 7
  assert choose_words(items(price=[1.0] * ITEMS), 5) == ()
  table = attributes_of(items(), (), coarse, 5)
  np.testing.assert_array_equal(table[:, 0], np.where(coarse < 5, coarse, -1))
