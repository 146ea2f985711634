"""The pointer: where it starts, and that its parts share out one probability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.models import memory, pointer
from rolegen_jax.models.numerics import NEG_INF
from tests import tiny


def test_the_pointer_starts_as_the_recency_rule():
  """count * weight(event) * exp(-age / 7 days): two carts a week ago against one view just now."""

  def log_weight(event: int, count: int, days: int) -> float:
    features = memory.age_features(jnp.array(days * tiny.DAY), jnp.array(0), jnp.array(count))
    by_age = features @ jnp.array(pointer.RECENCY_RULE)
    return float(by_age + jnp.log(pointer.EVENT_WEIGHTS[event]))

  difference = log_weight(event=3, count=2, days=7) - log_weight(event=1, count=1, days=0)
  assert difference == pytest.approx(np.log(2 * 3) - 1.0, abs=1e-5)


def test_a_gate_that_cannot_open_passes_nothing():
  log_open, log_rest = pointer.log_split(jnp.array([0.3, 0.3]), jnp.array([True, False]))
  assert float(jnp.exp(log_open[0]) + jnp.exp(log_rest[0])) == pytest.approx(1.0, abs=1e-6)
  assert log_open[1] == np.float32(NEG_INF) and log_rest[1] == 0.0


def test_retrieved_items_have_their_share_of_the_whole():
  """Two slots to copy from, one of which is retrieved too; the second row retrieves nothing."""
  slots = jnp.log(jnp.array([[[0.25, 0.75, 1e-30]]] * 2))
  before = pointer.Pointing(slots, jnp.log(jnp.full((2, 1), 0.4)), jnp.log(jnp.full((2, 1), 0.6)))
  share = jnp.array([[0.0, 0.2, 0.8], [0.0, 0.0, 0.0]])
  after = pointer.share_retrieved(before, jnp.zeros((2, 1)), share)  # a gate of one half
  copied = jax.tree.map(jnp.exp, after)
  slots_of_all = copied.log_pointer * copied.log_copy[..., None]
  expected = [0.5 * 0.4 * 0.25, 0.5 * 0.4 * 0.75 + 0.5 * 0.2, 0.5 * 0.8]
  np.testing.assert_allclose(slots_of_all[0, 0], expected, rtol=1e-5)
  assert float(copied.log_generate[0, 0]) == pytest.approx(0.5 * 0.6)
  np.testing.assert_allclose(slots_of_all[1, 0, :2], [0.4 * 0.25, 0.4 * 0.75], rtol=1e-5)
  assert float(copied.log_generate[1, 0]) == pytest.approx(0.6)
