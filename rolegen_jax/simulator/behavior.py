"""How shoppers of the simulated world act: one drawn event, a full log, and a day of an A/B test.

Vectorized over users, looping over the index of the event. A users that act; all other shapes as in
`world`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.simulator.rules import DAY, Uniforms, stream

if TYPE_CHECKING:
  from rolegen_jax.simulator.base import State, World

VIEW, FAV, CART, PURCHASE = map(EVENT_NAMES.index, ('view', 'fav', 'cart', 'purchase'))

# Uniforms that one event takes, by column: does the user buy; by which mechanism is the event
# drawn; in which category; does it go back to a considered item; which item; which kind of contact;
# what is bought.
NOISE = 7
U_BUYS, U_MECHANISM, U_CATEGORY, U_REVISIT, U_ITEM, U_KIND, U_BOUGHT = range(NOISE)
# Uniforms that one shown item takes, by column.
SHOWN_NOISE = 4
U_EXAMINED, U_VIEWED, U_SHOWN_BUYS, U_SHOWN_BOUGHT = range(SHOWN_NOISE)


def choose(weight_AxN: np.ndarray, u_A: np.ndarray) -> np.ndarray:
  """Draw an index in proportion to each row of non-negative weights, by inverse CDF."""
  cdf = np.cumsum(weight_AxN, axis=1)
  return np.minimum((cdf < (u_A * cdf[:, -1])[:, None]).sum(1), weight_AxN.shape[1] - 1)


def draw_purchases(
  world: World,
  state: State,
  rows: np.ndarray,
  times: np.ndarray,
  u_A: np.ndarray,
  boosted: np.ndarray | None = None,
) -> np.ndarray:
  """Draw the items [A] bought by `rows` of `state` at `times`, from the closed form.

  boosted: [A], items that are `shown_boost` times likelier.
  """
  p = np.exp(world.log_p_conversion(state.rows(rows), times))
  if boosted is not None:
    p[np.arange(len(rows)), boosted] *= world.rules.shown_boost
  return choose(p, u_A)


def contact_codes(world: World, revisits: np.ndarray, u_A: np.ndarray) -> np.ndarray:
  """Draw view, fav or cart."""
  (_, first_fav, first_cart), (_, again_fav, again_cart) = _mark_shares(world)
  p_fav = np.where(revisits, again_fav, first_fav)
  p_cart = np.where(revisits, again_cart, first_cart)
  return np.where(u_A < p_fav, FAV, np.where(u_A < p_fav + p_cart, CART, VIEW))


def code_shares(world: World, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return the share of contacts that are `codes`, of first contacts and of repeated ones."""
  first, again = (np.array([*shares, 1.0]) for shares in _mark_shares(world))
  column = np.select([codes == VIEW, codes == FAV, codes == CART], [0, 1, 2], 3)
  return first[column], again[column]


def _mark_shares(world: World) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
  """Return shares of (view, fav, cart) of first contacts and of repeated ones.

  A fav or cart falls on a repeated contact `repeat_mark_odds` times as often as on a first one.
  """
  odds, fitted = world.rules.repeat_mark_odds, world.fitted
  expected = 1 + (odds - 1) * fitted.revisit / 2
  shares = []
  for lift in (1 / expected, odds / expected):
    p_fav, p_cart = fitted.fav_share * lift, fitted.cart_share * lift
    shares.append((1 - p_fav - p_cart, p_fav, p_cart))
  return shares[0], shares[1]


