"""What can be known of roles in a simulated log before the purchase.

A role is towards a purchase by a shopper. Before it, the best that can be said is a distribution
over what will be bought, and over whatever else the simulator hides. It is estimated by drawing
these and working out the roles of each draw, which is exact but for the number of draws.

O moments, A of them at once, D draws of each, M events before a moment, R roles.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.simulator.base import World
from rolegen_jax.simulator.context import foresight as context
from rolegen_jax.simulator.context.world import ContextWorld
from rolegen_jax.simulator.histories import Moments, rows_of_users
from rolegen_jax.simulator.item_traits import foresight as item_traits
from rolegen_jax.simulator.item_traits.world import TraitWorld
from rolegen_jax.simulator.planted import Pairs, contact_roles, ranges


def role_ceiling(
  world: World, moments: Moments, last: int, draws: int = 64, seed: int = 0
) -> np.ndarray:
  """Return p(role of each of the M = `last` events | what came before), fp64 [O, M, R].

  Rows without an event are 0. The context simulator's hidden traits are drawn by Bayes' rule; the
  item-trait simulator's are the true ones, which no log tells, so there nobody can do as well.
  """
  rng = np.random.default_rng(seed)
  users, timestamps = moments.users, moments.timestamps
  events = rows_of_users(moments.log, np.arange(world.config.users))
  order = np.lexsort((events[3], events[0]))
  user, item, code, time = (column[order] for column in events)
  contacts = contact_roles(world, user, item, code, time)
  first, stop = (np.searchsorted(user, users, side) for side in ('left', 'right'))
  end = np.array([f + np.sum(time[f:s] < t) for f, s, t in zip(first, stop, timestamps)])
  recent = end[:, None] - np.arange(last, 0, -1)
  is_event = recent >= first[:, None]
  recent = np.where(is_event, recent, 0)
  result = np.zeros((len(users), last, len(ROLE_NAMES)))
  for part, drawn, shopper, bought in _draw(world, moments, draws, rng):
    many = np.repeat(part, draws)
    past, owner = ranges(first[many], end[many] - first[many])
    pairs = Pairs(
      users=shopper,
      times=timestamps[many],
      bought=bought,
      items=np.where(is_event[many], item[recent[many]], -1),
      codes=code[recent[many]],
      event_times=time[recent[many]],
      contacts=contacts[recent[many]],
      past=(owner, item[past], code[past], time[past]),
    )
    role, _ = drawn.roles_and_effects(pairs)
    counted = (role[..., None] == np.arange(len(ROLE_NAMES))).reshape(len(part), draws, last, -1)
    result[part] = counted.mean(1) * is_event[part][..., None]
  return result


def _draw(world: World, moments: Moments, draws: int, rng: np.random.Generator) -> Iterator[tuple]:
  """Draw what is bought, as the simulator's own `draw_purchases` says."""
  if isinstance(world, ContextWorld):
    return context.draw_purchases(world, moments, draws, rng)
  assert isinstance(world, TraitWorld)
  return item_traits.draw_purchases(world, moments, draws, rng)
