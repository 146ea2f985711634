"""The Generative Behavioral Backbone: what will this user convert on, as semantic IDs.

Three parts. A causal *temporal* transformer reads one position per event. A *query* (target event type, time) recalls from
memory: the encoded history strictly before its time, then the block of reasoned candidates. A *depth* decoder emits the L
codes of an item in turn. The item's probability is a mixture

  p(y | q) = (1 - g) * prod_l p(code_l | codes_<l, q)  +  g * sum_i a_i [item_i = y]

of that generated semantic ID and a pointer over memory (pointer-generator: See et al., arXiv 1704.04368), because many
conversions of a dormant user go to something already touched, and because it lets a reasoned candidate be taken up as it
is. Where the reasoner gave an intent, the first code is a mixture too, of the backbone's own distribution and the intent's, and
the pointer leans towards slots of intended coarse codes; and items that its equation calls for have a share of the whole. Every event is supervised in one pass: the query of event j sees only events with an earlier timestamp, so ties leak nothing.

Roles mark memory, not the temporal input: a role is known only at the end of the trajectory, and inside the causal stack it
would tell earlier positions about later events.

Shapes: B rows, n events, C candidates, A items called for, S = 1 + n + C + A memory slots, Q queries, D width, L levels, K codes, H heads.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import EVENT_NAMES, BackboneConfig
from rolegen_jax.data.batches import Trajectories
from rolegen_jax.models.attention import causal
from rolegen_jax.models.transformer import (
  Attention,
  GatedMLP,
  RMSNorm,
  Transformer,
  gather_fsdp,
  gather_replicated,
  param,
)
from rolegen_jax.sharding import constrain
from rolegen_jax.vocab import COUNTS, GAPS, Vocabulary

PURCHASE = EVENT_NAMES.index('purchase')
NO_EVENT = len(EVENT_NAMES)  # memory slots that are no event: candidates and the start slot
AGE_FEATURES = 9
NEG_INF = -1e9  # log of a probability that is none, finite so that gradients stay so
PARTS = 8  # of a row's queries, answered by the depth decoder one after the other: an eighth of the memory, and faster on CPUs


class Memory(NamedTuple):
  """What queries attend to: slot 0 is a start slot that everybody sees, then the history, then candidates. Items called for come last:
  they are copied from, and attended to by nobody."""

  hidden: jax.Array  # [B, S, D]
  item: jax.Array  # int32 [B, S], -1 = no item
  event: jax.Array  # int32 [B, S], NO_EVENT for candidates and start
  timestamp: jax.Array  # int32 [B, S]
  segment: jax.Array  # int32 [B, S], 0 = never visible
  count: jax.Array  # int32 [B, S], repeats of the event; 1 where it is no event
  retrieved: jax.Array | None = (
    None  # fp32 [B, S], the slot's share of what the reasoner's equation calls for; 0 in rows without
  )
  intent: jax.Array | None = (
    None  # fp32 [B, K], the reasoner's log-probabilities of first codes; NEG_INF in rows without
  )
  appeal: jax.Array | None = (
    None  # fp32 [B, S], log-probability of the slot's coarse code over that of a uniform intent
  )


class QueryState(NamedTuple):
  """A query's answer, enough to score or decode any item."""

  state: jax.Array  # [B, Q, D], input of the depth decoder
  log_pointer: jax.Array  # fp32 [B, Q, S], log of the pointer's weight on each slot
  log_gate: jax.Array  # fp32 [B, Q], log g
  log_generate: jax.Array  # fp32 [B, Q], log (1 - g)
  intent: jax.Array | None = (
    None  # fp32 [B, Q, K], log (m * intent), what the reasoner adds to the first code; None without
  )
  log_own: jax.Array | None = None  # fp32 [B, Q], log (1 - m)


def gap_bucket(seconds: jax.Array) -> jax.Array:
  """Buckets of a time gap, three an octave from one minute; see vocab.GAPS."""
  minutes = jnp.maximum(seconds, 0).astype(jnp.float32) / 60.0
  return jnp.clip(jnp.floor(3.0 * jnp.log2(1.0 + minutes)), 0, GAPS - 1).astype(jnp.int32)