def draw_log(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Draw the full log: (users, items, event codes, timestamps).

  Sorted by user and time; times are distinct within a user.
  """
  rng, rules, traits = stream(world.config.seed, 'log'), world.rules, world.traits
  n_users, end = world.config.users, rules.start + rules.days * DAY
  state = world.empty(np.arange(n_users))
  shape = world.fitted.gap_shape
  gap_scale = DAY / traits.visits_U / math.gamma(1 + 1 / shape)  # of a Weibull, seconds
  # A visit starts the log of every user: at a random point of the first gap, wrapped into the
  # period.
  first_gap = np.minimum(DAY / traits.visits_U, rules.days * DAY)
  times = rules.start + (rng.random(n_users) * first_gap).astype(np.int64)
  active = np.arange(n_users)
  events = []
  while len(active):
    u = rng.random((len(active), NOISE + 3))
    u_leaves, u_stay, u_away = u[:, NOISE:].T
    items, codes = world.draw_events(state, active, times[active], u[:, :NOISE])
    world.add(state, active, items, codes, times[active])
    events.append((active, items, codes, times[active]))
    leaves = u_leaves < 1 / traits.session_U[active]
    stay = 20 + 180 * -np.log1p(-u_stay)
    away = 1800 + gap_scale[active] * (-np.log1p(-u_away)) ** (1 / shape)
    times[active] += np.where(leaves, away, stay).astype(np.int64)
    active = active[times[active] < end]
  users, items, codes, times = (np.concatenate(column) for column in zip(*events))
  order = np.lexsort((times, users))
  return users[order], items[order], codes[order], times[order]


def arrivals(
  world: World, user_indices: np.ndarray, rng: Uniforms
) -> tuple[np.ndarray, np.ndarray]:
  """Draw who visits on a day, bool [N], and return the uniforms [N, 3] behind it.

  It is the first noise that a day takes.
  """
  u_visit = rng.random((len(user_indices), 3))
  return u_visit[:, 0] < -np.expm1(-world.traits.visits_U[user_indices]), u_visit


def act(
  world: World,
  state: State,
  user_indices: np.ndarray,
  shown_NxK: np.ndarray,
  day: int,
  rng: Uniforms,
) -> tuple[pl.DataFrame, Any]:
  """Play one day; see `World.act`."""
  rules = world.rules
  rows = _state_rows(world, state, user_indices)
  n_users, n_slots = shown_NxK.shape
  # All noise is drawn up front in fixed shapes: an arm's choices never shift the noise of later
  # slots.
  visits, u_visit = arrivals(world, user_indices, rng)
  u_shown = rng.random((n_users, n_slots, SHOWN_NOISE))
  u_organic = rng.random((n_users, rules.max_session, NOISE + 1))
  clock = rules.start + day * DAY + (u_visit[:, 1] * 43_200).astype(np.int64)
  visit_day = _VisitDay(world, state.copy(), user_indices, rows, clock)
  for slot in range(n_slots):
    visit_day.show(visits, shown_NxK[:, slot], slot, u_shown[:, slot])
  visit_day.browse(np.flatnonzero(visits), u_organic)
  return visit_day.events(), visit_day.state


def _state_rows(world: World, state: State, user_indices: np.ndarray) -> np.ndarray:
  """Return the row of each user in `state`, [N]. Raises ValueError."""
  row_of_user = np.full(world.config.users, -1)
  row_of_user[state.users] = np.arange(len(state.users))
  rows = row_of_user[user_indices]
  if (rows < 0).any():
    raise ValueError(f'user {user_indices[rows < 0][0]} is not in the state')
  if len(np.unique(user_indices)) < len(user_indices):
    raise ValueError('user_indices holds a user twice')
  return rows


@dataclasses.dataclass
class _VisitDay:
  """The visits of N users on one day, played in step; `state`, `clock` and `log` move on."""

  world: World
  state: State
  users: np.ndarray  # [N], user indices
  rows: np.ndarray  # [N], rows of `state`
  clock: np.ndarray  # int64 [N], seconds
  # Of each recorded step: user_id, item_id, event code, timestamp, shown, position.
  log: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)

  def show(self, visits: np.ndarray, shown: np.ndarray, position: int, u: np.ndarray) -> None:
    """Play the slot at `position`.

    visits: bool [N]. shown: items [N], -1 = nothing. u: uniforms [N, SHOWN_NOISE].
    """
    world, state = self.world, self.state
    is_examined = u[:, U_EXAMINED] < 1 / math.log2(position + 2)
    examining = np.flatnonzero(visits & (shown >= 0) & is_examined)
    rows, items = self.rows[examining], shown[examining]
    views = u[examining, U_VIEWED] < world.look_chances(state, rows, items, self.clock[examining])
    viewing, rows, items = examining[views], rows[views], items[views]
    self._record(viewing, items, np.full(len(viewing), VIEW), position)
    hazard = world.hazard(state.rows(rows), self.clock[viewing])
    buys = u[viewing, U_SHOWN_BUYS] < hazard
    buying, rows, items = viewing[buys], rows[buys], items[buys]
    u_bought = u[buying, U_SHOWN_BOUGHT]
    bought = draw_purchases(world, state, rows, self.clock[buying], u_bought, boosted=items)
    self._record(buying, bought, np.full(len(buying), PURCHASE), position)

  def browse(self, active: np.ndarray, u: np.ndarray) -> None:
    """Play what the `active` users do by themselves.

    u: uniforms [N, max_session, NOISE + 1], the last of which says who leaves.
    """
    for step in range(self.world.rules.max_session):
      rows, times, noise = self.rows[active], self.clock[active], u[active, step, :NOISE]
      items, codes = self.world.draw_events(self.state, rows, times, noise)
      self._record(active, items, codes, None)
      session = self.world.traits.session_U[self.users[active]]
      active = active[u[active, step, NOISE] >= 1 / session]

  def events(self) -> pl.DataFrame:
    """Return what was recorded, sorted by user and time."""
    users, items, codes, times, shown, position = (np.concatenate(c) for c in zip(*self.log))
    columns = {
      'user_id': users,
      'item_id': items,
      'event': np.array(EVENT_NAMES)[codes],
      'timestamp': times,
      'shown': shown,
      'position': position,
    }
    return pl.DataFrame(columns).sort('user_id', 'timestamp')

  def _record(
    self, active: np.ndarray, items: np.ndarray, codes: np.ndarray, position: int | None
  ) -> None:
    """Add an event to each of `active`; position: of the slot that led to it, None = none did."""
    times = self.clock[active]
    self.world.add(self.state, self.rows[active], items, codes, times)
    shown = np.full(len(active), position is not None)
    positions = np.full(len(active), -1 if position is None else position)
    self.log.append((self.users[active], items, codes, times, shown, positions))
    self.clock[active] += 30
