"""A/B tests on a tiny simulated shop: common noise, an oracle ahead, no compiling over days.

The command is tested in tests/cli/test_commands.py.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rolegen_jax.ab_test import policies, simulation, summary
from rolegen_jax.ab_test.arms import Noise, Played, play
from rolegen_jax.ab_test.plot import draw
from rolegen_jax.cli import entry
from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.batches import Trajectories, append, histories
from rolegen_jax.evaluation import baselines
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.stages import Trained
from rolegen_jax.simulator.world import DAY, World
from tests import tiny

SMALL = [
  f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in tiny.SIZES
] + [
  'simulator.users=200',
  'simulator.items=64',
  'simulator.categories=8',
  'semantic_ids.codes=8',
  'backbone.context=16',
  'backbone.beam=12',
  'reasoner.events=6',
  'reasoner.role_events=4',
  'loop.worlds=2',
  'evaluation.batch=32',
  'evaluation.ks=(1,10)',
  'evaluation.sasrec_steps=2',
  'evaluation.bootstrap=50',
  'warmup.batch=8',
]


@pytest.fixture(scope='module')
def test(tmp_path_factory):
  """Over a run that has a log and no more."""
  return Untrained(
    open_run(entry.experiment('demo', SMALL), tmp_path_factory.mktemp('ab')), days=4, slate=5
  )


class Untrained(simulation.Test):
  """With random parameters: what a test of shapes and events needs."""

  @functools.cached_property
  def models(self):
    model_fns = self.run.rolegen.model_fns
    params = {name: tiny.random_params(fn) for name, fn in model_fns.items()}
    return dict.fromkeys(('RoleGen', 'no_reasoner'), Trained('random', lambda: params))


def sold(test, policy, seed=0, days=4) -> Played:
  return play(test.world, test.state, policy, np.ones(64), seed, days, 'test')


class Fixed(policies.Popularity):
  """Shows these items to everyone."""

  def __init__(self, items):
    self._slate = np.asarray(items)


def test_arms_share_visits_and_noise_and_differ_by_what_they_show(test):
  one, other, again = (
    sold(test, Fixed(items)) for items in ([1, 2, 3, 4, 5], [9, 8, 7, 6, 10], [1, 2, 3, 4, 5])
  )
  assert all(np.array_equal(a, b) for a, b in zip(one, again))
  assert np.array_equal(one.visits, other.visits) and 0 < one.visits.mean() < 1
  assert not np.array_equal(one.shown_views, other.shown_views)
  assert not np.array_equal(one.visits, sold(test, Fixed([1, 2, 3, 4, 5]), seed=1).visits)
  assert not one.orders[~one.visits].any() and (one.shown_orders <= one.orders).all()


def test_the_noise_of_a_user_does_not_depend_on_who_else_is_there(test):
  users = test.state.users
  everyone, some = (Noise(3, who, 130).random((len(who), 2, 3)) for who in (users, users[5:9]))
  assert np.array_equal(everyone[5:9], some)
  for seed, day in ((3, 131), (4, 130)):
    assert not np.array_equal(some, Noise(seed, users[5:9], day).random((4, 2, 3)))
  assert abs(everyone.mean() - 0.5) < 0.05
  shown = np.tile([1, 2, 3], (len(users), 1))
  whole, _ = test.world.act(test.state, users, shown, 120, Noise(0, users, 120))
  part, _ = test.world.act(test.state, users[5:40], shown[5:40], 120, Noise(0, users[5:40], 120))
  mine = whole.filter(whole['user_id'].is_in(users[5:40].tolist()))
  assert part.height and part.equals(mine)


def test_the_oracle_sells_more_than_popularity(test):
  """Over eight seeds of ten days, by the interval over seeds and users."""
  arms = {
    name: [sold(test, test.policy(name), seed, 10) for seed in range(8)]
    for name in ('oracle', 'popularity')
  }
  found = summary.summarize(arms, 'oracle', 200, 0)
  assert found['lifts']['popularity']['orders']['low'] > 0
  assert found['arms']['oracle']['shown_view_rate'] > found['arms']['popularity']['shown_view_rate']


def test_the_oracles_state_is_that_of_the_world(test):
  oracle, seen = test.policy('oracle'), []

  class Watched(policies.Oracle):
    def observe(self, events):
      super().observe(events)
      seen.append(self._state)

  watched = Watched(test.setting, test.world)
  sold(test, watched)
  state = test.state
  for day in range(120, 124):
    here = np.flatnonzero(test.world.visitors(state.users, Noise(0, state.users, day)))
    if day == 120:
      oracle.begin(0)
    shown = oracle.recommend(here, test.world.rules.start + day * DAY)
    events, state = test.world.act(
      state, state.users[here], shown, day, Noise(0, state.users[here], day)
    )
    row = np.searchsorted(state.users, events['user_id'].to_numpy())
    codes = np.array([EVENT_NAMES.index(name) for name in events['event']])
    oracle.observe(
      policies.Events(row, events['item_id'].to_numpy(), codes, events['timestamp'].to_numpy())
    )
  for name in ('excitation', 'inhibition', 'consideration'):
    np.testing.assert_allclose(getattr(seen[-1], name), getattr(state, name), rtol=1e-9, atol=1e-9)


def test_recency_and_histories_kept_up_to_date_equal_those_of_the_longer_log(test):
  """The log cut in two: what was told day by day against what the whole log says."""
  setting = test.setting
  log, users, past = setting.log, setting.users, setting.past()
  now = int(log.timestamp.max()) + 1
  cut = now - 10 * DAY
  before, after = past.timestamp < cut, past.timestamp >= cut
  # A recency policy of the whole log, and one whose sums begin without the last ten days.
  whole = policies.Recency(setting)
  whole.begin(0)
  observer = policies.Recency(setting)
  observer.begin(0)
  observer._score = np.zeros_like(observer._score)
  for part in (before, after):
    observer.observe(policies.Events(*(a[part] for a in past)))
  assert np.array_equal(
    whole.recommend(np.arange(len(users)), now), observer.recommend(np.arange(len(users)), now)
  )
  end = log.offsets[users] + np.bincount(past.row[before], minlength=len(users))
  grown = append(histories(log, users, end, 16), *(a[after] for a in past))
  for a, b in zip(grown, histories(log, users, log.offsets[users + 1], 16)):
    assert np.array_equal(a, b)


def test_recency_is_the_baseline_of_the_report(test):
  setting = test.setting
  now = int(setting.log.timestamp.max()) + 1
  policy = policies.Recency(setting)
  policy.begin(0)
  occasions = dataclasses.replace(
    setting.occasions,
    user=setting.users,
    timestamp=np.full(len(setting.users), now),
    context_end=setting.log.offsets[setting.users + 1],
  )
  popular = baselines.popular_items(setting.log, setting.occasions)
  picked = baselines.recency(
    setting.log, setting.occasions, np.zeros(0, int), setting.config, 5
  ).settings
  want = baselines._recency(
    setting.log,
    occasions,
    popular,
    5,
    np.arange(len(setting.users)),
    *(picked[k] for k in ('tau', 'behavior', 'repeats')),
  )
  assert np.array_equal(policy.recommend(np.arange(len(setting.users)), now), want)


def test_more_events_than_a_window_holds():

  def row(*values):
    return np.array([values], np.int32)

  history = Trajectories(row(-1, 5, 6), row(0, 1, 1), row(0, 1, 1), row(0, 10, 20), row(0, 1, 1))
  grown = append(
    history, np.zeros(4, int), np.array([1, 2, 3, 4]), np.ones(4, int), np.array([30, 40, 50, 60])
  )
  assert grown.item.tolist() == [[2, 3, 4]] and grown.timestamp.tolist() == [[40, 50, 60]]
  assert append(history, *(np.zeros(0, int),) * 4).item.tolist() == [[-1, 5, 6]]


@pytest.mark.parametrize(
  'name', [pytest.param('RoleGen', marks=pytest.mark.slow), 'no_reasoner', 'SASRec']
)
def test_models_compile_once_and_see_what_happens(test, name):
  """All programs of a policy are compiled on its first day; what users do changes its slates."""
  compiled = []

  def listen(event, *_, **__):
    if event.endswith('backend_compile_duration'):
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    policy = test.policy(name)
    sold(test, policy, days=1)
    compiled.clear()
    policy.begin(0)
    now = test.world.rules.start + 125 * DAY
    rows = np.arange(len(test.state.users))
    before = policy.recommend(rows, now)
    sold(test, policy, days=4)
    after = policy.recommend(rows, now)
    assert not compiled, f'{name}: compiled again'
    assert (
      before.shape == (len(rows), 5)
      and (np.sort(before, 1)[:, 1:] > np.sort(before, 1)[:, :-1]).all()
    )
    assert (before != after).any()
    jax.jit(lambda x: 3 * x - 5)(np.float32(1))
    assert compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_intervals_hold_the_truth_and_lifts_are_paired(tmp_path):
  rng = np.random.default_rng(0)
  blank = np.zeros((400, 10))

  def arm(rate):
    return [Played(rng.poisson(rate, (400, 10)), blank, blank, blank, blank + 1) for _ in range(4)]

  base = arm(0.2)
  found = summary.summarize(
    {'RoleGen': arm(0.3), 'recency': base, 'no_reasoner': base}, 'RoleGen', 500, 0
  )
  orders = found['arms']['recency']['orders']
  assert (
    orders['low'] < 800 < orders['high']
    and found['arms']['recency'] == found['arms']['no_reasoner']
  )
  lift = found['lifts']['no_reasoner']['orders']
  assert 0 < lift['low'] < 0.5 < lift['high'] and found['lifts']['no_reasoner']['gmv'] is None
  assert found['lifts']['no_reasoner']['orders_by_day'][-1] == lift
  nothing = summary.summarize({'RoleGen': base, 'no_reasoner': base}, 'RoleGen', 500, 0)['lifts'][
    'no_reasoner'
  ]['orders']
  assert nothing == dict(mean=0, low=0, high=0)
  found |= dict(simulator='a simulator')
  assert 'RoleGen over no_reasoner' in summary.table(found)
  draw(found, tmp_path / 'ab.png')
  assert 1000 < (tmp_path / 'ab.png').stat().st_size < 200_000


def test_the_world_is_the_one_of_the_log(test):
  fresh = World.build(test.run.config.simulator)
  for name in ('base_UxC', 'category_I', 'trigger_I', 'rate_U'):
    assert np.array_equal(getattr(fresh.traits, name), getattr(test.world.traits, name))
  assert test.setting.log.items['item_id'].to_list() == list(range(64))
