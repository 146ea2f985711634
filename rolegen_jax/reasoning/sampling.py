"""Sampling completions token by token, with KV caches and the constraints of the catalogue.

What the worlds of a user share of their prompt is read once per token for all of them; a world
keeps apart only what it writes. Intents, roles and the path are sampled in three loops: what a
changed role does to the path is known only once the factual role is.

Sampling is Gumbel-max: the token of a position is argmax(logits / temperature + noise). By default
each world has noise of its own: the result is a sample of what may follow where this is done, an
interventional one. With common noise, the same at a position in all worlds of a user, it is what
would have followed here (the structural causal model of Oberst & Sontag, ICML 2019): two worlds
differ only through their interventions, and a world without one repeats the factual world bit for
bit. Common noise costs candidates (`docs/quality.md`).

The noise of a user depends on the user's own key alone, not on the other rows of the batch.

Shapes: B users, W worlds, N = B * W sequences (worlds of a user adjacent), S own slots, M role
events, P items of a path, T completion length, A retrieved items, R roles, K codes, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rolegen_jax.models.attention import KeyValues, Visible, per_chain
from rolegen_jax.models.intent import Priors
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import CONVERT, Layout
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
  search: bool = False  # whether worlds name the likeliest items (`search.py`) in place of a path


class Completions(NamedTuple):
  """Sampled completions, or a part of their positions."""

  tokens: jax.Array  # int32 [N, T]
  log_prob: jax.Array  # fp32 [N, T]; 0 where nothing was sampled
  node: jax.Array  # int32 [N, T], the trie node that the codes up to here lead to


class Reading(NamedTuple):
  """How far the chains have been read."""

  hidden: jax.Array  # [B, W, D], from which the next token is drawn
  cache: KeyValues  # of the chains' own slots, [layers, B, W, S, K, X]


class ItemState(NamedTuple):
  """What sampling items hands on from one position to the next."""

  reading: Reading
  node: jax.Array  # int32 [N], the trie node of the codes since the last item or intent began
  matches: jax.Array  # bool [N, A], the retrieved items that begin with these codes
  unused: jax.Array  # bool [N, A], the retrieved items that are not on the path yet


class Position(NamedTuple):
  """What is known of a position of codes, or of several of them with a leading axis."""

  number: jax.Array  # int32 [], from the completion's start
  start: jax.Array  # int32 [], first token of its block; at a delimiter, the delimiter
  level: jax.Array  # int32 [], level of the code that it holds; -1 at a delimiter
  forced: jax.Array  # int32 [N], code that an intervention forces; -1 = none


class Options(NamedTuple):
  """The codes that may be chosen at a position."""

  allowed: jax.Array  # bool [N, K]
  child: jax.Array  # int32 [N, K], the trie node of each code
  prior: jax.Array  # fp32 [N, K], what the structural equations add to the logits


@dataclasses.dataclass(frozen=True)
class Sampler:
  """What stays the same while the chains of all worlds are sampled."""

  reasoner: Reasoner
  layout: Layout
  shared: KeyValues  # of what all worlds of a user share
  visible: Visible  # of the whole completion's own slots
  keys: jax.Array  # [B], of each user's noise
  settings: RolloutSettings

  @classmethod
  def begin(
    cls,
    reasoner: Reasoner,
    layout: Layout,
    prefilled: Prefilled,
    keys_B: jax.Array,
    settings: RolloutSettings,
  ) -> tuple[Sampler, Reading]:
    """Return a sampler of what follows prompts, and the prompts as they were read."""
    length = layout.length

    def extend(cache: jax.Array) -> jax.Array:
      cache = jnp.pad(cache, ((0, 0),) * 3 + ((0, length), (0, 0), (0, 0)))
      return constrain(cache, None, 'batch', None, None, 'kv_heads', None)

    own = jnp.pad(prefilled.visible.own, ((0, 0), (0, 0), (0, length)), constant_values=True)
    visible = prefilled.visible._replace(own=own)
    reading = Reading(prefilled.hidden, (extend(prefilled.own[0]), extend(prefilled.own[1])))
    return cls(reasoner, layout, prefilled.shared, visible, keys_B, settings), reading

  @property
  def chains(self) -> tuple[int, int]:
    """(B, W)."""
    users, worlds, _ = self.visible.own.shape
    return users, worlds

  def roles(
    self,
    reading: Reading,
    prior_NxMxR: jax.Array,
    role_allowed_NxMxR: jax.Array,
    role_shift_NxM: jax.Array,
  ) -> tuple[Reading, Completions, jax.Array]:
    """Sample the M roles, and return their log-probabilities fp32 [N, M, R] as well.

    `prior` are the logits that they start from. Where `role_shift` is s > 0, the role is forced:
    the factual one moved on by s, CONVERT left out. Where no role is allowed, the token says that
    it is unknown.
    """
    vocab = self.layout.vocab

    def step(
      reading: Reading, at: tuple[jax.Array, ...]
    ) -> tuple[Reading, tuple[Completions, jax.Array]]:
      number, prior_NxR, allowed_NxR, shift_N = at
      logits = self.reasoner.logits(self._hidden(reading), vocab.role(0), allowed_NxR.shape[1])
      log_probs = self._log_probs(logits + prior_NxR, allowed_NxR)
      sampled = _best(self._noised(log_probs, number))
      factual = per_chain(sampled.reshape(self.chains)[:, 0], self.chains[1])
      choice = jnp.where(shift_N > 0, (factual + shift_N) % CONVERT, sampled)
      is_event = allowed_NxR.any(-1)
      log_prob = jnp.where(is_event & (shift_N == 0), _at(log_probs, choice), 0.0)
      token = jnp.where(is_event, vocab.role(choice), vocab.control('UNKNOWN_ROLE'))
      reading = self.read(token, number, reading.cache)
      return reading, (Completions(token, log_prob, jnp.zeros_like(token)), log_probs)

    by_event = prior_NxMxR, role_allowed_NxMxR, role_shift_NxM
    by_position = (jnp.moveaxis(x, 1, 0) for x in by_event)
    number = jnp.asarray(self.layout.role_slots)
    reading, written = jax.lax.scan(step, reading, (number, *by_position))
    completions, log_probs = _batch_first(written)
    return reading, completions, log_probs

  def intents(
    self, reading: Reading, priors: Priors, intent_N: jax.Array, trie: Trie
  ) -> tuple[Reading, Completions]:
    """Sample what comes before the roles; `intent`: what the first one is forced to be, -1 = none.

    First codes start from the world's intent by the structural equation.
    """
    numbers = np.arange(self.layout.role_slots[0])
    return self._codes(reading, priors, intent_N, trie, numbers)

  def path(self, reading: Reading, priors: Priors, trie: Trie) -> Completions:
    """Sample what comes after the roles.

    First codes start from the world's intent and from its retrieved items that are not on the path
    yet, further codes from those items alone.
    """
    numbers = np.arange(self.layout.role_slots[-1] + 1, self.layout.length)
    free = jnp.full(priors.retrieved.item.shape[:1], -1)
    return self._codes(reading, priors, free, trie, numbers)[1]

  def read(self, token_N: jax.Array, number: ArrayLike, cache: KeyValues) -> Reading:
    """Read a token of every chain, at a position from the completion's start."""
    slots = self.visible.own.shape[2]
    slot = slots - self.layout.length + number
    visible = self.visible._replace(own=self.visible.own & (jnp.arange(slots) <= slot))
    tokens = constrain_rows(token_N.reshape(self.chains))
    position = self.layout.prompt_length + number
    return Reading(*self.reasoner.step(tokens, position, self.shared, cache, slot, visible))

  def _codes(
    self, reading: Reading, priors: Priors, intent_N: jax.Array, trie: Trie, numbers: np.ndarray
  ) -> tuple[Reading, Completions]:
    """Sample the codes and delimiters at positions `numbers`."""
    every, layout = jnp.ones(priors.retrieved.item.shape, bool), self.layout
    state = ItemState(reading, jnp.zeros((len(every),), jnp.int32), every, every)
    is_first_intent = numbers == layout.intent_slots[0, 0]
    positions = Position(
      number=jnp.asarray(numbers),
      start=jnp.asarray(layout.start[numbers]),
      level=jnp.asarray(layout.level[numbers]),
      forced=jnp.where(is_first_intent[:, None], intent_N, -1),
    )
    levels = 1 + int(layout.level[numbers].max())
    step = functools.partial(self._item_step, priors, trie, levels)
    state, completions = jax.lax.scan(step, state, positions)
    return state.reading, _batch_first(completions)

  def _item_step(
    self, priors: Priors, trie: Trie, levels: int, state: ItemState, at: Position
  ) -> tuple[ItemState, Completions]:
    """Sample the token of one position, a delimiter or a code of `levels` levels, and read it."""
    begins = at.level <= 0  # at the first code of an intent or item, and at delimiters
    is_code = at.level >= 0
    node = jnp.where(begins, 0, state.node)
    matches = jnp.where(begins, state.unused, state.matches)
    options = self._options(priors, trie, levels, at.level, node, matches)
    codes = options.allowed.shape[1]
    logits = self.reasoner.code_logits(self._hidden(state.reading), at.start, codes)
    log_probs = self._log_probs(logits + options.prior, options.allowed)
    sampled = _best(self._noised(log_probs, at.number))
    choice = jnp.where(at.forced >= 0, at.forced, sampled)

    log_prob = jnp.where(is_code & (at.forced < 0), _at(log_probs, choice), 0.0)
    node = jnp.where(is_code, _at(options.child, choice), node)
    code = jax.lax.dynamic_index_in_dim(
      priors.retrieved.codes, jnp.maximum(at.level, 0), axis=2, keepdims=False
    )
    matches &= code == choice[:, None]
    # An item is on a path once.
    ends_item = at.level == self.layout.vocab.levels - 1
    unused = state.unused & ~(matches & ends_item)

    token = jnp.where(is_code, at.start + choice, at.start)
    reading = self.read(token, at.number, state.reading.cache)
    return ItemState(reading, node, matches, unused), Completions(token, log_prob, node)

  def _options(
    self,
    priors: Priors,
    trie: Trie,
    levels: int,
    level: jax.Array,
    node_N: jax.Array,
    matches_NxA: jax.Array,
  ) -> Options:
    """Return what may be chosen at a level, one of `levels`; at a delimiter nothing is."""
    shape = (len(node_N), self.layout.vocab.codes)

    def of_delimiter() -> Options:
      return Options(jnp.zeros(shape, bool), jnp.zeros(shape, jnp.int32), jnp.zeros(shape))

    def of_level(level: int) -> Options:
      allowed, child = children_mask(trie, level, node_N)
      equations, matches = self.reasoner.intent, matches_NxA[:, None]
      is_item = levels == self.layout.vocab.levels
      prior = equations.code_prior(level, priors, matches, is_item)[:, 0]
      return Options(allowed, child, prior)

    of_levels = [functools.partial(of_level, level) for level in range(levels)]
    return jax.lax.switch(level + 1, [of_delimiter, *of_levels])

  def _hidden(self, reading: Reading) -> jax.Array:
    """Return the states of all chains, [N, D]."""
    return reading.hidden.reshape(-1, reading.hidden.shape[-1])

  def _log_probs(self, logits_NxV: jax.Array, allowed_NxV: jax.Array) -> jax.Array:
    """Return the log-probabilities at the temperature of rollouts, fp32 [N, V]."""
    return constrained_log_softmax(logits_NxV, allowed_NxV, self.layout.config.temperature)

  def _noised(self, log_probs_NxV: jax.Array, number: jax.Array) -> jax.Array:
    """Return log p + noise, fp32 [N, V]."""
    worlds, common = self.chains[1], self.settings.common_noise
    shape = (1 if common else worlds, log_probs_NxV.shape[1])

    def of_user(key: jax.Array) -> jax.Array:
      return jax.random.gumbel(jax.random.fold_in(key, number), shape)

    gumbel_BxWxV = constrain_rows(jax.vmap(of_user)(self.keys))
    gumbel = jnp.broadcast_to(gumbel_BxWxV, (*self.chains, shape[1])).reshape(log_probs_NxV.shape)
    return log_probs_NxV + self.settings.noise * gumbel


def _best(x_NxV: jax.Array) -> jax.Array:
  return jnp.argmax(x_NxV, axis=-1).astype(jnp.int32)


def _at(x_NxV: jax.Array, choice_N: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x_NxV, choice_N[:, None], axis=1)[:, 0]


def _batch_first(by_position: Any) -> Any:
  return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), by_position)
