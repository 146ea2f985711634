"""Features of memory slots, and conditioning: every part has its effect, in whatever order."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.models import memory as lib
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.runtime.compile import jit
from tests import tiny
from tests.models import conditioning

PARTS = Conditioning._fields


@functools.cache
def scorer():

  @jit
  def score(params, history, conditioning, codes):
    backbone = tiny.rolegen().bind('backbone', params)
    memory = backbone.condition(backbone.encode(history, codes), conditioning, codes)
    timestamp = jnp.full((tiny.USERS,), tiny.NOW)
    query_state = tiny.rolegen().query(backbone, memory, timestamp)
    items = jnp.broadcast_to(jnp.arange(tiny.ITEMS), (tiny.USERS, tiny.ITEMS))
    every = jax.tree.map(lambda x: jnp.repeat(x, tiny.ITEMS, axis=1), query_state)
    return backbone.log_prob(every, memory, items, codes)[0]

  return score


def log_probs(conditioning: Conditioning) -> np.ndarray:
  """log p of every item, [USERS, ITEMS], after the same histories."""
  history = tiny.histories(np.random.default_rng(0))
  return np.asarray(scorer()(tiny.params('backbone'), history, conditioning, tiny.codes()))


def only(parts, of: Conditioning) -> Conditioning:
  return Conditioning(**{name: getattr(of, name) for name in parts})


@pytest.mark.parametrize('part', PARTS)
def test_no_part_takes_the_effect_of_another_away(part):
  """Beside all other parts, what one of them says changes the answer."""
  full = conditioning.random()
  changed = full._replace(**{part: getattr(conditioning.random(seed=1), part)})
  assert np.abs(log_probs(full) - log_probs(changed)).max() > 1e-3


@pytest.mark.parametrize(
  'first, second',
  [
    pair if pair == PARTS[:2] else pytest.param(*pair, marks=pytest.mark.slow)
    for pair in itertools.combinations(PARTS, 2)
  ],
)
def test_a_part_that_says_nothing_is_as_none(first, second):
  given = only((first, second), conditioning.random())
  padded = conditioning.NEUTRAL._replace(**{name: getattr(given, name) for name in (first, second)})
  np.testing.assert_allclose(log_probs(padded), log_probs(given), atol=1e-5)


def test_the_result_does_not_depend_on_how_a_conditioning_is_put_together():
  full = conditioning.random()
  expected = log_probs(full)
  for order in itertools.permutations(PARTS):
    built = Conditioning()
    for part in order:
      built = built._replace(**{part: getattr(full, part)})
    np.testing.assert_array_equal(log_probs(built), expected)


def test_memory_is_conditioned_once():
  """Parts that come one after the other would have to know of each other; they come together."""
  rolegen, codes = tiny.rolegen(), tiny.codes()

  def condition_twice(params, history):
    backbone = rolegen.bind('backbone', params)
    memory = backbone.encode(history, codes)
    for part in ('intent', 'candidates'):
      memory = backbone.condition(memory, only([part], conditioning.random()), codes)

  history = tiny.histories(np.random.default_rng(0))
  with pytest.raises(ValueError, match='one Conditioning'):
    jax.eval_shape(condition_twice, tiny.params('backbone'), history)


@pytest.mark.parametrize(
  'seconds, bucket',
  [(-5, 0), (0, 0), (59, 2), (60, 3), (180, 6), (3600, 17), (86_400, 31), (2**31 - 1, 63)],
)
def test_gap_buckets(seconds, bucket):
  assert int(lib.gap_bucket(jnp.array(seconds))) == bucket


def test_count_buckets():
  counts = jnp.array([0, 1, 2, 3, 4, 7, 8, 1000])
  assert lib.count_bucket(counts).tolist() == [0, 0, 1, 1, 2, 2, 3, 7]


def test_age_features_are_bounded():
  age_s = jnp.array([-1, 0, 60, 86_400, 2**31 - 1])
  rank, count = jnp.array([0, 1, 5, 100, 10**6]), jnp.array([0, 1, 2, 3, 1000])
  features = np.array(lib.age_features(age_s, rank, count))
  assert features.shape == (5, lib.AGE_FEATURES)
  assert np.isfinite(features).all() and np.abs(features).max() <= 8.0
