"""Functional roles in hindsight: what each event did for the conversion that followed.

The removal effect of event i is log p(y | h) - log p(y | h without i) under the backbone, for all of the last M events in
one vmapped forward. Removal effects of a predictive model are associations, not causes, unless exposure was randomised;
only in the simulated world are the true ones known.

Shapes: B occasions, n history events, M last events, K codes per level.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, RolesConfig
from rolegen_jax.data.rows import Cases, Trajectories
from rolegen_jax.models.backbone import Backbone

PURCHASE = EVENT_NAMES.index('purchase')


def without(history: Trajectories, position) -> Trajectories:
  """Right-aligned rows with the event at `position` taken out and what came before it moved up; position -1 takes out nothing."""
  n = history.item.shape[1]
  index = jnp.arange(n)
  index = jnp.where(index <= position, index - 1, index)
  take = lambda a, fill: jnp.where(index >= 0, a[:, jnp.maximum(index, 0)], fill)
  return Trajectories(take(history.item, -1), *(take(a, 0) for a in history[1:]))


def removal_effects(backbone: Backbone, cases: Cases, codes_IxL, last: int) -> tuple[jax.Array, jax.Array]:
  """(effect fp32 [B, M] in nats, log p(y | h) [B]) of the last M = `last` events. Slots without an event get 0."""

  def log_prob(position):
    memory = backbone.encode(without(cases.history, position), codes_IxL)
    ask = lambda x: x[:, None]
    event = jnp.full_like(cases.target, PURCHASE)
    recall = backbone.recall(memory, ask(event), ask(cases.timestamp), jnp.ones_like(event)[:, None])
    return backbone.log_prob(recall, memory, ask(cases.target), codes_IxL)[0][:, 0]

  n = cases.history.item.shape[1]
  log_probs = jax.vmap(log_prob)(jnp.concatenate([jnp.array([-1]), jnp.arange(n - last, n)]))
  effect = (log_probs[:1] - log_probs[1:]).T
  return jnp.where(cases.history.segment[:, -last:] > 0, effect, 0.0), log_probs[0]


def label_roles(cases: Cases, effect_BxM, codes_IxL, complements_KxK, config: RolesConfig) -> jax.Array:
  """Roles int32 [B, M] of the last M events, given the conversion; -1 where there is no event.

  `Neighbourhood` means the coarse (level-0) code. In order, the first that holds:
    CONVERT     the event is a purchase
    REINFORCE   y's neighbourhood, the same item was touched before
    ANCHOR      y's neighbourhood, touched for the first time
    COMPARE     y's neighbourhood otherwise
    DISTRACT    removal raises log p(y) by at least -distract_effect
    COMPLEMENT  a neighbourhood bought together with y's more than chance
    TRIGGER     removal lowers log p(y) by at least trigger_effect
    EXPLORE     nothing of these
  """
  m, n = effect_BxM.shape[1], cases.history.item.shape[1]
  item, real = cases.history.item, cases.history.segment > 0
  coarse = jnp.take(codes_IxL[:, 0], jnp.maximum(item, 0))
  target_coarse = jnp.take(codes_IxL[:, 0], jnp.maximum(cases.target, 0))
  earlier = jnp.tril(jnp.ones((n, n), bool), -1) & real[:, None]
  seen = lambda a: (earlier & (a[:, :, None] == a[:, None])).any(-1)[:, -m:]
  touched_item, touched_coarse = seen(item), seen(coarse)
  item, coarse, real, event = (a[:, -m:] for a in (item, coarse, real, cases.history.event))
  near = coarse == target_coarse[:, None]
  tests = [
      ('CONVERT', event == PURCHASE), ('REINFORCE', near & touched_item), ('ANCHOR', near & ~touched_coarse), ('COMPARE', near),
      ('DISTRACT', effect_BxM <= config.distract_effect), ('COMPLEMENT', complements_KxK[coarse, target_coarse[:, None]]),
      ('TRIGGER', effect_BxM >= config.trigger_effect),
  ]
  role = jnp.select([test for _, test in tests], [ROLE_NAMES.index(name) for name, _ in tests], ROLE_NAMES.index('EXPLORE'))
  return jnp.where(real & (cases.target >= 0)[:, None], role, -1).astype(jnp.int32)


def complement_table(user: np.ndarray, coarse: np.ndarray, codes: int, lift: float) -> np.ndarray:
  """bool [K, K]: coarse codes bought by the same users at least `lift` times as often as by chance (and by 3 users or more).

  user, coarse: one entry per training purchase.
  """
  bought = np.zeros((user.max() + 1 if len(user) else 1, codes), np.float32)
  bought[user, coarse] = 1.0
  together, alone = bought.T @ bought, bought.sum(0)
  expected = np.outer(alone, alone) / max(int((bought.sum(1) > 0).sum()), 1)
  table = (together >= lift * np.maximum(expected, 1e-9)) & (together >= 3)
  np.fill_diagonal(table, False)
  return table
