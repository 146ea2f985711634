"""A/B tests on a tiny simulated shop: common noise, an oracle ahead, no compiling over days.

The command is tested in tests/cli/test_commands.py.
"""

import dataclasses
import functools
import json
import shutil
from inspect import signature

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from rolegen_jax import overrides
from rolegen_jax.ab_test import policies, simulation, summary
from rolegen_jax.ab_test.arms import Noise, Played, play
from rolegen_jax.cli import entry
from rolegen_jax.config import EVENT_NAMES, ConfigError
from rolegen_jax.data.batches import Trajectories, append, histories
from rolegen_jax.evaluation import baselines, ranking
from rolegen_jax.features.interest_shift import Opens
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.stages import Trained
from rolegen_jax.simulator.rules import DAY
from rolegen_jax.simulator.world import build
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
  'evaluation.sasrec.steps=2',
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


def ranker(test, kind):
  made = kind(test.setting, test.world)
  made.begin()
  return made


def shows(test, items) -> policies.Policy:
  """Shows these items to everyone."""
  score = np.full(64, -100.0)
  score[items] = -np.arange(len(items))
  return policies.Policy(test.setting, policies.Fixed(test.setting, score))


def test_arms_share_visits_and_noise_and_differ_by_what_they_show(test):
  one, other, again = (
    sold(test, shows(test, items)) for items in ([1, 2, 3, 4, 5], [9, 8, 7, 6, 10], [1, 2, 3, 4, 5])
  )
  assert all(np.array_equal(a, b) for a, b in zip(one, again))
  assert np.array_equal(one.visits, other.visits) and 0 < one.visits.mean() < 1
  assert not np.array_equal(one.shown_views, other.shown_views)
  assert not np.array_equal(one.visits, sold(test, shows(test, [1, 2, 3, 4, 5]), seed=1).visits)
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
  arms['RoleGen'] = arms['oracle']
  found = summary.summarize(arms, [0], 200, 0)
  assert found['lifts']['popularity']['orders']['low'] > 0
  assert found['arms']['oracle']['shown_view_rate'] > found['arms']['popularity']['shown_view_rate']


def test_looking_ahead_shows_first_what_most_raises_the_chance_of_a_purchase(test):
  rows, now = np.arange(4), test.world.rules.start + 120 * DAY
  oracle, ahead = ranker(test, policies.Oracle), ranker(test, policies.LookingAhead)
  item, shown = oracle.rank(rows, now).item, ahead.rank(rows, now)
  state, time = test.state.rows(rows), np.full(4, now)
  effect = test.world.effects_of_looks(state, item, time)
  desire = np.stack([test.world.desire(state, rows, column, time) for column in item.T], axis=1)
  chance = desire / (desire + test.world.rules.view_half)
  order = np.argsort(-chance * np.maximum(effect, 0), axis=1, kind='stable')
  np.testing.assert_array_equal(shown.item, np.take_along_axis(item, order, 1))
  assert (shown.item != item).any()


@pytest.fixture
def opens(test, monkeypatch):
  opens = Opens(np.random.default_rng(0).exponential(size=64).astype(np.float32), 0.1)
  excitation = dataclasses.replace(test.setting.excitation, opens=opens)
  monkeypatch.setattr(test, 'setting', dataclasses.replace(test.setting, excitation=excitation))
  test.__dict__.pop('opens_agreement', None)
  return opens


def test_how_well_what_items_open_ranks_the_effects_of_looks(test, opens):
  rows, now = np.arange(len(test.setting.users)), int(test.setting.log.timestamp.max()) + 1
  item, time = ranker(test, policies.Oracle).rank(rows, now).item, np.full(len(rows), now)
  effects = test.world.effects_of_looks(test.state.rows(rows), item, time)
  by_user = [spearmanr(*pair).statistic for pair in zip(opens.share[item], effects)]
  assert test.opens_agreement == pytest.approx(np.nanmean(by_user), abs=1e-6)


