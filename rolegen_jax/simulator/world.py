"""The simulated worlds: seeded structural causal models of shoppers with closed-form conversions.

`simulate(config)` gives a log with planted roles and true removal effects; `build(config)` gives a
`World`, which answers what-if questions about any history and plays A/B tests. `config.kind` names
the model: docs/simulator.md has the item-trait simulator, docs/context_simulator.md the one of
contexts. SIMULATED DATA: no real shopper.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES, ConfigError, SimulatorConfig
from rolegen_jax.simulator import behavior, planted
from rolegen_jax.simulator.base import World
from rolegen_jax.simulator.context.world import ContextWorld
from rolegen_jax.simulator.item_traits.world import TraitWorld
from rolegen_jax.simulator.rules import DEPARTMENT_SIZE, Fitted


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
