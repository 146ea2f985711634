"""What the backbone's queries attend to and how, and what the reasoner adds beside it.

Slot 0 of memory is a start slot; the events of the history follow.

Shapes: B rows, n events, C candidates, A retrieved items, S = 1 + n slots, Q queries, D width,
K coarse codes, E event types and NO_EVENT.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from rolegen_jax.config import EVENT_NAMES, TransformerConfig
from rolegen_jax.data.batches import Trajectories
from rolegen_jax.models.layers import Attention, GatedMLP, RMSNorm
from rolegen_jax.models.transformer import NO_DROPOUT, Dropout
from rolegen_jax.vocab import COUNTS, GAPS

NO_EVENT = len(EVENT_NAMES)  # event type of slots that are no event
VISIBLE = -1  # segment of slots that every query sees
AGE_FEATURES = 9


class Candidates(NamedTuple):
  """Items that the reasoner names."""

  item: jax.Array  # int32 [B, C]; -1 = none
  world: jax.Array  # int32 [B, C], the world that named it; 0 = factual
  log_prob: jax.Array  # fp32 [B, C], the reasoner's


class RetrievedShares(NamedTuple):
  """Items that the reasoner's second equation retrieves (`intent.py`)."""

  item: jax.Array  # int32 [B, A]; -1 = no more
  share: jax.Array  # fp32 [B, A], of what is retrieved; sums to 1


class TrendingShares(NamedTuple):
  """What is trending when each row is asked (`features/trending.py`)."""

  item: jax.Array  # int32 [B, A], ascending; beyond every item where there is no more
  share: jax.Array  # fp32 [B, A]

  def most(self, number: int) -> jax.Array:
    """Return the items of the largest shares, int32 [B, min(number, A)]; -1 = no more."""
    share, place = jax.lax.top_k(self.share, min(number, self.share.shape[1]))
    return jnp.where(share > 0, jnp.take_along_axis(self.item, place, axis=1), -1)


class Conditioning(NamedTuple):
  """What the reasoner says about each row: evidence of experts. A part that is None is absent."""

  candidates: Candidates | None = None
  retrieved: RetrievedShares | None = None
  # fp32 [B, K], log-probabilities of coarse codes; NEG_INF throughout in rows that get none
  intent: jax.Array | None = None


class Memory(NamedTuple):
  """The slots that queries attend to."""

  hidden: jax.Array  # [B, S, D]
  item: jax.Array  # int32 [B, S]; -1 = no item
  event: jax.Array  # int32 [B, S]; NO_EVENT where the slot is no event
  timestamp: jax.Array  # int32 [B, S], seconds
  segment: jax.Array  # int32 [B, S], the window of the row; or VISIBLE
  repeats: jax.Array  # int32 [B, S], of the event; 1 where the slot is no event


class View(NamedTuple):
  """What each query sees of the memory."""

  visible: jax.Array  # bool [B, Q, S]
  last: jax.Array  # int32 [B, Q], slot of the latest visible event; 0, the start slot, without any
  gap: jax.Array  # int32 [B, Q], seconds since that event; 0 without any
  age: jax.Array  # [B, Q, S, AGE_FEATURES]; 0 where the slot is no event
  event: jax.Array  # [B, S, E], one-hot


class QueryState(NamedTuple):
  """The answer to queries, enough to score or decode any item."""

  state: jax.Array  # [B, Q, D], input of the depth decoder and of the dense product
  timestamp: jax.Array  # int32 [B, Q], seconds
  view: View  # what each query sees of the memory
  slot_item: jax.Array  # int32 [B, S]


