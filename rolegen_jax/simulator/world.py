"""The simulated worlds: seeded structural causal models of shoppers with closed-form conversions.

`simulate(config)` gives a log with planted roles and true removal effects; a `World` answers
what-if questions about any history and plays A/B tests. `config.kind` names the model:
docs/simulator.md has the item-trait simulator, docs/context_simulator.md the one of contexts.
SIMULATED DATA: no real shopper.

N rows of a state, A of them that act, I items, K shown items.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from rolegen_jax.config import EVENT_NAMES, ConfigError, SimulatorConfig
from rolegen_jax.simulator import behavior, planted
from rolegen_jax.simulator.context.world import ContextWorld
from rolegen_jax.simulator.item_traits.world import TraitWorld
from rolegen_jax.simulator.rules import DEPARTMENT_SIZE, CommonRules, Fitted, Uniforms


class State(Protocol):
  """Latent state of N users after a history."""

  @property
  def users(self) -> np.ndarray:
    """User indices, [N]."""
    ...

  def rows(self, index: np.ndarray) -> Any:
    """Return the state of these rows."""
    ...

  def copy(self) -> Any:
    """Return a state that shares no memory with this one."""
    ...


class World(Protocol):
  """What a simulator answers; timestamps are of each row, [N] or [A]."""

  @property
  def config(self) -> SimulatorConfig: ...

  @property
  def rules(self) -> CommonRules: ...

  @property
  def fitted(self) -> Fitted: ...

  @property
  def traits(self) -> Any:
    """Fixed properties of users and items; each model's own."""
    ...

  def day(self, timestamps: ArrayLike) -> np.ndarray:
    """Return days since the start of the world, as floats."""
    ...

  def empty(self, users: np.ndarray) -> Any:
    """Return the state of users [N] without history."""
    ...

  def add(
    self,
    state: Any,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> None:
    """Add one event to each of `rows` IN PLACE; a row may occur once only."""
    ...

  def extended(
    self,
    state: Any,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> Any:
    """Return `state` after more events, flat arrays; `rows` may repeat. `state` stays."""
    ...

  def state(self, histories: pl.DataFrame, users: ArrayLike | None = None) -> Any:
    """Return the state after any histories, edited ones too.

    histories: columns user_id, item_id, event, timestamp, in any order. users: [N], the rows of the
    state; None = every user of the world. Events of other users are ignored.
    """
    ...

  def state_of_rows(
    self,
    users: ArrayLike,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> Any:
    """Return the same from flat arrays, one element per event; `rows` index `users` [N]."""
    ...

  def hazard(self, state: Any, timestamps: ArrayLike) -> np.ndarray:
    """Return the probability that an event is a purchase, [N]."""
    ...

  def log_p_conversion(self, state: Any, timestamps: ArrayLike) -> np.ndarray:
    """Return log p(item | a purchase happens, history), [N, I]; rows sum to 1 in probability."""
    ...

  def roles_and_effects(self, pairs: planted.Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return role and true removal effect of each pair, [O, M]; NaN where there is no event."""
    ...

  def desire(
    self, state: Any, rows: np.ndarray, items: np.ndarray, timestamps: np.ndarray
  ) -> np.ndarray:
    """Return the choice weight of `items` [A] for `rows` [A] of `state`.

    It is relative to an average item for a user with even preferences and no history.
    """
    ...

  def draw_events(
    self, state: Any, rows: np.ndarray, timestamps: np.ndarray, u_AxQ: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draw the next event of each of `rows` [A] of `state`: (items, event codes).

    u_AxQ: uniforms [A, behavior.NOISE].
    """
    ...

  def act(
    self,
    state: Any,
    user_indices: ArrayLike,
    shown_items: ArrayLike,
    day: int,
    rng: Uniforms,
  ) -> tuple[pl.DataFrame, Any]:
    """Play one day of an A/B test: who visits sees the items shown, then browses as always.

    user_indices: [N], distinct and in `state.users`, else ValueError. shown_items: [N, K], -1 =
    nothing.

    Returns the events of the day (user_id, item_id, event, timestamp, shown: bool, position: 0.. or
    -1) and the state after them; `state` is not changed. Pure given `rng`; two arms with equal
    generators share the noise of each user and slot.
    """
    ...

  def visitors(self, user_indices: ArrayLike, rng: Uniforms) -> np.ndarray:
    """Return who visits on the day that `act` plays with an equal generator, bool [N].

    The others see nothing of what is shown to them.
    """
    ...

  def item_table(self) -> pl.DataFrame:
    """Return the items as a shop files them: item_id, title, category_code, brand, price."""
    ...


@dataclasses.dataclass(frozen=True)
class SimulatedLog:
  """A log of the world, and the world that made it."""

  events: pl.DataFrame  # user_id, item_id, event, timestamp, sorted by user and time
  items: pl.DataFrame  # item_id, title, category_code, brand, price
  planted: pl.DataFrame  # user_id, occasion_timestamp, timestamp, item_id, event, role, effect
  world: World


def build(config: SimulatorConfig, fitted: Fitted | None = None) -> World:
  """Return the world of `config`.

  fitted: replaces the preset's parameters (for the fit itself). Raises ConfigError when there are
  too few categories or items.
  """
  least = 2 * DEPARTMENT_SIZE
  if config.categories < least or config.items < 4 * config.categories:
    raise ConfigError(
      f'simulator.items={config.items}, simulator.categories={config.categories}: '
      f'must be at least {least} categories and 4 items in each'
    )
  if config.kind == 'context':
    return ContextWorld.build(config, fitted)
  return TraitWorld.build(config, fitted)


def simulate(config: SimulatorConfig, fitted: Fitted | None = None) -> SimulatedLog:
  """Simulate the full log of `config`: seconds for 3000 users on one core."""
  world = build(config, fitted)
  users, items, codes, times = behavior.draw_log(world)
  events = pl.DataFrame(
    {'user_id': users, 'item_id': items, 'event': np.array(EVENT_NAMES)[codes], 'timestamp': times}
  )
  table = planted.planted(world, users, items, codes, times)
  return SimulatedLog(events, world.item_table(), table, world)
