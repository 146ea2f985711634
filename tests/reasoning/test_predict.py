"""What is recommended to a user is a function of the user's history alone."""

import dataclasses

import jax
import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig
from rolegen_jax.data.batches import Examples
from rolegen_jax.reasoning import predict
from rolegen_jax.reasoning.rolegen import history_keys
from tests import tiny

USERS, BEAMS = 72, 10


@dataclasses.dataclass(frozen=True)
class Table:
  """Examples by number."""

  examples: Examples

  def __len__(self) -> int:
    return len(self.examples.target)

  def rows(self, index: np.ndarray, width: int) -> Examples:
    assert width == tiny.WIDTH
    return jax.tree.map(lambda x: x[index], self.examples)


@pytest.fixture(scope='module')
def examples() -> Examples:
  return tiny.examples(seed=4, users=USERS)


def recommend(examples: Examples) -> predict.Predictions:
  rolegen = tiny.rolegen('evaluation.batch=32', 'evaluation.ks=1,10')
  params = {name: tiny.params(name) for name in ('backbone', 'reasoner')}
  mesh = sharding.make_mesh(MeshConfig())
  return predict.predict(rolegen, params, Table(examples), tiny.trie(), mesh, BEAMS)


def test_lists_do_not_depend_on_the_other_rows_of_the_table(examples):
  """A permuted table, and a part of one that starts elsewhere in its batches."""
  everyone = recommend(examples)
  order = np.random.default_rng(0).permutation(USERS)
  for rows in (order, order[:39]):
    some = recommend(jax.tree.map(lambda x: x[rows], examples))
    for name in ('item', 'candidates', 'roles', 'forced_role', 'forced_intent'):
      np.testing.assert_array_equal(getattr(some, name), getattr(everyone, name)[rows], name)
    np.testing.assert_allclose(some.score, everyone.score[rows], atol=1e-5)


def test_worlds_differ_between_users_and_within_them(examples):
  """The same key for everybody, or for all worlds, would pass the test above."""
  one = jax.tree.map(lambda x: np.repeat(x[:1], USERS, axis=0), examples)
  same = recommend(one).candidates
  assert (same == same[:1]).all()
  later = one._replace(timestamp=one.timestamp + np.arange(USERS, dtype=np.int32))
  assert len(np.unique(recommend(later).candidates, axis=0)) > USERS / 2
  assert (same[0] != same[0, :1]).any()


@pytest.mark.parametrize('field', ['item', 'event', 'timestamp', 'count'])
def test_the_key_depends_on_every_event(examples, field):
  keys = jax.random.key_data(history_keys(0, examples))
  assert len(np.unique(keys, axis=0)) == USERS
  values = getattr(examples.history, field).copy()
  values[:, -3] += 1
  changed = examples._replace(history=examples.history._replace(**{field: values}))
  assert (jax.random.key_data(history_keys(0, changed)) != keys).any(-1).all()
  assert (jax.random.key_data(history_keys(1, examples)) != keys).any(-1).all()
