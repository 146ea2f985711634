"""Deletion and insertion: which rows the backbone reads, and that costly events cost most."""

import dataclasses

import jax
import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import EvaluationConfig, MeshConfig
from rolegen_jax.evaluation.deletion import (
  DEPTHS,
  DRAWS,
  RECENCY,
  Deleted,
  deletion_curves,
  highest,
)
from rolegen_jax.reasoning import predict
from rolegen_jax.reasoning.roles import without
from rolegen_jax.semantic_ids.trie import build_trie
from tests import tiny
from tests.text import catalogue

M = 6
EVALUATION = EvaluationConfig(batch=64, bootstrap=100)


@pytest.fixture(scope='module')
def table():
  found = catalogue.log_and_examples()[2].evenly(40)
  return dataclasses.replace(found, roles=np.full((len(found), M), -1, np.int32))


def test_rows_lack_what_was_taken_out_and_nothing_else(table):
  removed = np.zeros((2, len(table), M), bool)
  removed[1, :, M - 2] = True
  rows = Deleted(table, removed).rows(np.arange(2 * len(table)), tiny.WIDTH)
  plain = table.rows(np.arange(len(table)), tiny.WIDTH)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[: len(table)], b), rows, plain)
  expected = without(plain.history, tiny.WIDTH - 2)
  for mine, theirs in zip(rows.history, expected):
    real = np.asarray(expected.segment) > 0
    np.testing.assert_array_equal(mine[len(table) :][real], np.asarray(theirs)[real])
  np.testing.assert_array_equal(rows.history.segment[len(table) :] > 0, real)


def test_highest_marks_k_of_each_example():
  score = np.array([[0.1, 0.9, -np.inf], [3.0, 2.0, 1.0]])
  np.testing.assert_array_equal(highest(score, 2), [[True, True, False], [True, True, False]])


def test_events_that_matter_cost_more_than_chance(table):
  """The curve begins with the largest removal effect of each example, which beats chance."""
  rolegen, mesh = (
    tiny.rolegen(f'reasoner.role_events={M}', 'evaluation.batch=64'),
    sharding.make_mesh(MeshConfig()),
  )
  codes = tiny.codes(len(table.log.items))
  trie, backbone = build_trie(codes, tiny.CODES, capacity=64), tiny.params('backbone')
  params = dict(backbone=backbone, reasoner=tiny.random_params(rolegen.model_fns['reasoner']))
  effect = predict.effects(rolegen, params, table, trie, mesh).backbone
  curves = deletion_curves(
    rolegen, backbone, table, {'effects': effect, 'against': -effect}, trie, mesh, EVALUATION
  )
  long = table.end - table.log.offsets[table.user] > max(DEPTHS)
  first = curves['effects']['drop'][1]
  assert first.pairs == long.sum() >= 20 and DRAWS > 1
  assert first.users == len(np.unique(table.user[long])) < first.pairs
  assert curves['effects']['drop'][1].mean == pytest.approx(
    effect[long].max(axis=1).mean(), abs=1e-4
  )
  assert curves['against']['drop'][1].mean == pytest.approx(
    _least(effect[long], table, long), abs=1e-4
  )
  assert curves['effects']['minus_random'][1].low > 0 > curves['against']['minus_random'][1].high
  assert (
    curves['effects']['minus_recency'][1].low >= 0 >= curves['against']['minus_recency'][1].high
  )
  assert set(curves['random']) == {'drop', 'gain'} and set(curves[RECENCY]['gain']) == set(DEPTHS)


def test_what_is_inserted_is_what_deleting_the_others_leaves(table):
  """All but k events removed is k events added to none: by the sum over both orders."""
  rolegen, mesh = tiny.rolegen('evaluation.batch=64'), sharding.make_mesh(MeshConfig())
  trie = build_trie(tiny.codes(len(table.log.items)), tiny.CODES, capacity=64)
  short = dataclasses.replace(table, roles=np.full((len(table), max(DEPTHS) + 1), -1, np.int32))
  score = np.random.default_rng(3).random(short.roles.shape)
  both = {'these': score, 'reversed': -score}
  curves = deletion_curves(rolegen, tiny.params('backbone'), short, both, trie, mesh, EVALUATION)
  # Of five events, the k named and the 5 - k others: 1 and 4 make up the whole.
  total = curves['these']['drop'][1].mean + curves['reversed']['gain'][4].mean
  other = curves['these']['gain'][4].mean + curves['reversed']['drop'][1].mean
  assert total == pytest.approx(other, abs=1e-4) and abs(total) > 1e-3
  for part, prefix in (('drop', ''), ('gain', 'gain_')):
    for against, of in (('recency', RECENCY), ('random', 'random')):
      difference = curves['these'][part][2].mean - curves[of][part][2].mean
      mean = curves['these'][f'{prefix}minus_{against}'][2].mean
      assert mean == pytest.approx(difference, abs=1e-5) and abs(mean) > 1e-5


def _least(effect_NxM, table, chosen) -> float:
  real = np.arange(M) >= M - np.minimum(table.end - table.log.offsets[table.user], M)[chosen, None]
  return np.where(real, effect_NxM, np.inf).min(axis=1).mean()


def test_histories_that_are_too_short_give_nothing(table):
  short = dataclasses.replace(table, end=table.log.offsets[table.user] + max(DEPTHS))
  assert (
    deletion_curves(
      tiny.rolegen(), None, short, {'any': np.zeros((len(table), M))}, None, None, EVALUATION
    )
    == {}
  )
