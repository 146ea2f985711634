"""The Generative Behavioral Backbone: what will this user convert on?

It has three parts. A causal *temporal* transformer reads one position per event. A *query* (event
type and time of the target) attends to memory, the encoded history strictly before its time. What
it finds is read in two ways: a *depth* decoder emits the L codes of an item in turn, and a product
with the vectors of items ranks the whole catalogue at once. Those are two of the experts of
`experts.py`, whose product is the item's probability; what the reasoner says comes in as others.

An item's vector is the sum of its code embeddings, of its text vector where there is one, and of a
row of its own. Rows are dropped at random in training, so that items without one are no strangers.

Every event is supervised in one pass: the query of event j sees only events with an earlier
timestamp, so ties leak nothing.

Shapes: B rows, n events, S = 1 + n memory slots, Q queries, D width, H heads, L levels, K codes,
I items, M members, C negatives; N items to generate, l codes of a prefix.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import EVENT_NAMES, BackboneConfig
from rolegen_jax.data.batches import Trajectories
from rolegen_jax.models.attention import KeyValues, Visible, causal
from rolegen_jax.models.experts import (
  Experts,
  Items,
  ItemTable,
  Members,
  Negatives,
  draw_negatives,
  in_rows,
  is_first,
)
from rolegen_jax.models.layers import RMSNorm, gather_replicated, param
from rolegen_jax.models.memory import (
  Conditioning,
  Memory,
  QueryBlock,
  QueryState,
  count_bucket,
  gap_bucket,
  remembered,
  view_memory,
)
from rolegen_jax.models.numerics import NEG_INF, dropout
from rolegen_jax.models.transformer import Dropout, Transformer
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.sharding import constrain
from rolegen_jax.vocab import Vocabulary

PURCHASE = EVENT_NAMES.index('purchase')
# Parts in which the depth decoder generates a row's queries, one after the other: an eighth of the
# memory, and faster on CPUs.
PARTS = 8


class Backbone(nnx.Module):
  """The generative recommender: `encode`, `attend`, then score or decode items."""

  def __init__(
    self, config: BackboneConfig, vocab: Vocabulary, items: int, text: int, *, rngs: nnx.Rngs
  ):
    """Build it for a catalogue with room for `items` items, text vectors `text` wide (0 = none)."""
    c, width = config.temporal, config.temporal.width
    self.config, self.vocab = config, vocab
    self.tokens = param(rngs, (vocab.without_text.size, width), ('vocab', 'embed'), fan_in=width)
    self.start = param(rngs, (width,), ('embed',), fan_in=width)
    self.temporal = Transformer(c, rngs=rngs)
    make_query_block = nnx.vmap(lambda rngs: QueryBlock(c, rngs=rngs))
    self.query_blocks = make_query_block(rngs.split(config.query_layers))
    self.result_norm = RMSNorm(width)
    self.experts = Experts(config.experts)
    if 'generative' in config.experts:
      # No rematerialization of its own: `generated` recomputes all layers.
      depth = dataclasses.replace(c, layers=config.depth_layers, remat='none')
      self.depth = Transformer(depth, rngs=rngs)
      readout = vocab.levels, vocab.codes, width
      self.readout = param(rngs, readout, (None, 'vocab', 'embed'), fan_in=width)
    if 'dense' in config.experts:
      self.rows = param(rngs, (items, width), ('items', None), fan_in=width)
    if text:
      self.text = param(rngs, (text, width), (None, 'embed'), fan_in=width)

  def has(self, expert: str) -> bool:
    """Return whether an expert is on."""
    return expert in self.config.experts

  # Items

  def items(self, trie: Trie, key: jax.Array | None = None) -> Items:
    """Return the catalogue to read; `key` drops rows at random, as in training."""
    has_row = trie.item_count > 0
    if self.has('dense') and key is not None:
      kept = jax.random.bernoulli(key, 1.0 - self.config.row_dropout, has_row.shape)
      has_row = has_row & kept
    popularity = jnp.log1p(trie.item_count)
    return Items(trie.item_codes, popularity, has_row, trie.item_text, trie.trending)

  def vectors(self, items: Items, item: jax.Array) -> jax.Array:
    """Return the vectors of items [...], [..., D]; zeros where the item is -1."""
    index = jnp.maximum(item, 0)
    if items.vectors is not None:
      vectors = jnp.take(items.vectors.reshape(-1, items.vectors.shape[-1]), index, axis=0)
      return jnp.where((item >= 0)[..., None], vectors, 0)
    vectors = self._embed(self.vocab.sid(jnp.take(items.codes, index, axis=0))).sum(axis=-2)
    if items.text is not None:
      vectors += self._of_text(jnp.take(items.text, index, axis=0))
    if self.has('dense'):
      row = jnp.take(self.rows[...].astype(vectors.dtype), index, axis=0, mode='fill', fill_value=0)
      vectors += jnp.where(jnp.take(items.has_row, index)[..., None], row, 0)
    return jnp.where((item >= 0)[..., None], vectors, 0)

  def _of_text(self, text: jax.Array) -> jax.Array:
    dtype = self.config.temporal.dtype
    return text.astype(dtype) @ gather_replicated(self.text, dtype)

  def table(self, items: Items, parts: int) -> ItemTable:
    """Return what scores the whole catalogue, its items in their order and in equal parts.

    What fills up the last part is meaningless.
    """
    size = -(-len(items.codes) // parts)

    def divide(x: jax.Array) -> jax.Array:
      more = ((0, max(parts * size - len(x), 0)), *((0, 0),) * (x.ndim - 1))
      divided = jnp.pad(x, more)[: parts * size].reshape(parts, size, *x.shape[1:])
      return constrain(divided, 'items', *(None,) * x.ndim)

    codes, vectors = divide(items.codes), None
    if self.has('dense'):
      rows = divide(self.rows[...].astype(self.config.temporal.dtype))
      vectors = self._embed(self.vocab.sid(codes)).sum(axis=-2)
      if items.text is not None:
        vectors += self._of_text(divide(items.text))
      vectors += jnp.where(divide(items.has_row)[..., None], rows, 0)
      vectors = constrain(vectors, 'items', None, None)
    popularity = jnp.zeros((parts, size), jnp.float32)
    if self.has('popularity'):
      popularity = self.experts.weight('popularity') * divide(items.popularity)
    return ItemTable(codes[..., 0], popularity, vectors)

  def _embed(self, tokens: jax.Array) -> jax.Array:
    return jnp.take(gather_replicated(self.tokens, self.config.temporal.dtype), tokens, axis=0)

  # Memory

  def encode(self, rows: Trajectories, items: Items, key: jax.Array | None = None) -> Memory:
    """Encode history rows [B, n], causally within each segment; `key` turns dropout on."""
    positions = jnp.broadcast_to(jnp.arange(rows.item.shape[1]), rows.item.shape)
    keys = (None, None) if key is None else jax.random.split(key)
    x = dropout(self.events(rows, items), self.config.dropout, keys[0])
    drop = Dropout(self.config.dropout, keys[1])
    return self.memory(self.temporal(x, positions, causal(rows.segment), drop), rows)

  def events(self, rows: Trajectories, items: Items) -> jax.Array:
    """Return what the temporal stack reads of events [B, n], [B, n, D]."""
    v = self.vocab
    previous_time = jnp.pad(rows.timestamp, ((0, 0), (1, 0)))[:, :-1]
    previous_segment = jnp.pad(rows.segment, ((0, 0), (1, 0)))[:, :-1]
    gap = jnp.where(previous_segment == rows.segment, rows.timestamp - previous_time, 0)
    x = self.vectors(items, rows.item) + self._embed(v.event(rows.event))
    x = x + self._embed(v.gap(gap_bucket(gap))) + self._embed(v.count(count_bucket(rows.count)))
    # Scaled as SASRec's: what blocks add to the residual stream would drown rows that are small.
    return x * x.shape[-1] ** 0.5

  def memory(self, hidden: jax.Array, rows: Trajectories) -> Memory:
    """Return the slots to attend to, of rows whose events are encoded as `hidden` [B, n, D]."""
    return remembered(self.start[...], hidden, rows)

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

    A query sees the start slot and events of its segment. `key` turns dropout on.
    """
    v, seen = self.vocab, view_memory(memory, timestamp_BxQ, segment_BxQ)
    context = jnp.take_along_axis(memory.hidden, seen.last[..., None], axis=1)
    x = context + self._embed(v.event(event_BxQ)) + self._embed(v.gap(gap_bucket(seen.gap)))
    keys = None if key is None else jax.random.split(key, self.config.query_layers)

    def layer(x: jax.Array, xs: tuple[QueryBlock, jax.Array | None]) -> tuple[jax.Array, None]:
      block, key = xs
      x = constrain(x, 'batch', None, None)
      return block(x, memory.hidden, seen, Dropout(self.config.dropout, key)), None

    x, _ = jax.lax.scan(layer, x, (self.query_blocks, keys))
    return QueryState(self.result_norm(x), timestamp_BxQ, seen, memory.item)

  # Scores

  def choice_log_prob(
    self,
    query_state: QueryState,
    target_BxQ: jax.Array,
    own_BxM: jax.Array,
    negatives: Negatives,
    items: Items,
  ) -> jax.Array:
    """Return log p(target) by the backbone's experts other than the generative, fp32 [B, Q].

    The sum over the catalogue is over each row's own items, every target and the history among
    them, and over the shared negatives. It is recomputed in the backward pass. Values of targets -1
    are meaningless.
    """

    @jax.checkpoint
    def log_prob(state: jax.Array, own: jax.Array, shared: jax.Array) -> jax.Array:
      scores = jnp.zeros((*target_BxQ.shape, own_BxM.shape[1]), jnp.float32)
      shared_scores = jnp.zeros((), jnp.float32)
      if self.has('popularity'):
        weight = self.experts.weight('popularity')
        scores += weight * popularity[:, None]
        shared_scores = shared_scores + weight * items.popularity_of(negatives.item)
      if self.has('dense'):
        weight = self.experts.weight('dense')
        scores += weight * _product('bqd,bmd->bqm', state, own)
        shared_scores = shared_scores + weight * _product('bqd,cd->bqc', state, shared)
      if self.has('history'):
        view, slot_item = query_state.view, query_state.slot_item
        history = self.experts.history(view, slot_item, own_BxM, popularity)
        scores += self.experts.weight('history') * history
      first = is_first(own_BxM)[:, None]
      elsewhere = jnp.where(in_rows(own_BxM, negatives.item), NEG_INF, negatives.log_weight)
      shared_scores = shared_scores + elsewhere[:, None]
      total = jnp.logaddexp(
        jax.nn.logsumexp(jnp.where(first, scores, NEG_INF), axis=-1),
        jax.nn.logsumexp(shared_scores, axis=-1),
      )
      is_target = first & (own_BxM[:, None] == target_BxQ[..., None])
      return jnp.sum(jnp.where(is_target, scores, 0.0), axis=-1) - total

    popularity = items.popularity_of(own_BxM)
    own, shared = self.vectors(items, own_BxM), self.vectors(items, negatives.item)
    return log_prob(query_state.state, own, shared)

  def log_prob(
    self, query_state: QueryState, target_B: jax.Array, history_Bxn: jax.Array, trie: Trie
  ) -> jax.Array:
    """Return log p(target) of each row's first query without the reasoner, fp32 [B].

    The generative expert and the others are normalized apart: that bounds log p of the product from
    below, and costs one item a row. history: the items of the row.
    """
    target, items = target_B[:, None], self.items(trie)
    own = jnp.concatenate([target, history_Bxn], axis=1)
    log_prob = jnp.zeros(target_B.shape, jnp.float32)
    if self.config.experts != ('generative',):
      negatives = draw_negatives(trie, self.config.negatives, jax.random.key(0))
      first = query_state._replace(state=query_state.state[:, :1])
      log_prob += self.choice_log_prob(first, target, own, negatives, items)[:, 0]
    if self.has('generative'):
      codes = jnp.take(items.codes, jnp.maximum(target, 0), axis=0)
      generated = self.generated(query_state.state[:, :1], codes)[:, 0]
      log_prob += self.experts.weight('generative') * generated
    return log_prob

  def members(
    self,
    query_state: QueryState,
    item_BxM: jax.Array,
    log_weight_BxM: jax.Array,
    conditioning: Conditioning,
    items: Items,
    generative: jax.Array | None = None,
  ) -> Members:
    """Return what the experts need to score items for each row's first query.

    generative: what that expert says, fp32 [B, M], if it is known.
    """
    state, codes = query_state.state[:, 0], jnp.take(items.codes, jnp.maximum(item_BxM, 0), axis=0)
    vectors = self.vectors(items, item_BxM) if self.has('dense') else None
    dense = None if vectors is None else _product('bd,bmd->bm', state, vectors)
    if self.has('generative') and generative is None:
      generative = self.generated_from(state, codes)
    return Members(
      item=item_BxM,
      log_weight=log_weight_BxM,
      code=codes[..., 0],
      popularity=items.popularity_of(item_BxM),
      generative=generative,
      dense=dense,
      trending=self.experts.shares(query_state, items.trending),
      slot_item=query_state.slot_item,
      view=query_state.view,
      conditioning=conditioning,
    )

  # Depth decoder

  def _depth_hidden(self, state_NxD: jax.Array, prefix_Nxl: jax.Array) -> jax.Array:
    """Return the depth decoder's states [N, l + 1, D]."""
    n, length = prefix_Nxl.shape
    x = jnp.concatenate([state_NxD[:, None], self._embed(self.vocab.sid(prefix_Nxl))], axis=1)
    positions = jnp.broadcast_to(jnp.arange(length + 1), (n, length + 1))
    lower = jnp.tril(jnp.ones((length + 1, length + 1), bool))
    return self.depth(x, positions, jnp.broadcast_to(lower, (n, length + 1, length + 1)))

  def first_code(self, state_BxD: jax.Array) -> tuple[jax.Array, KeyValues]:
    """Return log-probabilities of the first code, fp32 [B, K], and the cache of its position.

    The cache, [layers, B, 1, heads, head width] twice, is what all chains of a row share.
    """
    every = jnp.ones((len(state_BxD), 1, 1), bool)
    positions = jnp.zeros((len(state_BxD), 1), jnp.int32)
    hidden, shared = self.depth.prefill(state_BxD[:, None], positions, every)
    return self._code_log_probs(0, hidden)[:, 0], shared

  def next_code(
    self, level: int, code_BxM: jax.Array, shared: KeyValues, own: KeyValues | None
  ) -> tuple[jax.Array, KeyValues]:
    """Return log-probabilities of the code at `level` >= 1 of M chains, fp32 [B, M, K].

    code: the chains' codes one level above. own: the cache of the codes before that, [layers, B, M,
    L - 1, heads, head width] twice; None at level 1. It is returned with this position in it.
    """
    c, (b, m) = self.depth.config, code_BxM.shape
    slots = self.vocab.levels - 1
    if own is None:
      empty = jnp.zeros((c.layers, b, m, slots, c.kv_heads, c.head_dim), c.dtype)
      own = empty, empty
    tokens = self.vocab.blocks[f'sid{level - 1}'][0] + code_BxM
    seen = jnp.broadcast_to(jnp.arange(slots) < level, (b, m, slots))
    visible = Visible(jnp.ones((b, 1), bool), seen)
    hidden, own = self.depth.step(self._embed(tokens), level, shared, own, level - 1, visible)
    return self._code_log_probs(level, hidden), own

  def _code_log_probs(self, level: int, hidden: jax.Array) -> jax.Array:
    readout = gather_replicated(self.readout, hidden.dtype)[level]
    return jax.nn.log_softmax(_product('bmd,kd->bmk', hidden, readout), axis=-1)

  def generated_from(self, state_BxD: jax.Array, codes_BxMxL: jax.Array) -> jax.Array:
    """Return log-probabilities of M items a row, by their codes: fp32 [B, M].

    All of them continue one position, which is computed once.
    """
    log_probs, shared = self.first_code(state_BxD)
    total = jnp.take_along_axis(log_probs, codes_BxMxL[..., 0], axis=1)
    own = None
    for level in range(1, self.vocab.levels):
      log_probs, own = self.next_code(level, codes_BxMxL[..., level - 1], shared, own)
      code = codes_BxMxL[..., level, None]
      total += jnp.take_along_axis(log_probs, code, axis=-1)[..., 0]
    return total

  def generated(self, state_BxQxD: jax.Array, codes_BxQxL: jax.Array) -> jax.Array:
    """Return log-probabilities of one item a query, by their codes: fp32 [B, Q].

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
      return jnp.stack(log_probs).sum(0).reshape(codes_BxqxL.shape[:-1])

    def split(x: jax.Array) -> jax.Array:
      return jnp.moveaxis(x.reshape(b, parts, q // parts, -1), 1, 0)

    if parts == 1:
      return one_part(state_BxQxD, codes_BxQxL)
    _, log_probs = jax.lax.scan(
      lambda carry, xs: (carry, one_part(*xs)), None, (split(state_BxQxD), split(codes_BxQxL))
    )
    return jnp.moveaxis(log_probs, 0, 1).reshape(b, q)


def _log_prob_of(code_N: jax.Array, hidden_NxD: jax.Array, readout_KxD: jax.Array) -> jax.Array:
  """Return log softmax(hidden @ readout.T)[code], fp32 [N]."""
  log_probs = jax.nn.log_softmax(_product('nd,kd->nk', hidden_NxD, readout_KxD), axis=-1)
  return jnp.take_along_axis(log_probs, code_N[:, None], axis=-1)[:, 0]


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
