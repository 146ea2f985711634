"""The simulated world: seeds, closed forms against brute force, planted roles, A/B responses, marginals."""

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, ConfigError, SimulatorConfig
from rolegen_jax.simulator import behavior, marginals, rules, world

CONFIG = SimulatorConfig(users=500)


@pytest.fixture(scope='module')
def log():
  return world.simulate(CONFIG)


def occasion(log, number):
  """(user, time, bought item, earlier events of the user) of one planted occasion."""
  planted = (
    log.planted.select('user_id', 'occasion_timestamp')
    .unique()
    .sort('user_id', 'occasion_timestamp')
  )
  user, time = planted.row(number)
  mine = log.events.filter(pl.col('user_id') == user)
  bought = mine.filter(pl.col('timestamp') == time)['item_id'].item()
  return user, time, bought, mine.filter(pl.col('timestamp') < time)


def log_p(log, user, time, history):
  return log.world.log_p_conversion(log.world.state(history, np.array([user])), np.array([time]))[0]


def test_same_seed_same_log_other_seed_other_log():
  small = SimulatorConfig(users=60, items=200)
  a, b, c = (world.simulate(SimulatorConfig(users=60, items=200, seed=s)) for s in (0, 0, 1))
  for name in ('events', 'items', 'planted'):
    assert getattr(a, name).equals(getattr(b, name))
    assert not getattr(a, name).equals(getattr(c, name))
  rebuilt = world.World.build(small)
  assert np.array_equal(rebuilt.traits.base_UxC, a.world.traits.base_UxC)

  with pytest.raises(ConfigError, match='categories'):
    world.World.build(SimulatorConfig(users=10, items=30))


def test_contract_columns_and_strictly_increasing_times(log):
  assert log.events.schema == {
    'user_id': pl.Int64,
    'item_id': pl.Int64,
    'event': pl.String,
    'timestamp': pl.Int64,
  }
  assert {'item_id', 'title', 'category_code', 'brand', 'price'} == set(log.items.columns)
  assert (
    log.items['item_id'].n_unique() == CONFIG.items
    and log.items.null_count().sum_horizontal().item() == 0
  )
  steps = log.events.select(pl.col('timestamp').diff().over('user_id')).to_series().drop_nulls()
  assert steps.min() > 0
  assert (
    set(log.events['event'].unique()) == {'view', 'fav', 'cart', 'purchase'} <= set(EVENT_NAMES)
  )
  days = log.world.day(log.events['timestamp'].to_numpy())
  assert days.min() >= 0 and days.max() < log.world.rules.days


def test_every_planted_pair_is_an_event_before_its_occasion(log):
  columns = ['user_id', 'occasion_timestamp', 'timestamp', 'item_id', 'event', 'role', 'effect']
  assert log.planted.columns == columns and log.planted['effect'].is_finite().all()
  assert (log.planted['timestamp'] < log.planted['occasion_timestamp']).all()
  keys = ['user_id', 'timestamp', 'item_id', 'event']
  assert log.planted.join(log.events, on=keys, how='anti').height == 0
  assert log.planted.group_by('user_id', 'occasion_timestamp').len()['len'].max() == 24


def test_roles_all_occur_and_effects_have_their_sign(log):
  share = dict(log.planted['role'].value_counts(normalize=True).iter_rows())
  assert set(share) == set(ROLE_NAMES) and min(share.values()) >= 0.015
  effect = dict(log.planted.group_by('role').agg(pl.col('effect').mean()).iter_rows())
  assert effect['TRIGGER'] > 0.3 and effect['DISTRACT'] < -0.2 and abs(effect['EXPLORE']) < 0.06
  assert (
    effect['REINFORCE'] > effect['COMPARE'] > 0.05
    and effect['ANCHOR'] > 0.1
    and effect['COMPLEMENT'] > 0
  )


def test_intent_roles_on_a_history_worked_by_hand(log):
  w = log.world
  a, b = np.flatnonzero(w.traits.category_I == 3)[:2]
  other = np.flatnonzero(w.traits.category_I == 4)[0]
  day, view, cart, buy = 86_400, world.VIEW, world.CART, world.PURCHASE
  items = np.array([a, other, b, a, a, b, a])
  codes = np.array([view, view, view, cart, buy, view, view])
  times = np.array([0, 1, 2, 3, 4, 5, 25]) * day
  roles = world.world_roles.contact_roles(w, np.zeros(7, int), items, codes, times)
  names = [ROLE_NAMES[r] for r in roles]
  assert names[:4] == ['ANCHOR', 'ANCHOR', 'COMPARE', 'REINFORCE']
  assert names[5:] == ['ANCHOR', 'ANCHOR']  # after the purchase, and after more than 14 days


def test_conversion_probabilities_sum_to_one_for_any_history(log):
  w, times = log.world, np.full(CONFIG.users, log.world.rules.start + 100 * 86_400)
  edited = log.events.filter(pl.col('timestamp') < times[0]).sample(fraction=0.5, seed=3)
  p = np.exp(w.log_p_conversion(w.state(edited), times))
  assert p.shape == (CONFIG.users, CONFIG.items) and (p > 0).all()
  np.testing.assert_allclose(p.sum(1), 1, rtol=1e-10)
  assert ((w.hazard(w.state(edited), times) >= 0) & (w.hazard(w.state(edited), times) < 1)).all()


