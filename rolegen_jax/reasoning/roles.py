"""Functional roles in hindsight: what each event did for the conversion that followed.

The removal effect of event i is log p(y | h) - log p(y | h without i) under the backbone, for all of the last M events in
one vmapped forward. One effect is noisy, so a role that rests on it must also show in the statistics of all training
conversions (`Associations`). Both are associations, not causes, unless exposure was randomised; only in the simulated world
are the true effects known.

Shapes: B occasions, n history events, M last events, I items, K codes per level.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, RolesConfig
from rolegen_jax.data.cases import CaseTable
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


@dataclasses.dataclass(frozen=True)
class Associations:
  """How often contact with an item came before conversions of each neighbourhood (coarse code), over training cases.

  Counts are of (event among the last M that is no purchase, conversion) pairs; expected = under independence.
  """

  coarse: np.ndarray  # int32 [I], neighbourhood of each item
  pair: np.ndarray  # int64 [S], sorted keys item * K + neighbourhood of the conversion that occur
  count: np.ndarray  # float64 [S]
  item_total: np.ndarray  # float64 [I]
  target_share: np.ndarray  # float64 [K], share of conversions by neighbourhood
  lift_KxK: np.ndarray  # float64, (event's neighbourhood, conversion's) observed over expected

  @classmethod
  def of(cls, table: CaseTable, codes_IxL: np.ndarray, codes: int, last: int) -> Associations:
    coarse, log = codes_IxL[:, 0], table.log
    index = table.end[:, None] - last + np.arange(last)
    case, _ = np.nonzero(index >= log.offsets[table.user][:, None])
    row = index[index >= log.offsets[table.user][:, None]]
    contact = log.event[row] != PURCHASE
    item, target = log.item[row[contact]].astype(np.int64), coarse[table.target[case[contact]]]
    pair, count = np.unique(item * codes + target, return_counts=True)
    share = np.bincount(coarse[table.target], minlength=codes) / max(len(table), 1)
    both = np.zeros((codes, codes))
    np.add.at(both, (coarse[item], target), 1.0)
    lift = both / np.maximum(both.sum(1, keepdims=True) * share, 1.0)
    return cls(coarse, pair, count.astype(np.float64), np.bincount(item, minlength=len(coarse)).astype(np.float64), share, lift)

  def z(self, item: np.ndarray, neighbourhood: np.ndarray) -> np.ndarray:
    """Standard score of the count of (item, conversion in that neighbourhood) against chance, any shape; shrunk for rare items."""
    key = item.astype(np.int64) * len(self.target_share) + neighbourhood
    at = np.minimum(np.searchsorted(self.pair, key), max(len(self.pair) - 1, 0))
    count = np.where(self.pair[at] == key, self.count[at], 0.0) if len(self.pair) else np.zeros(key.shape)
    expected = self.item_total[item] * self.target_share[neighbourhood]
    return (count - expected) / np.sqrt(expected + 1.0)


def label_roles(history: Trajectories, target_B: np.ndarray, effect_BxM: np.ndarray, found: Associations, config: RolesConfig) -> np.ndarray:
  """Roles int32 [B, M] of the last M events, given the conversion; -1 where there is no event. Numpy, on the host.

  `Neighbourhood` is the coarse (level-0) code; an intent is a run of events in y's neighbourhood that ends with a purchase
  there or after `intent_days` without one. In order, the first that holds:
    CONVERT     the event is a purchase
    REINFORCE   y's neighbourhood, an item already met in this intent
    ANCHOR      y's neighbourhood, first contact of the intent, or first contact with y itself in it
    COMPARE     y's neighbourhood otherwise
    COMPLEMENT  a neighbourhood after which y's is bought at least `complement_lift` times as often as by chance
    TRIGGER     removal lowers log p(y), and conversions near y follow the item more often than chance by `trigger_z` sigmas
    DISTRACT    removal raises log p(y), and conversions near y follow the item less often than chance by `distract_z` sigmas
    EXPLORE     nothing of these
  """
  m, (b, n) = effect_BxM.shape[1], history.item.shape
  item, event, time = np.maximum(history.item, 0), history.event, history.timestamp
  real = history.segment > 0
  neighbourhood = found.coarse[np.maximum(target_B, 0)][:, None]
  near = real & (found.coarse[item] == neighbourhood)

  slots = np.broadcast_to(np.arange(n), (b, n))
  latest = np.maximum.accumulate(np.where(near, slots, -1), axis=1)
  before = np.concatenate([np.full((b, 1), -1), latest[:, :-1]], axis=1)  # latest event in the neighbourhood before each slot
  at = lambda a: np.take_along_axis(a, np.maximum(before, 0), axis=1)
  opens = near & ((before < 0) | (at(event) == PURCHASE) | (time - at(time) > config.intent_days * 86_400))
  intent = np.cumsum(opens, axis=1)
  same = (item[:, -m:, None] == item[:, None]) & (intent[:, -m:, None] == intent[:, None]) & (near & (event != PURCHASE))[:, None]
  met = (same & (slots[:, None] < slots[:, -m:, None])).any(-1)

  last = lambda a: a[:, -m:]
  item, event, near, opens = last(item), last(event), last(near), last(opens)
  z = found.z(item, np.broadcast_to(neighbourhood, item.shape))
  tests = [
      ('CONVERT', event == PURCHASE),
      ('REINFORCE', near & met),
      ('ANCHOR', near & (opens | (item == target_B[:, None]))),
      ('COMPARE', near),
      ('COMPLEMENT', found.lift_KxK[found.coarse[item], neighbourhood] >= config.complement_lift),
      ('TRIGGER', (effect_BxM > 0) & (z >= config.trigger_z)),
      ('DISTRACT', (effect_BxM < 0) & (z <= config.distract_z)),
  ]
  role = np.select([test for _, test in tests], [ROLE_NAMES.index(name) for name, _ in tests], ROLE_NAMES.index('EXPLORE'))
  return np.where(last(real) & (target_B >= 0)[:, None], role, -1).astype(np.int32)
