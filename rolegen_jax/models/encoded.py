"""Histories that stay encoded on the device, and grow by the events that follow.

The temporal stack is causal, so an event that is appended changes nothing of what came before:
its keys, values and states are computed from the kept keys and values alone. That holds as long as
the history still begins with the same event. Where the oldest one falls out of the context, the
gap before the second is no longer read, and every later state with it: such a history is encoded
anew. Positions are rotary, so where a history begins in its row makes no difference.

Shapes: B rows, S slots of the pool, n events of a history, T new ones, D width, K key/value heads,
X head width.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import BackboneConfig
from rolegen_jax.data.batches import Trajectories
from rolegen_jax.models.attention import KeyValues, causal
from rolegen_jax.models.backbone import Backbone
from rolegen_jax.models.experts import Items


class Pool(NamedTuple):
  """Encoded histories by slot, or their shapes; the event at place i of a history is at place i."""

  hidden: Any  # [S, n, D], after the stack
  key: Any  # [layers, S, n, K, X], rotated
  value: Any  # [layers, S, n, K, X]


class More(NamedTuple):
  """Events that follow what slots hold, left-aligned; numpy on the host, jax on the device."""

  rows: Trajectories  # [B, 1 + T]: the event before them, or padding; then those events
  first: Any  # int32 [B], the place of the first: how many events the slot keeps
  slot: Any  # int32 [B]; S = nowhere


def pool_shapes(config: BackboneConfig, slots: int) -> Pool:
  """Return the shapes and dtypes of a pool."""
  c, n = config.temporal, config.context
  cache = jax.ShapeDtypeStruct((c.layers, slots, n, c.kv_heads, c.head_dim), c.dtype)
  return Pool(jax.ShapeDtypeStruct((slots, n, c.width), c.dtype), cache, cache)


def slot_bytes(config: BackboneConfig) -> int:
  """Return the bytes of one slot."""
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in pool_shapes(config, 1))


def extended(backbone: Backbone, pool: Pool, more: More, items: Items) -> Pool:
  """Return the pool with more events; T = n encodes histories from their first event on."""
  n, new = pool.hidden.shape[1], jax.tree.map(lambda x: x[:, 1:], more.rows)
  x = backbone.events(more.rows, items)[:, 1:]
  t = x.shape[1]
  if t == n:
    encoded = backbone.temporal.prefill(x, np.arange(n), causal(new.segment))
    return _written(pool, (more.slot,), *encoded)
  is_kept = jnp.arange(n) < more.first[:, None]
  earlier = jnp.broadcast_to(is_kept[:, None], (len(x), t, n))
  among = jnp.broadcast_to(np.tri(t, dtype=bool), (len(x), t, t))
  mask = jnp.concatenate([earlier, among], axis=2)

  def kept(cache: jax.Array) -> jax.Array:
    # What is not kept is not read, but 0 times a value that is no number is none either.
    of_rows = jnp.take(cache, more.slot, axis=1, mode='clip')
    return jnp.where(is_kept[:, :, None, None], of_rows, 0)

  places = more.first[:, None] + jnp.arange(t)
  before = kept(pool.key), kept(pool.value)
  encoded = backbone.temporal.prefill(x, places, mask, before)
  at = more.slot[:, None], jnp.where(new.segment > 0, places, n)
  return _written(pool, at, *encoded)


def _written(pool: Pool, at: tuple[jax.Array, ...], hidden: jax.Array, kv: KeyValues) -> Pool:
  """Return the pool with what was encoded for slots, or places of slots; S, n = for none."""
  return Pool(
    pool.hidden.at[at].set(hidden, mode='drop'),
    pool.key.at[:, *at].set(kv[0], mode='drop'),
    pool.value.at[:, *at].set(kv[1], mode='drop'),
  )


def right_aligned(hidden_SxnxD: jax.Array, slot_B: jax.Array, segment_Bxn: jax.Array) -> jax.Array:
  """Return the states [B, n, D] of right-aligned rows, which are the first events of slots.

  They are 0 where segment is.
  """
  n, is_event = segment_Bxn.shape[1], segment_Bxn > 0
  missing = n - jnp.sum(is_event, axis=1, keepdims=True)
  place = jnp.maximum(jnp.arange(n) - missing, 0)
  hidden = hidden_SxnxD.at[slot_B[:, None], place].get(mode='clip')
  return jnp.where(is_event[..., None], hidden, 0)