def test_the_oracles_state_is_that_of_the_world(test):
  oracle, seen = policies.Oracle(test.setting, test.world), []

  class Watched(policies.Oracle):
    def observe(self, events):
      super().observe(events)
      seen.append(self._state)

  watched = Watched(test.setting, test.world)
  sold(test, policies.Policy(test.setting, watched))
  state = test.state
  for day in range(120, 124):
    here = np.flatnonzero(test.world.visitors(state.users, Noise(0, state.users, day)))
    if day == 120:
      oracle.begin()
    shown = oracle.rank(here, test.world.rules.start + day * DAY).item[:, :5]
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
  whole.begin()
  observer = policies.Recency(setting)
  observer.begin()
  observer._score = np.zeros_like(observer._score)
  for part in (before, after):
    observer.observe(policies.Events(*(a[part] for a in past)))
  rows = np.arange(len(users))
  assert np.array_equal(whole.rank(rows, now).item, observer.rank(rows, now).item)
  end = log.offsets[users] + np.bincount(past.row[before], minlength=len(users))
  grown = append(histories(log, users, end, 16), *(a[after] for a in past))
  for a, b in zip(grown, histories(log, users, log.offsets[users + 1], 16)):
    assert np.array_equal(a, b)


@pytest.mark.parametrize('name', ['recency', 'counting'])
def test_rankers_are_the_baselines_of_the_report(test, name):
  setting = test.setting
  now, users = int(setting.log.timestamp.max()) + 1, setting.users
  policy = test.policy(name)
  policy.begin()
  occasions = dataclasses.replace(
    setting.occasions,
    user=users,
    timestamp=np.full(len(users), now),
    context_end=setting.log.offsets[users + 1],
  )
  chosen = baselines.BASELINES[name](setting.baselines, np.zeros(0, int), 10).settings
  score = getattr(baselines, f'{name}_scores')
  picked = {key: value for key, value in chosen.items() if key in signature(score).parameters}
  inputs = dataclasses.replace(setting.baselines, occasions=occasions)
  counted = ('train_end', 'popular', 'transitions', 'counting')
  vars(inputs).update({part: getattr(setting.baselines, part) for part in counted})
  by_settings = functools.partial(score, inputs, **picked)
  want = ranking.lists(np.arange(len(users)), by_settings, inputs.popular, 5)
  assert np.array_equal(policy.recommend(np.arange(len(users)), now), want)


@pytest.mark.slow  # the others show the arms one by one
def test_every_arm_is_shown_by_log_p_and_as_slates(test, opens):
  """NAME lists by log p, NAME_slates shows the same lists by log p plus what items open."""
  setting, rows = test.setting, np.arange(20)
  now = int(setting.log.timestamp.max()) + 1
  weight, worth = setting.config.serving.exploration_weight, opens.log
  for name in ('counting', 'SASRec', 'oracle', 'no_reasoner'):
    plain, as_slates = test.policy(name), test.policy(f'{name}_slates')
    for policy in (plain, as_slates):
      policy.begin()
    ranked = as_slates._ranker.rank(rows, now)
    assert (np.diff(ranked.log_prob, axis=1) <= 0).all() and ranked.log_prob.max() <= 1e-5
    assert np.array_equal(plain.recommend(rows, now), ranked.item[:, :5]), name
    value = ranked.log_prob + weight * worth[ranked.item]
    order = np.argsort(-value, axis=1, kind='stable')[:, :5]
    want = np.take_along_axis(ranked.item, order, axis=1)
    assert np.array_equal(as_slates.recommend(rows, now), want), name
    assert (want != ranked.item[:, :5]).any()


def test_popular_opens_is_one_slate_of_the_whole_catalogue(test):
  setting, rows = test.setting, np.arange(3)
  log, config = setting.log, setting.config
  train_end = setting.occasions.train_end(log)[log.user]
  bought = (np.arange(len(log.item)) < train_end) & (log.event == tiny.PURCHASE)
  share = (1 + np.bincount(log.item[bought], log.count[bought], 64)) / (
    64 + log.count[bought].sum()
  )
  score = np.log(share) + config.serving.exploration_weight * setting.excitation.opens.log
  policy = test.policy('popular_opens')
  policy.begin()
  shown = policy.recommend(rows, 0)
  assert (shown == shown[0]).all() and len(set(shown[0])) == 5
  np.testing.assert_allclose(score[shown[0]], np.sort(score)[::-1][:5])
  popularity = test.policy('popularity')
  popularity.begin()
  expected = baselines.popular_items(log, setting.occasions)[:5]
  assert popularity.recommend(rows, 0).tolist() == [expected.tolist()] * 3


