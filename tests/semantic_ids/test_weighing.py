"""How much behavior counts against text: what codes say of conversions decides."""

import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig, SemanticIdConfig
from rolegen_jax.semantic_ids.embeddings import Sides
from rolegen_jax.semantic_ids.weighing import WEIGHTS, Asked, best_weight, nll
from tests.evaluation import tiny_log

GROUPS, ITEMS, USERS = 4, 48, 60
GROUP = np.arange(ITEMS) % GROUPS


def shop():
  """Users who look at and buy items of one group each, over 60 days."""
  rng = np.random.default_rng(0)
  rows = []
  for user in range(USERS):
    own = np.flatnonzero(GROUP == user % GROUPS)
    for day in range(0, 60, 2):
      rows.append((user, int(rng.choice(own)), 'purchase' if day % 6 == 4 else 'view', day))
  return tiny_log.make(rows, ITEMS)


def one_hot(group: np.ndarray) -> np.ndarray:
  return np.eye(GROUPS, dtype=np.float32)[group]


@pytest.mark.parametrize('misleading', ['text', 'behavior'])
def test_what_misleads_counts_less(misleading):
  log, occasions = shop()
  wrong, right = one_hot(np.random.default_rng(1).permutation(GROUP)), 0.6 * one_hot(GROUP)
  sides = Sides(*(wrong if misleading == side else right for side in ('behavior', 'text')))
  mesh = sharding.make_mesh(MeshConfig())
  config = SemanticIdConfig(codes=GROUPS)
  weight = best_weight(sides, log, occasions, config, mesh)
  assert weight in WEIGHTS and (weight > 1) == (misleading == 'text')
  assert best_weight(sides._replace(text=None), log, occasions, config, mesh) == 1


def test_the_nll_is_that_of_counting_through_codes():
  log, occasions = shop()
  asked = Asked.of(log, occasions)
  assert (asked.age > 0).all() and len(asked.target) > 20
  count = np.ones(ITEMS)
  # Known groups: twelve items each. Unknown ones: the whole catalogue.
  known, unknown = (nll(asked, code, count, count) for code in (GROUP, np.zeros(ITEMS, int)))
  assert unknown == pytest.approx(np.log(ITEMS)) and np.log(12) < known < np.log(12) + 0.2
