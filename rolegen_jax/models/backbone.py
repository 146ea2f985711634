"""The Generative Behavioral Backbone: what will this user convert on, as semantic IDs.

It has three parts. A causal *temporal* transformer reads one position per event. A *query* (event
type and time of the target) attends to memory: the encoded history strictly before its time, and
the candidates that the reasoner names. A *depth* decoder emits the L codes of an item in turn. The
item's probability is a mixture of that generated semantic ID and a pointer over memory,

  p(y | q) = (1 - g) * prod_l p(code_l | codes_<l, q)  +  g * sum_i a_i [item_i = y],

because many conversions of a dormant user go to something already touched, and because a reasoned
candidate can then be taken up as it is. Where the reasoner gives an intent, the first code itself
is a mixture, m * intent + (1 - m) * own, and the pointer leans towards slots of intended coarse
codes; items that the reasoner retrieves have a share of the whole (`pointer.py`).

Every event is supervised in one pass: the query of event j sees only events with an earlier
timestamp, so ties leak nothing. Roles mark memory and not the input of the temporal transformer: a
role is known only at the end of the trajectory, and inside the causal stack it would tell earlier
positions about later events.

Shapes: B rows, n events, M role events, C candidates, A retrieved items, S = 1 + n + C + A memory
slots, Q queries, D width, H heads, L levels, K codes; N items to generate, l codes of a prefix.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import EVENT_NAMES, BackboneConfig, TransformerConfig
from rolegen_jax.data.batches import Trajectories
from rolegen_jax.models.attention import causal
from rolegen_jax.models.layers import Attention, GatedMLP, RMSNorm, gather_replicated, param
from rolegen_jax.models.memory import (
  AGE_FEATURES,
  INVISIBLE,
  NO_EVENT,
  VISIBLE,
  Candidates,
  Conditioning,
  Memory,
  View,
  append_retrieved,
  append_slots,
  count_bucket,
  gap_bucket,
  view_memory,
  with_intent,
)
from rolegen_jax.models.numerics import NEG_INF, dropout
from rolegen_jax.models.pointer import IntentMix, Pointer, gate_logit, gate_param, share_retrieved
from rolegen_jax.models.transformer import Transformer
from rolegen_jax.sharding import constrain
from rolegen_jax.vocab import Vocabulary

PURCHASE = EVENT_NAMES.index('purchase')
COUNTED_GATE = -2.0  # where the gate of retrieved items starts, a logit
# Parts in which the depth decoder generates a row's queries, one after the other: an eighth of the
# memory, and faster on CPUs.
PARTS = 8


class QueryState(NamedTuple):
  """The answer to queries, enough to score or decode any item."""

  state: jax.Array  # [B, Q, D], input of the depth decoder
  log_pointer: jax.Array  # fp32 [B, Q, S], log of the pointer's weight on each slot
  log_copy: jax.Array  # fp32 [B, Q], log g
  log_generate: jax.Array  # fp32 [B, Q], log (1 - g)
  intent: IntentMix | None = None  # None where the memory has no intent


class QueryBlock(nnx.Module):
  """Cross-attention to memory with a learned bias by age and event type, then an MLP."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.query_norm, self.memory_norm, self.mlp_norm = (RMSNorm(config.width) for _ in range(3))
    self.attention = Attention(config, rngs=rngs)
    self.mlp = GatedMLP(config, rngs=rngs)
    self.age_bias = nnx.Param(jnp.zeros((AGE_FEATURES, config.heads)), axes=(None, 'heads'))
    self.event_bias = nnx.Param(jnp.zeros((NO_EVENT + 1, config.heads)), axes=(None, 'heads'))

  def __call__(self, x_BxQxD: jax.Array, memory_BxSxD: jax.Array, view: View) -> jax.Array:
    age_bias = self.age_bias[...].astype(view.age.dtype)
    event_bias = self.event_bias[...].astype(view.event.dtype)
    by_age = jnp.einsum('bqsa,ah->bhqs', view.age, age_bias)
    by_event = jnp.einsum('bse,eh->bhs', view.event, event_bias)
    bias = by_age + by_event[:, :, None]
    k, v = self.attention.kv(self.memory_norm(memory_BxSxD))
    q = self.attention.q(self.query_norm(x_BxQxD))
    attended = self.attention.attend(q, k, v, view.visible, bias.astype(q.dtype))
    x = x_BxQxD + self.attention.out(attended)
    return x + self.mlp(self.mlp_norm(x))


