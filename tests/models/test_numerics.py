import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.models import numerics


def test_dropout_keeps_the_mean_and_needs_a_key():
  x = jnp.ones((200, 200))
  assert numerics.dropout(x, 0.3, None) is x
  dropped = numerics.dropout(x, 0.3, jax.random.key(0))
  assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
  assert float((dropped == 0).mean()) == pytest.approx(0.3, abs=0.02)


def test_what_is_impossible_stays_so_after_finite_terms():
  assert not numerics.is_possible(jnp.array(numerics.NEG_INF + 1e6))
  assert numerics.is_possible(jnp.array(-1e6))


@pytest.mark.parametrize('n', [5, 64, 1000, 4096])
def test_the_largest_are_those_of_lax_ties_included(n):
  key = jax.random.key(n)
  x = jax.random.randint(key, (3, 2, n), 0, 40).astype(jnp.float32)  # many equal values
  x = jnp.where(jax.random.bernoulli(key, 0.3, x.shape), numerics.NEG_INF, x)
  for k in (1, 5):
    for ours, theirs in zip(numerics.top_k(x, k), jax.lax.top_k(x, k)):
      np.testing.assert_array_equal(ours, theirs)
