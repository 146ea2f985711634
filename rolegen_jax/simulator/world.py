"""The simulated world: a seeded structural causal model of shoppers whose conversion probabilities are in closed form.

`simulate(config)` gives a log with planted roles and true removal effects; `World` answers what-if questions about any
history and plays A/B tests. Rules, equations and constants: docs/simulated_world.md. SIMULATED DATA: no real shopper.
Shapes: U users of the world, N rows of a state, C categories, I items, M recent events, K shown items.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES, ConfigError, SimulatorConfig
from rolegen_jax.simulator import behavior, roles
from rolegen_jax.simulator.rules import (
  STYLES,
  Fitted,
  Rules,
  category_names,
  load_fitted,
  rules_of,
  stream,
)

VIEW, FAV, CART, PURCHASE = (
  EVENT_NAMES.index(name) for name in ('view', 'fav', 'cart', 'purchase')
)
DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Traits:
  """Fixed properties. User and item ids of the log are the indices into these arrays."""

  base_UxC: np.ndarray  # base preference, rows sum to 1
  style_UxS: np.ndarray  # utility of a style
  rate_U: np.ndarray  # ceiling of the purchase hazard; 0 = never buys
  kind_U: np.ndarray  # 0 never buys, 1 dormant browser, 2 active
  visits_U: np.ndarray  # visits per day
  session_U: np.ndarray  # events per visit
  category_I: np.ndarray
  style_I: np.ndarray
  popularity_I: np.ndarray  # log weight inside the category
  trigger_I: np.ndarray  # category that the item wakes, -1 = none
  distracts_I: np.ndarray  # department that the item damps, -1 = none
  complement_C: np.ndarray  # complement of a category
  department_C: np.ndarray


@dataclasses.dataclass(frozen=True)
class State:
  """Latent state of N users: sums of the kicks of their events, each scaled by exp(+event day / decay_days).

  The value on day d is the stored value times exp(-d / decay_days), so the state needs no clock and is additive in events.
  """

  users: np.ndarray  # [N] user indices
  excitation: np.ndarray  # [N, C] adds to intensity
  inhibition: np.ndarray  # [N, C] lowers log intensity
  consideration: np.ndarray  # [N, I] contacts by item

  def copy(self) -> State:
    return State(
      self.users.copy(), self.excitation.copy(), self.inhibition.copy(), self.consideration.copy()
    )

  def rows(self, index: np.ndarray) -> State:
    return State(
      self.users[index], self.excitation[index], self.inhibition[index], self.consideration[index]
    )


@dataclasses.dataclass(frozen=True)
class SimulatedLog:
  events: pl.DataFrame  # user_id, item_id, event, timestamp, sorted by user and time
  items: pl.DataFrame  # item_id, title, category_code, brand, price
  planted: pl.DataFrame  # user_id, occasion_timestamp, timestamp, item_id, event, role, effect
  world: World


@dataclasses.dataclass(frozen=True)
class World:
  """Rebuilt from `config` alone by `World.build`."""

  config: SimulatorConfig
  rules: Rules
  fitted: Fitted
  traits: Traits
  excite: np.ndarray  # [2, I, C] intensity added per strength by a contact (0) and a purchase (1)
  inhibit: np.ndarray  # [2, I, C] the same for log intensity taken away
  strength: np.ndarray  # [event codes] strength of an event
  normaliser_UxC: np.ndarray  # sum over a category's items of exp(popularity + style)

  @classmethod
  def build(cls, config: SimulatorConfig, fitted: Fitted | None = None) -> World:
    """The world of `config`; `fitted` replaces the preset's parameters (for the fit itself)."""
    rules = rules_of(config.preset)
    if config.categories < 2 * rules.department_size or config.items < 4 * config.categories:
      raise ConfigError(f'world: {config.items} items in {config.categories} categories: need at least '
                        f'{2 * rules.department_size} categories and 4 items in each')  # fmt: skip
    fitted = fitted or load_fitted(config.preset)
    traits = _traits(config, rules, fitted)
    categories, items = config.categories, np.arange(config.items)
    excite, inhibit = np.zeros((2, 2, config.items, categories))
    complement = traits.complement_C[traits.category_I]
    excite[0, items, traits.category_I] += rules.view_kick
    excite[0, items, complement] += rules.complement_kick
    excite[1, items, complement] += rules.purchase_complement_kick
    trigger = traits.trigger_I >= 0
    excite[0, items[trigger], traits.trigger_I[trigger]] += rules.trigger_kick
    inhibit[0] = rules.distractor_damp * (traits.department_C[None] == traits.distracts_I[:, None])
    inhibit[1, items, traits.category_I] = rules.purchase_damp
    strength = np.zeros(len(EVENT_NAMES))
    strength[[VIEW, FAV, CART, PURCHASE]] = 1, rules.fav_strength, rules.cart_strength, 1
    mass = np.zeros((len(STYLES), categories))
    np.add.at(mass, (traits.style_I, traits.category_I), np.exp(traits.popularity_I))
    return cls(
      config, rules, fitted, traits, excite, inhibit, strength, np.exp(traits.style_UxS) @ mass
    )

  def day(self, timestamps: np.ndarray) -> np.ndarray:
    """Days since the start of the world, as floats."""
    return (np.asarray(timestamps) - self.rules.start) / DAY

  def decay(self, timestamps: np.ndarray) -> np.ndarray:
    """What a stored kick is worth at these times; its inverse scales a kick that happens then."""
    return np.exp(-self.day(timestamps) / self.rules.decay_days)

  def attraction(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Choice share of `items` in their categories before any contact; broadcasts, sums to 1 over a category."""
    t = self.traits
    weight = np.exp(t.popularity_I[items] + t.style_UxS[users, t.style_I[items]])
    return weight / self.normaliser_UxC[users, t.category_I[items]]

  def empty(self, users: np.ndarray) -> State:
    """State of users without history, [N]."""
    n, c = len(users), self.config.categories
    return State(
      np.asarray(users), np.zeros((n, c)), np.zeros((n, c)), np.zeros((n, self.config.items))
    )

  def add(
    self,
    state: State,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> None:
    """Adds one event to each of `rows` IN PLACE; a row may occur once only."""
    scale = self.strength[codes] / self.decay(timestamps)
    bought = (codes == PURCHASE).astype(int)
    state.excitation[rows] += scale[:, None] * self.excite[bought, items]
    state.inhibition[rows] += scale[:, None] * self.inhibit[bought, items]
    state.consideration[rows, items] += scale

  def state(self, histories: pl.DataFrame, users: np.ndarray | None = None) -> State:
    """State after any histories, edited ones too: columns user_id, item_id, event, timestamp in any order.

    Rows follow `users` [N] (default: every user of the world); events of other users are ignored.
    """
    users = np.arange(self.config.users) if users is None else np.asarray(users)
    place = pl.DataFrame(
      {'user_id': users, 'row': np.arange(len(users))}, schema_overrides={'user_id': pl.Int64}
    )
    h = histories.join(place, on='user_id')
    codes = event_codes(h['event'])
    return self.state_of_rows(
      users, *(h[c].to_numpy() for c in ('row', 'item_id')), codes, h['timestamp'].to_numpy()
    )

  def state_of_rows(self, users, rows, items, codes, timestamps) -> State:
    """The same from flat arrays, one element per event; `rows` index into `users` [N] and may repeat."""
    n, size = len(users), self.config.items
    scale = self.strength[codes] / self.decay(timestamps)
    mass = [
      np.bincount(rows[on] * size + items[on], scale[on], n * size).reshape(n, size)
      for on in (codes != PURCHASE, codes == PURCHASE)
    ]
    return State(
      np.asarray(users),
      *(mass[0] @ k[0] + mass[1] @ k[1] for k in (self.excite, self.inhibit)),
      mass[0] + mass[1],
    )

  def intensity(self, state: State, timestamps: np.ndarray) -> np.ndarray:
    """lambda [N, C] = (base + excitation) * exp(-inhibition) at `timestamps` [N]."""
    now = self.decay(timestamps)[:, None]
    return (self.traits.base_UxC[state.users] + now * state.excitation) * np.exp(
      -now * state.inhibition
    )

  def hazard(self, state: State, timestamps: np.ndarray) -> np.ndarray:
    """Probability [N] that an event at `timestamps` is a purchase."""
    total = self.intensity(state, timestamps).sum(1)
    return self.traits.rate_U[state.users] * total / (total + self.rules.hazard_half)

  def item_weights(self, state: State, timestamps: np.ndarray) -> np.ndarray:
    """Attraction times (1 + contacts)^consideration, [N, I]: choice weights inside categories."""
    contacts = 1 + self.decay(timestamps)[:, None] * state.consideration
    return (
      self.attraction(state.users[:, None], np.arange(self.config.items))
      * contacts**self.fitted.consideration
    )

  def log_p_conversion(self, state: State, timestamps: np.ndarray) -> np.ndarray:
    """log p(item | a purchase happens at `timestamps` [N], history), [N, I]; each row sums to one in probability."""
    share = self.intensity(state, timestamps) ** self.rules.focus
    weight = share[:, self.traits.category_I] * self.item_weights(state, timestamps)
    return np.log(weight) - np.log(weight.sum(1, keepdims=True))

  def removal_effects(self, state: State, timestamps, bought, items, codes, times) -> np.ndarray:
    """True effects [N, M] in nats: log p(bought | h) - log p(bought | h without the event), exact.

    `timestamps`, `bought` [N]: when and what is bought; `items`, `codes`, `times` [N, M]: events of the history that
    `state` holds, -1 in `items` = none there (effect NaN). The state is additive, so a removal is a subtraction.
    """
    category, n = self.traits.category_I, np.arange(len(bought))
    now, lam = self.decay(timestamps), self.intensity(state, timestamps) ** self.rules.focus
    weight = self.item_weights(state, timestamps)
    order = np.argsort(category, kind='stable')
    starts = np.searchsorted(category[order], np.arange(self.config.categories))
    share_NxC = np.add.reduceat(weight[:, order], starts, axis=1)
    log_p = np.log(lam[n, category[bought]] * weight[n, bought]) - np.log((lam * share_NxC).sum(1))
    effects = np.full(items.shape, np.nan)
    for m in range(items.shape[1]):
      on = np.flatnonzero(items[:, m] >= 0)
      item, code, user = items[on, m], codes[on, m], state.users[on]
      scale = self.strength[code] / self.decay(times[on, m])
      kind = (code == PURCHASE).astype(int)
      excitation = np.maximum(state.excitation[on] - scale[:, None] * self.excite[kind, item], 0)
      inhibition = np.maximum(state.inhibition[on] - scale[:, None] * self.inhibit[kind, item], 0)
      less = (self.traits.base_UxC[user] + now[on, None] * excitation) * np.exp(
        -now[on, None] * inhibition
      )
      less **= self.rules.focus
      contacts = 1 + now[on] * np.maximum(state.consideration[on, item] - scale, 0)
      changed = self.attraction(user, item) * contacts**self.fitted.consideration
      total = (less * share_NxC[on]).sum(1) + less[np.arange(len(on)), category[item]] * (
        changed - weight[on, item]
      )
      own = np.where(item == bought[on], changed, weight[on, bought[on]])
      effects[on, m] = (
        log_p[on] - np.log(less[np.arange(len(on)), category[bought[on]]] * own) + np.log(total)
      )
    return effects

  def act(
    self, state: State, user_indices, shown_items, day: int, rng
  ) -> tuple[pl.DataFrame, State]:
    """One day of an A/B test: who visits sees `shown_items` [N, K] (-1 = nothing), then browses on as ever.

    `user_indices` [N] are distinct and in `state.users`, else ValueError; `state` is not changed. Returns the events of the day (user_id,
    item_id, event, timestamp, shown: bool, position: 0.. or -1) and the state after them. Pure given `rng`; two arms
    with equal generators share the noise of each user and slot.
    """
    return behavior.act(self, state, np.asarray(user_indices), np.asarray(shown_items), day, rng)

  def visitors(self, user_indices, rng) -> np.ndarray:
    """bool [N]: who comes on the day that `act` plays with an equal generator; whatever is shown to the others is not seen."""
    return behavior.arrivals(self, np.asarray(user_indices), rng)[0]


def event_codes(events: pl.Series) -> np.ndarray:
  """Index into EVENT_NAMES; raises polars.exceptions.InvalidOperationError on an unknown name."""
  return (
    events.cast(pl.String)
    .replace_strict(list(EVENT_NAMES), range(len(EVENT_NAMES)), return_dtype=pl.Int64)
    .to_numpy()
  )


def simulate(config: SimulatorConfig, fitted: Fitted | None = None) -> SimulatedLog:
  """The whole simulated log of `config`: about 5 s for 3000 users on one core."""
  world = World.build(config, fitted)
  users, items, codes, times = behavior.draw_log(world)
  events = pl.DataFrame(
    {'user_id': users, 'item_id': items, 'event': np.array(EVENT_NAMES)[codes], 'timestamp': times}
  )
  return SimulatedLog(
    events, _item_table(world), roles.planted(world, users, items, codes, times), world
  )


def _traits(config: SimulatorConfig, rules: Rules, fitted: Fitted) -> Traits:
  rng = stream(config.seed, 'items')
  n, categories, styles = config.items, config.categories, len(STYLES)
  category = rng.permutation(n) % categories
  rank = np.zeros(n)
  for c in range(categories):
    rank[category == c] = 1 + rng.permutation((category == c).sum())
  department = np.arange(categories) // rules.department_size
  special = rng.random(n)
  # A trigger wakes a category that is neither its own nor its complement: those have roles of their own.
  pairs = rng.permutation(categories)
  complement = np.empty(categories, int)
  complement[pairs] = np.roll(pairs, 1)
  target = rng.integers(0, categories, n)
  while (
    bad := (target == category)
    | (target == complement[category])
    | (complement[target] == category)
  ).any():
    target[bad] = rng.integers(0, categories, bad.sum())
  away = (department[category] + rng.integers(1, department[-1] + 1, n)) % (department[-1] + 1)
  is_trigger = special < rules.trigger_share
  is_distractor = ~is_trigger & (special < rules.trigger_share + rules.distractor_share)
  style_I = rng.integers(0, styles, n)

  rng = stream(config.seed, 'users')
  u = config.users
  base = rng.gamma(rules.base_concentration, size=(u, categories)) + 1e-12
  base = (1 - rules.base_floor) * base / base.sum(1, keepdims=True) + rules.base_floor / categories
  style = rules.style_weight * rng.standard_normal((u, styles))
  who = rng.random(u)
  kind = np.where(who < fitted.never_share, 0, np.where(rng.random(u) < rules.dormant_share, 1, 2))
  rate = fitted.purchase_rate * np.exp(fitted.purchase_spread * rng.standard_normal(u))
  rate = np.minimum(rate * np.array([0, rules.dormant_rate, 1])[kind], 0.9)
  mean = fitted.events_mean * config.events_per_user_scale
  many = np.where(kind == 1, rules.dormant_events, 1)
  dormant = (1 - fitted.never_share) * rules.dormant_share
  many = many / (
    1 + dormant * (rules.dormant_events - 1)
  )  # the mean over users stays the fitted one
  events = np.maximum(many * rng.gamma(fitted.events_shape, mean / fitted.events_shape, u), 1)
  session = np.clip(fitted.session_events * np.exp(0.4 * rng.standard_normal(u)), 1, events)
  visits = events / session / rules.days
  trigger, distracts = np.where(is_trigger, target, -1), np.where(is_distractor, away, -1)
  popularity = -fitted.tail * np.log(rank)
  of_items = (category, style_I, popularity, trigger, distracts, complement, department)
  return Traits(base, style, rate, kind, visits, session, *of_items)


def _item_table(world: World) -> pl.DataFrame:
  """Text, brand and price of every item, made of category and style words."""
  rules, t = world.rules, world.traits
  rng = stream(world.config.seed, 'text')
  names = np.array(category_names(world.config.categories, rules.department_size))[t.category_I]
  maker = rng.integers(0, rules.brands, world.config.items)
  brand = [f'{STYLES[s][:3]}{d[:3]}{m}' for s, d, m in zip(t.style_I, names, maker)]
  level = np.exp(rng.normal(3.5, 0.8, world.config.categories))[t.category_I]
  price = np.round(level * np.exp(0.35 * rng.standard_normal(world.config.items)), 2)
  title = [
    f'{b} {STYLES[s]} {n.split(".")[1]} {n.split(".")[0]}'
    for b, s, n in zip(brand, t.style_I, names)
  ]
  return pl.DataFrame(
    {
      'item_id': np.arange(world.config.items),
      'title': title,
      'category_code': names,
      'brand': brand,
      'price': price,
    }
  )
