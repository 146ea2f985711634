"""How shoppers of the simulated world act: one drawn event, a full log, and a day of an A/B test.

Vectorized over users, looping over the index of the event. A users that act; all other shapes as in
`world`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.simulator.rules import Uniforms, stream

if TYPE_CHECKING:
  from rolegen_jax.simulator.world import State, World

VIEW, FAV, CART, PURCHASE = map(EVENT_NAMES.index, ('view', 'fav', 'cart', 'purchase'))
DAY = 86_400

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


class Tables:
  """Item lists that drawing needs.

  items_CxN: items by category, padded with -1. trigger_1xI, distract_DxI: weights of triggers, and
  of the distractors against each of D departments.
  """

  def __init__(self, world: World) -> None:
    traits = world.traits
    members = [np.flatnonzero(traits.category_I == c) for c in range(world.config.categories)]
    self.items_CxN = np.full((len(members), max(map(len, members))), -1)
    for c, items in enumerate(members):
      self.items_CxN[c, : len(items)] = items
    weight_I = np.exp(traits.popularity_I)
    departments = np.arange(traits.department_C[-1] + 1)
    self.trigger_1xI = (weight_I * (traits.trigger_I >= 0))[None]
    self.distract_DxI = weight_I * (traits.distracts_I == departments[:, None])


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


def draw_events(
  world: World,
  tables: Tables,
  state: State,
  rows: np.ndarray,
  times: np.ndarray,
  u_AxQ: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Draw the next event of each of `rows` [A] of `state` at `times` [A]: (items, event codes).

  u_AxQ: uniforms [A, NOISE].
  """
  rules, traits = world.rules, world.traits
  users, now = state.users[rows], world.decay(times)
  raised = traits.base_UxC[users] + now[:, None] * state.excitation[rows]
  lam = raised * np.exp(-now[:, None] * state.inhibition[rows])
  total = lam.sum(1)
  buys = u_AxQ[:, U_BUYS] < traits.rate_U[users] * total / (total + rules.hazard_half)

  chances = [rules.p_explore, rules.p_trigger, rules.p_distract, rules.p_complement]
  mechanism = np.searchsorted(np.cumsum(chances), u_AxQ[:, U_MECHANISM], 'right')
  explores, triggers, distracts, complements, intends = (mechanism == k for k in range(5))
  category_weight = np.where(explores[:, None], traits.base_UxC[users], lam**rules.focus)
  category = choose(category_weight, u_AxQ[:, U_CATEGORY])
  department = traits.department_C[category]
  triggers &= tables.trigger_1xI.any()
  distracts &= tables.distract_DxI.any(1)[department]
  # An event "in the complement of the active intent" is in a category whose contacts kick that
  # intent.
  complemented_by = np.argsort(traits.complement_C)
  category = np.where(complements, complemented_by[category], category)

  items, revisits = _draw_contacts(world, tables, state, rows, times, category, intends, u_AxQ)
  if triggers.any():
    weight = np.broadcast_to(tables.trigger_1xI, (triggers.sum(), world.config.items))
    items[triggers] = choose(weight, u_AxQ[triggers, U_ITEM])
  if distracts.any():
    weight = tables.distract_DxI[department[distracts]]
    items[distracts] = choose(weight, u_AxQ[distracts, U_ITEM])
  codes = _contact_codes(world, revisits, u_AxQ[:, U_KIND])
  if buys.any():
    bought = draw_purchases(world, state, rows[buys], times[buys], u_AxQ[buys, U_BOUGHT])
    items[buys] = bought
    codes[buys] = PURCHASE
  return items, codes


def _draw_contacts(
  world: World,
  tables: Tables,
  state: State,
  rows: np.ndarray,
  times: np.ndarray,
  category: np.ndarray,
  intends: np.ndarray,
  u_AxQ: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Draw (items [A] in `category`, whether they are revisits of a considered item [A])."""
  users, now = state.users[rows], world.decay(times)
  options = tables.items_CxN[category]
  is_item = options >= 0
  weight = np.where(is_item, world.attraction(users[:, None], options), 0)
  considered = now[:, None] * state.consideration[rows[:, None], options]
  contacts = np.where(is_item, considered, 0)
  mass = contacts.sum(1)
  p_revisit = world.fitted.revisit * mass / (mass + 0.5)
  revisits = intends & (u_AxQ[:, U_REVISIT] < p_revisit)
  chosen = choose(np.where(revisits[:, None], contacts, weight), u_AxQ[:, U_ITEM])
  return options[np.arange(len(rows)), chosen], revisits


def _contact_codes(world: World, revisits: np.ndarray, u_A: np.ndarray) -> np.ndarray:
  """Draw view, fav or cart.

  A fav or cart falls on a repeated contact `repeat_mark_odds` times as often as on a first one.
  """
  odds, fitted = world.rules.repeat_mark_odds, world.fitted
  expected = 1 + (odds - 1) * fitted.revisit / 2
  lift = np.where(revisits, odds, 1) / expected
  p_fav, p_cart = fitted.fav_share * lift, fitted.cart_share * lift
  return np.where(u_A < p_fav, FAV, np.where(u_A < p_fav + p_cart, CART, VIEW))


def draw_log(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Draw the full log: (users, items, event codes, timestamps).

  Sorted by user and time; times are distinct within a user.
  """
  rng, rules, traits = stream(world.config.seed, 'log'), world.rules, world.traits
  n_users, end = world.config.users, rules.start + rules.days * DAY
  tables, state = Tables(world), world.empty(np.arange(n_users))
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
    items, codes = draw_events(world, tables, state, active, times[active], u[:, :NOISE])
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
) -> tuple[pl.DataFrame, State]:
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
  visit_day = _VisitDay(world, Tables(world), state.copy(), user_indices, rows, clock)
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
  tables: Tables
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
    desire = _relative_desire(world, state, rows, items, self.clock[examining])
    views = u[examining, U_VIEWED] < desire / (desire + world.rules.view_half)
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
      items, codes = draw_events(self.world, self.tables, self.state, rows, times, noise)
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


def _relative_desire(
  world: World, state: State, rows: np.ndarray, items: np.ndarray, times: np.ndarray
) -> np.ndarray:
  """Return the choice weight of `items` [A] for `rows` [A] of `state`.

  It is relative to an average item for a user with even preferences and no history.
  """
  category, users, now = world.traits.category_I[items], state.users[rows], world.decay(times)
  raised = world.traits.base_UxC[users, category] + now * state.excitation[rows, category]
  lam = raised * np.exp(-now * state.inhibition[rows, category])
  contacts = 1 + now * state.consideration[rows, items]
  contact_factor = contacts**world.fitted.consideration
  return lam * world.attraction(users, items) * contact_factor * world.config.items
