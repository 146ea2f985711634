import jax
import jax.numpy as jnp
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