@pytest.mark.parametrize('name', ['popularity', 'recency', 'counting_slates', 'oracle'])
def test_with_the_history_filter_no_arm_shows_what_a_user_touched(test, monkeypatch, name):
  monkeypatch.setattr(test, 'setting', dataclasses.replace(test.setting, bars_history=True))
  past = test.setting.past()
  touched = np.zeros((len(test.setting.users), 64), bool)
  touched[past.row, past.item] = True
  policy = test.policy(name)
  recommend, observe = policy.recommend, policy.observe

  def checked(rows, now):
    shown = recommend(rows, now)
    full = 64 - touched[rows].sum(1) >= 5
    assert (shown[full] >= 0).all() or name != 'popularity'
    assert not (touched[rows[:, None], np.maximum(shown, 0)] & (shown >= 0)).any()
    return shown

  def noted(events):
    touched[events.row, events.item] = True
    observe(events)

  monkeypatch.setattr(policy, 'recommend', checked)
  monkeypatch.setattr(policy, 'observe', noted)
  sold(test, policy)


def test_a_list_shorter_than_the_slate_ends_in_empty_slots(test):
  setting = dataclasses.replace(test.setting, slate=70)  # of a catalogue of 64
  policy = policies.Policy(setting, policies.Fixed(setting, np.zeros(64)))
  policy.begin()
  shown = policy.recommend(np.arange(4), 0)
  assert shown.shape == (4, 70) and (shown[:, 64:] == -1).all()
  assert (np.sort(shown[:, :64], axis=1) == np.arange(64)).all()
  sold(test, policy, days=1)


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
  'name',
  [
    pytest.param('RoleGen', marks=pytest.mark.slow),
    pytest.param('no_reasoner', marks=pytest.mark.slow),
    'SASRec',
  ],
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
    policy.begin()
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


def test_runs_must_differ_in_their_seed_alone():
  config = entry.experiment('demo', SMALL)

  def check(*assignments):
    other = overrides.apply(config, assignments)
    simulation._check_alike([config, other], ['a', 'b'])

  check('seed=1')
  with pytest.raises(ConfigError, match='--workdir=b: its seed=0 is that of a; must be another'):
    check()
  with pytest.raises(ConfigError, match='--workdir=b: its loop.worlds is not that of a'):
    check('seed=1', 'loop.worlds=3')
  with pytest.raises(ConfigError, match='its backbone.temporal.width is not that of a'):
    check('seed=2', 'backbone.temporal.width=64')


def test_the_world_is_the_one_of_the_log(test):
  fresh = build(test.run.config.simulator)
  for name in ('base_UxC', 'category_I', 'trigger_I', 'rate_U'):
    assert np.array_equal(getattr(fresh.traits, name), getattr(test.world.traits, name))
  assert test.setting.log.items['item_id'].to_list() == list(range(64))


def test_several_runs_are_one_test_over_training_seeds(test, tmp_path, monkeypatch):
  monkeypatch.setattr(simulation.Test, 'models', {})  # the arms need no model
  folders = [tmp_path / name for name in ('zero', 'one')]
  for seed, folder in enumerate(folders):
    shutil.copytree(test.run.workdir, folder, ignore=shutil.ignore_patterns('.*', 'ab*'))
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | dict(seed=seed), indent=2) + '\n')
  first, *others = folders
  settings = dict(days=2, seeds=3, arms=['popularity', 'recency'], slate=5)
  result = simulation.simulate_ab(first, **settings, others=others)
  assert json.loads((first / 'ab.json').read_text()) == result
  assert not (others[0] / 'ab.json').exists()
  for folder in folders:
    assert len(list((folder / 'ab').rglob('*.npz'))) == 6
  assert result['training_seeds'] == result['provenance']['training_seeds'] == [0, 1]
  by_seed = result['arms']['recency']['orders_by_seed']
  assert len(by_seed) == 2 and by_seed[0] == by_seed[1]  # it trains nothing
  assert {'commit', 'dirty', 'config_digest', 'noise_seeds'} <= set(result['provenance'])
  assert len(set(result['provenance']['config_digests'])) == 2
  one = simulation.simulate_ab(first, **settings)
  assert 'for one training seed' in summary.table(one).splitlines()[0]
  assert one['arms']['recency']['orders_by_seed'] == by_seed[:1]
  with pytest.raises(ConfigError, match='its seed=0 is that of'):
    simulation.simulate_ab(first, **settings, others=[first])
