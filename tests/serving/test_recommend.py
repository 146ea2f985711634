"""The table of recommendations: what its order is by, and the reasons that it gives."""

import numpy as np
import pytest

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.data.examples import inference_examples
from rolegen_jax.features.interest_shift import Opens
from rolegen_jax.features.trending import DAY
from rolegen_jax.models.experts import EXPERTS
from rolegen_jax.reasoning.explain import Explanations
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.serving.explained import explained_table
from rolegen_jax.serving.history_filter import without
from rolegen_jax.serving.slate import Exposure, Opened, slates
from tests.evaluation import tiny_log

M, WORLDS, ITEMS = 3, 5, 8
OPENS = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.4, 0.0])
# Items 0 to 4 are of the paths of worlds 0 to 4, 7 of none; 6 opens most.
ITEM = np.array([[0, 1, 2, 3, 4, 7, 6, -1]])
LOG_PROB = np.log(np.array([[0.3, 0.2, 0.15, 0.1, 0.08, 0.05, 0.01, 1.0]]))
# By place of ITEM; experts that are not here are off. What stands in the empty slot is meaningless.
SAID = dict(
  dense=[3.0, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 99.0],  # mean 1
  history=[0.0, 0.5, 0.0, 0.0, 0.0, 0.0, -0.5, 99.0],  # mean 0
  popularity=[7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 99.0],  # the same of all
  candidates=[1.2, 1.2, 2.2, 1.2, 1.2, 0.0, 0.0, 99.0],  # mean 1
  retrieved=[0.0, 0.0, 0.0, 0.0, 0.0, 0.34, -0.34, 99.0],  # mean 0
)
TERMS = np.stack([SAID.get(name, [0.0] * 8) for name in EXPERTS], -1)[None].astype(np.float32)


@pytest.fixture(scope='module')
def shop():
  """(log, table) of a user who viewed 5, put 6 into the cart and viewed 7."""
  rows = [(1, 5, 'view', 1), (1, 6, 'cart', 2), (1, 7, 'view', 3)]
  log, _ = tiny_log.make(rows, ITEMS)
  user = np.zeros(1, np.int32)
  now = np.full(1, log.timestamp.max() + DAY)
  return log, inference_examples(log, user, log.offsets[user + 1], now, M, 4, None)


def predictions() -> Predictions:
  """World 1 lacks the view of 5, in 2 the cart of 6 is an ANCHOR, in 3 the intent is 4, 4 is left.

  Nothing is done in world 4.
  """
  forced_role, removed = np.full((1, WORLDS, M), -1), np.zeros((1, WORLDS, M), bool)
  removed[0, 1, 0], forced_role[0, 2, 1] = True, ROLE_NAMES.index('ANCHOR')
  return Predictions(
    item=ITEM,
    score=LOG_PROB,
    terms=TERMS,
    roles=np.zeros((1, M), int),
    candidates=np.arange(WORLDS)[None, :, None],
    forced_role=forced_role,
    removed=removed,
    forced_intent=np.array([[-1, -1, -1, 4, -1]]),
  )


def frame(shop, exploration_weight: float, exposure_penalty: float = 0.0, top: int = 7, drop=()):
  lists = without(ITEM, LOG_PROB, np.isin(ITEM, drop))
  opened = Opened.at_large(Opens(OPENS, 0.0), ITEM)
  exposure = Exposure(exposure_penalty, len(OPENS), top)
  shown = slates(*lists, opened, exploration_weight, exposure)
  return explained_table(*shop, predictions(), shown, explained(top))


def explained(top: int) -> Explanations:
  """The cart of 6 carried the first item as a TRIGGER, the view of 7 less; the others nothing."""
  effect = np.zeros((1, top, M), np.float32)
  effect[0, 0] = [-0.4, 0.8, 0.3]
  return Explanations(effect, np.full((1, top, M), ROLE_NAMES.index('TRIGGER')))


def test_rank_is_by_rank_score_and_log_prob_is_that_of_the_item(shop):
  log_prob = dict(zip(ITEM[0].tolist(), LOG_PROB[0]))
  worth = np.log(OPENS + 1e-3)  # the median opens nothing
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


# Slates that reorder the list and a filter that drops from it leave each item its own terms.
@pytest.mark.parametrize('weight, drop', [(0.0, ()), (2.0, ()), (0.0, (0, 7))])
def test_terms_are_relative_to_all_that_was_found(shop, weight, drop):
  table = frame(shop, weight, drop=drop)
  assert table['terms'].struct.fields == list(EXPERTS)
  means = dict(dense=1.0, popularity=7.0, candidates=1.0)
  assert len(table) == 7 - len(drop)
  for item, terms in zip(table['item_id'].to_list(), table['terms'].to_list()):
    place = ITEM[0].tolist().index(item)
    expected = {
      name: SAID[name][place] - means.get(name, 0.0) if name in SAID else 0.0 for name in EXPERTS
    }
    assert terms == pytest.approx(expected, abs=1e-6), item


def test_why_names_the_largest_terms_and_what_was_done_in_the_world(shop):
  table = frame(shop, 0.0)
  terms = {
    item: why.split(';')[0] for item, why in zip(table['item_id'].to_list(), table['why'].to_list())
  }
  assert terms == {
    0: 'dense +2.0, world 0 (factual) +0.2',
    1: 'history +0.5, world 1 (without the view of 5) +0.2',
    2: 'world 2 (the cart of 6 as ANCHOR) +1.2',
    3: 'world 3 (intent set to coarse code 4) +0.2',
    4: 'world 4 (no intervention) +0.2',
    7: 'retrieved +0.3',
    6: 'seen before',  # nothing speaks for it
  }
  assert not any('counterfactual' in why for why in table['why'].to_list())
  seen = {'seen before', 'new to the user'}
  assert {part for why in table['why'] for part in why.split('; ') if part in seen} == seen
  carried = [events.to_list() for events in table['carried_by']]
  assert carried[0] == [
    dict(item_id=6, event='cart', days_ago=2.0, role='TRIGGER', nats=0.8),
    dict(item_id=7, event='view', days_ago=1.0, role='TRIGGER', nats=0.3),
  ]
  assert not any(carried[1:])
  events = 'cart of 6 2 d ago as TRIGGER +0.8', 'view of 7 1 d ago as TRIGGER +0.3'
  reason = f'carried by {", ".join(events)}'
  assert table['why'][0].endswith(reason)
