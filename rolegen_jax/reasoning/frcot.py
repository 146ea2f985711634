"""FR-CoT: what the reasoner reads and writes, at fixed positions.

  prompt      event, gap, code_1 .. code_L  of each of the last E events;  gap to now;  REASON
  completion  INTENT;  I coarse prefixes;  role of each of the last M events;
              PATH;  P items of L codes;  END

A role is one towards an intent: the intents come first, the roles of the events follow from them,
and the path from both.

Every position of a completion belongs to one block of the vocabulary, known beforehand, and to a
constraint: roles fit the event (CONVERT exactly on purchases), codes continue to an item that
exists.

Shapes: B users, N sequences, n events of a history, E prompt events, R prompt length, M role
events, I intents, P candidates, L levels, T completion length, K codes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, ReasonerConfig
from rolegen_jax.data.batches import Examples, Excites, Trajectories
from rolegen_jax.models.evidence import Evidence
from rolegen_jax.models.memory import gap_bucket
from rolegen_jax.vocab import Vocabulary

CONVERT = ROLE_NAMES.index('CONVERT')
PURCHASE = EVENT_NAMES.index('purchase')


@dataclasses.dataclass(frozen=True)
class Layout:
  """The static positions of a prompt and its completion. Arrays are numpy, [T]."""

  config: ReasonerConfig
  vocab: Vocabulary

  @property
  def per_event(self) -> int:
    """Tokens that an event of the prompt takes."""
    return 2 + self.vocab.levels

  @property
  def prompt_length(self) -> int:
    """Tokens of a prompt, R."""
    return self.config.events * self.per_event + 2

  @functools.cached_property
  def level(self) -> np.ndarray:
    """Level of the code that each position holds; -1 where it holds none."""
    c, none = self.config, [-1]
    intents = list(range(c.intent_levels)) * c.intents
    roles = none * c.role_events
    path = list(range(self.vocab.levels)) * c.candidates
    return np.array(none + intents + roles + none + path + none, np.int32)

  @property
  def length(self) -> int:
    """Tokens of a completion, T."""
    return len(self.level)

  @functools.cached_property
  def start(self) -> np.ndarray:
    """First token of the block that each position holds; at delimiters, the delimiter itself."""
    v = self.vocab
    blocks = ['role' if level < 0 else f'sid{level}' for level in self.level]
    start = [v.blocks[name][0] for name in blocks]
    path = self.path_slots[0, 0] - 1
    start[0], start[path], start[-1] = v.control('INTENT'), v.control('PATH'), v.control('END')
    return np.array(start, np.int32)

  @functools.cached_property
  def is_role(self) -> np.ndarray:
    """Where a position holds a role."""
    return np.isin(np.arange(self.length), self.role_slots)

  @functools.cached_property
  def is_delimiter(self) -> np.ndarray:
    """Where a position holds INTENT, PATH or END."""
    return (self.level < 0) & ~self.is_role

  @functools.cached_property
  def intent_slots(self) -> np.ndarray:
    """Positions of the intents' codes, [I, intent_levels]."""
    c = self.config
    return 1 + np.arange(c.intents * c.intent_levels).reshape(c.intents, -1)

  @functools.cached_property
  def role_slots(self) -> np.ndarray:
    """Positions of the roles, [M]."""
    return 1 + self.intent_slots.size + np.arange(self.config.role_events)

  @functools.cached_property
  def path_slots(self) -> np.ndarray:
    """Positions of the path's codes, [P, L]."""
    c, codes = self.config, self.config.candidates * self.vocab.levels
    return self.length - 1 - codes + np.arange(codes).reshape(c.candidates, -1)


def first_intent(layout: Layout, tokens: jax.Array) -> jax.Array:
  """Return the coarse code int32 [N] that the first intent of completions [N, ...] begins with.

  It is what the roles are towards. The completions may be cut off anywhere after it.
  """
  start, size = layout.vocab.blocks['sid0']
  return jnp.clip(tokens[:, int(layout.intent_slots[0, 0])] - start, 0, size - 1)


def coarse_intents(layout: Layout, tokens: jax.Array) -> jax.Array:
  """Return the coarse code int32 [..., I] that each intent of completions [..., T] begins with."""
  start, size = layout.vocab.blocks['sid0']
  return jnp.clip(tokens[..., layout.intent_slots[:, 0]] - start, 0, size - 1)


def at_slots(x_NxTx: jax.Array, slots: np.ndarray) -> jax.Array:
  """Return x[:, slots] for evenly spaced static positions.

  A strided slice is never partitioned, and never differentiated, as a gather would be.
  """
  step = int(slots[1] - slots[0]) if len(slots) > 1 else 1
  assert (np.diff(slots) == step).all()
  return x_NxTx[:, int(slots[0]) : int(slots[-1]) + 1 : step]


class Prompt(NamedTuple):
  """Everything that the completions of N sequences depend on."""

  tokens: jax.Array  # int32 [N, R]
  valid: jax.Array  # bool [N, R]; False for padding and removed events
  # bool [N, M, roles]; none where the slot has no event, or without `reasoner.roles`
  role_allowed: jax.Array
  evidence: Evidence  # [N, n], of the whole history: intents and items start from it


