"""What holds in every simulator: seeds, the contract, closed forms, A/B responses, marginals.

Closed forms are compared with brute force.
"""

import dataclasses

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import EVENT_NAMES, ConfigError, SimulatorConfig
from rolegen_jax.simulator import behavior, marginals, rules, world
from tests.simulator.occasions import log_p, occasion

CONFIG = SimulatorConfig(users=400)
KINDS = ('item_traits', 'context')


@pytest.fixture(scope='module', params=KINDS)
def log(request):
  return world.simulate(dataclasses.replace(CONFIG, kind=request.param))


@pytest.mark.parametrize('kind', KINDS)
def test_equal_seeds_give_equal_logs_and_other_seeds_other_logs(kind):
  config = SimulatorConfig(kind=kind, users=60, items=200)
  first, same, other = (world.simulate(dataclasses.replace(config, seed=s)) for s in (0, 0, 1))
  for name in ('events', 'items', 'planted'):
    assert getattr(first, name).equals(getattr(same, name))
    assert not getattr(first, name).equals(getattr(other, name))
  rebuilt = vars(world.build(config).traits)
  for name, trait in vars(first.world.traits).items():
    assert np.array_equal(rebuilt[name], trait), name


def test_a_world_of_too_few_items_is_refused():
  with pytest.raises(ConfigError, match='simulator.items=30, simulator.categories=24'):
    world.build(SimulatorConfig(users=10, items=30))


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


def test_conversion_probabilities_sum_to_one_for_any_history(log):
  times = np.full(CONFIG.users, log.world.rules.start + 100 * rules.DAY)
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


def test_effects_of_looks_equal_histories_with_a_view_more(log):
  users = np.arange(6)
  times = np.full(6, log.world.rules.start + log.world.rules.days * rules.DAY)
  items = np.random.default_rng(1).integers(0, CONFIG.items, (6, 5))
  effects = log.world.effects_of_looks(log.world.state(log.events, users), items, times)

  def hazard(events):
    return log.world.hazard(log.world.state(events, users), times)

  for k in range(5):
    looks = dict(user_id=users, item_id=items[:, k], event=['view'] * 6, timestamp=times)
    looks = pl.DataFrame(looks).cast(log.events.schema)
    expected = hazard(pl.concat([log.events, looks])) - hazard(log.events)
    np.testing.assert_allclose(effects[:, k], expected, atol=1e-12)
  assert (effects > 1e-3).any()


def test_showing_the_active_intent_sells_more_than_random_items(log):
  users, day = np.arange(CONFIG.users), log.world.rules.days
  state = log.world.state(log.events)
  times = np.full(CONFIG.users, log.world.rules.start + day * rules.DAY)
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


def test_visitors_are_those_who_act_that_day(log):
  users, day = np.arange(100, CONFIG.users), log.world.rules.days
  shown = np.zeros((len(users), 2), int)
  state = log.world.state(log.events)
  events, _ = log.world.act(state, users, shown, day, np.random.default_rng(7))
  visitors = users[log.world.visitors(users, np.random.default_rng(7))]
  assert 0 < len(visitors) < len(users) and set(visitors) == set(events['user_id'])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('preset', ['alibaba2014', 'taobao_userbehavior_1k'])
def test_marginals_stay_near_the_real_log(kind, preset):
  fit = rules.load_presets()[preset]
  # Not the seed of the fit.
  config = SimulatorConfig(kind, preset, users=900, events_per_user_scale=1.0, seed=1)
  simulated = world.build(config)
  user, item, code, time = behavior.draw_log(simulated)
  events = pl.DataFrame(
    {'user_id': user, 'item_id': item, 'event': np.array(EVENT_NAMES)[code], 'timestamp': time}
  )
  view = marginals.view_of(preset, simulated.rules.days)
  summary = marginals.summary(events, per_item=fit['target']['per_item'], **view)
  distances = marginals.distances(summary, fit['target'])
  for name, fitted_distance in fit[kind]['distance'].items():
    assert distances[name] < fitted_distance + 0.1, name
