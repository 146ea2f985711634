"""The table of recommendations: what its order is by, and what it says of worlds."""

import numpy as np
import pytest

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.data.examples import inference_examples
from rolegen_jax.models.experts import EXPERTS
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.serving.recommend import _frame
from rolegen_jax.serving.slate import slates
from tests.evaluation import tiny_log

M, WORLDS, ITEMS = 3, 5, 8
OPENS = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.4, 0.0])
# Items 0 to 4 are of the paths of worlds 0 to 4, 7 of none; 6 opens most.
ITEM = np.array([[0, 1, 2, 3, 4, 7, 6, -1]])
LOG_PROB = np.log(np.array([[0.3, 0.2, 0.15, 0.1, 0.08, 0.05, 0.01, 1.0]]))


@pytest.fixture(scope='module')
def shop():
  """(log, table) of a user who viewed 5, put 6 into the cart and viewed 7."""
  rows = [(1, 5, 'view', 1), (1, 6, 'cart', 2), (1, 7, 'view', 3)]
  log, _ = tiny_log.make(rows, ITEMS)
  user = np.zeros(1, np.int32)
  return log, inference_examples(log, user, log.offsets[user + 1], user + 9, M, 4, None)


def predictions() -> Predictions:
  """World 1 lacks the view of 5, in 2 the cart of 6 is an ANCHOR, in 3 the intent is 4, 4 is left.

  Nothing is done in world 4.
  """
  forced_role, removed = np.full((1, WORLDS, M), -1), np.zeros((1, WORLDS, M), bool)
  removed[0, 1, 0], forced_role[0, 2, 1] = True, ROLE_NAMES.index('ANCHOR')
  return Predictions(
    item=ITEM,
    score=LOG_PROB,
    terms=np.zeros((1, ITEM.shape[1], len(EXPERTS)), np.float32),
    roles=np.zeros((1, M), int),
    candidates=np.arange(WORLDS)[None, :, None],
    forced_role=forced_role,
    removed=removed,
    forced_intent=np.array([[-1, -1, -1, 4, -1]]),
  )


def frame(shop, exploration_weight: float, exposure_penalty: float = 0.0, top: int = 7):
  shown = slates(ITEM, LOG_PROB, OPENS, exploration_weight, exposure_penalty, top)
  return _frame(*shop, predictions(), shown, OPENS, top)


def test_rank_is_by_rank_score_and_log_prob_is_that_of_the_item(shop):
  log_prob = dict(zip(ITEM[0].tolist(), LOG_PROB[0]))
  worth = np.log(OPENS + 1e-6)  # the median opens nothing
  for weight in (0.0, 2.0):
    table = frame(shop, weight)
    items, scores = table['item_id'].to_list(), table['rank_score'].to_numpy()
    assert table['rank'].to_list() == [1, 2, 3, 4, 5, 6, 7]
    assert (np.diff(scores) <= 0).all() and -1 not in items
    assert table['log_prob'].to_list() == [log_prob[i] for i in items]
    np.testing.assert_allclose(scores, [log_prob[i] + weight * worth[i] for i in items])
    assert items[0] == (6 if weight else 0)
  assert 'score' not in table.columns
  penalized = frame(shop, 2.0, exposure_penalty=1.0)['rank_score'].to_numpy()
  assert (np.diff(penalized) <= 0).all()
  assert frame(shop, 2.0, top=2)['item_id'].to_list() == [6, 0]


def test_why_names_what_was_done_in_the_world(shop):
  table = frame(shop, 0.0)
  source = {
    item: why.split(';')[0] for item, why in zip(table['item_id'].to_list(), table['why'].to_list())
  }
  assert source == {
    0: 'from the factual path',
    1: 'from world 1 (without the view of 5)',
    2: 'from world 2 (the cart of 6 as ANCHOR)',
    3: 'from world 3 (intent set to coarse code 4)',
    4: 'from world 4 (no intervention)',
    7: 'from the backbone alone',
    6: 'from the backbone alone',
  }
  assert not any('counterfactual' in why for why in table['why'].to_list())
  pivots = table['pivots'][0].to_list()
  assert [p['item_id'] for p in pivots] == [5, 6]
  assert {p['event'] for p in pivots} <= set(EVENT_NAMES)
