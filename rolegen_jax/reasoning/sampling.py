"""Sampling completions token by token, with KV caches and the constraints of the catalogue.

What the worlds of a user share of their prompt is read once per token for all of them; a world
keeps apart only what it writes.

Sampling is a Gumbel-max structural causal model (Oberst & Sontag, ICML 2019): the token of a
position is argmax(logits / temperature + noise). By default each world has noise of its own: the
result is what may follow where this is done. With common noise, the same at a position in all
worlds of a user, it is what would have followed here: two worlds differ only through their
interventions, and a world without one repeats the factual world bit for bit. Common noise costs
candidates (`docs/quality.md`).

Shapes: B users, W worlds, N = B * W sequences (worlds of a user adjacent), P shared slots, S own
slots, M role events, T completion length, A retrieved items, V block width, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.models.attention import KeyValues, Visible, per_chain
from rolegen_jax.models.intent import Priors
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import Layout, Prompt
from rolegen_jax.reasoning.likelihood import constrained_log_softmax
from rolegen_jax.reasoning.prefill import Prefilled
from rolegen_jax.semantic_ids.trie import Trie, children_mask
from rolegen_jax.sharding import constrain, constrain_rows


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
  """How rollouts are sampled."""

  worlds: int  # per user, the factual one included
  interventions: tuple[str, ...]  # kinds of what is done in the others, by turns
  noise: ArrayLike = 1.0  # weight of the Gumbel noise; 0: the likeliest token everywhere
  common_noise: bool = False  # whether the worlds of a user share their noise


class Completions(NamedTuple):
  """Sampled completions."""

  tokens: jax.Array  # int32 [N, T]
  log_prob: jax.Array  # fp32 [N, T]; 0 where nothing was sampled
  node: jax.Array  # int32 [N, T], the trie node that the codes up to here lead to


class DecodeState(NamedTuple):
  """What sampling hands on from one position to the next."""

  hidden: jax.Array  # [B, W, D], from which the next token is drawn
  cache: KeyValues  # of the chains' own slots, [layers, B, W, S, K, X]
  node: jax.Array  # int32 [N], the trie node of the codes since the last item or intent began
  matches: jax.Array  # bool [N, A], the retrieved items that begin with these codes
  unused: jax.Array  # bool [N, A], the retrieved items that are not on the path yet


class Position(NamedTuple):
  """What is known of a position, or of all positions with a leading T, before it is sampled."""

  number: jax.Array  # int32 [], from 0
  start: jax.Array  # int32 [], first token of its block; at a delimiter, the delimiter
  level: jax.Array  # int32 [], level of the code that it holds; -1 = none
  is_delimiter: jax.Array  # bool []
  role_allowed: jax.Array  # bool [N, roles]
  forced: jax.Array  # int32 [N], choice that an intervention forces; -1 = none


class Options(NamedTuple):
  """What may be chosen at a position."""

  allowed: jax.Array  # bool [N, V]
  child: jax.Array  # int32 [N, V], the trie node of each code
  prior: jax.Array  # fp32 [N, V], what the structural equations add to the logits


def decode(
  reasoner: Reasoner,
  layout: Layout,
  prefilled: Prefilled,
  prompt: Prompt,
  priors: Priors,
  trie: Trie,
  key: jax.Array,
  settings: RolloutSettings,
) -> Completions:
  """Sample the completions of N = B * W prompts; interventions are those of the prompts.

  First codes start from the world's intent, further ones from its retrieved items that are not on
  the path yet.
  """
  length = layout.length

  def extend(cache: jax.Array) -> jax.Array:
    cache = jnp.pad(cache, ((0, 0),) * 3 + ((0, length), (0, 0), (0, 0)))
    return constrain(cache, None, 'batch', None, None, 'kv_heads', None)

  own_visible = jnp.pad(prefilled.visible.own, ((0, 0), (0, 0), (0, length)), constant_values=True)
  decoder = _Decoder(
    reasoner,
    layout,
    prefilled.shared,
    Visible(prefilled.visible.shared, own_visible),
    priors,
    trie,
    key,
    settings,
  )
  every = jnp.ones(priors.retrieved.item.shape, bool)
  start = DecodeState(
    hidden=prefilled.hidden,
    cache=(extend(prefilled.own[0]), extend(prefilled.own[1])),
    node=jnp.zeros((len(every),), jnp.int32),
    matches=every,
    unused=every,
  )
  _, completions = jax.lax.scan(decoder.step, start, _positions(layout, prompt))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), completions)


def _positions(layout: Layout, prompt: Prompt) -> Position:
  """Return all positions of the completions of N prompts, [T, ...]."""
  m = layout.config.role_events
  after_roles = (0, layout.length - m)
  role_allowed = jnp.pad(prompt.role_allowed, ((0, 0), after_roles, (0, 0)))
  forced = jnp.pad(prompt.evidence.role[:, -m:], ((0, 0), after_roles), constant_values=-1)
  forced = forced.at[:, layout.intent_slots[0, 0]].set(prompt.evidence.intent)
  return Position(
    number=jnp.arange(layout.length),
    start=jnp.asarray(layout.start),
    level=jnp.asarray(layout.level),
    is_delimiter=jnp.asarray(layout.is_delimiter),
    role_allowed=jnp.moveaxis(role_allowed, 1, 0),
    forced=jnp.moveaxis(forced, 1, 0),
  )


@dataclasses.dataclass(frozen=True)
class _Decoder:
  """What stays the same at every position; `step` samples one of them."""

  reasoner: Reasoner
  layout: Layout
  shared: KeyValues
  visible: Visible  # of the whole completion's own slots
  priors: Priors
  trie: Trie
  key: jax.Array
  settings: RolloutSettings

  @property
  def chains(self) -> tuple[int, int]:
    """(B, W)."""
    users, worlds, _ = self.visible.own.shape
    return users, worlds

  @property
  def block_width(self) -> int:
    """V: logits are computed at one width for roles and codes."""
    return max(self.layout.vocab.codes, len(ROLE_NAMES))

  def step(self, state: DecodeState, at: Position) -> tuple[DecodeState, Completions]:
    """Sample the token of one position and read it."""
    vocab, retrieved = self.layout.vocab, self.priors.retrieved
    begins = at.level <= 0  # at the first code of an intent or item, and where there is no code
    node = jnp.where(begins, 0, state.node)
    matches = jnp.where(begins, state.unused, state.matches)
    options = self._options(at, node, matches)
    hidden = state.hidden.reshape(len(node), -1)
    logits = self.reasoner.logits(hidden, at.start, self.block_width) + options.prior
    temperature = self.layout.config.temperature
    log_probs = constrained_log_softmax(logits, options.allowed, temperature)
    choice = jnp.where(at.forced >= 0, at.forced, self._sample(log_probs, at.number))

    exists = options.allowed.any(-1) & ~at.is_delimiter
    picked = jnp.take_along_axis(log_probs, choice[:, None], axis=1)[:, 0]
    log_prob = jnp.where(exists & (at.forced < 0), picked, 0.0)
    child = jnp.take_along_axis(options.child, choice[:, None], axis=1)[:, 0]
    node = jnp.where(at.level >= 0, child, node)
    level = jnp.maximum(at.level, 0)
    code = jax.lax.dynamic_index_in_dim(retrieved.codes, level, axis=2, keepdims=False)
    matches &= code == choice[:, None]
    # An item is on a path once.
    unused = state.unused & ~(matches & (at.level == vocab.levels - 1))

    token = jnp.where(exists, at.start + choice, vocab.control('UNKNOWN_ROLE'))
    token = jnp.where(at.is_delimiter, at.start, token)
    hidden, cache = self._read(token, at.number, state.cache)
    state = DecodeState(hidden, cache, node, matches, unused)
    return state, Completions(token, log_prob, node)

  def _options(self, at: Position, node_N: jax.Array, matches_NxA: jax.Array) -> Options:
    """Return what may be chosen; positions without a code may hold roles."""
    vocab, n = self.layout.vocab, len(node_N)

    def widen(x: jax.Array) -> jax.Array:
      return jnp.pad(x, ((0, 0), (0, self.block_width - x.shape[1])))

    def of_roles() -> Options:
      child = jnp.zeros((n, self.block_width), jnp.int32)
      return Options(widen(at.role_allowed), child, jnp.zeros((n, self.block_width)))

    def of_level(level: int) -> Options:
      allowed, child = children_mask(self.trie, level, node_N)
      prior = self.reasoner.intent.code_prior(level, self.priors, matches_NxA[:, None])[:, 0]
      return Options(widen(allowed), widen(child), widen(prior))

    of_levels = [functools.partial(of_level, level) for level in range(vocab.levels)]
    return jax.lax.switch(at.level + 1, [of_roles, *of_levels])

  def _sample(self, log_probs_NxV: jax.Array, number: jax.Array) -> jax.Array:
    """Return argmax(log p + noise), int32 [N]."""
    (users, worlds), common = self.chains, self.settings.common_noise
    rows = users if common else users * worlds
    key = jax.random.fold_in(self.key, number)
    gumbel = jax.random.gumbel(key, (rows, self.block_width))
    noise = self.settings.noise * per_chain(gumbel, worlds if common else 1)
    return jnp.argmax(log_probs_NxV + noise, axis=-1).astype(jnp.int32)

  def _read(
    self, token_N: jax.Array, number: jax.Array, cache: KeyValues
  ) -> tuple[jax.Array, KeyValues]:
    """Return hidden states [B, W, D] after a token, and the cache with it."""
    slots = self.visible.own.shape[2]
    slot = slots - self.layout.length + number
    visible = self.visible._replace(own=self.visible.own & (jnp.arange(slots) <= slot))
    tokens = constrain_rows(token_N.reshape(self.chains))
    position = self.layout.prompt_length + number
    return self.reasoner.step(tokens, position, self.shared, cache, slot, visible)
