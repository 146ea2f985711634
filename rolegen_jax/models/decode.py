"""Retrieve, then score exactly: the best items of a product of experts.

Each expert finds items in its own way: the generative one by a constrained beam search in the depth
decoder, in which every beam is always a prefix of a real item; dense, popularity, trending and
intent by ranking all items, which are sharded over the mesh; the others name items themselves. The
union, each item once, is scored by all experts. The catalogue comes in as `Trie` tables, arguments
at run time: changing it within its capacity compiles nothing.

Shapes: B rows, k beams, K codes, E entries (the codes of all beams) or experts, D width, I items,
P shards of the items, M members.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rolegen_jax.models.attention import KeyValues
from rolegen_jax.models.backbone import Backbone
from rolegen_jax.models.experts import Items, ItemTable, is_first
from rolegen_jax.models.memory import Conditioning, QueryState
from rolegen_jax.models.numerics import NEG_INF, is_possible, pick, top_k
from rolegen_jax.semantic_ids.trie import Trie, children_mask, descend, is_listed, leaf, root
from rolegen_jax.sharding import constrain, item_shards, of_item_shards

PART = 16  # items of a row that the depth decoder reads at once


class Ready(NamedTuple):
  """What a ranking rests on that was computed before."""

  states: jax.Array  # [B, n, D], of the histories' events
  table: ItemTable


class Ranking(NamedTuple):
  """The best items of each row."""

  item: jax.Array  # int32 [B, k], best first; -1 where fewer than k items exist
  score: jax.Array  # fp32 [B, k], log p(item) among all items that were scored
  found: jax.Array  # int32 [B], number of items; below k where fewer exist
  terms: jax.Array  # fp32 [B, k, E], what each of `experts.EXPERTS` adds to the score


def recommend(
  backbone: Backbone,
  query_state: QueryState,
  conditioning: Conditioning,
  trie: Trie,
  k: int,
  allow: jax.Array | None = None,
  table: ItemTable | None = None,
) -> Ranking:
  """Return the top `k` items of each row's first query.

  It is exact among the items that some expert finds: k by the generative one, k by dense,
  popularity, trending and intent together, the items of the history, and what `conditioning` names.
  With `allow`, uint32 [B], a row gets items of these regions only (`semantic_ids/trie.py`). table:
  of the catalogue (`item_table`), where it is known.
  """
  items = backbone.items(trie)._replace(vectors=None if table is None else table.vectors)
  item, generated = retrieve(backbone, query_state, conditioning, trie, k, allow, table)
  listed = is_listed(trie, item, None if allow is None else allow[:, None])
  item = jnp.where(listed & is_first(item), item, -1)
  if generated is not None:
    generated = _score_others(backbone, query_state.state[:, 0], item, generated, items)
  log_weight = jnp.where(item >= 0, 0.0, NEG_INF)
  members = backbone.members(query_state, item, log_weight, conditioning, items, generated)
  terms = backbone.experts.terms(members)
  score = jnp.where(item >= 0, jax.nn.log_softmax(terms.sum(-1) + log_weight, axis=1), NEG_INF)
  score, place = jax.lax.top_k(score, min(k, item.shape[1]))
  item, terms = pick(item, place), pick(terms, place)
  more = k - item.shape[1]
  item = jnp.pad(item, ((0, 0), (0, more)), constant_values=-1)
  score = jnp.pad(score, ((0, 0), (0, more)), constant_values=NEG_INF)
  terms = jnp.pad(terms, ((0, 0), (0, more), (0, 0)))
  return Ranking(item, score, jnp.sum(item >= 0, axis=1), terms)


def retrieve(
  backbone: Backbone,
  query_state: QueryState,
  conditioning: Conditioning,
  trie: Trie,
  k: int,
  allow: jax.Array | None = None,
  table: ItemTable | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Return what the experts find for each row's first query, and what is generated of it.

  int32 [B, M], -1 = nothing, and fp32 [B, M], the generative expert's log-probabilities, NEG_INF =
  found by others; None where it is off. Items may be there more than once, those that are generated
  first, and need not be listed or allowed.
  """
  state, by_expert, log_prob = query_state.state[:, 0], {}, None
  if backbone.has('generative'):
    by_expert['generative'], log_prob = beam_search(backbone, state, trie, k, allow)
  if backbone.has('history'):
    by_expert['history'] = query_state.slot_item
  if conditioning.retrieved is not None:
    by_expert['retrieved'] = conditioning.retrieved.item
  if conditioning.candidates is not None:
    by_expert['candidates'] = conditioning.candidates.item
  # An expert that is left out finds nothing.
  found = [
    jnp.where(backbone.experts.weight(name) > 0, item, -1) for name, item in by_expert.items()
  ]
  ranks_all = {name: backbone.has(name) for name in ('dense', 'popularity')}
  ranks_all['trending'] = backbone.has('trending') and trie.trending is not None
  ranks_all['intent'] = conditioning.intent is not None
  if any(is_on for name, is_on in ranks_all.items() if name != 'popularity'):
    weight = sum(backbone.experts.weight(name) for name, is_on in ranks_all.items() if is_on)
    best = nearest(backbone, query_state, conditioning.intent, trie, k, allow, table)[0]
    found.append(jnp.where(weight > 0, best, -1))
  item = jnp.concatenate(found, axis=1)
  if log_prob is not None:
    others = ((0, 0), (0, item.shape[1] - k))
    log_prob = jnp.pad(log_prob, others, constant_values=NEG_INF)
  return item, log_prob


