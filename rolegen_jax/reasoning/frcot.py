"""FR-CoT: what the reasoner reads and writes, at fixed positions.

  prompt      event, gap, code_1 .. code_L  of each of the last E events;  gap to now;  REASON
  completion  role of each of the last M events;  INTENT;  I coarse prefixes;  PATH;  P items of L codes;  END

Every position of a completion belongs to one block of the vocabulary, known beforehand, and to a constraint: roles fit the
event (CONVERT exactly on purchases), codes continue to an item that exists.

Shapes: B users, N sequences, E prompt events, M role events, I intents, P candidates, L levels, T completion length, K codes.
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
from rolegen_jax.models.backbone import gap_bucket
from rolegen_jax.models.intent import Evidence
from rolegen_jax.vocab import Vocabulary

CONVERT = ROLE_NAMES.index('CONVERT')
PURCHASE = EVENT_NAMES.index('purchase')


@dataclasses.dataclass(frozen=True)
class Layout:
  """Static positions of a completion. Arrays are numpy, [T]."""

  config: ReasonerConfig
  vocab: Vocabulary

  @property
  def per_event(self) -> int:
    return 2 + self.vocab.levels

  @property
  def prompt_length(self) -> int:
    return self.config.events * self.per_event + 2

  @functools.cached_property
  def level(self) -> np.ndarray:
    """SID level of each position; -1 where it holds no code."""
    c, delimiter = self.config, [-1]
    levels = [-1] * c.role_events + delimiter + list(range(c.intent_levels)) * c.intents
    return np.array(
      levels + delimiter + list(range(self.vocab.levels)) * c.candidates + delimiter, np.int32
    )

  @property
  def length(self) -> int:
    return len(self.level)

  @functools.cached_property
  def start(self) -> np.ndarray:
    """First token of the block that each position holds; the mark itself at marks."""
    c, v, block = self.config, self.vocab, lambda name: self.vocab.blocks[name][0]
    start = [block('role') if level < 0 else block(f'sid{level}') for level in self.level]
    intent = c.role_events
    path = intent + 1 + c.intents * c.intent_levels
    start[intent], start[path], start[-1] = v.control('INTENT'), v.control('PATH'), v.control('END')
    return np.array(start, np.int32)

  @functools.cached_property
  def is_role(self) -> np.ndarray:
    return np.arange(self.length) < self.config.role_events

  @functools.cached_property
  def is_delimiter(self) -> np.ndarray:
    return (self.level < 0) & ~self.is_role

  @functools.cached_property
  def intent_slots(self) -> np.ndarray:
    """Positions [I, intent_levels]."""
    first = self.config.role_events + 1
    return first + np.arange(self.config.intents * self.config.intent_levels).reshape(
      self.config.intents, -1
    )

  @functools.cached_property
  def path_slots(self) -> np.ndarray:
    """Positions [P, L]."""
    first = self.length - 1 - self.config.candidates * self.vocab.levels
    return first + np.arange(self.config.candidates * self.vocab.levels).reshape(
      self.config.candidates, -1
    )


def at_slots(x_NxTx, slots: np.ndarray) -> jax.Array:
  """x[:, slots] for evenly spaced static positions: a strided slice, never partitioned (and differentiated) as a gather."""
  step = int(slots[1] - slots[0]) if len(slots) > 1 else 1
  assert (np.diff(slots) == step).all()
  return x_NxTx[:, int(slots[0]) : int(slots[-1]) + 1 : step]


class Prompt(NamedTuple):
  tokens: jax.Array  # int32 [N, prompt_length]
  valid: jax.Array  # bool [N, prompt_length]; padding and removed events are not
  role_allowed: jax.Array  # bool [N, M, roles]; nothing allowed = the slot has no event
  evidence: Evidence  # [N, n], of the whole history: intents and items start from what it says


def build_prompt(
  layout: Layout, history: Trajectories, excites: Excites, now_B: jax.Array, codes_IxL
) -> Prompt:
  """Prompts of right-aligned histories [B, n >= E] at the occasion's time. Targets are no argument: they cannot leak in."""
  v, events = layout.vocab, layout.config.events
  item, event, time, real = (
    a[:, -events:] for a in (history.item, history.event, history.timestamp, history.segment > 0)
  )
  before = jnp.pad(time, ((0, 0), (1, 0)))[:, :-1]
  gap = jnp.where(jnp.pad(real, ((0, 0), (1, 0)))[:, :-1], time - before, 0)
  sid = v.sid(jnp.take(codes_IxL, jnp.maximum(item, 0), axis=0))
  tokens = jnp.concatenate(
    [v.event(event)[..., None], v.gap(gap_bucket(gap))[..., None], sid], axis=-1
  )
  b = item.shape[0]
  since = jnp.where(real[:, -1], now_B - time[:, -1], 0)
  tail = jnp.stack([v.gap(gap_bucket(since)), jnp.full((b,), v.control('REASON'))], axis=1)
  tokens = jnp.concatenate(
    [jnp.where(real[..., None], tokens, v.control('PAD')).reshape(b, -1), tail], axis=1
  )
  valid = jnp.concatenate(
    [jnp.repeat(real, layout.per_event, axis=1), jnp.ones((b, 2), bool)], axis=1
  )
  last = -layout.config.role_events
  is_convert = jnp.arange(len(ROLE_NAMES)) == CONVERT
  allowed = (event[:, last:, None] == PURCHASE) == is_convert
  present = history.segment > 0
  age = jnp.where(present, now_B[:, None] - history.timestamp, 0)
  own = jnp.take(codes_IxL, jnp.maximum(history.item, 0), axis=0)[..., 0]
  evidence = Evidence(
    *excites,
    history.item,
    age,
    history.event,
    present,
    own,
    jnp.full_like(history.event, -1),
    jnp.full_like(now_B, -1),
  )
  return Prompt(tokens.astype(jnp.int32), valid, allowed & real[:, last:, None], evidence)


