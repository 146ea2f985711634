"""The simulated world: seeds, closed forms, planted roles, A/B responses, marginals.

Closed forms are compared with brute force.
"""

import dataclasses

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, ConfigError, SimulatorConfig
from rolegen_jax.simulator import behavior, marginals, roles, rules, world

CONFIG = SimulatorConfig(users=500)


@pytest.fixture(scope='module')
def log():
  return world.simulate(CONFIG)


def occasion(log, number):
  """Return (user, time, bought item, earlier events of the user) of one planted occasion."""
  occasions = log.planted.select('user_id', 'occasion_timestamp').unique()
  user, time = occasions.sort('user_id', 'occasion_timestamp').row(number)
  mine = log.events.filter(pl.col('user_id') == user)
  bought = mine.filter(pl.col('timestamp') == time)['item_id'].item()
  return user, time, bought, mine.filter(pl.col('timestamp') < time)


def log_p(log, user, time, history):
  return log.world.log_p_conversion(log.world.state(history, np.array([user])), np.array([time]))[0]


def test_equal_seeds_give_equal_logs_and_other_seeds_other_logs():
  config = SimulatorConfig(users=60, items=200)
  first, same, other = (world.simulate(dataclasses.replace(config, seed=s)) for s in (0, 0, 1))
  for name in ('events', 'items', 'planted'):
    assert getattr(first, name).equals(getattr(same, name))
    assert not getattr(first, name).equals(getattr(other, name))
  rebuilt = world.World.build(config)
  assert np.array_equal(rebuilt.traits.base_UxC, first.world.traits.base_UxC)


def test_a_world_of_too_few_items_is_refused():
  with pytest.raises(ConfigError, match='simulator.items=30, simulator.categories=24'):
    world.World.build(SimulatorConfig(users=10, items=30))


def test_contract_columns_and_strictly_increasing_times(log):
  assert log.events.schema == {
    'user_id': pl.Int64,
    'item_id': pl.Int64,
    'event': pl.String,
    'timestamp': pl.Int64,
  }
  assert {'item_id', 'title', 'category_code', 'brand', 'price'} == set(log.items.columns)
  assert log.items['item_id'].n_unique() == CONFIG.items
  assert log.items.null_count().sum_horizontal().item() == 0
  gaps = log.events.select(pl.col('timestamp').diff().over('user_id')).to_series().drop_nulls()
  assert gaps.min() > 0
  assert set(log.events['event']) == {'view', 'fav', 'cart', 'purchase'} <= set(EVENT_NAMES)
  days = log.world.day(log.events['timestamp'].to_numpy())
  assert days.min() >= 0 and days.max() < log.world.rules.days


def test_every_planted_pair_is_an_event_before_its_occasion(log):
  columns = ['user_id', 'occasion_timestamp', 'timestamp', 'item_id', 'event', 'role', 'effect']
  assert log.planted.columns == columns and log.planted['effect'].is_finite().all()
  assert (log.planted['timestamp'] < log.planted['occasion_timestamp']).all()
  keys = ['user_id', 'timestamp', 'item_id', 'event']
  assert log.planted.join(log.events, on=keys, how='anti').height == 0
  assert log.planted.group_by('user_id', 'occasion_timestamp').len()['len'].max() == 24


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
  view, cart, buy = world.VIEW, world.CART, world.PURCHASE
  items = np.array([first, other, second, first, first, second, first])
  codes = np.array([view, view, view, cart, buy, view, view])
  times = np.array([0, 1, 2, 3, 4, 5, 25]) * world.DAY
  role_codes = roles.contact_roles(log.world, np.zeros(7, int), items, codes, times)
  names = [ROLE_NAMES[code] for code in role_codes]
  assert names[:4] == ['ANCHOR', 'ANCHOR', 'COMPARE', 'REINFORCE']
  assert names[5:] == ['ANCHOR', 'ANCHOR']  # after the purchase, and after more than 14 days


