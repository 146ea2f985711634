"""What every simulated world answers: histories to states, and what follows from a state.

Each simulator is a `World` of its own: `item_traits/world.py`, `context/world.py`.

N rows of a state, A of them that act, I items, K shown items.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from rolegen_jax.config import SimulatorConfig
from rolegen_jax.simulator import behavior, planted
from rolegen_jax.simulator.histories import rows_of_users
from rolegen_jax.simulator.rules import DAY, CommonRules, Fitted, Uniforms


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


@dataclasses.dataclass(frozen=True)
class World(abc.ABC):
  """What a simulator answers; timestamps are of each row, [N] or [A]."""

  config: SimulatorConfig
  rules: CommonRules
  fitted: Fitted
  traits: Any  # fixed properties of users and items; each model's own

  def day(self, timestamps: ArrayLike) -> np.ndarray:
    """Return days since the start of the world, as floats."""
    return (np.asarray(timestamps) - self.rules.start) / DAY

  @abc.abstractmethod
  def empty(self, users: np.ndarray) -> Any:
    """Return the state of users [N] without history."""

  @abc.abstractmethod
  def add(
    self,
    state: Any,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> None:
    """Add one event to each of `rows` IN PLACE; a row may occur once only."""

  @abc.abstractmethod
  def extended(
    self,
    state: Any,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> Any:
    """Return `state` after more events, flat arrays; `rows` may repeat. `state` stays."""

  def state(self, histories: pl.DataFrame, users: ArrayLike | None = None) -> Any:
    """Return the state after any histories, edited ones too.

    histories: columns user_id, item_id, event, timestamp, in any order. users: [N], the rows of the
    state; None = every user of the world. Events of other users are ignored.
    """
    users = np.arange(self.config.users) if users is None else np.asarray(users)
    return self.state_of_rows(users, *rows_of_users(histories, users))

  @abc.abstractmethod
  def state_of_rows(
    self,
    users: ArrayLike,
    rows: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
  ) -> Any:
    """Return the same from flat arrays, one element per event; `rows` index `users` [N]."""

  @abc.abstractmethod
  def hazard(self, state: Any, timestamps: ArrayLike) -> np.ndarray:
    """Return the probability that an event is a purchase, [N]."""

  @abc.abstractmethod
  def log_p_conversion(self, state: Any, timestamps: ArrayLike) -> np.ndarray:
    """Return log p(item | a purchase happens, history), [N, I]; rows sum to 1 in probability."""

  @abc.abstractmethod
  def roles_and_effects(self, pairs: planted.Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return role and true removal effect of each pair, [O, M]; NaN where there is no event."""

  @abc.abstractmethod
  def desire(
    self, state: Any, rows: np.ndarray, items: np.ndarray, timestamps: np.ndarray
  ) -> np.ndarray:
    """Return the choice weight of `items` [A] for `rows` [A] of `state`.

    It is relative to an average item for a user with even preferences and no history.
    """

  def look_chances(
    self, state: Any, rows: np.ndarray, items: np.ndarray, timestamps: np.ndarray
  ) -> np.ndarray:
    """Return the chance that `rows` [A] of `state` view `items` [A] that they notice, [A]."""
    desire = self.desire(state, rows, items, timestamps)
    return desire / (desire + self.rules.view_half)

  def effects_of_looks(self, state: Any, items: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """Return what a view would add to the chance that the next event is a purchase, [N, K].

    items: [N, K], for each row of `state` and each alone. It is the true instrumental effect of an
    item; what the purchase would be does not count.
    """
    rows, before = np.arange(len(items)), self.hazard(state, timestamps)
    effects = np.empty(items.shape)
    for k in range(items.shape[1]):
      after = state.copy()
      self.add(after, rows, items[:, k], np.full(len(rows), behavior.VIEW), timestamps)
      effects[:, k] = self.hazard(after, timestamps) - before
    return effects

  @abc.abstractmethod
  def draw_events(
    self, state: Any, rows: np.ndarray, timestamps: np.ndarray, u_AxQ: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draw the next event of each of `rows` [A] of `state`: (items, event codes).

    u_AxQ: uniforms [A, behavior.NOISE].
    """

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
    return behavior.act(self, state, np.asarray(user_indices), np.asarray(shown_items), day, rng)

  def visitors(self, user_indices: ArrayLike, rng: Uniforms) -> np.ndarray:
    """Return who visits on the day that `act` plays with an equal generator, bool [N].

    The others see nothing of what is shown to them.
    """
    return behavior.arrivals(self, np.asarray(user_indices), rng)[0]

  @abc.abstractmethod
  def item_table(self) -> pl.DataFrame:
    """Return the items as a shop files them: item_id, title, category_code, brand, price."""
