"""The experts whose evidence about an item is multiplied, and their weights.

The score of an item is a weighted sum of what the experts say, in nats:

  score(y) = sum_k w_k f_k(y)        log p(y) = score(y) - log sum over items of exp(score)

  generative   log-probability of the item's semantic ID, by the depth decoder
  dense        product of the query's state and the item's vector
  popularity   log(1 + training events of the item)
  history      log(1 + m), m the mass of the item's own past events by age, count and event type,
               and by the item's popularity: the recency rule is one setting of it
  trending     log(1 + share / prior) of all users' latest events (`features/trending.py`)
  intent       log-probability of the item's coarse code, over that of a uniform intent
  retrieved    log(1 + share / prior) of what the reasoner retrieves (`intent.py`)
  candidates   log(1 + m), m the item's mass among the reasoner's candidates, by log-prob and world;
               in training several may be the same item, those of a search never are

Products of experts let each rule out what the others leave open (Hinton, Neural Computation 2002).
All weights are positive. There are some two dozen numbers here, which training fits and
calibration fits again on validation conversions (`training/calibration.py`).

Shapes: B rows, Q queries, S slots, M members (items that are scored), C candidates, A retrieved
items, N sources, K coarse codes, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import BACKBONE_EXPERTS, REASONER_EXPERTS
from rolegen_jax.features.trending import Trending
from rolegen_jax.models.memory import (
  Candidates,
  Conditioning,
  QueryState,
  RetrievedShares,
  TrendingShares,
  View,
)
from rolegen_jax.models.numerics import NEG_INF, is_possible
from rolegen_jax.semantic_ids.trie import Trie

EXPERTS = BACKBONE_EXPERTS + REASONER_EXPERTS
# Where training starts.
WEIGHTS = dict(
  generative=0.5,
  dense=1.0,
  history=1.0,
  popularity=0.3,
  trending=0.3,
  intent=0.3,
  retrieved=0.5,
  candidates=0.3,
)
# The recency rule count * weight(event) * exp(-age / 7 days), a strong baseline on every log we
# know: by age feature, and by event type; the last is of slots that are no event.
RECENCY_RULE = (0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
EVENT_WEIGHTS = (10.0, 20.0, 40.0, 60.0, 20.0, 100.0, 1.0)
RETRIEVED_PRIOR = 0.01  # share of what is retrieved
TRENDING_PRIOR = 0.001  # share of what is trending
# Log mass of a candidate of the factual world, of another, and by nat of its log-probability.
CANDIDATE = (1.0, 0.0, 0.5)
MOST = 30.0  # nats; no mass, and no factor of one, is larger
OFF = -200.0  # log weight of an expert that is left out: its weight is 0, and no gradient moves it


class Items(NamedTuple):
  """The catalogue as the backbone reads it."""

  codes: jax.Array  # int32 [I, L]
  popularity: jax.Array  # fp32 [I], log(1 + training events)
  has_row: jax.Array  # bool [I], whether the item's own row is added to its vector
  text: jax.Array | None  # fp32 [I, E]
  trending: Trending | None = None
  vectors: jax.Array | None = None  # [P, I / P, D], the items' own, where a table has them already

  def popularity_of(self, item: jax.Array) -> jax.Array:
    """Return fp32 [...] of items [...]; meaningless where there is none."""
    return jnp.take(self.popularity, jnp.maximum(item, 0))


class ItemTable(NamedTuple):
  """The catalogue in P parts for the experts that rank all of it."""

  code: jax.Array  # int32 [P, I / P], coarse codes
  popularity: jax.Array  # fp32 [P, I / P], what the expert adds; 0 where it is off
  vectors: jax.Array | None  # [P, I / P, D]; None where the dense expert is off


class Members(NamedTuple):
  """Items to score for one query a row, and what that takes; None = the expert is off."""

  item: jax.Array  # int32 [B, M]; -1 = none
  # fp32 [B, M], log of how many items of the catalogue it stands for; NEG_INF = none
  log_weight: jax.Array
  code: jax.Array  # int32 [B, M], coarse code
  popularity: jax.Array  # fp32 [B, M], log(1 + training events)
  generative: jax.Array | None  # fp32 [B, M]
  dense: jax.Array | None  # fp32 [B, M]
  trending: TrendingShares | None
  slot_item: jax.Array  # int32 [B, S]
  view: View  # of the one query
  conditioning: Conditioning


class Experts(nnx.Module):
  """Weights of all experts, and the parameters of those that are formulas."""

  def __init__(self, names: tuple[str, ...]):
    self.names = names  # those of the backbone that are on

    def vector(values: object) -> nnx.Param:
      return nnx.Param(jnp.asarray(values, jnp.float32), axes=(None,))

    self.log_weight = vector(jnp.log(jnp.array([WEIGHTS[name] for name in EXPERTS])))
    self.slot_age = vector(RECENCY_RULE)
    self.slot_event = vector(jnp.log(jnp.array(EVENT_WEIGHTS)))
    # What a user comes back to need not be what is popular.
    self.seen_popularity = vector([0.0])
    self.retrieved_prior = vector(jnp.log(jnp.array([RETRIEVED_PRIOR])))
    self.trending_prior = vector(jnp.log(jnp.array([TRENDING_PRIOR])))
    self.candidate = vector(CANDIDATE)

  def weight(self, name: str) -> jax.Array:
    """Return the weight of an expert, fp32 []."""
    return jnp.exp(self.log_weight[...][EXPERTS.index(name)])

  def history(
    self, view: View, slot_item_BxS: jax.Array, item_BxM: jax.Array, popularity_BxM: jax.Array
  ) -> jax.Array:
    """Return what each query's visible slots say of items, fp32 [B, Q, M]."""
    by_age = view.age.astype(jnp.float32) @ self.slot_age[...]
    by_event = (view.event.astype(jnp.float32) @ self.slot_event[...])[:, None]
    counts = view.visible & (slot_item_BxS >= 0)[:, None]
    mass = jnp.where(counts, jnp.exp(jnp.minimum(by_age + by_event, MOST)), 0.0)
    by_popularity = jnp.clip(self.seen_popularity[...] * popularity_BxM, -MOST, MOST)
    return jnp.log1p(_mass_of(mass, slot_item_BxS, item_BxM) * jnp.exp(by_popularity)[:, None])

  def intent(self, intent_BxK: jax.Array, code_BxM: jax.Array) -> jax.Array:
    """Return fp32 [B, M]; 0 in rows without an intent."""
    log_prob = jnp.take_along_axis(intent_BxK, code_BxM, axis=1)
    return jnp.where(is_possible(log_prob), log_prob + jnp.log(1.0 * intent_BxK.shape[1]), 0.0)

  def retrieved(self, retrieved: RetrievedShares, item_BxM: jax.Array) -> jax.Array:
    """Return fp32 [B, M]."""
    share = jnp.where(retrieved.item >= 0, retrieved.share, 0.0)
    mass = share / jnp.exp(self.retrieved_prior[...])
    return jnp.log1p(_mass_of(mass[:, None], retrieved.item, item_BxM)[:, 0])

  def shares(self, query_state: QueryState, table: Trending | None) -> TrendingShares | None:
    """Return what is trending at the time of each row's first query, if that expert is on."""
    if table is None or 'trending' not in self.names:
      return None
    return TrendingShares(*table.at(query_state.timestamp[:, 0]))

  def trending_gain(self, trending: TrendingShares) -> jax.Array:
    """Return what is said of the items that are listed, fp32 [B, A]."""
    return jnp.log1p(trending.share / jnp.exp(self.trending_prior[...]))

  def trending(self, trending: TrendingShares, item_BxM: jax.Array) -> jax.Array:
    """Return fp32 [B, M]; 0 for items that are not listed."""
    place = jax.vmap(jnp.searchsorted)(trending.item, item_BxM)
    place = jnp.minimum(place, trending.item.shape[1] - 1)
    is_listed = jnp.take_along_axis(trending.item, place, axis=1) == item_BxM
    gain = jnp.take_along_axis(self.trending_gain(trending), place, axis=1)
    return jnp.where(is_listed, gain, 0.0)

  def candidates(self, candidates: Candidates, item_BxM: jax.Array) -> jax.Array:
    """Return fp32 [B, M]."""
    factual, other, by_log_prob = self.candidate[...]
    log_mass = jnp.where(candidates.world == 0, factual, other) + by_log_prob * candidates.log_prob
    mass = jnp.where(candidates.item >= 0, jnp.exp(jnp.minimum(log_mass, MOST)), 0.0)
    return jnp.log1p(_mass_of(mass[:, None], candidates.item, item_BxM)[:, 0])

  def terms(self, members: Members) -> jax.Array:
    """Return what each expert adds to each member's score, w_k f_k, fp32 [B, M, E]."""
    m, said = members, members.conditioning
    found = {}
    if m.generative is not None:
      found['generative'] = m.generative
    if m.dense is not None:
      found['dense'] = m.dense
    if 'history' in self.names:
      found['history'] = self.history(m.view, m.slot_item, m.item, m.popularity)[:, 0]
    if 'popularity' in self.names:
      found['popularity'] = m.popularity
    if m.trending is not None:
      found['trending'] = self.trending(m.trending, m.item)
    if said.intent is not None:
      found['intent'] = self.intent(said.intent, m.code)
    if said.retrieved is not None:
      found['retrieved'] = self.retrieved(said.retrieved, m.item)
    if said.candidates is not None:
      found['candidates'] = self.candidates(said.candidates, m.item)
    off = jnp.zeros(m.item.shape, jnp.float32)
    terms = [self.weight(name) * found.get(name, off) for name in EXPERTS]
    return jnp.stack(terms, axis=-1)

  def log_probs(self, members: Members) -> jax.Array:
    """Return log p of each member, fp32 [B, M]."""
    score = self.terms(members).sum(-1)
    total = jax.nn.logsumexp(score + members.log_weight, axis=1, keepdims=True)
    return score - total


