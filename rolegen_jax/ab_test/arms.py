"""One arm of an A/B test in the simulated shop: a policy shows, users respond, the policy observes.

Every uniform that decides what a user does on a day comes from a stream of (seed, user, day) alone:
arms of one seed share them (common random numbers), whatever was shown, and no user's noise depends
on who else visits. Arms then differ by what they show.

Shapes: N users of the cohort, D days, V users who come on a day.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rolegen_jax.ab_test.policies import Events, Policy
from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.runtime.progress import progress
from rolegen_jax.simulator.base import State, World
from rolegen_jax.simulator.histories import event_codes
from rolegen_jax.simulator.rules import DAY

VIEW, PURCHASE = (EVENT_NAMES.index(name) for name in ('view', 'purchase'))


class Played(NamedTuple):
  """What one arm did under one seed."""

  orders: np.ndarray  # int16 [N, D], items bought
  revenue: np.ndarray  # fp32 [N, D], their prices
  shown_views: np.ndarray  # int16 [N, D], views of items that the arm showed
  shown_orders: np.ndarray  # int16 [N, D], purchases that followed such a view at once
  visits: np.ndarray  # bool [N, D]


class Noise:
  """Uniforms for `users` [n] on one day, drawn as `World.act` draws from a generator.

  Row i comes from the stream of (seed, user i, day).
  """

  def __init__(self, seed: int, users: np.ndarray, day: int):
    self._streams = [
      np.random.Generator(np.random.Philox(key=np.array([seed << 32 | day, user], np.uint64)))
      for user in users.tolist()
    ]

  def random(self, shape: tuple[int, ...]) -> np.ndarray:
    """Return uniforms of a shape whose first axis is the users."""
    return np.stack([stream.random(shape[1:]) for stream in self._streams])


def play(
  world: World, state: State, policy: Policy, price_I: np.ndarray, seed: int, days: int, label: str
) -> Played:
  """Play `days` days from the end of the simulated log.

  The rows of `state` are the cohort that `policy` knows; `price_I` is the price of each item.
  """
  users, first = state.users, world.rules.days
  dtypes = (np.int16, np.float32, np.int16, np.int16, bool)
  played = Played(*(np.zeros((len(users), days), dtype) for dtype in dtypes))
  row_of = np.full(world.config.users, -1)
  row_of[users] = np.arange(len(users))
  policy.begin()
  for d in progress(range(days), label):
    day = first + d
    here = np.flatnonzero(world.visitors(users, Noise(seed, users, day)))
    if not len(here):
      continue
    shown = policy.recommend(here, world.rules.start + day * DAY)
    events, state = world.act(state, users[here], shown, day, Noise(seed, users[here], day))
    columns = ('user_id', 'item_id', 'timestamp', 'shown')
    user, item, time, of_slate = (events[name].to_numpy() for name in columns)
    row, code = row_of[user], event_codes(events['event'])
    policy.observe(Events(row, item, code, time))
    bought = code == PURCHASE
    played.visits[here, d] = True
    for table, value, mask in (
      (played.orders, 1, bought),
      (played.revenue, price_I[item], bought),
      (played.shown_views, 1, of_slate & (code == VIEW)),
      (played.shown_orders, 1, of_slate & bought),
    ):
      values = np.broadcast_to(value, len(row))[mask]
      table[:, d] = np.bincount(row[mask], values, len(users))
  return played
