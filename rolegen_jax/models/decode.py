"""Constrained beam search in the depth decoder: the context is encoded once, every beam is always a prefix of a real item.

Scores are exact log p(item) of the backbone's mixture: a prefix keeps its generated log-probability and the pointer mass of
the memory slots whose items share it, so both parts of the mixture narrow together. The catalogue comes in as `Trie`
tables, run-time arguments: changing it within capacity compiles nothing.

A level costs one position of the depth decoder a beam, against the keys and values of the codes before it. The pointer moves
few entries: a slot's item continues one beam at most, by one code. So the mixture is worked out at those S entries a row and
not at all k * K.

Shapes: B rows, k beams, S memory slots, K codes, E = k * K entries (the codes of all beams), D width, N = B * k.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rolegen_jax.models.backbone import NEG_INF, Backbone, Memory, QueryState
from rolegen_jax.models.transformer import gather_replicated
from rolegen_jax.semantic_ids.trie import Trie, children_mask, descend, leaf, root


class Ranking(NamedTuple):
  item: jax.Array  # int32 [B, k], best first; -1 where fewer than k items exist
  score: jax.Array  # fp32 [B, k], log p(item | context)
  found: jax.Array  # int32 [B], how many items there are; below k: fewer than k exist


def beam_search(
  backbone: Backbone,
  query_state: QueryState,
  memory: Memory,
  trie: Trie,
  beams: int,
  allow: jax.Array | None = None,
) -> Ranking:
  """The top `beams` items of the first query of each row. Exact where `beams` is at least the number of nodes of each level.

  `allow` uint32 [B]: each row gets items of these regions only (`semantic_ids/trie.py`); None = all items.
  """
  query_state = jax.tree.map(lambda a: a[:, :1], query_state)
  levels, codes = backbone.vocab.levels, backbone.vocab.codes
  pointer_BxS = jnp.exp(query_state.log_pointer[:, 0])
  slot_codes_BxSxL = jnp.take(trie.item_codes, jnp.maximum(memory.item, 0), axis=0)
  slot_beam_BxS = jnp.where(
    memory.item >= 0, 0, -1
  )  # the beam that the slot's item continues; -1 = none

  x_BxkxD, cache = query_state.state, None
  node, generated = (
    root((query_state.state.shape[0], 1)),
    jnp.zeros((query_state.state.shape[0], 1)),
  )
  for level in range(levels):
    own_BxkxK, cache = _next_code(backbone, level, x_BxkxD, cache)
    if level == 0:
      own_BxkxK = backbone.first_code(query_state, own_BxkxK)
    generated = _entries(generated[..., None] + own_BxkxK)
    exists = _entries(children_mask(trie, level, node, allow)[0])
    slot_entry = jnp.where(
      slot_beam_BxS < 0, -1, slot_beam_BxS * codes + slot_codes_BxSxL[:, :, level]
    )
    score = _mix(query_state, jnp.where(exists, generated, NEG_INF), slot_entry, pointer_BxS)

    score, entry = jax.lax.top_k(score, min(beams, score.shape[1]))
    parent, code = entry // codes, entry % codes
    node = jnp.where(score > NEG_INF / 2, descend(trie, level, _pick(node, parent), code), -1)
    generated = _pick(generated, entry)
    if level + 1 < levels:
      # A slot's entry is kept once or not at all, so the sum is the number of the beam that it has become.
      became = jnp.where(slot_entry[..., None] == entry[:, None], jnp.arange(entry.shape[1]) + 1, 0)
      slot_beam_BxS = jnp.sum(became, axis=-1) - 1
      cache = jax.tree.map(lambda a: jax.vmap(_pick, (0, None))(a, parent), cache)
      x_BxkxD = jnp.take(
        gather_replicated(backbone.tokens, query_state.state.dtype),
        backbone.vocab.blocks[f'sid{level}'][0] + code,
        axis=0,
      )
  item = leaf(trie, node)
  pad = ((0, 0), (0, beams - item.shape[1]))
  item, score = jnp.pad(item, pad, constant_values=-1), jnp.pad(score, pad, constant_values=NEG_INF)
  return Ranking(item, jnp.where(item >= 0, score, NEG_INF), jnp.sum(item >= 0, axis=1))


def _next_code(backbone: Backbone, level: int, x_BxkxD, cache):
  """(log-probabilities fp32 [B, k, K] of the code at `level`, cache): one more position after the `level` of `cache`.

  The cache is (keys, values), each [layers, B, k, positions, heads, head width]; None before the first.
  """
  c, (b, k, _) = backbone.depth.config, x_BxkxD.shape
  none = jnp.zeros((c.layers, b, 0, c.kv_heads, c.head_dim), c.dtype)  # beams share no position
  longer = lambda a: jnp.pad(a, ((0, 0),) * 3 + ((0, 1), (0, 0), (0, 0)))
  cache = jax.tree.map(
    longer, cache or (jnp.zeros((c.layers, b, k, 0, c.kv_heads, c.head_dim), c.dtype),) * 2
  )
  sees = jnp.ones((b, 0), bool), jnp.ones((b, k, level + 1), bool)
  hidden, cache = backbone.depth.step(x_BxkxD, level, (none, none), cache, level, sees)
  readout = gather_replicated(backbone.readout, hidden.dtype)[level]
  logits = jnp.einsum('bkd,cd->bkc', hidden, readout, preferred_element_type=jnp.float32)
  return jax.nn.log_softmax(logits, axis=-1), cache


def _mix(query_state: QueryState, generated_BxE, slot_entry_BxS, pointer_BxS):
  """log p of the prefix that each entry makes, fp32 [B, E]; NEG_INF where `generated_BxE` is, the entry exists in no item."""
  score = jnp.where(generated_BxE > NEG_INF / 2, query_state.log_generate + generated_BxE, NEG_INF)
  same_BxSxS = slot_entry_BxS[:, :, None] == slot_entry_BxS[:, None]
  mass = jnp.sum(jnp.where(same_BxSxS, pointer_BxS[:, None], 0.0), axis=-1)
  at = jnp.maximum(slot_entry_BxS, 0)
  mixed = jnp.logaddexp(_pick(score, at), query_state.log_gate + jnp.log(mass))
  open_BxS = (slot_entry_BxS >= 0) & (_pick(score, at) > NEG_INF / 2)
  raise_to = lambda row, entry, value: row.at[entry].max(value, mode='drop')
  return jax.vmap(raise_to)(score, jnp.where(open_BxS, at, score.shape[1]), mixed)


def _entries(a_BxkxK):
  return a_BxkxK.reshape(len(a_BxkxK), -1)


def _pick(a_Bxn, index_Bxm):
  """Along the second axis, row by row: [B, n, ...] and int32 [B, m] to [B, m, ...]."""
  return jax.vmap(lambda row, index: row[index])(a_Bxn, index_Bxm)