class Backbone(nnx.Module):
  """The generative recommender: `encode`, `condition`, `attend`, then score or decode items."""

  def __init__(self, config: BackboneConfig, vocab: Vocabulary, *, rngs: nnx.Rngs):
    c, width = config.temporal, config.temporal.width
    self.config, self.vocab = config, vocab
    self.tokens = param(rngs, (vocab.without_text.size, width), ('vocab', 'embed'), fan_in=width)
    self.start = param(rngs, (width,), ('embed',), fan_in=width)
    self.temporal = Transformer(c, rngs=rngs)
    make_query_block = nnx.vmap(lambda rngs: QueryBlock(c, rngs=rngs))
    self.query_blocks = make_query_block(rngs.split(config.query_layers))
    # No rematerialization of its own: `_generated` recomputes all layers.
    depth = dataclasses.replace(c, layers=config.depth_layers, remat='none')
    self.depth = Transformer(depth, rngs=rngs)
    readout = vocab.levels, vocab.codes, width
    self.readout = param(rngs, readout, (None, 'vocab', 'embed'), fan_in=width)
    self.result_norm = RMSNorm(width)
    self.pointer = Pointer(width, config.pointer, rngs=rngs)
    self.confidence = nnx.Param(jnp.zeros((width,)), axes=(None,))
    self.counted_gate = gate_param(width, COUNTED_GATE)

  # Memory

  def encode(
    self, rows: Trajectories, codes_IxL: jax.Array, key: jax.Array | None = None
  ) -> Memory:
    """Encode history rows [B, n], causally within each segment; `key` turns dropout on."""
    v = self.vocab
    previous_time = jnp.pad(rows.timestamp, ((0, 0), (1, 0)))[:, :-1]
    previous_segment = jnp.pad(rows.segment, ((0, 0), (1, 0)))[:, :-1]
    gap = jnp.where(previous_segment == rows.segment, rows.timestamp - previous_time, 0)
    x = self._embed_items(rows.item, codes_IxL) + self._embed(v.event(rows.event))
    x = x + self._embed(v.gap(gap_bucket(gap))) + self._embed(v.count(count_bucket(rows.count)))
    positions = jnp.broadcast_to(jnp.arange(rows.item.shape[1]), rows.item.shape)
    x = dropout(x, self.config.dropout, key)
    hidden = self.temporal(x, positions, causal(rows.segment))
    start = jnp.broadcast_to(self.start[...].astype(hidden.dtype), hidden[:, :1].shape)

    def with_start(field: jax.Array, value: int) -> jax.Array:
      return jnp.pad(field, ((0, 0), (1, 0)), constant_values=value)

    return Memory(
      hidden=jnp.concatenate([start, hidden], 1),
      item=with_start(rows.item, -1),
      event=with_start(rows.event, NO_EVENT),
      timestamp=with_start(rows.timestamp, 0),
      segment=with_start(rows.segment, VISIBLE),
      count=with_start(rows.count, 1),
    )

  def condition(self, memory: Memory, conditioning: Conditioning, codes_IxL: jax.Array) -> Memory:
    """Add what the reasoner says about unpacked, right-aligned rows to their encoded histories.

    All parts are given at once, so no part depends on when another was added. Raises ValueError
    when the memory has been conditioned before.
    """
    if memory.conditioned:
      raise ValueError('this memory is conditioned: put all parts into one Conditioning')
    memory = dataclasses.replace(memory, conditioned=True)
    c = conditioning
    if c.roles is not None:
      memory = dataclasses.replace(memory, hidden=self._mark_roles(memory.hidden, c.roles))
    if c.candidates is not None:
      memory = self._append_candidates(memory, c.candidates, codes_IxL)
    if c.retrieved is not None:
      memory = append_retrieved(memory, c.retrieved)
    if c.intent is not None:
      memory = with_intent(memory, c.intent, codes_IxL)
    return memory

  def _mark_roles(self, hidden_BxSxD: jax.Array, roles_BxM: jax.Array) -> jax.Array:
    """Add the embedding of its role to each of the last M events; a role of -1 adds nothing."""
    embedded = self._embed(self.vocab.role(jnp.maximum(roles_BxM, 0)))
    marks = jnp.where((roles_BxM >= 0)[..., None], embedded, 0)
    first = hidden_BxSxD.shape[1] - roles_BxM.shape[1]
    return hidden_BxSxD.at[:, first:].add(marks)

  def _append_candidates(
    self, memory: Memory, candidates: Candidates, codes_IxL: jax.Array
  ) -> Memory:
    """Append a slot for each candidate, embedded by its codes, its world and its log-prob."""
    item = candidates.item
    hidden = self._embed_items(item, codes_IxL) + self._embed(self.vocab.world(candidates.world))
    log_prob = candidates.log_prob[..., None].astype(hidden.dtype)
    hidden = hidden + log_prob * self.confidence[...].astype(hidden.dtype)
    return append_slots(memory, hidden, item, jnp.where(item >= 0, VISIBLE, INVISIBLE))

  def _embed(self, tokens: jax.Array) -> jax.Array:
    return jnp.take(gather_replicated(self.tokens, self.config.temporal.dtype), tokens, axis=0)

  def _embed_items(self, item: jax.Array, codes_IxL: jax.Array) -> jax.Array:
    """Return the sum of each item's code embeddings, [..., D]; zeros where the item is -1."""
    codes = jnp.take(codes_IxL, jnp.maximum(item, 0), axis=0)
    embedded = self._embed(self.vocab.sid(codes)).sum(axis=-2)
    return jnp.where((item >= 0)[..., None], embedded, 0)

  # Queries

  def attend(
    self,
    memory: Memory,
    event_BxQ: jax.Array,
    timestamp_BxQ: jax.Array,
    segment_BxQ: jax.Array,
    key: jax.Array | None = None,
  ) -> QueryState:
    """Answer queries 'which item gets this event at this time?' from memory strictly before it.

    A query sees events of its segment, and the slots that every query sees (start, candidates).
    `key` turns dropout on.
    """
    v, seen = self.vocab, view_memory(memory, timestamp_BxQ, segment_BxQ)
    context = jnp.take_along_axis(memory.hidden, seen.last[..., None], axis=1)
    x = context + self._embed(v.event(event_BxQ)) + self._embed(v.gap(gap_bucket(seen.gap)))

    def layer(x: jax.Array, block: QueryBlock) -> tuple[jax.Array, None]:
      return block(constrain(x, 'batch', None, None), memory.hidden, seen), None

    x, _ = jax.lax.scan(layer, x, self.query_blocks)
    x = self.result_norm(x)
    pointing = self.pointer(x, memory, seen)
    if memory.retrieved_share is not None:
      gate = gate_logit(self.counted_gate, x)
      pointing = share_retrieved(pointing, gate, memory.retrieved_share)
    intent = None if memory.intent is None else self.pointer.mix_intent(x, memory.intent)
    return QueryState(dropout(x, self.config.dropout, key), *pointing, intent)

  def log_prob(
    self, query_state: QueryState, memory: Memory, item_BxQ: jax.Array, codes_IxL: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Return log p(item | query) and the log of its generated part alone, fp32 [B, Q] each.

    The values of items -1 are meaningless and to be masked.
    """
    codes = jnp.take(codes_IxL, jnp.maximum(item_BxQ, 0), axis=0)
    generated = self._generated(query_state.state, codes)
    if query_state.intent is not None:
      # As `first_code`, of the one code that is asked for.
      intended = jnp.take_along_axis(query_state.intent.log_intent, codes[..., :1], axis=-1)
      own = query_state.intent.log_own[..., None] + generated[..., :1]
      first = jnp.logaddexp(own, intended)
      generated = jnp.concatenate([first, generated[..., 1:]], axis=-1)
    generated = generated.sum(-1)
    same = memory.item[:, None] == item_BxQ[..., None]
    copied = jax.nn.logsumexp(jnp.where(same, query_state.log_pointer, NEG_INF), axis=-1)
    log_prob = jnp.logaddexp(query_state.log_generate + generated, query_state.log_copy + copied)
    return log_prob, generated

  # Depth decoder

  @staticmethod
  def first_code(query_state: QueryState, own_BxQxK: jax.Array) -> jax.Array:
    """Return log-probabilities of the first code, fp32 [B, Q, K].

    They are the depth decoder's own, mixed with the intent where there is one.
    """
    if query_state.intent is None:
      return own_BxQxK
    log_intent, log_own = query_state.intent
    return jnp.logaddexp(log_own[..., None] + own_BxQxK, log_intent)

  def code_log_probs(self, state_NxD: jax.Array, prefix_Nxl: jax.Array) -> jax.Array:
    """Return log-probabilities of codes 0 .. l given the first l < L codes, fp32 [N, l + 1, K]."""
    hidden = self._depth_hidden(state_NxD, prefix_Nxl)
    readout = gather_replicated(self.readout, hidden.dtype)[: hidden.shape[1]]
    logits = jnp.einsum('nld,lkd->nlk', hidden, readout, preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(logits, axis=-1)

  def _depth_hidden(self, state_NxD: jax.Array, prefix_Nxl: jax.Array) -> jax.Array:
    """Return the depth decoder's states [N, l + 1, D]."""
    n, length = prefix_Nxl.shape
    x = state_NxD[:, None]
    if length:
      x = jnp.concatenate([x, self._embed(self.vocab.sid(prefix_Nxl))], axis=1)
    positions = jnp.broadcast_to(jnp.arange(length + 1), (n, length + 1))
    lower = jnp.tril(jnp.ones((length + 1, length + 1), bool))
    return self.depth(x, positions, jnp.broadcast_to(lower, (n, length + 1, length + 1)))

  def _generated(self, state_BxQxD: jax.Array, codes_BxQxL: jax.Array) -> jax.Array:
    """Return fp32 log-probabilities [B, Q, L] of given codes, each given those before it.

    The queries are computed in parts, and again in the backward pass: of [B, Q, L, K], one level of
    one part exists at a time.
    """
    b, q, d = state_BxQxD.shape
    parts = max(p for p in range(1, PARTS + 1) if q % p == 0)

    @jax.checkpoint
    def one_part(state_BxqxD: jax.Array, codes_BxqxL: jax.Array) -> jax.Array:
      codes = codes_BxqxL.reshape(-1, codes_BxqxL.shape[-1])
      hidden = self._depth_hidden(state_BxqxD.reshape(-1, d), codes[:, :-1])
      readout = gather_replicated(self.readout, hidden.dtype)
      log_probs = [
        _log_prob_of(code, hidden[:, level], readout[level]) for level, code in enumerate(codes.T)
      ]
      return jnp.stack(log_probs, axis=-1).reshape(codes_BxqxL.shape)

    def split(x: jax.Array) -> jax.Array:
      return jnp.moveaxis(x.reshape(b, parts, q // parts, -1), 1, 0)

    if parts == 1:
      return one_part(state_BxQxD, codes_BxQxL)
    _, log_probs = jax.lax.scan(
      lambda carry, xs: (carry, one_part(*xs)), None, (split(state_BxQxD), split(codes_BxQxL))
    )
    return jnp.moveaxis(log_probs, 0, 1).reshape(codes_BxQxL.shape)


def _log_prob_of(code_N: jax.Array, hidden_NxD: jax.Array, readout_KxD: jax.Array) -> jax.Array:
  """Return log softmax(hidden @ readout.T)[code], fp32 [N]."""
  logits = jnp.einsum('nd,kd->nk', hidden_NxD, readout_KxD, preferred_element_type=jnp.float32)
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  return jnp.take_along_axis(log_probs, code_N[:, None], axis=-1)[:, 0]
