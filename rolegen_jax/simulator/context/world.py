"""The context simulator's structural causal model: state, needs, choice, in closed form.

`docs/context_simulator.md` has rules, equations and constants. SIMULATED DATA: no real shopper.

U users of the world, N rows of a state, C categories, M items of a category (padded), I items, P
personas, F favorite categories, S signals, K keys.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from rolegen_jax.config import EVENT_NAMES, SimulatorConfig
from rolegen_jax.simulator.base import World
from rolegen_jax.simulator.context import drawing, roles
from rolegen_jax.simulator.context.rules import KEY_WORDS, SIGNAL_WORDS, ContextRules
from rolegen_jax.simulator.context.traits import ContextTraits, draw_traits, item_table
from rolegen_jax.simulator.histories import positions
from rolegen_jax.simulator.planted import Pairs
from rolegen_jax.simulator.rules import Fitted, load_fitted, purchase_hazard

PURCHASE = EVENT_NAMES.index('purchase')
LONG_AGO = -1e9  # days: has not happened
ROWS = 256  # rows whose comparisons are held at once


@dataclasses.dataclass(frozen=True)
class State:
  """When things last happened to N users, in days since the start; LONG_AGO = never."""

  users: np.ndarray  # [N], user indices
  key: np.ndarray  # [N, K], contact with an item of a key
  opened: np.ndarray  # [N, S], a signal met in its context; closed again where met out of it
  bought: np.ndarray  # [N, C], purchase in a category
  last: np.ndarray  # fp32 [N, C, M], latest event with an item
  previous: np.ndarray  # fp32 [N, C, M], the one before it

  def rows(self, index: np.ndarray) -> State:
    """Return the state of these rows, in memory of its own."""
    return State(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

  def copy(self) -> State:
    """Return a state that shares no memory with this one."""
    return State(*(getattr(self, field.name).copy() for field in dataclasses.fields(self)))


class Needs(NamedTuple):
  """What shoppers need, [N, C] each, in units of all that they prefer by themselves."""

  steady: np.ndarray  # preferences and comparisons
  opened: np.ndarray  # by signals

  @property
  def total(self) -> np.ndarray:
    """What purchases follow, [N, C]."""
    return self.steady + self.opened


@dataclasses.dataclass(frozen=True)
class ContextWorld(World):
  """Rebuilt from `config` alone by `ContextWorld.build`."""

  rules: ContextRules
  traits: ContextTraits

  @classmethod
  def build(cls, config: SimulatorConfig, fitted: Fitted | None = None) -> ContextWorld:
    """Return the world of `config`; fitted: replaces the preset's parameters."""
    rules, fitted = ContextRules(), fitted or load_fitted(config)
    return cls(config, rules, fitted, draw_traits(config, rules, fitted))

  @functools.cached_property
  def items_CxM(self) -> np.ndarray:
    """The items of each category, padded with -1."""
    category_I, categories = self.traits.category_I, self.config.categories
    members = [np.flatnonzero(category_I == c) for c in range(categories)]
    items_CxM = np.full((categories, max(map(len, members))), -1)
    for c, items in enumerate(members):
      items_CxM[c, : len(items)] = items
    return items_CxM

  @functools.cached_property
  def slot_I(self) -> np.ndarray:
    """The place of each item in its category's row of `items_CxM`."""
    slot_I = np.empty(self.config.items, int)
    slots = np.broadcast_to(np.arange(self.items_CxM.shape[1]), self.items_CxM.shape)
    slot_I[self.items_CxM[self.items_CxM >= 0]] = slots[self.items_CxM >= 0]
    return slot_I

  @functools.cached_property
  def dominates_CxMxM(self) -> np.ndarray:
    """Whether one item of a category dominates another: no worse a grade, and clearly cheaper."""
    items = self.items_CxM
    grade, price = self.traits.grade_I[items], self.traits.log_price_I[items]
    is_cheaper = price[:, :, None] < price[:, None, :] - self.rules.margin
    is_pair = (items[:, :, None] >= 0) & (items[:, None, :] >= 0)
    return (grade[:, :, None] >= grade[:, None, :]) & is_cheaper & is_pair

  def empty(self, users: np.ndarray) -> State:
    """Return the state of users [N] without history."""
    n, shape = len(users), self.items_CxM.shape
    sizes = len(KEY_WORDS), len(SIGNAL_WORDS), self.config.categories
    items = (np.full((n, *shape), LONG_AGO, np.float32) for _ in range(2))
    return State(np.asarray(users), *(np.full((n, size), LONG_AGO) for size in sizes), *items)

  def add(
    self,
    state: State,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> None:
    """Add one event to each of `rows` IN PLACE; a row may occur once only."""
    traits, day = self.traits, self.day(timestamps)
    place = rows, traits.category_I[items], self.slot_I[items]
    state.previous[place] = state.last[place]
    state.last[place] = day
    buys = codes == PURCHASE
    state.bought[rows[buys], traits.category_I[items[buys]]] = day[buys]
    signal = np.where(buys, -1, traits.signal_I[items])
    key = np.where(buys, -1, traits.key_I[items])
    carries = signal >= 0
    row, signal, now = rows[carries], signal[carries], day[carries]
    is_understood = now - state.key[row, traits.key_S[signal]] <= self.rules.key_days
    state.opened[row, signal] = np.where(is_understood, now, LONG_AGO)
    carries = key >= 0
    state.key[rows[carries], key[carries]] = day[carries]

  def extended(
    self,
    state: State,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> State:
    """Return `state` after more events, flat arrays; `rows` may repeat. `state` stays."""
    state = state.copy()
    for step in positions(rows, timestamps):
      self.add(state, rows[step], items[step], codes[step], timestamps[step])
    return state

  def state_of_rows(
    self,
    users: ArrayLike,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> State:
    """Return the state of `users` [N] after events from flat arrays, one element per event.

    rows: indices into `users`; may repeat.
    """
    return self.extended(self.empty(np.asarray(users)), rows, items, codes, timestamps)

  def contacts(self, state: State, timestamps: ArrayLike) -> np.ndarray:
    """Return contacts that count in a comparison now, 0 to 2, int8 [N, C, M].

    Those since `consider_days` ago, and since the last purchase in the item's category.
    """
    begin = self.day(timestamps)[:, None] - self.rules.consider_days
    begin = np.maximum(begin, state.bought).astype(np.float32)[..., None]
    number = (state.last > begin).astype(np.int8) + (state.previous > begin)
    return np.minimum(number, self.rules.most_contacts)

  def steady_needs(
    self, state: State, timestamps: ArrayLike, contacts: np.ndarray, base: np.ndarray
  ) -> np.ndarray:
    """Return the needs that no signal opened, [N, ..., C].

    contacts: [N, C, M], of `contacts`. base: [N, ..., C], base preferences.
    """
    compares = (contacts > 0).sum(2) >= self.rules.compare_from
    since = self.day(timestamps)[:, None] - state.bought
    factor = np.where(since <= self.rules.satisfied_days, self.rules.satisfied, 1)
    shape = (len(base), *[1] * (base.ndim - 2), self.config.categories)
    compared = self.rules.compare_need * compares
    return (base + compared.reshape(shape)) * factor.reshape(shape)

  def opened(self, state: State, timestamps: ArrayLike, target_NxS: np.ndarray) -> np.ndarray:
    """Return whether a signal has opened each category, bool [N, C].

    target_NxS: the category that each signal opens for the user, -1 = none.
    """
    rows = np.arange(len(state.users))
    now = self.day(timestamps)
    result = np.zeros(state.bought.shape, bool)
    for s in range(target_NxS.shape[1]):
      target, day = target_NxS[:, s], state.opened[:, s]
      holds = (target >= 0) & (now - day <= self.rules.open_days)
      holds &= day > state.bought[rows, target]
      result[rows[holds], target[holds]] = True
    return result

  def needs(self, state: State, timestamps: ArrayLike, contacts: np.ndarray) -> Needs:
    """Return what each category is needed for, by the users' own traits."""
    traits, users = self.traits, state.users
    target_NxS = traits.target_SxP[:, traits.persona_U[users]].T
    base = traits.base_PxFxC[traits.persona_U[users], traits.favorite_U[users]]
    steady = self.steady_needs(state, timestamps, contacts, base)
    return Needs(steady, self.open_need * self.opened(state, timestamps, target_NxS))

  @property
  def open_need(self) -> float:
    """The need that an understood signal opens."""
    return self.rules.open_need * self.config.strength

  def hazard(self, state: State, timestamps: ArrayLike) -> np.ndarray:
    """Return the probability that an event at `timestamps` [N] is a purchase, [N]."""
    needs = self.needs(state, timestamps, self.contacts(state, timestamps))
    return self.hazard_of(state.users, needs.total)

  def hazard_of(self, users: np.ndarray, needs: np.ndarray) -> np.ndarray:
    """Return the same from needs [N, ..., C], [N, ...]."""
    rate = self.traits.rate_U[users].reshape(len(users), *[1] * (needs.ndim - 2))
    return purchase_hazard(self.rules, rate, needs.sum(-1))

  def attraction(self, tastes: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return log weights in the category before any contact; broadcasts."""
    is_favorite = self.traits.style_I[items] == tastes
    return self.traits.popularity_I[items] + self.rules.taste * is_favorite

  def choice_shares(
    self, contacts: np.ndarray, categories: np.ndarray, tastes: np.ndarray
  ) -> np.ndarray:
    """Return p(item | a purchase in a category), [N, ..., M] over the items of the category.

    contacts: [N, M], with the items of `categories` [N]. tastes: [N, ...], styles.

    A considered item gains by dominating another considered one, and loses by being dominated.
    """
    is_met, dominates = contacts > 0, self.dominates_CxMxM[categories]
    wins = (dominates & is_met[:, None, :]).any(2)
    loses = (dominates & is_met[:, :, None]).any(1)
    step = self.rules.dominance * self.config.strength
    contrast = step * is_met * (wins.astype(float) - loses)
    utility = self.fitted.consideration * np.log1p(contacts) + contrast
    items = self.items_CxM[categories]
    shape = (len(items), *[1] * (tastes.ndim - 1), items.shape[1])
    attraction = self.attraction(tastes[..., None], items.reshape(shape))
    weight = np.exp(utility.reshape(shape) + attraction) * (items >= 0).reshape(shape)
    return weight / weight.sum(-1, keepdims=True)

  def log_p_conversion(self, state: State, timestamps: ArrayLike) -> np.ndarray:
    """Return log p(item | a purchase happens at `timestamps` [N], history), [N, I].

    Each row sums to one in probability.
    """
    log_p = np.empty((len(state.users), self.config.items))
    for rows in np.array_split(np.arange(len(log_p)), max(1, -(-len(log_p) // ROWS))):
      part, times = state.rows(rows), np.asarray(timestamps)[rows]
      contacts = self.contacts(part, times)
      share = category_shares(self, self.needs(part, times, contacts).total)
      within = self.choice_shares_everywhere(contacts, self.traits.taste_U[part.users])
      log_p[rows] = np.log(self.by_item(share[..., None] * within))
    return log_p

  def choice_shares_everywhere(self, contacts: np.ndarray, tastes: np.ndarray) -> np.ndarray:
    """Return `choice_shares` of every category, [N, C, ..., M].

    contacts: [N, C, M]. tastes: [N, ...].
    """
    n, categories, slots = contacts.shape
    shares = self.choice_shares(
      contacts.reshape(-1, slots),
      np.tile(np.arange(categories), n),
      np.repeat(tastes, categories, axis=0),
    )
    return shares.reshape(n, categories, *shares.shape[1:])

  def by_item(self, values: np.ndarray) -> np.ndarray:
    """Return values [N, C, M] by item, [N, I]."""
    return values[:, self.traits.category_I, self.slot_I]

  def log_p_of(self, state: State, timestamps: ArrayLike, bought: np.ndarray) -> np.ndarray:
    """Return `log_p_conversion` of the items `bought` [N] alone, [N]."""
    contacts, n = self.contacts(state, timestamps), np.arange(len(bought))
    share = category_shares(self, self.needs(state, timestamps, contacts).total)
    category = self.traits.category_I[bought]
    tastes = self.traits.taste_U[state.users]
    within = self.choice_shares(contacts[n, category], category, tastes)
    return np.log(share[n, category]) + np.log(within[n, self.slot_I[bought]])

  @property
  def memory_days(self) -> float:
    """Days after which an event changes nothing any more."""
    rules = self.rules
    opens = rules.open_days + rules.key_days
    return max(opens, rules.consider_days, rules.satisfied_days)

  def roles_and_effects(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return role and true removal effect of each pair, [O, M]."""
    return roles.roles_and_effects(self, pairs)

  def desire(
    self, state: State, rows: np.ndarray, items: np.ndarray, timestamps: np.ndarray
  ) -> np.ndarray:
    """Return the choice weight of `items` [A] for `rows` [A] of `state`.

    It is relative to an average item for a user with even preferences and no history.
    """
    state, category = state.rows(rows), self.traits.category_I[items]
    contacts, n = self.contacts(state, timestamps), np.arange(len(rows))
    tastes = self.traits.taste_U[state.users]
    within = self.choice_shares(contacts[n, category], category, tastes)
    need = self.needs(state, timestamps, contacts).total[n, category]
    return need * within[n, self.slot_I[items]] * self.config.items

  def draw_events(
    self, state: State, rows: np.ndarray, times: np.ndarray, u_AxQ: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draw the next event of each of `rows` [A] of `state`; see `behavior.draw_log`."""
    return drawing.draw_events(self, state.rows(rows), times, u_AxQ)

  def item_table(self) -> pl.DataFrame:
    """Return the items as the shop files them."""
    return item_table(self.config, self.rules, self.traits)


def category_shares(world: ContextWorld, needs: np.ndarray) -> np.ndarray:
  """Return shares of categories by needs [..., C]: strong ones win."""
  weight = needs**world.rules.focus
  return weight / weight.sum(-1, keepdims=True)
