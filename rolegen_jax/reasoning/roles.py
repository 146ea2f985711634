"""Functional roles in hindsight: what each event did for the conversion that followed.

Where an event stands to the conversion is plain from coarse codes; whether it woke that interest or drew it away shows in how contact
with its item moves interest at large (`data/interest shift.py`), which is steadier than the effect of one event in one model. Effects of
single events are estimated too: by the structural equation of intent, and by the backbone, as log p(y | h) - log p(y | h without i)
for all of the last M events in one vmapped forward. All are associations, not causes, unless exposure was randomised; only in the
simulated world are the true effects known.

Shapes: B occasions, n history events, M last events, K coarse codes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, RolesConfig
from rolegen_jax.data.batches import Examples, Trajectories
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.models.backbone import Backbone
from rolegen_jax.models.intent import Evidence, Intent, without_each

PURCHASE = EVENT_NAMES.index('purchase')


def without(history: Trajectories, position) -> Trajectories:
  """Right-aligned rows with the event at `position` taken out and what came before it moved up; position -1 takes out nothing."""
  n = history.item.shape[1]
  index = jnp.arange(n)
  index = jnp.where(index <= position, index - 1, index)
  take = lambda a, fill: jnp.where(index >= 0, a[:, jnp.maximum(index, 0)], fill)
  return Trajectories(take(history.item, -1), *(take(a, 0) for a in history[1:]))


def removal_effects(backbone: Backbone, examples: Examples, codes_IxL, last: int) -> jax.Array:
  """fp32 [B, M]: what each of the last M = `last` events adds to log p(y | h), nats. Slots without an event get 0."""

  def log_prob(position):
    memory = backbone.encode(without(examples.history, position), codes_IxL)
    ask = lambda x: x[:, None]
    event = jnp.full_like(examples.target, PURCHASE)
    query_state = backbone.attend(
      memory, ask(event), ask(examples.timestamp), jnp.ones_like(event)[:, None]
    )
    return backbone.log_prob(query_state, memory, ask(examples.target), codes_IxL)[0][:, 0]

  n = examples.history.item.shape[1]
  log_probs = jax.vmap(log_prob)(jnp.concatenate([jnp.array([-1]), jnp.arange(n - last, n)]))
  effect = (log_probs[:1] - log_probs[1:]).T
  return jnp.where(examples.history.segment[:, -last:] > 0, effect, 0.0)


def intent_effects(
  equation: Intent, evidence: Evidence, target_B, codes_IxL, last: int
) -> jax.Array:
  """fp32 [B, M]: what each of the last M = `last` events adds to log p(coarse code of the target), nats, by the structural equation."""
  log_probs = without_each(equation, evidence, last)
  found = jnp.take_along_axis(
    log_probs, jnp.take(codes_IxL, target_B, axis=0)[None, :, :1], axis=2
  )[..., 0]
  return (found[0] - found[1:]).T


def label_roles(
  history: Trajectories, target_B: np.ndarray, last: int, found: InterestShift, config: RolesConfig
) -> np.ndarray:
  """Roles int32 [B, M] of the last M = `last` events, given the conversion; -1 where there is no event. Numpy, on the host.

  `Neighbourhood` is the coarse (level-0) code; an intent is a run of events in y's coarse code that ends with a purchase
  there or after `intent_days` without one. In order, the first that holds:
    CONVERT     the event is a purchase
    REINFORCE   y's coarse code, an item already met in this intent
    ANCHOR      y's coarse code, first contact of the intent, or first contact with y itself in it
    COMPARE     y's coarse code otherwise
    TRIGGER     contact with the item raises the share of y's coarse code, more than items of its kind do by `trigger_z` sigmas
    DISTRACT    contact with the item lowers it, by `distract_z` sigmas
    COMPLEMENT  purchases in the event's coarse code raise the share of y's by at least `complement_shift`
    EXPLORE     nothing of these
  """
  m, (b, n) = last, history.item.shape
  item, event, time = np.maximum(history.item, 0), history.event, history.timestamp
  real = history.segment > 0
  coarse_code = found.coarse[np.maximum(target_B, 0)][:, None]
  near = real & (found.coarse[item] == coarse_code)

  slots = np.broadcast_to(np.arange(n), (b, n))
  before = np.maximum.accumulate(np.where(near, slots, -1), axis=1)
  before = np.concatenate(
    [np.full((b, 1), -1), before[:, :-1]], axis=1
  )  # latest event in the coarse code before each slot
  at = lambda a: np.take_along_axis(a, np.maximum(before, 0), axis=1)
  opens = near & (
    (before < 0) | (at(event) == PURCHASE) | (time - at(time) > config.intent_days * 86_400)
  )
  intent = np.cumsum(opens, axis=1)
  same = (
    (item[:, -m:, None] == item[:, None])
    & (intent[:, -m:, None] == intent[:, None])
    & (near & (event != PURCHASE))[:, None]
  )
  met = (same & (slots[:, None] < slots[:, -m:, None])).any(-1)

  latest = lambda a: a[:, -m:]
  item, event, near, opens = latest(item), latest(event), latest(near), latest(opens)
  z = found.z(item, np.broadcast_to(coarse_code, item.shape))
  tests = [
    ('CONVERT', event == PURCHASE),
    ('REINFORCE', near & met),
    ('ANCHOR', near & (opens | (item == target_B[:, None]))),
    ('COMPARE', near),
    ('TRIGGER', z >= config.trigger_z),
    ('DISTRACT', z <= config.distract_z),
    (
      'COMPLEMENT',
      found.complement_KxK[found.coarse[item], coarse_code] >= config.complement_shift,
    ),
  ]
  role = np.select(
    [test for _, test in tests],
    [ROLE_NAMES.index(name) for name, _ in tests],
    ROLE_NAMES.index('EXPLORE'),
  )
  return np.where(latest(real) & (target_B >= 0)[:, None], role, -1).astype(np.int32)
