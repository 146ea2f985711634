"""Constrained beam search in the depth decoder; every beam is always a prefix of a real item.

The context is encoded once. Scores are exact log p(item) of the backbone's mixture: a prefix keeps
its generated log-probability and the pointer's mass of the memory slots whose items begin with it,
so both parts of the mixture narrow together. The catalogue comes in as `Trie` tables, arguments at
run time: changing it within its capacity compiles nothing.

A level costs one position of the depth decoder for each beam, against the keys and values of the
codes before it. The pointer moves few entries, for a slot's item continues at most one beam, by one
code: the mixture is computed at those S entries of a row and not at all k * K.

Shapes: B rows, k beams, S memory slots, D width, K codes, E = k * K entries (the codes of all
beams), m entries to pick.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rolegen_jax.models.attention import KeyValues, Visible
from rolegen_jax.models.backbone import Backbone, QueryState
from rolegen_jax.models.layers import gather_replicated
from rolegen_jax.models.memory import Memory
from rolegen_jax.models.numerics import NEG_INF, is_possible
from rolegen_jax.semantic_ids.trie import Trie, children_mask, descend, leaf, root


class Ranking(NamedTuple):
  """The best items of each row."""

  item: jax.Array  # int32 [B, k], best first; -1 where fewer than k items exist
  score: jax.Array  # fp32 [B, k], log p(item | context)
  found: jax.Array  # int32 [B], number of items; below k where fewer exist


def beam_search(
  backbone: Backbone,
  query_state: QueryState,
  memory: Memory,
  trie: Trie,
  beams: int,
  allow: jax.Array | None = None,
) -> Ranking:
  """Return the top `beams` items of each row's first query.

  The result is exact where `beams` is at least the number of nodes of every level. With `allow`,
  uint32 [B], a row gets items of these regions only (`semantic_ids/trie.py`).
  """
  query_state = jax.tree.map(lambda a: a[:, :1], query_state)
  levels, codes = backbone.vocab.levels, backbone.vocab.codes
  pointer_BxS = jnp.exp(query_state.log_pointer[:, 0])
  slot_codes_BxSxL = jnp.take(trie.item_codes, jnp.maximum(memory.item, 0), axis=0)
  # The beam that the slot's item continues; -1 = none.
  slot_beam_BxS = jnp.where(memory.item >= 0, 0, -1)

  x_BxkxD = query_state.state
  cache: KeyValues | None = None
  node, generated = root((len(x_BxkxD), 1)), jnp.zeros((len(x_BxkxD), 1))
  for level in range(levels):
    own_BxkxK, cache = _next_code(backbone, level, x_BxkxD, cache)
    if level == 0:
      own_BxkxK = backbone.first_code(query_state, own_BxkxK)
    generated = _entries(generated[..., None] + own_BxkxK)
    exists = _entries(children_mask(trie, level, node, allow)[0])
    slot_entry = slot_beam_BxS * codes + slot_codes_BxSxL[:, :, level]
    slot_entry = jnp.where(slot_beam_BxS < 0, -1, slot_entry)
    score = _mix(query_state, jnp.where(exists, generated, NEG_INF), slot_entry, pointer_BxS)

    score, entry = jax.lax.top_k(score, min(beams, score.shape[1]))
    parent, code = entry // codes, entry % codes
    node = jnp.where(is_possible(score), descend(trie, level, _pick(node, parent), code), -1)
    generated = _pick(generated, entry)
    if level + 1 < levels:
      # A slot's entry is kept once or not at all, so the sum is the number of its new beam, plus 1.
      is_kept = slot_entry[..., None] == entry[:, None]
      new_beam = jnp.where(is_kept, jnp.arange(entry.shape[1]) + 1, 0)
      slot_beam_BxS = jnp.sum(new_beam, axis=-1) - 1
      cache = jax.tree.map(lambda a: jax.vmap(_pick, (0, None))(a, parent), cache)
      tokens = gather_replicated(backbone.tokens, query_state.state.dtype)
      x_BxkxD = jnp.take(tokens, backbone.vocab.blocks[f'sid{level}'][0] + code, axis=0)
  item = leaf(trie, node)
  pad = ((0, 0), (0, beams - item.shape[1]))
  item, score = jnp.pad(item, pad, constant_values=-1), jnp.pad(score, pad, constant_values=NEG_INF)
  return Ranking(item, jnp.where(item >= 0, score, NEG_INF), jnp.sum(item >= 0, axis=1))


def _next_code(
  backbone: Backbone, level: int, x_BxkxD: jax.Array, cache: KeyValues | None
) -> tuple[jax.Array, KeyValues]:
  """Decode one more position, after the `level` positions of `cache`.

  Returns the log-probabilities fp32 [B, k, K] of the code at `level`, and the cache of keys and
  values, [layers, B, k, positions, heads, head width] each. There is no cache before the first.
  """
  c, (b, k, _) = backbone.depth.config, x_BxkxD.shape
  if cache is None:
    empty = jnp.zeros((c.layers, b, k, 0, c.kv_heads, c.head_dim), c.dtype)
    cache = empty, empty
  cache = jax.tree.map(lambda a: jnp.pad(a, ((0, 0),) * 3 + ((0, 1), (0, 0), (0, 0))), cache)
  shared = jnp.zeros((c.layers, b, 0, c.kv_heads, c.head_dim), c.dtype)  # beams share no position
  visible = Visible(jnp.ones((b, 0), bool), jnp.ones((b, k, level + 1), bool))
  hidden, cache = backbone.depth.step(x_BxkxD, level, (shared, shared), cache, level, visible)
  readout = gather_replicated(backbone.readout, hidden.dtype)[level]
  logits = jnp.einsum('bkd,cd->bkc', hidden, readout, preferred_element_type=jnp.float32)
  return jax.nn.log_softmax(logits, axis=-1), cache


def _mix(
  query_state: QueryState,
  generated_BxE: jax.Array,
  slot_entry_BxS: jax.Array,
  pointer_BxS: jax.Array,
) -> jax.Array:
  """Return log p of the prefix that each entry makes, fp32 [B, E].

  `generated` is NEG_INF at entries that begin no item; so is the result.
  """
  score = query_state.log_generate + generated_BxE
  score = jnp.where(is_possible(generated_BxE), score, NEG_INF)
  same_BxSxS = slot_entry_BxS[:, :, None] == slot_entry_BxS[:, None]
  mass = jnp.sum(jnp.where(same_BxSxS, pointer_BxS[:, None], 0.0), axis=-1)
  entry = jnp.maximum(slot_entry_BxS, 0)
  mixed = jnp.logaddexp(_pick(score, entry), query_state.log_copy + jnp.log(mass))
  is_open = (slot_entry_BxS >= 0) & is_possible(_pick(score, entry))
  raise_to = jax.vmap(lambda row, at, value: row.at[at].max(value, mode='drop'))
  return raise_to(score, jnp.where(is_open, entry, score.shape[1]), mixed)


def _entries(a_BxkxK: jax.Array) -> jax.Array:
  """Lay the codes of all beams side by side, [B, E]."""
  return a_BxkxK.reshape(len(a_BxkxK), -1)


def _pick(a_Bxn: jax.Array, index_Bxm: jax.Array) -> jax.Array:
  """Pick along the second axis, row by row: [B, n, ...] and int32 [B, m] to [B, m, ...]."""
  return jax.vmap(lambda row, index: row[index])(a_Bxn, index_Bxm)