def _score_others(
  backbone: Backbone, state_BxD: jax.Array, item_BxM: jax.Array, log_prob: jax.Array, items: Items
) -> jax.Array:
  """Return log-probabilities of all items by the generative expert, fp32 [B, M].

  log_prob: those of the items that it generated, NEG_INF for the others, which the depth decoder
  reads here. They are few of the places there are: parts of them are computed as long as any row
  has more.
  """
  m = item_BxM.shape[1]
  missing = (item_BxM >= 0) & ~is_possible(log_prob)
  order = jnp.argsort(~missing, axis=1, stable=True)
  codes = jnp.take(items.codes, jnp.maximum(pick(item_BxM, order), 0), axis=0)
  codes = jnp.pad(codes, ((0, 0), (0, -m % PART), (0, 0)))

  def compute(part: jax.Array, scored: jax.Array) -> jax.Array:
    own = jax.lax.dynamic_slice_in_dim(codes, part * PART, PART, axis=1)
    new = backbone.generated_from(state_BxD, own)
    return jax.lax.dynamic_update_slice_in_dim(scored, new, part * PART, axis=1)

  parts = -(-jnp.max(jnp.sum(missing, axis=1)) // PART)
  scored = jax.lax.fori_loop(0, parts, compute, jnp.zeros(codes.shape[:2], jnp.float32))
  return jnp.where(missing, pick(scored, jnp.argsort(order, axis=1)), log_prob)


def item_table(backbone: Backbone, trie: Trie) -> ItemTable:
  """Return what scores the whole catalogue, in a part for each device that has one of the items."""
  return backbone.table(backbone.items(trie), item_shards())


def nearest(
  backbone: Backbone,
  query_state: QueryState,
  intent_BxK: jax.Array | None,
  trie: Trie,
  k: int,
  allow: jax.Array | None = None,
  table: ItemTable | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Return the best items by the experts that rank the whole catalogue at once.

  int32 and fp32 [B, min(k, I)], best first; -1 where fewer are listed. These are dense, popularity,
  trending and, where there is one, intent, of each row's first query. Every device ranks its own
  shard of the items, and the best of all shards are ranked again: that is exact.
  """
  p, experts, state_BxD = item_shards(), backbone.experts, query_state.state[:, 0]
  table = item_table(backbone, trie) if table is None else table
  item_PxI = jnp.arange(table.code.size, dtype=jnp.int32).reshape(p, -1)
  item_PxI = constrain(jnp.where(item_PxI < len(trie.item_codes), item_PxI, -1), 'items', None)
  score = table.popularity[:, None]
  if table.vectors is not None:
    states = constrain(state_BxD, None, None)  # every shard is asked by all rows
    product = jnp.einsum('bd,pid->pbi', states, table.vectors, preferred_element_type=jnp.float32)
    score = score + experts.weight('dense') * product
  if intent_BxK is not None:
    intent = constrain(intent_BxK, None, None)
    of_code = jax.vmap(
      lambda code: experts.intent(intent, jnp.broadcast_to(code, (len(intent), len(code))))
    )(table.code)
    score = score + experts.weight('intent') * of_code
  trending = experts.shares(query_state, trie.trending)
  if trending is not None:
    score = jnp.broadcast_to(score, (p, len(state_BxD), score.shape[2]))
    gain = experts.weight('trending') * experts.trending_gain(trending)
    score = _plus(constrain(score, 'items', None, None), trending.item, gain)
  if allow is None:
    listed = is_listed(trie, item_PxI)[:, None]
  else:
    listed = is_listed(trie, item_PxI[:, None], allow[:, None])
  score = constrain(jnp.where(listed, score, NEG_INF), 'items', None, None)
  best, place = of_item_shards(lambda x: top_k(x, min(k, x.shape[2])), score)
  place += jnp.arange(p)[:, None, None] * score.shape[2]

  def by_row(x_PxBxk: jax.Array) -> jax.Array:
    return constrain(jnp.moveaxis(x_PxBxk, 0, 1).reshape(len(state_BxD), -1), 'batch', None)

  best, place = by_row(best), by_row(place)
  best, chosen = jax.lax.top_k(best, min(k, best.shape[1]))
  return jnp.where(is_possible(best), pick(place, chosen), -1), best


def _plus(score_PxBxI: jax.Array, item_BxA: jax.Array, gain_BxA: jax.Array) -> jax.Array:
  """Add gains to the scores of items, each shard to those that it has."""
  parts, _, size = score_PxBxI.shape
  first = size * jnp.arange(parts)[:, None, None]
  place = constrain(item_BxA, None, None) - first
  place = jnp.where((place >= 0) & (place < size), place, size)
  gain = jnp.broadcast_to(constrain(gain_BxA, None, None), place.shape)

  def add(score: jax.Array, at: jax.Array, value: jax.Array) -> jax.Array:
    return score.at[at].add(value, mode='drop')

  split = [constrain(x, 'items', None, None) for x in (place, gain)]
  return of_item_shards(lambda x: jax.vmap(jax.vmap(add))(*x), (score_PxBxI, *split))


def beam_search(
  backbone: Backbone,
  state_BxD: jax.Array,
  trie: Trie,
  beams: int,
  allow: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Return the likeliest items to generate and their log-probabilities, best first.

  int32 and fp32 [B, beams]; -1 and NEG_INF where fewer exist. The result is exact where `beams` is
  at least the number of nodes of every level.
  """
  levels, codes, b = backbone.vocab.levels, backbone.vocab.codes, len(state_BxD)
  node, score, own = root((b, 1)), jnp.zeros((b, 1)), None
  code = jnp.zeros((b, 1), jnp.int32)
  for level in range(levels):
    if level == 0:
      first, shared = backbone.first_code(state_BxD)
      log_probs = first[:, None]
    else:
      log_probs, own = backbone.next_code(level, code, shared, own)
    exists = children_mask(trie, level, node, allow)[0]
    entries = jnp.where(exists, score[..., None] + log_probs, NEG_INF).reshape(b, -1)
    score, entry = jax.lax.top_k(entries, min(beams, entries.shape[1]))
    parent, code = entry // codes, entry % codes
    node = jnp.where(is_possible(score), descend(trie, level, pick(node, parent), code), -1)
    own = _of_parents(own, parent)
  item = leaf(trie, node)
  pad = ((0, 0), (0, beams - item.shape[1]))
  item = jnp.pad(item, pad, constant_values=-1)
  return item, jnp.where(item >= 0, jnp.pad(score, pad), NEG_INF)


def _of_parents(cache: KeyValues | None, parent_Bxk: jax.Array) -> KeyValues | None:
  """Return the caches of each beam's parent."""
  return jax.tree.map(lambda a: jax.vmap(pick, (0, None))(a, parent_Bxk), cache)