def test_conversion_probabilities_sum_to_one_for_any_history(log):
  times = np.full(CONFIG.users, log.world.rules.start + 100 * world.DAY)
  edited = log.events.filter(pl.col('timestamp') < times[0]).sample(fraction=0.5, seed=3)
  state = log.world.state(edited)
  p = np.exp(log.world.log_p_conversion(state, times))
  assert p.shape == (CONFIG.users, CONFIG.items) and (p > 0).all()
  np.testing.assert_allclose(p.sum(1), 1, rtol=1e-10)
  hazard = log.world.hazard(state, times)
  assert ((hazard >= 0) & (hazard < 1)).all()


@pytest.mark.parametrize('number', [3, 150, 700])
def test_removal_effects_equal_brute_force(log, number):
  user, time, bought, history = occasion(log, number)
  planted = log.planted.filter((pl.col('user_id') == user) & (pl.col('occasion_timestamp') == time))
  log_p_with = log_p(log, user, time, history)[bought]
  for row in planted.iter_rows(named=True):
    others = history.filter(pl.col('timestamp') != row['timestamp'])
    log_p_without = log_p(log, user, time, others)[bought]
    assert row['effect'] == pytest.approx(log_p_with - log_p_without, abs=1e-8)


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


def test_showing_the_active_intent_sells_more_than_random_items(log):
  users, day = np.arange(CONFIG.users), log.world.rules.days
  state = log.world.state(log.events)
  times = np.full(CONFIG.users, log.world.rules.start + day * world.DAY)
  intent = np.argsort(-log.world.log_p_conversion(state, times), axis=1)[:, :10]

  def orders(shown, seed):
    events, _ = log.world.act(state, users, shown, day, np.random.default_rng(seed))
    return events.filter(pl.col('event') == 'purchase').height

  differences = []
  for seed in range(12):
    random = np.random.default_rng(100 + seed).integers(0, CONFIG.items, intent.shape)
    differences.append(orders(intent, seed) - orders(random, seed))
  half = 2.2 * np.std(differences, ddof=1) / np.sqrt(len(differences))  # t interval, 95 %
  assert np.mean(differences) - half > 0


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


def test_visitors_are_those_who_act_that_day(log):
  users, day = np.arange(100, CONFIG.users), log.world.rules.days
  shown = np.zeros((len(users), 2), int)
  state = log.world.state(log.events)
  events, _ = log.world.act(state, users, shown, day, np.random.default_rng(7))
  visitors = users[log.world.visitors(users, np.random.default_rng(7))]
  assert 0 < len(visitors) < len(users) and set(visitors) == set(events['user_id'])


def test_the_held_back_world_has_other_strengths_and_the_same_marginals():
  default, other = (
    world.World.build(SimulatorConfig(preset=preset, users=50))
    for preset in ('alibaba2014', rules.HELD_BACK)
  )
  assert other.fitted == default.fitted
  default_rules, other_rules = vars(default.rules), vars(other.rules)
  changed = {name for name, value in other_rules.items() if value != default_rules[name]}
  assert changed == set(rules.HELD_BACK_STRENGTHS) - {'complement_kick'}
  factors = [other_rules[name] / default_rules[name] for name in rules.HELD_BACK_STRENGTHS]
  limit = np.log(1.5)
  drawn = np.exp(np.random.default_rng(2026).uniform(-limit, limit, len(factors)))
  np.testing.assert_allclose(factors, drawn, rtol=0.05)


@pytest.mark.parametrize('preset', ['alibaba2014', 'taobao_userbehavior_1k'])
def test_marginals_stay_near_the_real_log(preset):
  fit = rules.load_presets()[preset]
  # Not the seed of the fit.
  config = SimulatorConfig(preset=preset, users=900, events_per_user_scale=1.0, seed=1)
  simulated = world.World.build(config)
  user, item, code, time = behavior.draw_log(simulated)
  events = pl.DataFrame(
    {'user_id': user, 'item_id': item, 'event': np.array(EVENT_NAMES)[code], 'timestamp': time}
  )
  view = marginals.view_of(preset, simulated.rules.days)
  summary = marginals.summary(events, per_item=fit['target']['per_item'], **view)
  distances = marginals.distances(summary, fit['target'])
  for name, fitted_distance in fit['distance'].items():
    assert distances[name] < fitted_distance + 0.1, name
