"""What the models share numerically: the log of zero and dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# The log-probability of what is impossible: finite, so that sums and gradients stay finite.
NEG_INF = -1e9


def is_possible(log_prob: jax.Array) -> jax.Array:
  """Return where a log-probability belongs to an event that can happen, bool of the same shape."""
  return log_prob > NEG_INF / 2


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Apply inverted dropout; without a key, return `x` itself."""
  if key is None or rate == 0.0:
    return x
  kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)
