"""Functional roles in hindsight: what each event did for the conversion that followed.

Where an event stands to the conversion is plain from coarse codes. Whether it woke that interest or
drew it away shows in how contact with its item moves interest at large
(`features/interest_shift.py`), which is steadier than the effect of one event in one model; where
kinds of users are known (`models/kinds.py`), in what removing the event costs the conversion's
coarse code for such a user. Effects of single events are estimated as well: by the structural
equation of intent, and by the backbone, as log p(y | h) - log p(y | h without i) for all of the
last M events in one vmapped forward. All of these are associations and not causes, unless exposure
was randomized; only in the simulated world are the true effects known.

Shapes: B occasions, n history events, M last events, K coarse codes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, RolesConfig
from rolegen_jax.data.batches import Examples, Trajectories
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.models.backbone import Backbone
from rolegen_jax.models.evidence import Evidence
from rolegen_jax.models.intent import Intent, without_each
from rolegen_jax.semantic_ids.trie import Trie

PURCHASE = EVENT_NAMES.index('purchase')
DAY_S = 86_400


def without(history: Trajectories, position: jax.Array | int) -> Trajectories:
  """Take the event at `position` out of right-aligned rows and move up what came before it.

  Position -1 takes out nothing.
  """
  index = jnp.arange(history.item.shape[1])
  index = jnp.where(index <= position, index - 1, index)

  def take(field: jax.Array, fill: int) -> jax.Array:
    return jnp.where(index >= 0, field[:, jnp.maximum(index, 0)], fill)

  return Trajectories(take(history.item, -1), *(take(field, 0) for field in history[1:]))


def removal_effects(backbone: Backbone, examples: Examples, trie: Trie, last: int) -> jax.Array:
  """Return what each of the last M = `last` events adds to log p(y | h), fp32 [B, M], nats.

  Slots without an event get 0.
  """
  event = jnp.full_like(examples.target, PURCHASE)[:, None]
  timestamp = examples.timestamp[:, None]

  def log_prob_without(position: jax.Array) -> jax.Array:
    memory = backbone.encode(without(examples.history, position), backbone.items(trie))
    query_state = backbone.attend(memory, event, timestamp, jnp.ones_like(event))
    return backbone.log_prob(query_state, examples.target, examples.history.item, trie)

  n = examples.history.item.shape[1]
  positions = jnp.concatenate([jnp.array([-1]), jnp.arange(n - last, n)])
  log_probs = jax.vmap(log_prob_without)(positions)
  effect = (log_probs[:1] - log_probs[1:]).T
  return jnp.where(examples.history.segment[:, -last:] > 0, effect, 0.0)


def intent_effects(
  equation: Intent, evidence: Evidence, target_B: jax.Array, codes_IxL: jax.Array, last: int
) -> jax.Array:
  """Return what each of the last M = `last` events adds to log p(coarse code of y), fp32 [B, M].

  In nats, by the structural equation.
  """
  log_probs = without_each(equation, evidence, last)
  coarse_code = jnp.take(codes_IxL, target_B, axis=0)[None, :, :1]
  of_target = jnp.take_along_axis(log_probs, coarse_code, axis=2)[..., 0]
  return (of_target[0] - of_target[1:]).T


def label_roles(
  history: Trajectories,
  target_B: np.ndarray,
  last: int,
  shift: InterestShift,
  config: RolesConfig,
  effects: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
  """Return the roles int32 [B, M] of the last M = `last` events, given the conversion.

  A slot without an event gets -1. Numpy, on the host. An intent is a run of events in y's coarse
  code that ends with a purchase there, or after `intent_days` without one. An event has the first
  role that holds, in this order:

    CONVERT     the event is a purchase
    REINFORCE   in y's coarse code, an item already met in this intent
    ANCHOR      in y's coarse code, first contact of the intent, or first contact with y in it
    COMPARE     in y's coarse code otherwise
    TRIGGER     contact with the item raises the share of y's coarse code, by `trigger_z` sigmas
                more than items of its kind do
    DISTRACT    contact with the item lowers it, by `distract_z` sigmas
    COMPLEMENT  purchases in the event's coarse code raise the share of y's by `complement_shift`
    EXPLORE     none of these holds

  effects: what each event adds to log p(y's coarse code), in all and as what later events come
  after, [B, M], nats. They replace the shares of interest:

    TRIGGER     it adds `effect` or more, most of it by itself
    DISTRACT    it takes away as much
    COMPLEMENT  it adds `effect` or more, most of it by what later contact means after it
  """
  item, event = np.maximum(history.item, 0), history.event
  coarse_code = shift.coarse[np.maximum(target_B, 0)][:, None]
  runs = _intent_runs(history, shift.coarse[item] == coarse_code, config.intent_days)

  def latest(field: np.ndarray) -> np.ndarray:
    return field[:, -last:]

  met = _met_before(history, runs, last)
  item, event, near, opens = latest(item), latest(event), latest(runs.near), latest(runs.opens)
  z = shift.z(item, np.broadcast_to(coarse_code, item.shape))
  complement = shift.complement_KxK[shift.coarse[item], coarse_code]
  tests = dict(
    CONVERT=event == PURCHASE,
    REINFORCE=near & met,
    ANCHOR=near & (opens | (item == target_B[:, None])),
    COMPARE=near,
    TRIGGER=z >= config.trigger_z,
    DISTRACT=z <= config.distract_z,
    COMPLEMENT=complement >= config.complement_shift,
  )
  if effects:
    tests |= _by_removal(*effects, config.effect)
  roles = [ROLE_NAMES.index(name) for name in tests]
  role = np.select(list(tests.values()), roles, ROLE_NAMES.index('EXPLORE'))
  known = (latest(history.segment) > 0) & (target_B >= 0)[:, None]
  return np.where(known, role, -1).astype(np.int32)


def _by_removal(in_all: np.ndarray, before: np.ndarray, least: float) -> dict[str, np.ndarray]:
  """Return which events have the roles that follow from effects; the first role wins."""
  return dict(
    TRIGGER=(in_all >= least) & (before <= in_all / 2),
    DISTRACT=in_all <= -least,
    COMPLEMENT=in_all >= least,
  )


class _Runs(NamedTuple):
  """The intents of histories: runs of events in the target's coarse code."""

  near: np.ndarray  # bool [B, n], the event is in that code
  opens: np.ndarray  # bool [B, n], it begins an intent
  intent: np.ndarray  # int [B, n], number of the intent that is open


def _intent_runs(history: Trajectories, in_code: np.ndarray, intent_days: float) -> _Runs:
  """Cut the events of a coarse code into intents."""
  event, time = history.event, history.timestamp
  near = (history.segment > 0) & in_code
  b, n = near.shape
  latest_near = np.maximum.accumulate(np.where(near, np.arange(n), -1), axis=1)
  # The latest event in the coarse code before each slot; -1 = none.
  previous = np.concatenate([np.full((b, 1), -1), latest_near[:, :-1]], axis=1)

  def at_previous(field: np.ndarray) -> np.ndarray:
    return np.take_along_axis(field, np.maximum(previous, 0), axis=1)

  bought = at_previous(event) == PURCHASE
  lapsed = time - at_previous(time) > intent_days * DAY_S
  opens = near & ((previous < 0) | bought | lapsed)
  return _Runs(near, opens, np.cumsum(opens, axis=1))


def _met_before(history: Trajectories, runs: _Runs, last: int) -> np.ndarray:
  """Return which of the last events have an item met before in the same intent, bool [B, M]."""
  item, slots = np.maximum(history.item, 0), np.arange(history.item.shape[1])
  same_item = item[:, -last:, None] == item[:, None]
  same_intent = runs.intent[:, -last:, None] == runs.intent[:, None]
  is_contact = (runs.near & (history.event != PURCHASE))[:, None]
  is_earlier = slots < slots[-last:, None]
  return (same_item & same_intent & is_contact & is_earlier).any(-1)
