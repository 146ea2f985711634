"""The simulated world: a seeded structural causal model of shoppers with closed-form conversions.

`simulate(config)` gives a log with planted roles and true removal effects; `World` answers what-if
questions about any history and plays A/B tests. Rules, equations and constants are in
docs/simulator.md. SIMULATED DATA: no real shopper.

U users of the world, N rows of a state, C categories, I items, M recent events, K shown items.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from rolegen_jax.config import EVENT_NAMES, SimulatorConfig
from rolegen_jax.simulator.base import World
from rolegen_jax.simulator.item_traits import drawing, roles
from rolegen_jax.simulator.item_traits.rules import Rules, rules_of
from rolegen_jax.simulator.item_traits.traits import Traits, draw_traits, item_table
from rolegen_jax.simulator.planted import Pairs
from rolegen_jax.simulator.rules import (
  STYLES,
  Fitted,
  load_fitted,
  purchase_hazard,
)

VIEW, FAV, CART, PURCHASE = map(EVENT_NAMES.index, ('view', 'fav', 'cart', 'purchase'))


@dataclasses.dataclass(frozen=True)
class State:
  """Latent state of N users: sums of the kicks of their events, each times exp(+day / decay_days).

  The value on day d is the stored value times exp(-d / decay_days), so the state needs no clock and
  is additive in events.
  """

  users: np.ndarray  # [N], user indices
  excitation: np.ndarray  # [N, C], adds to intensity
  inhibition: np.ndarray  # [N, C], lowers log intensity
  consideration: np.ndarray  # [N, I], contacts by item

  def copy(self) -> State:
    """Return a state that shares no memory with this one."""
    return State(
      self.users.copy(), self.excitation.copy(), self.inhibition.copy(), self.consideration.copy()
    )

  def rows(self, index: np.ndarray) -> State:
    """Return the state of these rows."""
    return State(
      self.users[index], self.excitation[index], self.inhibition[index], self.consideration[index]
    )


@dataclasses.dataclass(frozen=True)
class TraitWorld(World):
  """Rebuilt from `config` alone by `TraitWorld.build`."""

  rules: Rules
  traits: Traits
  excite: np.ndarray  # [2, I, C], intensity added per strength by a contact (0) and a purchase (1)
  inhibit: np.ndarray  # [2, I, C], the same for log intensity taken away
  strength: np.ndarray  # [event codes], strength of an event
  normalizer_UxC: np.ndarray  # sum over a category's items of exp(popularity + style)

  @classmethod
  def build(cls, config: SimulatorConfig, fitted: Fitted | None = None) -> TraitWorld:
    """Return the world of `config`.

    fitted: replaces the preset's parameters (for the fit itself).
    """
    rules = rules_of(config.preset)
    fitted = fitted or load_fitted(config)
    traits = draw_traits(config, rules, fitted)
    excite, inhibit = _kicks(rules, traits)
    strength = np.zeros(len(EVENT_NAMES))
    strength[[VIEW, FAV, CART, PURCHASE]] = 1, rules.fav_strength, rules.cart_strength, 1
    mass_SxC = np.zeros((len(STYLES), config.categories))
    np.add.at(mass_SxC, (traits.style_I, traits.category_I), np.exp(traits.popularity_I))
    normalizer_UxC = np.exp(traits.style_UxS) @ mass_SxC
    return cls(config, rules, fitted, traits, excite, inhibit, strength, normalizer_UxC)

  def decay(self, timestamps: ArrayLike) -> np.ndarray:
    """Return what a stored kick is worth at these times.

    Its inverse scales a kick that happens then.
    """
    return np.exp(-self.day(timestamps) / self.rules.decay_days)

  def attraction(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return the choice share of `items` in their categories before any contact.

    users, items: broadcast. Shares sum to 1 over a category.
    """
    traits = self.traits
    utility = traits.popularity_I[items] + traits.style_UxS[users, traits.style_I[items]]
    return np.exp(utility) / self.normalizer_UxC[users, traits.category_I[items]]

  def empty(self, users: np.ndarray) -> State:
    """Return the state of users [N] without history."""
    n, categories = len(users), self.config.categories
    return State(
      users=np.asarray(users),
      excitation=np.zeros((n, categories)),
      inhibition=np.zeros((n, categories)),
      consideration=np.zeros((n, self.config.items)),
    )

  def add(
    self,
    state: State,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> None:
    """Add one event to each of `rows` IN PLACE; a row may occur once only."""
    scale = self.strength[codes] / self.decay(timestamps)
    is_purchase = (codes == PURCHASE).astype(int)
    state.excitation[rows] += scale[:, None] * self.excite[is_purchase, items]
    state.inhibition[rows] += scale[:, None] * self.inhibit[is_purchase, items]
    state.consideration[rows, items] += scale

  def state_of_rows(
    self,
    users: ArrayLike,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> State:
    """Return the same from flat arrays, one element per event.

    rows: indices into `users` [N]; may repeat.
    """
    users = np.asarray(users)
    shape = len(users), self.config.items
    scale = self.strength[codes] / self.decay(timestamps)

    def strength_by_item(chosen: np.ndarray) -> np.ndarray:
      flat = rows[chosen] * shape[1] + items[chosen]
      return np.bincount(flat, scale[chosen], shape[0] * shape[1]).reshape(shape)

    contacts = strength_by_item(codes != PURCHASE)
    purchases = strength_by_item(codes == PURCHASE)
    return State(
      users=users,
      excitation=contacts @ self.excite[0] + purchases @ self.excite[1],
      inhibition=contacts @ self.inhibit[0] + purchases @ self.inhibit[1],
      consideration=contacts + purchases,
    )

  def extended(
    self,
    state: State,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> State:
    """Return `state` after more events, flat arrays; `rows` may repeat. `state` stays."""
    added = self.state_of_rows(state.users, rows, items, codes, timestamps)
    return State(
      state.users,
      state.excitation + added.excitation,
      state.inhibition + added.inhibition,
      state.consideration + added.consideration,
    )

  def intensity(self, state: State, timestamps: ArrayLike) -> np.ndarray:
    """Return lambda = (base + excitation) * exp(-inhibition) at `timestamps` [N], [N, C]."""
    now = self.decay(timestamps)[:, None]
    raised = self.traits.base_UxC[state.users] + now * state.excitation
    return raised * np.exp(-now * state.inhibition)

  def hazard(self, state: State, timestamps: ArrayLike) -> np.ndarray:
    """Return the probability that an event at `timestamps` [N] is a purchase, [N]."""
    total = self.intensity(state, timestamps).sum(1)
    return purchase_hazard(self.rules, self.traits.rate_U[state.users], total)

  def item_weights(self, state: State, timestamps: ArrayLike) -> np.ndarray:
    """Return choice weights in categories: attraction * (1 + contacts)^consideration, [N, I]."""
    contacts = 1 + self.decay(timestamps)[:, None] * state.consideration
    attraction = self.attraction(state.users[:, None], np.arange(self.config.items))
    return attraction * contacts**self.fitted.consideration

  def log_p_conversion(self, state: State, timestamps: ArrayLike) -> np.ndarray:
    """Return log p(item | a purchase happens at `timestamps` [N], history), [N, I].

    Each row sums to one in probability.
    """
    category_share = self.intensity(state, timestamps) ** self.rules.focus
    item_weights = self.item_weights(state, timestamps)
    weight = category_share[:, self.traits.category_I] * item_weights
    return np.log(weight) - np.log(weight.sum(1, keepdims=True))

  def roles_and_effects(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return role and true removal effect of each pair, [O, M]."""
    return roles.roles_and_effects(self, pairs)

  def removal_effects(
    self,
    state: State,
    timestamps: np.ndarray,
    bought: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    times: np.ndarray,
  ) -> np.ndarray:
    """Return the true effects of events, [N, M] in nats, exact.

    The effect is log p(bought | h) - log p(bought | h without the event). The state is additive, so
    a removal is a subtraction.

    timestamps, bought: [N], when and what is bought. items, codes, times: [N, M], events of the
    history that `state` holds; -1 in `items` = none there (effect NaN).
    """
    category = self.traits.category_I
    now = self.decay(timestamps)
    lam = self.intensity(state, timestamps) ** self.rules.focus
    weight = self.item_weights(state, timestamps)
    by_category = np.argsort(category, kind='stable')
    starts = np.searchsorted(category[by_category], np.arange(self.config.categories))
    category_weight_NxC = np.add.reduceat(weight[:, by_category], starts, axis=1)
    n = np.arange(len(bought))
    numerator = lam[n, category[bought]] * weight[n, bought]
    log_p = np.log(numerator) - np.log((lam * category_weight_NxC).sum(1))
    effects = np.full(items.shape, np.nan)
    for m in range(items.shape[1]):
      rows = np.flatnonzero(items[:, m] >= 0)
      item, target, user = items[rows, m], bought[rows], state.users[rows]
      excitation, inhibition, consideration = self._without(
        state, rows, item, codes[rows, m], times[rows, m]
      )
      raised = self.traits.base_UxC[user] + now[rows, None] * excitation
      new_lam = raised * np.exp(-now[rows, None] * inhibition)
      new_lam **= self.rules.focus
      contacts = 1 + now[rows] * consideration
      item_weight = self.attraction(user, item) * contacts**self.fitted.consideration
      i = np.arange(len(rows))
      weight_change = item_weight - weight[rows, item]
      total = (new_lam * category_weight_NxC[rows]).sum(1)
      total = total + new_lam[i, category[item]] * weight_change
      target_weight = np.where(item == target, item_weight, weight[rows, target])
      new_numerator = new_lam[i, category[target]] * target_weight
      effects[rows, m] = log_p[rows] - np.log(new_numerator) + np.log(total)
    return effects

  def _without(
    self,
    state: State,
    rows: np.ndarray,
    item: np.ndarray,
    code: np.ndarray,
    timestamp: np.ndarray,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the state of `rows` [R] without one event of each.

    Returns (excitation [R, C], inhibition [R, C], consideration of the event's item [R]).
    """
    scale = self.strength[code] / self.decay(timestamp)
    is_purchase = (code == PURCHASE).astype(int)
    excite = scale[:, None] * self.excite[is_purchase, item]
    inhibit = scale[:, None] * self.inhibit[is_purchase, item]
    return (
      np.maximum(state.excitation[rows] - excite, 0),
      np.maximum(state.inhibition[rows] - inhibit, 0),
      np.maximum(state.consideration[rows, item] - scale, 0),
    )

  def desire(
    self, state: State, rows: np.ndarray, items: np.ndarray, timestamps: np.ndarray
  ) -> np.ndarray:
    """Return the choice weight of `items` [A] for `rows` [A] of `state`.

    It is relative to an average item for a user with even preferences and no history.
    """
    category, users = self.traits.category_I[items], state.users[rows]
    now = self.decay(timestamps)
    raised = self.traits.base_UxC[users, category] + now * state.excitation[rows, category]
    lam = raised * np.exp(-now * state.inhibition[rows, category])
    contacts = 1 + now * state.consideration[rows, items]
    contact_factor = contacts**self.fitted.consideration
    return lam * self.attraction(users, items) * contact_factor * self.config.items

  def draw_events(
    self, state: State, rows: np.ndarray, timestamps: np.ndarray, u_AxQ: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draw the next event of each of `rows` [A] of `state`; see `behavior.draw_log`."""
    return drawing.draw_events(self, self.tables, state, rows, timestamps, u_AxQ)

  @functools.cached_property
  def tables(self) -> drawing.Tables:
    """Item lists that drawing needs."""
    return drawing.Tables(self)

  def item_table(self) -> pl.DataFrame:
    """Return the items as a shop files them."""
    return item_table(self.config, self.rules, self.traits)


def _kicks(rules: Rules, traits: Traits) -> tuple[np.ndarray, np.ndarray]:
  """Return (excite, inhibit) of a `TraitWorld`."""
  items = np.arange(len(traits.category_I))
  own, complement = traits.category_I, traits.complement_C[traits.category_I]
  is_trigger = traits.trigger_I >= 0
  excite, inhibit = np.zeros((2, 2, len(items), len(traits.department_C)))
  excite[0, items, own] += rules.view_kick
  excite[0, items, complement] += rules.complement_kick
  excite[0, items[is_trigger], traits.trigger_I[is_trigger]] += rules.trigger_kick
  excite[1, items, complement] += rules.purchase_complement_kick
  is_damped_IxC = traits.department_C[None] == traits.distracts_I[:, None]
  inhibit[0] = rules.distractor_damp * is_damped_IxC
  inhibit[1, items, own] = rules.purchase_damp
  return excite, inhibit
