"""U2I on planted blocks of users and items."""

import numpy as np

from rolegen_jax.data.occasions import TEST
from rolegen_jax.evaluation import baselines, factorization
from rolegen_jax.evaluation.metrics import Pairs, hit, ranks
from tests.evaluation import tiny_log

BLOCKS, SIZE = 4, 10


def blocks(users: int = 80, seed: int = 0):
  """Every user buys eight of the ten items of one block, each once."""
  rng = np.random.default_rng(seed)
  rows = [
    (user, user % BLOCKS * SIZE + int(item), 'purchase', day)
    for user in range(users)
    for day, item in enumerate(rng.permutation(SIZE)[:8])
  ]
  return tiny_log.make(rows, BLOCKS * SIZE, split='leave_one_out')


def test_the_block_of_a_user_comes_first_and_the_same_lists_again():
  log, occasions = blocks()
  rows = baselines.evaluation_rows(log, occasions, TEST)
  pairs = Pairs.of(occasions, rows)
  known = tiny_log.inputs(log, occasions, bars_history=True)
  ranking = factorization.u2i(known, rows, 3)
  assert hit(ranks(ranking.items, pairs), 3).mean() > 0.95
  popularity = baselines.popularity(known, rows, 3).items
  assert hit(ranks(popularity, pairs), 3).mean() < 0.5
  np.testing.assert_array_equal(factorization.u2i(known, rows, 3).items, ranking.items)
  assert ranking.settings['factors'] in factorization.FACTORS
  assert ranking.settings['validation_occasions'] == 80


def test_a_user_is_known_by_the_context_alone():
  """The vector is the solution of the normal equations of the events before the occasion."""
  log, occasions = blocks()
  rows = baselines.evaluation_rows(log, occasions, TEST)[:8]
  known = tiny_log.inputs(log, occasions)
  model = factorization._Factors(known, factorization.Settings(8, 0.01, 1.0))
  score = model.scores(rows).score
  user, end = occasions.user[rows], occasions.context_end[rows]
  for row, (u, last) in enumerate(zip(user, end)):
    items = model._model.item_factors.astype(np.float64)
    seen = log.item[log.offsets[u] : last]
    confidence = np.zeros(len(items))
    confidence[seen] = 5.0  # a purchase
    matrix = items.T @ items + 0.01 * np.eye(items.shape[1])
    matrix += (items.T * np.maximum(confidence - 1, 0)) @ items
    vector = np.linalg.solve(matrix, items.T @ confidence)
    want = items @ vector
    np.testing.assert_allclose(score[row], want - want.min() + 1, rtol=1e-3, atol=1e-3)
