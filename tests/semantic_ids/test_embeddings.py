"""Items that are bought together are near, and so are items with the same attributes."""

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from rolegen_jax.config import TEXT_EMBEDDERS, ConfigError, SemanticIdConfig
from rolegen_jax.semantic_ids import embeddings as lib


def two_groups(users=60, events=20, items=20, seed=0):
  """Users who each view items of one half of the catalogue only: (user, item, weight)."""
  rng = np.random.default_rng(seed)
  user = np.repeat(np.arange(users), events)
  item = rng.integers(0, items // 2, len(user)) + items // 2 * (user % 2)
  return lib.Events(user.astype(np.int32), item.astype(np.int32), np.ones(len(user)))


def test_co_occurring_items_are_near_and_unit_length():
  x = lib.collaborative([two_groups()], n_items=20, dim=4)
  assert x.dtype == np.float32 and x.shape == (20, 4)
  np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
  similarity = x @ x.T
  assert similarity[:10, :10].min() > similarity[:10, 10:].max()
  np.testing.assert_array_equal(x, lib.collaborative([two_groups()], n_items=20, dim=4))


def test_attributes_place_rare_and_unseen_items():
  user, item, weight = two_groups()
  # Item 20 has one event and no neighbors; item 21 is unseen; of item 22 nothing is known.
  user, item, weight = np.append(user, 99), np.append(item, 20), np.append(weight, 1.0)
  group = np.array([0] * 10 + [1] * 10 + [1, 0, -1])[:, None].astype(np.int32)
  x = lib.collaborative([lib.Events(user, item, weight)], 23, 4, group)
  first_group, second_group = x[:10].mean(axis=0), x[10:20].mean(axis=0)
  assert x[20] @ second_group > 0.5 > x[20] @ first_group
  assert x[21] @ first_group > 0.5 > x[21] @ second_group
  np.testing.assert_allclose(np.linalg.norm(x[22]), lib.UNKNOWN_NORM, rtol=1e-4)


def test_without_any_pair_all_items_are_unknown():
  user = item = np.arange(3, dtype=np.int32)
  x = lib.collaborative([lib.Events(user, item, np.ones(3))], n_items=5, dim=4)
  np.testing.assert_allclose(np.linalg.norm(x, axis=1), lib.UNKNOWN_NORM, rtol=1e-4)


def test_the_factorization_is_the_truncated_svd():
  left = np.random.default_rng(0).standard_normal((60, 5))
  right = np.random.default_rng(1).standard_normal((5, 60))
  dense = left @ right
  factors = lib._factorize(sp.csr_array(dense), 8, seed=0)
  u, s, _ = np.linalg.svd(dense)
  expected = u[:, :5] * s[:5] @ u[:, :5].T
  np.testing.assert_allclose(factors[:, :5] @ factors[:, :5].T, expected, atol=1e-6)
  assert not factors[:, 5:].any()


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
  similarity = x @ x.T
  assert similarity[0, 1] > 0.5 > abs(similarity[0, 2])
  assert similarity[2, 4] > 0.5 and not x[3].any()


def test_text_embeddings_by_name_and_by_column():
  items = pl.DataFrame(
    {
      'item_id': range(20),
      'title': ['tea'] * 10 + ['shoes'] * 10,
      'embedding': np.eye(20, 6).tolist(),
    }
  )
  config = SemanticIdConfig(collaborative_dim=4, text='column')
  text = lib.text_embeddings(items, 'column')
  both = lib.item_embeddings([two_groups()], items, text, config)
  assert both.shape == (20, 10) and np.linalg.norm(both[0]) == pytest.approx(1)
  config = SemanticIdConfig(collaborative_dim=4, text='column', collaborative_weight=3.0)
  lengths = [np.linalg.norm(part[0]) for part in (both[:, :4], both[:, 4:])]
  weighted = lib.item_embeddings([two_groups()], items, text, config)
  assert np.linalg.norm(weighted[0]) == pytest.approx(1)
  assert np.linalg.norm(weighted[0, :4]) == pytest.approx(np.sqrt(0.9))
  assert lengths == pytest.approx([np.sqrt(0.5)] * 2)
  config = SemanticIdConfig(collaborative_dim=0, text='hashed_ngrams')
  text = lib.text_embeddings(items, 'hashed_ngrams')
  assert lib.item_embeddings([two_groups()], items, text, config).shape == (20, 128)
  assert lib.text_embeddings(items, '') is None
  assert {'column', 'reasoner', *lib.TEXT_EMBEDDERS} == set(TEXT_EMBEDDERS)
  message = "'bert': unknown text embedder, known are: column, hashed_ngrams, minilm"
  with pytest.raises(ConfigError, match=message):
    lib.text_embeddings(items, 'bert')
  with pytest.raises(ConfigError, match='no `embedding` list column'):
    lib.text_embeddings(items.drop('embedding'), 'column')
  with pytest.raises(ConfigError, match='none of the columns'):
    lib.text_embeddings(items.drop('title'), 'hashed_ngrams')


@pytest.mark.parametrize('name', ['hashed_ngrams', 'column', ''])
def test_texts_of_further_items_are_embedded_as_those_of_the_catalogue(name):
  titles = [f'red {kind} of {who}' for kind in ('shoe', 'hat', 'coat') for who in ('ann', 'bob')]
  items = pl.DataFrame({'title': titles, 'embedding': [[float(i)] for i in range(6)]})
  embed = lib.embedder_of_more(items, name)
  if name != 'hashed_ngrams':
    assert embed is None  # such vectors come from elsewhere
    return
  whole = lib.text_embeddings(items, name)
  np.testing.assert_allclose(embed(titles[:2]), whole[:2], atol=1e-6)
  assert (embed(['blue shoe of ann']) @ whole.T).argmax() == 0
  assert not embed(['']).any()
