"""Embeddings put together what is bought together, and what has the same attributes when little else is known."""

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import ConfigError, SemanticIdConfig
from rolegen_jax.semantic_ids import embeddings as lib


def two_groups(users=60, events=20, items=20, seed=0):
  """Users who view items of one half of the catalogue only."""
  rng = np.random.default_rng(seed)
  user = np.repeat(np.arange(users), events)
  item = rng.integers(0, items // 2, len(user)) + items // 2 * (user % 2)
  return user.astype(np.int32), item.astype(np.int32), np.ones(len(user))


def test_co_occurring_items_are_near_and_unit_length():
  x = lib.collaborative(*two_groups(), n_items=20, dim=4)
  assert x.dtype == np.float32 and x.shape == (20, 4)
  np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
  near = x @ x.T
  assert near[:10, :10].min() > near[:10, 10:].max()
  np.testing.assert_array_equal(x, lib.collaborative(*two_groups(), n_items=20, dim=4))


def test_attributes_place_rare_and_unseen_items():
  user, item, weight = two_groups()
  user, item, weight = (
    np.append(user, 99),
    np.append(item, 20),
    np.append(weight, 1.0),
  )  # item 20: one event, alone
  group = np.array([0] * 10 + [1] * 10 + [1, 0, -1])[:, None].astype(
    np.int32
  )  # item 21: unseen; 22: nothing known
  x = lib.collaborative(user, item, weight, 23, 4, group)
  assert x[20] @ x[10:20].mean(axis=0) > 0.5 > x[20] @ x[:10].mean(axis=0)
  assert x[21] @ x[:10].mean(axis=0) > 0.5 > x[21] @ x[10:20].mean(axis=0)
  np.testing.assert_allclose(np.linalg.norm(x[22]), lib.UNKNOWN_NORM, rtol=1e-4)


def test_no_pairs_at_all():
  x = lib.collaborative(
    np.arange(3, dtype=np.int32), np.arange(3, dtype=np.int32), np.ones(3), n_items=5, dim=4
  )
  np.testing.assert_allclose(np.linalg.norm(x, axis=1), lib.UNKNOWN_NORM, rtol=1e-4)


def test_factorisation_is_the_truncated_svd():
  import scipy.sparse as sp

  dense = np.random.default_rng(0).standard_normal((60, 5)) @ np.random.default_rng(
    1
  ).standard_normal((5, 60))
  out = lib._factorise(sp.csr_array(dense), 8, seed=0)
  u, s, _ = np.linalg.svd(dense)
  np.testing.assert_allclose(out[:, :5] @ out[:, :5].T, u[:, :5] * s[:5] @ u[:, :5].T, atol=1e-6)
  assert not out[:, 5:].any()


def test_attribute_codes_of_a_category_path():
  items = pl.DataFrame(
    {'item_id': [1, 2, 3], 'category_code': ['a.b', 'a.c.d.e', None], 'brand': ['x', None, 'x']}
  )
  assert lib.attribute_codes(items).tolist() == [[0, 0, -1, 0], [0, 1, 0, -1], [-1, -1, -1, 0]]
  assert lib.attribute_codes(items.select('item_id')) is None


def test_hashed_ngrams_bring_near_duplicates_together():
  texts = [
    'Red running shoes, size 42',
    'red running shoes size 43',
    'Organic green tea 100 g',
    '',
    'organic green tea',
  ]
  x = lib.hashed_ngrams(texts + [f'something else {i}' for i in range(20)])
  near = x @ x.T
  assert near[0, 1] > 0.5 > abs(near[0, 2]) and near[2, 4] > 0.5 and not x[3].any()


def test_text_by_name_column_and_unknown():
  user, item, weight = two_groups()
  items = pl.DataFrame(
    {
      'item_id': range(20),
      'title': ['tea'] * 10 + ['shoes'] * 10,
      'embedding': np.eye(20, 6).tolist(),
    }
  )
  both = lib.item_embeddings(
    user, item, weight, items, SemanticIdConfig(collaborative_dim=4, text='column')
  )
  assert both.shape == (20, 10) and np.linalg.norm(both[0]) == pytest.approx(1)
  assert lib.item_embeddings(
    user, item, weight, items, SemanticIdConfig(collaborative_dim=0, text='hashed_ngrams')
  ).shape == (20, 128)
  with pytest.raises(
    ConfigError, match="'bert': unknown text embedder, known are: column, hashed_ngrams"
  ):
    lib.text_embeddings(items, 'bert')
  with pytest.raises(ConfigError, match='no `embedding` list column'):
    lib.text_embeddings(items.drop('embedding'), 'column')
  with pytest.raises(ConfigError, match='none of the columns'):
    lib.text_embeddings(items.drop('title'), 'hashed_ngrams')