def _mass_of(mass_BxQxN: jax.Array, source_BxN: jax.Array, item_BxM: jax.Array) -> jax.Array:
  """Return the mass of the sources that hold each item, fp32 [B, Q, M]."""
  same_BxNxM = source_BxN[:, :, None] == item_BxM[:, None]
  return jnp.einsum('bqn,bnm->bqm', mass_BxQxN, same_BxNxM.astype(jnp.float32))


class Negatives(NamedTuple):
  """Items that stand for the whole catalogue in the sum over it."""

  item: jax.Array  # int32 [C]; -1 = none
  log_weight: jax.Array  # fp32 [C], log of how many items it stands for; NEG_INF = none


def draw_negatives(
  trie: Trie, size: int, key: jax.Array, batch_items: jax.Array | None = None
) -> Negatives:
  """Return `size` items and weights by which sums over them estimate sums over the catalogue.

  A catalogue with room for no more is taken whole. Otherwise half of them are from `batch_items`
  (any shape; -1 = none), which stand for themselves, as popular items should be there for certain;
  the others are drawn uniformly and stand for all the rest. The estimate of the sum is unbiased.
  """
  assert trie.leaf_item is not None, 'a catalogue that changes in place is not trained on'
  listed = jnp.asarray(trie.leaf_item)  # padding at the end
  if len(listed) <= size:
    return Negatives(listed, jnp.where(listed >= 0, 0.0, NEG_INF))
  from_batch, uniform = jax.random.split(key)
  own = jnp.zeros((0,), jnp.int32)
  if batch_items is not None:
    flat = batch_items.reshape(-1)
    own = flat[jax.random.randint(from_batch, (size // 2,), 0, len(flat))]
  items = jnp.sum(listed >= 0)
  drawn = listed[jax.random.randint(uniform, (size - len(own),), 0, items)]
  certain = is_first(own[None])[0]
  is_rest = ~(drawn[:, None] == own).any(1)
  stands_for = (items - certain.sum()) / jnp.maximum(is_rest.sum(), 1)
  log_weight = jnp.concatenate(
    [jnp.where(certain, 0.0, NEG_INF), jnp.where(is_rest, jnp.log(stands_for), NEG_INF)]
  )
  return Negatives(jnp.concatenate([own, drawn]), log_weight)


def is_first(item_BxM: jax.Array) -> jax.Array:
  """Return which members are items that their row does not have before, bool [B, M]."""
  same = item_BxM[:, :, None] == item_BxM[:, None]
  earlier = jnp.tril(jnp.ones(same.shape[-2:], bool), -1)
  return ~(same & earlier).any(-1) & (item_BxM >= 0)


def with_negatives(own_BxM: jax.Array, negatives: Negatives) -> tuple[jax.Array, jax.Array]:
  """Return each row's own items, then the shared negatives: int32 item and fp32 log_weight.

  [B, M + C] each. An own item stands for itself, and what is there twice counts once.
  """
  shared = jnp.broadcast_to(negatives.item, (len(own_BxM), len(negatives.item)))
  own_weight = jnp.where(is_first(own_BxM), 0.0, NEG_INF)
  shared_weight = jnp.where(in_rows(own_BxM, negatives.item), NEG_INF, negatives.log_weight)
  item = jnp.concatenate([own_BxM, shared], axis=1)
  return item, jnp.concatenate([own_weight, shared_weight], axis=1)


def in_rows(own_BxM: jax.Array, item_C: jax.Array) -> jax.Array:
  """Return whether each row holds each item, bool [B, C]."""
  return (own_BxM[:, :, None] == item_C).any(1)
