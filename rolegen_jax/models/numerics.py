"""What the models share numerically: the log of zero, dropout, picking, the largest of many."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# The log-probability of what is impossible: finite, so that sums and gradients stay finite.
NEG_INF = -1e9

_BLOCK = 16  # values of which `top_k` compares the largest first


def is_possible(log_prob: jax.Array) -> jax.Array:
  """Return where a log-probability belongs to an event that can happen, bool of the same shape."""
  return log_prob > NEG_INF / 2


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Apply inverted dropout; without a key, return `x` itself."""
  if key is None or rate == 0.0:
    return x
  kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)


def pick(a_Bxn: jax.Array, index_Bxm: jax.Array) -> jax.Array:
  """Pick along the second axis, row by row: [B, n, ...] and int32 [B, m] to [B, m, ...]."""
  return jax.vmap(lambda row, index: row[index])(a_Bxn, index_Bxm)


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Return what `jax.lax.top_k` does, faster where the last axis is much longer than k.

  The k largest are in the k blocks with the largest maxima. These stay in their order, so that
  among equal values the first ones win here too.
  """
  *rest, n = x.shape
  blocks = -(-n // _BLOCK)
  if blocks <= 2 * k:
    return jax.lax.top_k(x, k)
  x = jnp.pad(x, [(0, 0)] * len(rest) + [(0, blocks * _BLOCK - n)], constant_values=-jnp.inf)
  x = x.reshape(*rest, blocks, _BLOCK)
  block = jnp.sort(jax.lax.top_k(x.max(axis=-1), k)[1], axis=-1)
  held = jnp.take_along_axis(x, block[..., None], axis=-2)
  value, place = jax.lax.top_k(held.reshape(*rest, k * _BLOCK), k)
  block = jnp.take_along_axis(block, place // _BLOCK, axis=-1)
  return value, block * _BLOCK + place % _BLOCK
