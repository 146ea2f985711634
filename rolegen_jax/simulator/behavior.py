"""How shoppers of the simulated world act: one drawn event, a whole log, and a day of an A/B test.

Vectorised over users, looping over the index of the event. `world` is a `world.World`; shapes as there, A = users that act.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.simulator.rules import stream

VIEW, FAV, CART, PURCHASE = (
  EVENT_NAMES.index(name) for name in ('view', 'fav', 'cart', 'purchase')
)
NOISE = 7  # uniforms that one event takes


def choose(weight_AxN: np.ndarray, u_A: np.ndarray) -> np.ndarray:
  """Index drawn in proportion to each row of non-negative weights, by inverse CDF."""
  cdf = np.cumsum(weight_AxN, axis=1)
  return np.minimum((cdf < (u_A * cdf[:, -1])[:, None]).sum(1), weight_AxN.shape[1] - 1)


class Tables:
  """Item lists that drawing needs: [C, n] items by category (padded with -1), triggers, distractors by department."""

  def __init__(self, world):
    t = world.traits
    groups = [np.flatnonzero(t.category_I == c) for c in range(world.config.categories)]
    self.items_CxN = np.full((len(groups), max(map(len, groups))), -1)
    for c, group in enumerate(groups):
      self.items_CxN[c, : len(group)] = group
    weight = np.exp(t.popularity_I)
    self.trigger_1xI = (weight * (t.trigger_I >= 0))[None]
    self.distract_DxI = weight * (t.distracts_I == np.arange(t.department_C[-1] + 1)[:, None])


def draw_purchases(world, state, rows, times, u_A, boosted=None) -> np.ndarray:
  """Items [A] bought by `rows` at `times`, from the closed form; `boosted` [A] items are `shown_boost` times likelier."""
  p = np.exp(world.log_p_conversion(state.rows(rows), times))
  if boosted is not None:
    p[np.arange(len(rows)), boosted] *= world.rules.shown_boost
  return choose(p, u_A)


def draw_events(world, tables: Tables, state, rows, times, u_AxQ) -> tuple[np.ndarray, np.ndarray]:
  """Next event of each of `rows` [A] of `state` at `times` [A] from uniforms [A, NOISE]: (items, event codes)."""
  rules, traits, fitted = world.rules, world.traits, world.fitted
  users, now = state.users[rows], world.decay(times)
  lam = (traits.base_UxC[users] + now[:, None] * state.excitation[rows]) * np.exp(
    -now[:, None] * state.inhibition[rows]
  )
  total = lam.sum(1)
  buys = u_AxQ[:, 0] < traits.rate_U[users] * total / (total + rules.hazard_half)
  bounds = np.cumsum([rules.p_explore, rules.p_trigger, rules.p_distract, rules.p_complement])
  explores, triggers, distracts, complements, intends = (
    np.searchsorted(bounds, u_AxQ[:, 1], 'right') == k for k in range(5)
  )
  triggers &= tables.trigger_1xI.any()
  distracts &= tables.distract_DxI.any()

  category = choose(
    np.where(explores[:, None], traits.base_UxC[users], lam**rules.focus), u_AxQ[:, 2]
  )
  department = traits.department_C[category]
  distracts &= tables.distract_DxI.any(1)[department]
  # An event "in the complement of the active intent" is in a category whose contacts kick that intent.
  into = np.argsort(traits.complement_C)
  category = np.where(complements, into[category], category)
  options = tables.items_CxN[category]
  weight = np.where(options >= 0, world.attraction(users[:, None], options), 0)
  contacts = np.where(options >= 0, now[:, None] * state.consideration[rows[:, None], options], 0)
  mass = contacts.sum(1)
  back = intends & (u_AxQ[:, 3] < fitted.revisit * mass / (mass + 0.5))
  items = options[
    np.arange(len(rows)), choose(np.where(back[:, None], contacts, weight), u_AxQ[:, 4])
  ]
  if triggers.any():
    items[triggers] = choose(
      np.broadcast_to(tables.trigger_1xI, (triggers.sum(), world.config.items)), u_AxQ[triggers, 4]
    )
  if distracts.any():
    items[distracts] = choose(tables.distract_DxI[department[distracts]], u_AxQ[distracts, 4])
  codes = _contact_codes(world, back, u_AxQ[:, 5])
  if buys.any():
    items[buys] = draw_purchases(world, state, rows[buys], times[buys], u_AxQ[buys, 6])
    codes[buys] = PURCHASE
  return items, codes


def _contact_codes(world, back: np.ndarray, u_A: np.ndarray) -> np.ndarray:
  """view, fav or cart: marks fall on repeated contacts `repeat_mark_odds` times as often as on first ones."""
  expected = 1 + (world.rules.repeat_mark_odds - 1) * world.fitted.revisit / 2
  lift = np.where(back, world.rules.repeat_mark_odds, 1) / expected
  fav, cart = world.fitted.fav_share * lift, world.fitted.cart_share * lift
  return np.where(u_A < fav, FAV, np.where(u_A < fav + cart, CART, VIEW))


def draw_log(world) -> tuple[np.ndarray, ...]:
  """(users, items, event codes, timestamps) of the whole log, sorted by user and time, times distinct within a user."""
  rng, rules, traits = stream(world.config.seed, 'log'), world.rules, world.traits
  n, end = world.config.users, rules.start + rules.days * 86_400
  tables, state, log = Tables(world), world.empty(np.arange(n)), []
  shape = world.fitted.gap_shape
  gap = 86_400 / traits.visits_U / math.gamma(1 + 1 / shape)  # Weibull scale, seconds
  # A visit starts the log of every user: at a random point of the first gap, wrapped into the period.
  times = rules.start + (
    rng.random(n) * np.minimum(86_400 / traits.visits_U, rules.days * 86_400)
  ).astype(np.int64)
  active = np.arange(n)
  while len(active):
    u = rng.random((len(active), NOISE + 3))
    items, codes = draw_events(world, tables, state, active, times[active], u[:, :NOISE])
    world.add(state, active, items, codes, times[active])
    log.append((active, items, codes, times[active]))
    leaves = u[:, NOISE] < 1 / traits.session_U[active]
    stay = 20 + 180 * -np.log1p(-u[:, NOISE + 1])
    away = 1800 + gap[active] * (-np.log1p(-u[:, NOISE + 2])) ** (1 / shape)
    times[active] += np.where(leaves, away, stay).astype(np.int64)
    active = active[times[active] < end]
  users, items, codes, times = (np.concatenate(column) for column in zip(*log))
  order = np.lexsort((times, users))
  return users[order], items[order], codes[order], times[order]


def arrivals(world, user_indices, rng) -> tuple[np.ndarray, np.ndarray]:
  """Who visits on a day, bool [N], and the uniforms [N, 3] behind it: the first noise that a day takes."""
  u_visit = rng.random((len(user_indices), 3))
  return u_visit[:, 0] < -np.expm1(-world.traits.visits_U[user_indices]), u_visit


def act(world, state, user_indices, shown_NxK, day: int, rng):
  """See `World.act`."""
  rules, traits = world.rules, world.traits
  place = np.full(world.config.users, -1)
  place[state.users] = np.arange(len(state.users))
  all_rows = place[user_indices]
  if (all_rows < 0).any():
    raise ValueError(f'user {user_indices[all_rows < 0][0]} is not in the state')
  if len(np.unique(user_indices)) < len(user_indices):
    raise ValueError('user_indices holds a user twice')
  state, tables, (n, k) = state.copy(), Tables(world), shown_NxK.shape
  # All noise is drawn up front in fixed shapes: an arm's choices never shift the noise of later slots.
  (visits, u_visit), u_shown = arrivals(world, user_indices, rng), rng.random((n, k, 4))
  u_organic = rng.random((n, rules.max_session, NOISE + 1))
  clock = rules.start + day * 86_400 + (u_visit[:, 1] * 43_200).astype(np.int64)
  log = []

  def record(on, items, codes, shown, position):
    world.add(state, all_rows[on], items, codes, clock[on])
    log.append(
      (
        user_indices[on],
        items,
        codes,
        clock[on].copy(),
        np.full(len(on), shown),
        np.full(len(on), position),
      )
    )
    clock[on] += 30

  for j in range(k):
    on = np.flatnonzero(
      visits & (shown_NxK[:, j] >= 0) & (u_shown[:, j, 0] < 1 / math.log2(j + 2))
    )  # examined
    items, rows = shown_NxK[on, j], all_rows[on]
    desire = relative_desire(world, state, rows, items, clock[on])
    viewed = u_shown[on, j, 1] < desire / (desire + rules.view_half)
    on, items, rows = on[viewed], items[viewed], rows[viewed]
    record(on, items, np.full(len(on), VIEW), True, j)
    buys = u_shown[on, j, 2] < world.hazard(state.rows(rows), clock[on])
    on, rows, items = on[buys], rows[buys], items[buys]
    bought = draw_purchases(world, state, rows, clock[on], u_shown[on, j, 3], boosted=items)
    record(on, bought, np.full(len(on), PURCHASE), True, j)
  here = np.flatnonzero(visits)
  for step in range(rules.max_session):
    items, codes = draw_events(
      world, tables, state, all_rows[here], clock[here], u_organic[here, step, :NOISE]
    )
    record(here, items, codes, False, -1)
    here = here[u_organic[here, step, NOISE] >= 1 / traits.session_U[user_indices[here]]]
  users, items, codes, times, shown, position = (np.concatenate(column) for column in zip(*log))
  columns = {
    'user_id': users,
    'item_id': items,
    'event': np.array(EVENT_NAMES)[codes],
    'timestamp': times,
  }
  events = pl.DataFrame(columns | {'shown': shown, 'position': position}).sort(
    'user_id', 'timestamp'
  )
  return events, state


def relative_desire(world, state, rows, items, times) -> np.ndarray:
  """Choice weight of `items` [A] against an average item for a user with even preferences and no history."""
  category, users, now = world.traits.category_I[items], state.users[rows], world.decay(times)
  lam = world.traits.base_UxC[users, category] + now * state.excitation[rows, category]
  lam = lam * np.exp(-now * state.inhibition[rows, category])
  contacts = 1 + now * state.consideration[rows, items]
  return (
    lam * world.attraction(users, items) * contacts**world.fitted.consideration * world.config.items
  )