class QueryBlock(nnx.Module):
  """Cross-attention to memory with a learned bias by age and event type, then an MLP."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.query_norm, self.memory_norm, self.mlp_norm = (RMSNorm(config.width) for _ in range(3))
    self.attention = Attention(config, rngs=rngs)
    self.mlp = GatedMLP(config, rngs=rngs)
    self.age_bias = nnx.Param(jnp.zeros((AGE_FEATURES, config.heads)), axes=(None, 'heads'))
    self.event_bias = nnx.Param(jnp.zeros((NO_EVENT + 1, config.heads)), axes=(None, 'heads'))

  def __call__(
    self, x_BxQxD: jax.Array, memory_BxSxD: jax.Array, view: View, drop: Dropout = NO_DROPOUT
  ) -> jax.Array:
    age_bias = self.age_bias[...].astype(view.age.dtype)
    event_bias = self.event_bias[...].astype(view.event.dtype)
    by_age = jnp.einsum('bqsa,ah->bhqs', view.age, age_bias)
    by_event = jnp.einsum('bse,eh->bhs', view.event, event_bias)
    bias = by_age + by_event[:, :, None]
    k, v = self.attention.kv(self.memory_norm(memory_BxSxD))
    q = self.attention.q(self.query_norm(x_BxQxD))
    attended = self.attention.attend(q, k, v, view.visible, bias.astype(q.dtype))
    x = x_BxQxD + drop(self.attention.out(attended), 0)
    return x + drop(self.mlp(self.mlp_norm(x)), 1)


def remembered(start_D: jax.Array, hidden_BxnxD: jax.Array, rows: Trajectories) -> Memory:
  """Return the memory of rows [B, n]: the start slot, then their encoded events."""
  start = jnp.broadcast_to(start_D.astype(hidden_BxnxD.dtype), hidden_BxnxD[:, :1].shape)

  def with_start(field: jax.Array, value: int) -> jax.Array:
    return jnp.pad(field, ((0, 0), (1, 0)), constant_values=value)

  return Memory(
    hidden=jnp.concatenate([start, hidden_BxnxD], 1),
    item=with_start(rows.item, -1),
    event=with_start(rows.event, NO_EVENT),
    timestamp=with_start(rows.timestamp, 0),
    segment=with_start(rows.segment, VISIBLE),
    repeats=with_start(rows.count, 1),
  )


def view_memory(memory: Memory, timestamp_BxQ: jax.Array, segment_BxQ: jax.Array) -> View:
  """Return what queries at a time and in a segment see: their segment's strictly earlier events.

  Slots of segment VISIBLE are seen by every query.
  """
  is_event = memory.event[:, None] != NO_EVENT
  in_segment = memory.segment[:, None] == segment_BxQ[..., None]
  is_earlier = memory.timestamp[:, None] < timestamp_BxQ[..., None]
  past = is_event & in_segment & is_earlier
  visible = past | (memory.segment == VISIBLE)[:, None]
  slots = jnp.arange(memory.item.shape[1])
  last = jnp.max(jnp.where(past, slots, 0), axis=-1)
  since = timestamp_BxQ - jnp.take_along_axis(memory.timestamp, last, axis=1)
  gap = jnp.where(last > 0, since, 0)
  age_s = jnp.where(past, timestamp_BxQ[..., None] - memory.timestamp[:, None], 0)
  rank = jnp.where(past, last[..., None] - slots, 0)
  count = jnp.broadcast_to(memory.repeats[:, None], age_s.shape)
  dtype = memory.hidden.dtype
  age = (age_features(age_s, rank, count) * is_event[..., None]).astype(dtype)
  event = jax.nn.one_hot(memory.event, NO_EVENT + 1, dtype=dtype)
  return View(visible, last, gap, age, event)


def gap_bucket(seconds: ArrayLike) -> jax.Array:
  """Return the bucket of a time gap, three per octave from one minute; see vocab.GAPS."""
  minutes = jnp.maximum(seconds, 0).astype(jnp.float32) / 60.0
  return jnp.clip(jnp.floor(3.0 * jnp.log2(1.0 + minutes)), 0, GAPS - 1).astype(jnp.int32)


def count_bucket(count: ArrayLike) -> jax.Array:
  """Return the bucket of a repeat count, one per octave; see vocab.COUNTS."""
  octave = jnp.floor(jnp.log2(jnp.maximum(count, 1).astype(jnp.float32)))
  return jnp.clip(octave, 0, COUNTS - 1).astype(jnp.int32)


def age_features(age_s: jax.Array, rank: jax.Array, count: jax.Array) -> jax.Array:
  """Return [..., AGE_FEATURES] of age in seconds, age in events, and repeats.

  The exponential recency rule is linear in them.
  """
  days = jnp.maximum(age_s, 0).astype(jnp.float32) / 86_400.0
  rank = jnp.maximum(rank, 0).astype(jnp.float32)
  features = [
    jnp.log1p(24.0 * days) / 4.0,
    jnp.minimum(days / 7.0, 8.0),
    jnp.exp(-24.0 * days),
    jnp.exp(-days),
    jnp.exp(-days / 3.0),
    jnp.exp(-days / 10.0),
    jnp.log1p(rank) / 2.0,
    jnp.minimum(rank / 16.0, 8.0),
    jnp.log(jnp.maximum(count, 1).astype(jnp.float32)),
  ]
  return jnp.stack(features, axis=-1)