@pytest.mark.parametrize('number', [3, 150, 700])
def test_removal_effects_equal_brute_force(log, number):
  user, time, bought, history = occasion(log, number)
  rows = log.planted.filter((pl.col('user_id') == user) & (pl.col('occasion_timestamp') == time))
  full = log_p(log, user, time, history)[bought]
  for row in rows.iter_rows(named=True):
    without = log_p(log, user, time, history.filter(pl.col('timestamp') != row['timestamp']))[
      bought
    ]
    assert row['effect'] == pytest.approx(full - without, abs=1e-8)


def test_state_of_the_whole_log_equals_event_by_event_additions(log):
  user, _, _, history = occasion(log, 10)
  built = log.world.state(history, np.array([user]))
  step = log.world.empty(np.array([user]))
  for row in history.iter_rows(named=True):
    one = (
      np.array([x]) for x in (0, row['item_id'], EVENT_NAMES.index(row['event']), row['timestamp'])
    )
    log.world.add(step, *one)
  for field in ('excitation', 'inhibition', 'consideration'):
    np.testing.assert_allclose(getattr(built, field), getattr(step, field), rtol=1e-9, atol=1e-9)


def test_showing_the_active_intent_sells_more_than_random_items(log):
  w, day = log.world, log.world.rules.days
  state = w.state(log.events)
  times = np.full(CONFIG.users, w.rules.start + day * 86_400)
  users = np.arange(CONFIG.users)
  intent = np.argsort(-w.log_p_conversion(state, times), axis=1)[:, :10]
  difference = []
  for seed in range(12):
    random = np.random.default_rng(100 + seed).integers(0, CONFIG.items, intent.shape)
    orders = [w.act(state, users, shown, day, np.random.default_rng(seed))[0].filter(pl.col('event') == 'purchase').height
              for shown in (intent, random)]  # fmt: skip
    difference.append(orders[0] - orders[1])
  half = 2.2 * np.std(difference, ddof=1) / np.sqrt(len(difference))  # t interval, 95 %
  assert np.mean(difference) - half > 0


def test_act_is_pure_and_a_shown_trigger_wakes_its_target(log):
  w = log.world
  state, users = w.state(log.events), np.arange(CONFIG.users)
  before = state.excitation.copy()
  item = np.flatnonzero(w.traits.trigger_I >= 0)[0]
  shown = np.full((CONFIG.users, 1), item)
  events, after = w.act(state, users, shown, w.rules.days, np.random.default_rng(5))
  again, _ = w.act(state, users, shown, w.rules.days, np.random.default_rng(5))
  assert events.equals(again) and np.array_equal(state.excitation, before)
  seen = events.filter(pl.col('shown') & (pl.col('event') == 'view'))['user_id'].to_numpy()
  assert len(seen) and (after.excitation > before)[seen, w.traits.trigger_I[item]].all()
  with pytest.raises(ValueError, match='not in the state'):
    w.act(
      state.rows(np.array([0, 1])), np.array([7]), shown[:1], w.rules.days, np.random.default_rng(5)
    )


def test_visitors_are_told_ahead(log):
  w, users, shown = log.world, np.arange(100, CONFIG.users), np.zeros((CONFIG.users - 100, 2), int)
  events, _ = w.act(w.state(log.events), users, shown, w.rules.days, np.random.default_rng(7))
  told = users[w.visitors(users, np.random.default_rng(7))]
  assert 0 < len(told) < len(users) and set(told) == set(events['user_id'])


def test_the_held_back_world_has_other_strengths_and_the_same_marginals():
  default, other = (
    world.World.build(SimulatorConfig(preset=preset, users=50))
    for preset in ('alibaba2014', rules.HELD_BACK)
  )
  assert other.fitted == default.fitted
  changed = {
    name for name, value in vars(other.rules).items() if value != getattr(default.rules, name)
  }
  assert changed == set(rules.HELD_BACK_STRENGTHS) - {'complement_kick'}
  drawn = [
    other.rules.__dict__[name] / default.rules.__dict__[name] for name in rules.HELD_BACK_STRENGTHS
  ]
  factors = np.exp(np.random.default_rng(2026).uniform(-np.log(1.5), np.log(1.5), len(drawn)))
  np.testing.assert_allclose(drawn, factors, rtol=0.05)


@pytest.mark.parametrize('preset', ['alibaba2014', 'taobao_userbehavior_1k'])
def test_marginals_stay_near_the_real_log(preset):
  entry = rules.load_presets()[preset]
  w = world.World.build(
    SimulatorConfig(preset=preset, users=900, events_per_user_scale=1.0, seed=1)
  )  # not the seed of the fit
  user, item, code, time = behavior.draw_log(w)
  events = pl.DataFrame(
    {'user_id': user, 'item_id': item, 'event': np.array(EVENT_NAMES)[code], 'timestamp': time}
  )
  view = marginals.view_of(preset, w.rules.days)
  found = marginals.distances(
    marginals.summary(events, per_item=entry['target']['per_item'], **view), entry['target']
  )
  for name, distance in entry['distance'].items():
    assert found[name] < distance + 0.1, name
