"""Constrained beam search in the depth decoder: the context is encoded once, every beam is always a prefix of a real item.

Scores are exact log p(item) of the backbone's mixture: a prefix keeps its generated log-probability and the pointer mass of
the memory slots whose items share it, so both parts of the mixture narrow together. The catalogue comes in as `Trie`
tables, run-time arguments: changing it within capacity compiles nothing.

Shapes: B rows, k beams, S memory slots, K codes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rolegen_jax.models.backbone import NEVER, Backbone, Memory, Recall
from rolegen_jax.semantic_ids.trie import Trie, children_mask, leaf


class Ranking(NamedTuple):
  item: jax.Array  # int32 [B, k], best first; -1 where fewer than k items exist
  score: jax.Array  # fp32 [B, k], log p(item | context)
  found: jax.Array  # int32 [B], how many items there are; below k: fewer than k exist


def beam_search(backbone: Backbone, recall: Recall, memory: Memory, trie: Trie, beams: int) -> Ranking:
  """The top `beams` items of the first query of each row. Exact where `beams` is at least the number of nodes of each level."""
  state_BxD = recall.state[:, 0]
  b, d = state_BxD.shape
  log_generate, log_gate = recall.log_generate[:, 0, None, None], recall.log_gate[:, 0, None, None]
  pointer_BxS = jnp.exp(recall.log_pointer[:, 0])
  slot_codes_BxSxL = jnp.take(trie.item_codes, jnp.maximum(memory.item, 0), axis=0)
  levels, codes = backbone.vocab.levels, backbone.vocab.codes

  node = jnp.zeros((b, 1), jnp.int32)
  prefix = jnp.zeros((b, 1, 0), jnp.int32)
  generated, alive = jnp.zeros((b, 1)), jnp.ones((b, 1), bool)
  match_BxkxS = jnp.broadcast_to((memory.item >= 0)[:, None], (b, 1, memory.item.shape[1]))
  for level in range(levels):
    k = node.shape[1]
    flat = lambda a: a.reshape(b * k, *a.shape[2:])
    states = flat(jnp.broadcast_to(state_BxD[:, None], (b, k, d)))
    log_probs = backbone.code_log_probs(states, flat(prefix))[:, -1].reshape(b, k, codes)
    if level == 0:
      log_probs = backbone.first_code(recall, log_probs)
    generated = generated[..., None] + log_probs
    one_hot = jax.nn.one_hot(slot_codes_BxSxL[:, :, level], codes)
    copied = jnp.einsum('bks,bsc->bkc', match_BxkxS * pointer_BxS[:, None], one_hot, precision='highest')
    score = jnp.logaddexp(log_generate + generated, log_gate + jnp.log(jnp.maximum(copied, 1e-37)))
    exists, child = children_mask(trie, level, node)
    score = jnp.where(exists & alive[..., None], score, NEVER)

    kept = min(beams, k * codes)
    score, best = jax.lax.top_k(score.reshape(b, k * codes), kept)
    parent, code = best // codes, best % codes
    pick = lambda a: jnp.take_along_axis(a.reshape(b, k * codes), best, axis=1)
    alive, node, generated = score > NEVER / 2, pick(child), pick(generated)
    node = jnp.where(alive, node, 0)
    prefix = jnp.concatenate([jnp.take_along_axis(prefix, parent[..., None], axis=1), code[..., None]], axis=-1)
    match_BxkxS = jnp.take_along_axis(match_BxkxS, parent[..., None], axis=1)
    match_BxkxS &= slot_codes_BxSxL[:, None, :, level] == code[..., None]
  item = jnp.where(alive, leaf(trie, node), -1)
  pad = ((0, 0), (0, beams - item.shape[1]))
  item, score = jnp.pad(item, pad, constant_values=-1), jnp.pad(score, pad, constant_values=NEVER)
  return Ranking(item, jnp.where(item >= 0, score, NEVER), jnp.sum(item >= 0, axis=1))
