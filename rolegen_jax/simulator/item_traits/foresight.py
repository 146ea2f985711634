"""What shoppers of the item-trait simulator may buy, their traits known.

A moments at once, D draws of each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rolegen_jax.simulator.behavior import choose
from rolegen_jax.simulator.histories import Moments, rows_of_users
from rolegen_jax.simulator.item_traits.world import TraitWorld

ROWS = 128  # moments that are worked on at once


def draw_purchases(
  world: TraitWorld, moments: Moments, draws: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, TraitWorld, np.ndarray, np.ndarray]]:
  """Draw what is bought at moments [O] by shoppers whose hidden traits are known.

  Yields, for some moments at a time, (which [A], the world, the shoppers [A * D], what they buy
  [A * D]), the draws of a moment side by side.
  """
  for start in range(0, len(moments.users), ROWS):
    part = np.arange(start, min(start + ROWS, len(moments.users)))
    users, now = moments.users[part], moments.timestamps[part]
    known, row = np.unique(users, return_inverse=True)
    of_user, items, codes, times = rows_of_users(moments.log, known)
    # An event belongs to every moment of its user that comes after it.
    moment, event = np.nonzero((row[:, None] == of_user) & (times < now[:, None]))
    state = world.state_of_rows(users, moment, items[event], codes[event], times[event])
    p = np.exp(world.log_p_conversion(state, now))
    if moments.categories is not None:
      p *= world.traits.category_I == moments.categories[part][:, None]
    bought = choose(np.repeat(p, draws, axis=0), rng.random(len(part) * draws))
    yield part, world, np.repeat(users, draws), bought