def count_bucket(count: jax.Array) -> jax.Array:
  return jnp.clip(
    jnp.floor(jnp.log2(jnp.maximum(count, 1).astype(jnp.float32))), 0, COUNTS - 1
  ).astype(jnp.int32)


def age_features(age_s: jax.Array, rank: jax.Array, count: jax.Array) -> jax.Array:
  """[..., AGE_FEATURES] of age in seconds and in events, and repeats; the exponential recency rule is linear in them."""
  days = jnp.maximum(age_s, 0).astype(jnp.float32) / 86_400.0
  rank = jnp.maximum(rank, 0).astype(jnp.float32)
  return jnp.stack(
    [
      jnp.log1p(24.0 * days) / 4.0,
      jnp.minimum(days / 7.0, 8.0),
      jnp.exp(-24.0 * days),
      jnp.exp(-days),
      jnp.exp(-days / 3.0),
      jnp.exp(-days / 10.0),
      jnp.log1p(rank) / 2.0,
      jnp.minimum(rank / 16.0, 8.0),
      jnp.log(jnp.maximum(count, 1).astype(jnp.float32)),
    ],
    axis=-1,
  )


# Where the pointer starts: the recency rule count * weight(event) * exp(-age / 7 days), a strong baseline on every log we know.
RECENCY_RULE = (0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
EVENT_WEIGHTS = (
  0.5,
  1.0,
  2.0,
  3.0,
  1.0,
  5.0,
  0.02,
)  # by event code; last, a candidate: few are right until the loop has learnt
# Where the intent's part starts, by validation on the simulated world and alibaba2014: m = sigmoid(1.5), a fifth of a nat per nat.
INTENT_GATE, INTENT_APPEAL = 1.5, 0.2
COUNTED_GATE = -2.0


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Inverted dropout; the identity without a key."""
  if key is None or rate == 0.0:
    return x
  return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0).astype(
    x.dtype
  )


def log_prob_of(code_N, hidden_NxD, readout_KxD):
  """log softmax(hidden @ readout.T)[code], fp32 [N]."""
  log_probs = jax.nn.log_softmax(
    jnp.einsum('nd,kd->nk', hidden_NxD, readout_KxD, preferred_element_type=jnp.float32), axis=-1
  )
  return jnp.take_along_axis(log_probs, code_N[:, None], axis=-1)[:, 0]


class QueryBlock(nnx.Module):
  """Cross-attention from queries to memory with a learned bias by age and event type, then an MLP."""

  def __init__(self, config, *, rngs: nnx.Rngs):
    self.query_norm, self.memory_norm, self.mlp_norm = (RMSNorm(config.width) for _ in range(3))
    self.attention = Attention(config, rngs=rngs)
    self.mlp = GatedMLP(config, rngs=rngs)
    self.age_bias = nnx.Param(jnp.zeros((AGE_FEATURES, config.heads)), axes=(None, 'heads'))
    self.event_bias = nnx.Param(jnp.zeros((NO_EVENT + 1, config.heads)), axes=(None, 'heads'))

  def __call__(self, x_BxQxD, memory_BxSxD, age_BxQxSxA, event_BxSxE, mask_BxQxS):
    bias = jnp.einsum('bqsa,ah->bhqs', age_BxQxSxA, self.age_bias[...].astype(age_BxQxSxA.dtype))
    bias = (
      bias
      + jnp.einsum('bse,eh->bhs', event_BxSxE, self.event_bias[...].astype(event_BxSxE.dtype))[
        :, :, None
      ]
    )
    k, v = self.attention.kv(self.memory_norm(memory_BxSxD))
    q = self.attention.q(self.query_norm(x_BxQxD))
    x = x_BxQxD + self.attention.out(
      self.attention.attend(q, k, v, mask_BxQxS, bias.astype(q.dtype))
    )
    return x + self.mlp(self.mlp_norm(x))


class Backbone(nnx.Module):
  def __init__(self, config: BackboneConfig, vocab: Vocabulary, *, rngs: nnx.Rngs):
    c, width = config.temporal, config.temporal.width
    self.config, self.vocab = config, vocab
    self.tokens = param(rngs, (vocab.without_text.size, width), ('vocab', 'embed'), fan_in=width)
    self.start = param(rngs, (width,), ('embed',), fan_in=width)
    self.temporal = Transformer(c, rngs=rngs)
    make = nnx.vmap(lambda rngs: QueryBlock(c, rngs=rngs))
    self.query_blocks = make(rngs.split(config.query_layers))
    self.depth = Transformer(
      dataclasses.replace(c, layers=config.depth_layers, remat='none'), rngs=rngs
    )  # `_generated` does it, of all layers
    self.readout = param(
      rngs, (vocab.levels, vocab.codes, width), (None, 'vocab', 'embed'), fan_in=width
    )
    self.result_norm = RMSNorm(width)
    self.pointer_query = param(
      rngs, (width, width), ('embed', None), scale=0.1
    )  # content counts for little at first
    self.pointer_key = param(rngs, (width, width), ('embed', None))
    self.pointer_age = nnx.Param(jnp.array(RECENCY_RULE), axes=(None,))
    self.pointer_event = nnx.Param(jnp.log(jnp.array(EVENT_WEIGHTS)), axes=(None,))
    self.gate = nnx.Param(jnp.zeros((width + 1,)), axes=(None,))
    self.confidence = nnx.Param(jnp.zeros((width,)), axes=(None,))
    self.counted_gate = nnx.Param(jnp.zeros((width + 1,)).at[-1].set(COUNTED_GATE), axes=(None,))
    self.intent_gate = nnx.Param(jnp.zeros((width + 1,)).at[-1].set(INTENT_GATE), axes=(None,))
    self.intent_appeal = nnx.Param(jnp.array([INTENT_APPEAL]), axes=(None,))

  # Embedding

  def _embed(self, tokens):
    return jnp.take(gather_replicated(self.tokens, self.config.temporal.dtype), tokens, axis=0)

  def _items(self, item, codes_IxL):
    """Sum of an item's code embeddings, [..., D]; zero where item is -1."""
    rows = self._embed(self.vocab.sid(jnp.take(codes_IxL, jnp.maximum(item, 0), axis=0))).sum(
      axis=-2
    )
    return jnp.where((item >= 0)[..., None], rows, 0)

  def encode(self, t: Trajectories, codes_IxL, key=None) -> Memory:
    """Encodes history rows [B, n], causally within each segment. `key` turns dropout on."""
    v = self.vocab
    previous = jnp.pad(t.timestamp, ((0, 0), (1, 0)))[:, :-1]
    gap = jnp.where(
      jnp.pad(t.segment, ((0, 0), (1, 0)))[:, :-1] == t.segment, t.timestamp - previous, 0
    )
    x = self._items(t.item, codes_IxL) + self._embed(v.event(t.event))
    x = x + self._embed(v.gap(gap_bucket(gap))) + self._embed(v.count(count_bucket(t.count)))
    positions = jnp.broadcast_to(jnp.arange(t.item.shape[1]), t.item.shape)
    hidden = self.temporal(dropout(x, self.config.dropout, key), positions, causal(t.segment))
    start = jnp.broadcast_to(self.start[...].astype(hidden.dtype), hidden[:, :1].shape)
    pad = lambda a, fill: jnp.pad(a, ((0, 0), (1, 0)), constant_values=fill)
    return Memory(
      jnp.concatenate([start, hidden], 1),
      pad(t.item, -1),
      pad(t.event, NO_EVENT),
      pad(t.timestamp, 0),
      pad(t.segment, -1),
      pad(t.count, 1),
    )

  def add_roles(self, memory: Memory, roles_BxM) -> Memory:
    """Marks the last M events of unpacked, right-aligned rows with their roles; -1 = none."""
    marks = jnp.where(
      (roles_BxM >= 0)[..., None], self._embed(self.vocab.role(jnp.maximum(roles_BxM, 0))), 0
    )
    first = memory.hidden.shape[1] - roles_BxM.shape[1]
    return memory._replace(hidden=memory.hidden.at[:, first:].add(marks))

  def add_candidates(self, memory: Memory, item_BxC, world_BxC, log_prob_BxC, codes_IxL) -> Memory:
    """Appends a block of candidate items [B, C] of the given worlds, with the reasoner's log-prob of each; -1 = no candidate."""
    hidden = self._items(item_BxC, codes_IxL) + self._embed(self.vocab.world(world_BxC))
    hidden = hidden + log_prob_BxC[..., None].astype(hidden.dtype) * self.confidence[...].astype(
      hidden.dtype
    )
    join = lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], axis=1)
    return Memory(
      join(memory.hidden, hidden),
      join(memory.item, item_BxC),
      join(memory.event, jnp.full_like(item_BxC, NO_EVENT)),
      join(memory.timestamp, jnp.zeros_like(item_BxC)),
      join(memory.segment, jnp.where(item_BxC >= 0, -1, 0)),
      join(memory.count, jnp.ones_like(item_BxC)),
    )

  def add_retrieved(self, memory: Memory, item_BxA, share_BxA) -> Memory:
    """Appends the items [B, A] that the reasoner's equation calls for, with their shares, which sum to 1; -1 = none."""
    a = item_BxA.shape[1]
    longer = lambda x, fill: jnp.pad(
      x, ((0, 0), (0, a)) + ((0, 0),) * (x.ndim - 2), constant_values=fill
    )
    hidden, event, timestamp, segment, count = map(
      longer,
      (memory.hidden, memory.event, memory.timestamp, memory.segment, memory.count),
      (0, NO_EVENT, 0, 0, 1),
    )
    retrieved = jnp.concatenate(
      [jnp.zeros(memory.item.shape, share_BxA.dtype), jnp.where(item_BxA >= 0, share_BxA, 0.0)],
      axis=1,
    )
    return Memory(
      hidden,
      jnp.concatenate([memory.item, item_BxA], axis=1),
      event,
      timestamp,
      segment,
      count,
      retrieved,
    )

  def add_intent(self, memory: Memory, intent_BxK, codes_IxL) -> Memory:
    """The reasoner's log-probabilities of first codes [B, K], after all slots are there; NEG_INF in rows that get none."""
    first = jnp.take(codes_IxL, jnp.maximum(memory.item, 0), axis=0)[..., 0]
    appeal = jnp.take_along_axis(intent_BxK, first, axis=1) + jnp.log(1.0 * intent_BxK.shape[1])
    return memory._replace(
      intent=intent_BxK, appeal=jnp.where((memory.item >= 0) & (appeal > NEG_INF / 2), appeal, 0.0)
    )

  # Recall

  def attend(self, memory: Memory, event_BxQ, timestamp_BxQ, segment_BxQ, key=None) -> QueryState:
    """Answers queries 'which item gets `event` at `timestamp`' from memory strictly before that time, in that segment.

    Slots of segment -1 (start, candidates) are visible to every query.
    """
    v = self.vocab
    is_event = memory.event[:, None] != NO_EVENT
    past = (
      is_event
      & (memory.segment[:, None] == segment_BxQ[..., None])
      & (memory.timestamp[:, None] < timestamp_BxQ[..., None])
    )
    visible = past | (memory.segment == -1)[:, None]
    slots = jnp.arange(memory.item.shape[1])
    last = jnp.max(
      jnp.where(past, slots, 0), axis=-1
    )  # the latest visible event, or the start slot
    context = jnp.take_along_axis(memory.hidden, last[..., None], axis=1)
    gap = jnp.where(
      last > 0, timestamp_BxQ - jnp.take_along_axis(memory.timestamp, last, axis=1), 0
    )
    x = context + self._embed(v.event(event_BxQ)) + self._embed(v.gap(gap_bucket(gap)))
    age = jnp.where(past, timestamp_BxQ[..., None] - memory.timestamp[:, None], 0)
    rank = jnp.where(past, last[..., None] - slots, 0)
    age_BxQxSxA = (
      age_features(age, rank, jnp.broadcast_to(memory.count[:, None], age.shape))
      * is_event[..., None]
    ).astype(x.dtype)
    event_BxSxE = jax.nn.one_hot(memory.event, NO_EVENT + 1, dtype=x.dtype)

    def layer(x, block):
      return block(
        constrain(x, 'batch', None, None), memory.hidden, age_BxQxSxA, event_BxSxE, visible
      ), None

    x, _ = jax.lax.scan(layer, x, self.query_blocks)
    x = self.result_norm(x)
    copyable = visible & (memory.item >= 0)[:, None]
    log_pointer, log_gate, log_generate = self._point(x, memory, age_BxQxSxA, event_BxSxE, copyable)
    intent, log_own = self._intend(x, memory)
    return QueryState(
      dropout(x, self.config.dropout, key), log_pointer, log_gate, log_generate, intent, log_own
    )

  def _intend(self, x, memory: Memory):
    if memory.intent is None:
      return None, None
    gate = x.astype(jnp.float32) @ self.intent_gate[...][:-1] + self.intent_gate[...][-1]
    some = memory.intent.max(axis=-1, keepdims=True) > NEG_INF / 2
    log_mix = jnp.where(some, jax.nn.log_sigmoid(gate), NEG_INF)
    return log_mix[..., None] + memory.intent[:, None], jnp.where(
      some, jax.nn.log_sigmoid(-gate), 0.0
    )

  def _point(self, x, memory: Memory, age_BxQxSxA, event_BxSxE, copyable):
    f32 = jnp.float32
    q = x @ gather_fsdp(self.pointer_query, x.dtype)
    k = memory.hidden @ gather_fsdp(self.pointer_key, x.dtype)
    logits = jnp.einsum('bqd,bsd->bqs', q, k, preferred_element_type=f32) / x.shape[-1] ** 0.5
    logits = (
      logits
      + age_BxQxSxA.astype(f32) @ self.pointer_age[...]
      + (event_BxSxE.astype(f32) @ self.pointer_event[...])[:, None]
    )
    if memory.appeal is not None:
      logits = logits + self.intent_appeal[...] * memory.appeal[:, None]
    log_pointer = jax.nn.log_softmax(jnp.where(copyable, logits, NEG_INF), axis=-1)
    log_pointer = jnp.where(copyable, log_pointer, NEG_INF)
    gate = x.astype(f32) @ self.gate[...][:-1] + self.gate[...][-1]
    anything = (
      copyable.any(axis=-1) if self.config.pointer else jnp.zeros(copyable.shape[:-1], bool)
    )
    log_gate = jnp.where(anything, jax.nn.log_sigmoid(gate), NEG_INF)
    log_generate = jnp.where(anything, jax.nn.log_sigmoid(-gate), 0.0)
    if memory.retrieved is None:
      return log_pointer, log_gate, log_generate
    # A share of the whole goes to what is called for; to copy is then to do either.
    gate = x.astype(f32) @ self.counted_gate[...][:-1] + self.counted_gate[...][-1]
    some = (memory.retrieved > 0).any(axis=-1, keepdims=True)
    log_retrieved_gate, log_rest = (
      jnp.where(some, jax.nn.log_sigmoid(gate), NEG_INF),
      jnp.where(some, jax.nn.log_sigmoid(-gate), 0.0),
    )
    log_retrieved = jnp.where(
      memory.retrieved > 0, jnp.log(jnp.maximum(memory.retrieved, 1e-30)), NEG_INF
    )[:, None]
    log_copy = jnp.logaddexp(log_rest + log_gate, log_retrieved_gate)
    log_pointer = (
      jnp.logaddexp(
        (log_rest + log_gate)[..., None] + log_pointer,
        log_retrieved_gate[..., None] + log_retrieved,
      )
      - log_copy[..., None]
    )
    return jnp.maximum(log_pointer, NEG_INF), log_copy, log_rest + log_generate

  # Depth decoder

  def code_log_probs(self, state_NxD, prefix_Nxl) -> jax.Array:
    """fp32 log-probabilities [N, l+1, K] of codes 0..l given the query state and the first l codes [N, l], l < L."""
    hidden = self._depth_hidden(state_NxD, prefix_Nxl)
    readout = gather_replicated(self.readout, hidden.dtype)[: hidden.shape[1]]
    return jax.nn.log_softmax(
      jnp.einsum('nld,lkd->nlk', hidden, readout, preferred_element_type=jnp.float32), axis=-1
    )

  def _depth_hidden(self, state_NxD, prefix_Nxl):
    n, length = prefix_Nxl.shape
    x = (
      jnp.concatenate([state_NxD[:, None], self._embed(self.vocab.sid(prefix_Nxl))], axis=1)
      if length
      else state_NxD[:, None]
    )
    positions = jnp.broadcast_to(jnp.arange(length + 1), (n, length + 1))
    mask = jnp.broadcast_to(
      jnp.tril(jnp.ones((length + 1, length + 1), bool)), (n, length + 1, length + 1)
    )
    return self.depth(x, positions, mask)

  def _generated(self, state_BxQxD, codes_BxQxL) -> jax.Array:
    """fp32 log-probabilities [B, Q, L] of given codes, each given those before it.

    A part of the queries at a time, computed again in the backward pass: of [B, Q, L, K] only one level of one part ever exists.
    """
    b, q, d = state_BxQxD.shape
    parts = max(p for p in range(1, PARTS + 1) if q % p == 0)

    @jax.checkpoint
    def part(state_BxqxD, codes_BxqxL):
      codes = codes_BxqxL.reshape(-1, codes_BxqxL.shape[-1])
      hidden = self._depth_hidden(state_BxqxD.reshape(-1, d), codes[:, :-1])
      readout = gather_replicated(self.readout, hidden.dtype)
      found = [
        log_prob_of(code, hidden[:, level], readout[level]) for level, code in enumerate(codes.T)
      ]
      return jnp.stack(found, axis=-1).reshape(codes_BxqxL.shape)

    if parts == 1:
      return part(state_BxQxD, codes_BxQxL)
    split = lambda x: jnp.moveaxis(x.reshape(b, parts, q // parts, -1), 1, 0)
    _, found = jax.lax.scan(
      lambda carry, xs: (carry, part(*xs)), None, (split(state_BxQxD), split(codes_BxQxL))
    )
    return jnp.moveaxis(found, 0, 1).reshape(codes_BxQxL.shape)

  @staticmethod
  def first_code(query_state: QueryState, own_BxQxK) -> jax.Array:
    """Log-probabilities of the first code, fp32 [B, Q, K]: the depth decoder's own, mixed with the intent where there is one."""
    if query_state.intent is None:
      return own_BxQxK
    return jnp.logaddexp(query_state.log_own[..., None] + own_BxQxK, query_state.intent)

  def log_prob(
    self, query_state: QueryState, memory: Memory, item_BxQ, codes_IxL
  ) -> tuple[jax.Array, jax.Array]:
    """(log p(item | query), log of its generated part alone), fp32 [B, Q]. Items of -1 give garbage to be masked."""
    codes = jnp.take(codes_IxL, jnp.maximum(item_BxQ, 0), axis=0)
    generated = self._generated(query_state.state, codes)
    if query_state.intent is not None:  # as `first_code`, of the one code that is asked for
      intended = jnp.take_along_axis(query_state.intent, codes[..., :1], axis=-1)
      generated = jnp.concatenate(
        [
          jnp.logaddexp(query_state.log_own[..., None] + generated[..., :1], intended),
          generated[..., 1:],
        ],
        axis=-1,
      )
    generated = generated.sum(-1)
    same = memory.item[:, None] == item_BxQ[..., None]
    copied = jax.nn.logsumexp(jnp.where(same, query_state.log_pointer, NEG_INF), axis=-1)
    return jnp.logaddexp(
      query_state.log_generate + generated, query_state.log_gate + copied
    ), generated
