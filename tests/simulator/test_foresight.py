"""What can be known of roles before a purchase, against the planted ones."""

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import ROLE_NAMES, SimulatorConfig
from rolegen_jax.simulator import world
from rolegen_jax.simulator.context import foresight
from rolegen_jax.simulator.foresight import role_ceiling
from rolegen_jax.simulator.histories import Moments


@pytest.mark.parametrize('kind', ['context', 'item_traits'])
def test_what_can_be_known_of_roles_is_calibrated(kind):
  """The chances agree with the planted roles on average, and knowing the category says more."""
  log = world.simulate(SimulatorConfig(users=400, items=240, kind=kind))
  shop, last = log.world, 8
  chosen = log.events.filter(pl.col('event') == 'purchase').sample(100, seed=2)
  users, times = chosen['user_id'].to_numpy(), chosen['timestamp'].to_numpy()
  bought = shop.traits.category_I[chosen['item_id'].to_numpy()]
  true = np.full((len(users), last), -1)
  for row, key in enumerate(zip(users, times)):
    is_mine = (pl.col('user_id') == key[0]) & (pl.col('occasion_timestamp') == key[1])
    roles = log.planted.filter(is_mine).sort('timestamp')['role'].to_list()[-last:]
    true[row, last - len(roles) :] = [ROLE_NAMES.index(role) for role in roles]
  known = true >= 0
  losses = []
  for categories in (None, bought):
    p = role_ceiling(shop, Moments(log.events, users, times, categories), last, draws=16)
    np.testing.assert_allclose(p.sum(-1), known, atol=1e-9)
    share = np.bincount(true[known], minlength=len(ROLE_NAMES)) / known.sum()
    np.testing.assert_allclose(p[known].mean(0), share, atol=0.05)
    of_truth = np.take_along_axis(p, np.maximum(true, 0)[..., None], axis=2)[..., 0][known]
    losses.append(-np.log((16 * of_truth + 0.1) / 16.8).mean())
  marginal = -np.log(share[true[known]]).mean()
  assert losses[1] < losses[0] / 2 < marginal / 2


def test_what_is_bought_tells_who_buys():
  """Draws of the context simulator: told the category, they are of the true persona more often."""
  log = world.simulate(SimulatorConfig(users=400, items=240, kind='context'))
  traits = log.world.traits
  chosen = log.events.filter(pl.col('event') == 'purchase').sample(100, seed=2)
  users, times = chosen['user_id'].to_numpy(), chosen['timestamp'].to_numpy()
  bought = traits.category_I[chosen['item_id'].to_numpy()]
  right = {}
  for categories in (None, bought):
    moments, rng = Moments(log.events, users, times, categories), np.random.default_rng(0)
    shares = []
    for part, drawn, shopper, items in foresight.draw_purchases(log.world, moments, 32, rng):
      persona = drawn.traits.persona_U[shopper].reshape(len(part), 32)
      shares += (persona == traits.persona_U[users[part]][:, None]).mean(1).tolist()
      of_category = traits.category_I[items].reshape(len(part), 32) == bought[part][:, None]
      assert categories is None or of_category.all()
    right[categories is None] = np.mean(shares)
  assert right[False] > right[True] + 0.01 > 0.5