def build_prompt(
  layout: Layout,
  history: Trajectories,
  excites: Excites,
  now_B: jax.Array,
  codes_IxL: jax.Array,
) -> Prompt:
  """Build the prompts of right-aligned histories [B, n >= E] at the times of their occasions.

  Targets are no argument, so they cannot leak in.
  """
  v, events = layout.vocab, layout.config.events
  item, event, time = (a[:, -events:] for a in (history.item, history.event, history.timestamp))
  real = history.segment[:, -events:] > 0
  previous_time = jnp.pad(time, ((0, 0), (1, 0)))[:, :-1]
  has_previous = jnp.pad(real, ((0, 0), (1, 0)))[:, :-1]
  gap = jnp.where(has_previous, time - previous_time, 0)
  sid = v.sid(jnp.take(codes_IxL, jnp.maximum(item, 0), axis=0))
  of_event = [v.event(event)[..., None], v.gap(gap_bucket(gap))[..., None], sid]
  tokens = jnp.where(real[..., None], jnp.concatenate(of_event, axis=-1), v.control('PAD'))

  b = item.shape[0]
  since = jnp.where(real[:, -1], now_B - time[:, -1], 0)
  tail = jnp.stack([v.gap(gap_bucket(since)), jnp.full((b,), v.control('REASON'))], axis=1)
  tokens = jnp.concatenate([tokens.reshape(b, -1), tail], axis=1)
  valid = jnp.repeat(real, layout.per_event, axis=1)
  valid = jnp.concatenate([valid, jnp.ones((b, 2), bool)], axis=1)

  last = -layout.config.role_events
  is_convert = jnp.arange(len(ROLE_NAMES)) == CONVERT
  fits = (event[:, last:, None] == PURCHASE) == is_convert
  role_allowed = fits & real[:, last:, None] & layout.config.roles
  evidence = _evidence(history, excites, now_B, codes_IxL)
  return Prompt(tokens.astype(jnp.int32), valid, role_allowed, evidence)


def _evidence(
  history: Trajectories, excites: Excites, now_B: jax.Array, codes_IxL: jax.Array
) -> Evidence:
  """Return whole histories as causes of intent, without an intervention."""
  present = history.segment > 0
  codes = jnp.take(codes_IxL, jnp.maximum(history.item, 0), axis=0)
  return Evidence(
    **excites._asdict(),
    item=history.item,
    age=jnp.where(present, now_B[:, None] - history.timestamp, 0),
    event=history.event,
    present=present,
    own_code=codes[..., 0],
    role=jnp.full_like(history.event, -1),
    intent=jnp.full_like(now_B, -1),
  )


class Demonstration(NamedTuple):
  """Completions to imitate."""

  tokens: jax.Array  # int32 [B, T]
  weight: jax.Array  # fp32 [B, T]; 0 where nothing is known or nothing is chosen


def demonstration(layout: Layout, examples: Examples, codes_IxL: jax.Array) -> Demonstration:
  """Return FR-CoT in hindsight: labeled roles, intents of the path, and the path really taken.

  Intents are the path's distinct coarse prefixes in its order, the target's first. An imported role
  that no chain can hold counts as unknown, and so does every role without `reasoner.roles`.
  """
  v, c = layout.vocab, layout.config
  b = examples.target.shape[0]
  is_purchase = examples.history.event[:, -c.role_events :] == PURCHASE
  role_known = (examples.roles >= 0) & ((examples.roles == CONVERT) == is_purchase) & c.roles
  roles = jnp.maximum(examples.roles, 0)
  roles = jnp.where(role_known, v.role(roles), v.control('UNKNOWN_ROLE'))
  path_codes = jnp.take(codes_IxL, jnp.maximum(examples.path, 0), axis=0)  # [B, P, L]
  on_path = examples.path >= 0
  intents, intent_known = _path_intents(path_codes[..., : c.intent_levels], on_path, c.intents)

  def delimiter(name: str) -> jax.Array:
    return jnp.full((b, 1), v.control(name), jnp.int32)

  unweighted = jnp.zeros((b, 1), bool)
  tokens = [
    delimiter('INTENT'),
    v.sid(intents).reshape(b, -1),
    roles,
    delimiter('PATH'),
    v.sid(path_codes).reshape(b, -1),
    delimiter('END'),
  ]
  weight = [
    unweighted,
    jnp.repeat(intent_known, c.intent_levels, axis=1),
    role_known,
    unweighted,
    jnp.repeat(on_path, v.levels, axis=1),
    unweighted,
  ]
  return Demonstration(
    jnp.concatenate(tokens, 1).astype(jnp.int32), jnp.concatenate(weight, 1).astype(jnp.float32)
  )


def _path_intents(
  prefix_BxPxl: jax.Array, on_path_BxP: jax.Array, intents: int
) -> tuple[jax.Array, jax.Array]:
  """Return the first distinct prefixes of paths [B, I, l], and which of them exist, bool [B, I]."""
  same = (prefix_BxPxl[:, :, None] == prefix_BxPxl[:, None]).all(-1)  # [B, P, P]
  is_earlier = jnp.tril(jnp.ones(same.shape[1:], bool), -1)
  repeated = (same & is_earlier & on_path_BxP[:, None]).any(-1)
  is_first = on_path_BxP & ~repeated
  order = jnp.argsort(~is_first, axis=1, stable=True)[:, :intents]
  chosen = jnp.take_along_axis(prefix_BxPxl, order[..., None], axis=1)
  exists = jnp.take_along_axis(is_first, order, axis=1)
  missing = intents - order.shape[1]
  return (
    jnp.pad(chosen, ((0, 0), (0, missing), (0, 0))),
    jnp.pad(exists, ((0, 0), (0, missing))),
  )