class Demonstration(NamedTuple):
  """A completion to imitate."""

  tokens: jax.Array  # int32 [B, T]
  weight: jax.Array  # fp32 [B, T], 0 where nothing is known or nothing is chosen


def demonstration(layout: Layout, examples: Examples, codes_IxL) -> Demonstration:
  """FR-CoT in hindsight: labelled roles, the intents of the path (target's first), the path that the user really took."""
  v, c = layout.vocab, layout.config
  b = examples.target.shape[0]
  purchase = examples.history.event[:, -c.role_events :] == PURCHASE
  known = (examples.roles >= 0) & (
    (examples.roles == CONVERT) == purchase
  )  # an imported role that no chain can hold is none
  roles = jnp.where(known, v.role(jnp.maximum(examples.roles, 0)), v.control('UNKNOWN_ROLE'))
  path_codes = jnp.take(codes_IxL, jnp.maximum(examples.path, 0), axis=0)  # [B, P, L]
  on_path = examples.path >= 0
  coarse = path_codes[..., : c.intent_levels]
  same = (coarse[:, :, None] == coarse[:, None]).all(-1)  # [B, P, P]
  earlier = jnp.tril(jnp.ones(same.shape[1:], bool), -1)
  fresh = on_path & ~(same & earlier & on_path[:, None]).any(-1)  # first item of its coarse prefix
  order = jnp.argsort(~fresh, axis=1, stable=True)[:, : c.intents]
  intents = jnp.take_along_axis(coarse, order[..., None], axis=1)
  intent_known = jnp.take_along_axis(fresh, order, axis=1)
  missing = c.intents - order.shape[1]
  intents = jnp.pad(intents, ((0, 0), (0, missing), (0, 0)))
  intent_known = jnp.pad(intent_known, ((0, 0), (0, missing)))
  delimiter = lambda name: jnp.full((b, 1), v.control(name), jnp.int32)
  tokens = [
    roles,
    delimiter('INTENT'),
    v.sid(intents).reshape(b, -1),
    delimiter('PATH'),
    v.sid(path_codes).reshape(b, -1),
    delimiter('END'),
  ]
  none = jnp.zeros((b, 1), bool)
  weight = [
    known,
    none,
    jnp.repeat(intent_known, c.intent_levels, axis=1),
    none,
    jnp.repeat(on_path, v.levels, axis=1),
    none,
  ]
  return Demonstration(
    jnp.concatenate(tokens, 1).astype(jnp.int32), jnp.concatenate(weight, 1).astype(jnp.float32)
  )
