"""New items get IDs by what they resemble; those that are there keep theirs."""

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.semantic_ids import placing
from rolegen_jax.semantic_ids.catalogue import Catalogue

# Four corners of a square, each with four places near it.
BOOKS = np.array(
  [[[0, 0], [0, 10], [10, 0], [10, 10]], [[0, 0], [0, 1], [1, 0], [1, 1]]], np.float32
)
PRESENT = pl.DataFrame(
  dict(item_id=[1, 2, 5, 6], category_id=['a', 'a', 'b', 'c'], brand=['x', None, 'x', None])
)
# In another order than the items are in the log.
CATALOGUE = Catalogue(
  np.array([6, 5, 2, 1]), np.array([[1, 0], [3, 0], [0, 1], [0, 0]], np.int32), BOOKS
)


def items(ids, categories, brands=None):
  brands = brands or [None] * len(ids)
  columns = dict(item_id=ids, category_id=categories, brand=brands)
  return pl.DataFrame(columns, schema=PRESENT.schema)


def test_new_items_stand_beside_those_they_resemble_and_no_other_moves():
  new = items([4, 3, 9], ['a', 'b', 'zzz'], [None, 'x', None])
  grown = placing.add_items(CATALOGUE, PRESENT, new, None)
  np.testing.assert_array_equal(
    grown.codes_of(PRESENT['item_id']), CATALOGUE.codes_of([1, 2, 5, 6])
  )
  assert grown.parent == CATALOGUE.digest != grown.digest
  codes = grown.codes_of([4, 3])
  assert codes[0, 0] == 0  # amid the two of its category
  assert codes[1, 0] == 3  # two attributes of item 5 outweigh one of item 1
  assert len(np.unique(grown.codes, axis=0)) == 7


def test_text_decides_where_attributes_do_not():
  vectors = np.eye(4, dtype=np.float32)
  new = items([7], [None])
  grown = placing.add_items(CATALOGUE, PRESENT, new, (vectors, vectors[[3]]))
  assert grown.codes_of([7])[0, 0] == CATALOGUE.codes_of([6])[0, 0]


def test_collisions_are_settled_alike_every_time_and_a_full_catalogue_says_so():
  new = items(list(range(20, 32)), ['a'] * 12)
  one, two = (placing.add_items(CATALOGUE, PRESENT, new, None) for _ in range(2))
  assert one.digest == two.digest and len(np.unique(one.codes, axis=0)) == 16
  with pytest.raises(ConfigError, match='17 items need their own IDs'):
    placing.add_items(one, pl.concat([PRESENT, new]), items([99], ['a']), None)
