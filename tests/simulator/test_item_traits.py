"""The item-trait simulator: roles, state, responses to what is shown, the held-back strengths."""

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, SimulatorConfig
from rolegen_jax.simulator import behavior, planted, rules, world
from rolegen_jax.simulator.item_traits.rules import HELD_BACK_STRENGTHS
from tests.simulator.occasions import occasion

CONFIG = SimulatorConfig(users=500)


@pytest.fixture(scope='module')
def log():
  return world.simulate(CONFIG)


def test_all_roles_occur_and_mean_effects_have_the_expected_sign(log):
  share = dict(log.planted['role'].value_counts(normalize=True).iter_rows())
  assert set(share) == set(ROLE_NAMES) and min(share.values()) >= 0.015
  effect = dict(log.planted.group_by('role').agg(pl.col('effect').mean()).iter_rows())
  assert effect['TRIGGER'] > 0.3 and effect['DISTRACT'] < -0.2 and abs(effect['EXPLORE']) < 0.06
  assert effect['REINFORCE'] > effect['COMPARE'] > 0.05
  assert effect['ANCHOR'] > 0.1 and effect['COMPLEMENT'] > 0


def test_intent_roles_on_a_history_worked_by_hand(log):
  category_I = log.world.traits.category_I
  first, second = np.flatnonzero(category_I == 3)[:2]
  other = np.flatnonzero(category_I == 4)[0]
  view, cart, buy = behavior.VIEW, behavior.CART, behavior.PURCHASE
  items = np.array([first, other, second, first, first, second, first])
  codes = np.array([view, view, view, cart, buy, view, view])
  times = np.array([0, 1, 2, 3, 4, 5, 25]) * rules.DAY
  role_codes = planted.contact_roles(log.world, np.zeros(7, int), items, codes, times)
  names = [ROLE_NAMES[code] for code in role_codes]
  assert names[:4] == ['ANCHOR', 'ANCHOR', 'COMPARE', 'REINFORCE']
  assert names[5:] == ['ANCHOR', 'ANCHOR']  # after the purchase, and after more than 14 days


def test_state_of_a_history_equals_adding_event_by_event(log):
  user, _, _, history = occasion(log, 10)
  expected = log.world.state(history, np.array([user]))
  state = log.world.empty(np.array([user]))
  for row in history.iter_rows(named=True):
    event = 0, row['item_id'], EVENT_NAMES.index(row['event']), row['timestamp']
    log.world.add(state, *(np.array([value]) for value in event))
  for field in ('excitation', 'inhibition', 'consideration'):
    values, expected_values = getattr(state, field), getattr(expected, field)
    np.testing.assert_allclose(values, expected_values, rtol=1e-9, atol=1e-9)


def test_act_is_pure_and_a_shown_trigger_wakes_its_target(log):
  users, day = np.arange(CONFIG.users), log.world.rules.days
  state, trigger_I = log.world.state(log.events), log.world.traits.trigger_I
  before = state.excitation.copy()
  item = np.flatnonzero(trigger_I >= 0)[0]
  shown = np.full((CONFIG.users, 1), item)
  events, after = log.world.act(state, users, shown, day, np.random.default_rng(5))
  again, _ = log.world.act(state, users, shown, day, np.random.default_rng(5))
  assert events.equals(again) and np.array_equal(state.excitation, before)
  viewers = events.filter(pl.col('shown') & (pl.col('event') == 'view'))['user_id'].to_numpy()
  assert len(viewers) and (after.excitation > before)[viewers, trigger_I[item]].all()
  two_users = state.rows(np.array([0, 1]))
  with pytest.raises(ValueError, match='not in the state'):
    log.world.act(two_users, np.array([7]), shown[:1], day, np.random.default_rng(5))


def test_the_held_back_world_has_other_strengths_and_the_same_marginals():
  default, other = (
    world.build(SimulatorConfig(preset=preset, users=50))
    for preset in ('alibaba2014', rules.HELD_BACK)
  )
  assert other.fitted == default.fitted
  default_rules, other_rules = vars(default.rules), vars(other.rules)
  changed = {name for name, value in other_rules.items() if value != default_rules[name]}
  assert changed == set(HELD_BACK_STRENGTHS) - {'complement_kick'}
  factors = [other_rules[name] / default_rules[name] for name in HELD_BACK_STRENGTHS]
  limit = np.log(1.5)
  drawn = np.exp(np.random.default_rng(2026).uniform(-limit, limit, len(factors)))
  np.testing.assert_allclose(factors, drawn, rtol=0.05)
