import dataclasses
import itertools

import numpy as np
import pytest

from rolegen_jax.config import EvaluationConfig
from rolegen_jax.data.occasions import TEST
from rolegen_jax.evaluation import metrics
from rolegen_jax.evaluation.metrics import Interval, Pairs
from tests.evaluation import tiny_log

RANKED = np.array([[5, 3, 1, -1], [2, 0, -1, -1], [-1, -1, -1, -1]], np.int32)


def hand_pairs() -> Pairs:
  """Occasion 0 (D1) has targets 3 and 4, occasion 1 (ACTIVE) has 2, occasion 2 (D2) has 0.

  Occasions 0 and 1 are of user 7, occasion 2 of user 3.
  """
  seen, cohort = np.array([True, False, True, True]), np.array([0, 0, 3, 1], np.int8)
  user = np.array([7, 7, 7, 3])
  return Pairs(np.array([0, 0, 1, 2]), user, np.array([3, 4, 2, 0]), seen, cohort, 3)


def test_hand_computed():
  pairs = hand_pairs()
  place = metrics.ranks(RANKED, pairs)
  assert place.tolist() == [2, 0, 1, 0]
  assert metrics.hit(place, 1).tolist() == [0, 0, 1, 0]
  assert metrics.hit(place, 2).tolist() == [1, 0, 1, 0]
  np.testing.assert_allclose(metrics.ndcg(place, 10), [1 / np.log2(3), 0, 1, 0])
  np.testing.assert_allclose(metrics.ndcg(place, 1), [0, 0, 1, 0])
  np.testing.assert_allclose(metrics.reciprocal_rank(place), [0.5, 0, 1, 0])


def test_prefix_ranks_ignore_empty_slots():
  codes = np.array([[0, 0], [1, 0], [1, 1], [2, 0], [2, 1], [0, 1]])
  pairs = hand_pairs()
  assert metrics.prefix_ranks(RANKED, pairs, codes, 1).tolist() == [2, 2, 1, 0]
  assert (
    metrics.prefix_ranks(RANKED, pairs, codes, 2).tolist() == metrics.ranks(RANKED, pairs).tolist()
  )
  with pytest.raises(ValueError, match='level=3'):
    metrics.prefix_ranks(RANKED, pairs, codes, 3)


def test_slices_are_by_pair():
  pairs = hand_pairs()
  table = metrics.evaluate(RANKED, pairs, EvaluationConfig(ks=(1, 10), bootstrap=20))
  assert {name: row['HI@10'].pairs for name, row in table.items()} == {
    'D1': 2,
    'D2': 1,
    'dormant': 3,
    'ACTIVE': 1,
    'all': 4,
    'dormant seen': 2,
    'dormant new': 1,
  }
  assert (
    table['dormant']['HI@10'].mean == pytest.approx(1 / 3) and table['dormant']['HI@10'].users == 2
  )
  assert table['D1']['HI@10'].users == 1
  assert table['all']['HI@1'].mean == 0.25
  with pytest.raises(ValueError, match='3 occasions'):
    metrics.evaluate(RANKED[:2], pairs, EvaluationConfig())


def cold_log():
  """(log, occasions): ten first purchases of ten users, ten days apart; three of them are test.

  Only later than training anybody touches items 2, 3 and 5. Item 4 was shown in training once.
  """
  bought = [1, 1, 1, 1, 1, 2, 1, 2, 3, 1]
  rows = [(0, 4, 'impression', 1)]
  for user, item in enumerate(bought):
    rows += [(user, 0, 'view', 10 * user), (user, item, 'purchase', 10 * user + 5)]
  rows += [(8, 3, 'view', 84), (8, 5, 'purchase', 86), (9, 4, 'purchase', 95)]
  return tiny_log.make(rows, 6, first_conversion_min_views=1, test_fraction=0.3, valid_fraction=0.2)


def test_a_target_without_a_training_event_is_cold():
  log, occasions = cold_log()
  assert occasions.train_events(log).tolist() == [5, 5, 0, 0, 1, 0]
  rows = np.flatnonzero(occasions.split == TEST)
  pairs = Pairs.of(occasions, rows, occasions.train_events(log))
  # User 8 looked at item 3 the day before: it is cold, and the user has seen it.
  assert pairs.item.tolist() == [2, 3, 5, 1, 4]
  assert pairs.cold.tolist() == [True, True, True, False, False]
  assert pairs.seen.tolist() == [False, True, False, False, False]
  config = EvaluationConfig(ks=(1,), bootstrap=20)
  found = np.tile(np.array([[3]], np.int32), (len(rows), 1))
  table = metrics.evaluate(found, pairs, config)
  counts = {name: (row['HI@1'].pairs, row['HI@1'].users) for name, row in table.items()}
  assert counts['dormant cold'] == (2, 2) and counts['all cold'] == (3, 2)
  assert counts['dormant'] == (4, 3) and counts['dormant new'] == (3, 2)
  assert table['dormant cold']['HI@1'].mean == 0.5
  nothing = np.full_like(found, -1)
  assert metrics.compare(found, nothing, pairs, config)['all cold'].mean == pytest.approx(1 / 3)


def test_under_leave_one_out_cold_is_what_nobody_has_before_validation():
  rows = [(user, item, 'purchase', day) for user in (0, 1) for day, item in enumerate((0, 1, 2, 3))]
  rows += [(2, item, 'purchase', day) for day, item in enumerate((0, 3, 4, 2))]
  log, occasions = tiny_log.make(rows, 5, split='leave_one_out')
  assert occasions.train_events(log).tolist() == [3, 2, 0, 1, 0]
  test = np.flatnonzero(occasions.split == TEST)
  pairs = Pairs.of(occasions, test, occasions.train_events(log))
  assert dict(zip(pairs.user.tolist(), pairs.cold.tolist())) == {0: False, 1: False, 2: True}


def test_without_cold_targets_there_is_no_such_slice():
  log, occasions = cold_log()
  rows = np.flatnonzero(occasions.split == TEST)
  config = EvaluationConfig(ks=(1,), bootstrap=20)
  lists = np.zeros((len(rows), 1), np.int32)
  for pairs in (Pairs.of(occasions, rows, np.ones(6, int)), Pairs.of(occasions, rows)):
    assert not [name for name in metrics.evaluate(lists, pairs, config) if 'cold' in name]


def test_against_brute_force():
  rng = np.random.default_rng(0)
  ranked = np.stack([rng.permutation(30)[:12] for _ in range(50)]).astype(np.int32)
  codes = rng.integers(0, 3, (30, 3))
  sizes = rng.integers(1, 4, 50)
  owner = np.repeat(np.arange(50), sizes)
  item = np.concatenate([rng.permutation(30)[:n] for n in sizes])
  pairs = Pairs(owner, owner, item, np.ones(len(item), bool), np.zeros(len(item), np.int8), 50)
  row = metrics.evaluate(ranked, pairs, EvaluationConfig(ks=(5,), bootstrap=10), codes)['all']
  lists = [ranked[o].tolist() for o in owner]
  assert row['HI@5'].mean == pytest.approx(np.mean([i in r[:5] for i, r in zip(item, lists)]))
  assert row['MRR'].mean == pytest.approx(
    np.mean([1 / (r.index(i) + 1) if i in r else 0 for i, r in zip(item, lists)])
  )
  for level in (1, 2, 3):
    expect = np.mean(
      [
        any((codes[j, :level] == codes[i, :level]).all() for j in r[:10])
        for i, r in zip(item, lists)
      ]
    )
    assert row[f'HS@10(L{level})'].mean == pytest.approx(expect)


def test_bootstrap_covers_and_resamples_users():
  rng = np.random.default_rng(1)
  owner = np.repeat(np.arange(120), 3)
  inside = 0
  for trial in range(200):
    values = (rng.random(120) < 0.3).astype(float)[
      owner
    ]  # the pairs of a user agree: 120 draws, not 360
    interval = metrics.bootstrap(values, owner, 300, seed=trial)
    inside += interval.low <= 0.3 <= interval.high
  assert 0.90 <= inside / 200 <= 0.99
  values = (rng.random(120) < 0.3).astype(float)[owner]
  wide, narrow = metrics.bootstrap(values, owner), metrics.bootstrap(values, np.arange(360))
  assert wide.high - wide.low > 1.4 * (narrow.high - narrow.low)
  assert metrics.bootstrap(values, owner, seed=3) == metrics.bootstrap(values, owner, seed=3)


def test_the_bootstrap_of_three_users_is_the_exact_one():
  """27 equally likely draws of three users with 3, 1 and 1 pairs: every mean by enumeration."""
  values, user = np.array([1.0, 1.0, 1.0, 0.0, 0.5]), np.array([8, 8, 8, 2, 5])
  sums, sizes = {8: 3.0, 2: 0.0, 5: 0.5}, {8: 3, 2: 1, 5: 1}
  means = [
    sum(sums[u] for u in drawn) / sum(sizes[u] for u in drawn)
    for drawn in itertools.product(sums, repeat=3)
  ]
  interval = metrics.bootstrap(values, user, 20_000)
  # The ends are values of single draws, 1/27 of the resamples each: no noise is left in them.
  assert (interval.low, interval.high) == (min(means), max(means)) == (0.0, 1.0)
  quartiles = metrics.bootstrap(np.array([1.0, 0.0]), np.array([0, 1]), 20_000)
  assert (quartiles.low, quartiles.mean, quartiles.high) == (0.0, 0.5, 1.0)
  assert (interval.mean, interval.pairs, interval.users) == (0.7, 5, 3)


def one_busy_user() -> tuple[Pairs, np.ndarray, np.ndarray]:
  """Return pairs of 40 users with an occasion each and one with 40 who always buys item 0.

  And two systems, which list item 0 and item 1.
  """
  user = np.concatenate([np.arange(40), np.full(40, 40)])
  item = np.concatenate([np.arange(40) % 4, np.zeros(40, int)])
  pairs = Pairs(np.arange(80), user, item, np.ones(80, bool), np.zeros(80, np.int8), 80)
  return pairs, np.zeros((80, 1), np.int32), np.full((80, 1), 1, np.int32)


def test_intervals_of_the_report_and_of_differences_resample_users():
  pairs, zeros, ones = one_busy_user()
  by_occasion = dataclasses.replace(pairs, user=pairs.occasion)
  config = EvaluationConfig(ks=(1,), bootstrap=1000)

  def width(interval: Interval) -> float:
    return interval.high - interval.low

  for of_users, of_occasions in (
    (metrics.evaluate(zeros, p, config)['all']['HI@1'] for p in (pairs, by_occasion)),
    (metrics.compare(zeros, ones, p, config)['all'] for p in (pairs, by_occasion)),
  ):
    assert of_users.mean == of_occasions.mean and (of_users.users, of_occasions.users) == (41, 80)
    assert width(of_users) > 1.5 * width(of_occasions)


def test_pairs_know_whose_they_are():
  rows = [(u, i, 'view', d) for u in (5, 9) for d in range(6) for i in (0, 1)]
  rows += [(u, i, 'purchase', 6 + u + i) for u in (5, 9) for i in (0, 1, 2)]
  log, occasions = tiny_log.make(rows, 3)
  chosen = np.arange(len(occasions.user))[::-1]
  pairs = Pairs.of(occasions, chosen)
  assert pairs.user.tolist() == occasions.user[chosen][pairs.occasion].tolist()
  assert set(log.users.gather(pairs.user)) == {5, 9}


def test_bootstrap_of_nothing_is_not_a_number():
  assert np.isnan(metrics.bootstrap(np.zeros(0), np.zeros(0)).mean)


def test_paired_difference_is_sharper_than_two_intervals():
  rng = np.random.default_rng(2)
  b = (rng.random(400) < 0.4).astype(float)
  a = np.where((b == 0) & (rng.random(400) < 0.06), 1.0, b)  # better on a few, never worse
  paired = metrics.paired_difference(a, b, np.arange(400))
  assert paired.mean == pytest.approx(a.mean() - b.mean()) and paired.low > 0
  assert metrics.bootstrap(a, np.arange(400)).low < b.mean()
  assert metrics.verdict(paired) == 'beats'
  assert metrics.verdict(Interval(-1, -2, -0.5, 9, 9)) == 'does not beat'
  assert metrics.verdict(Interval(0.1, -0.1, 0.3, 9, 9)) == 'undecided'
  with pytest.raises(ValueError, match='same pairs'):
    metrics.paired_difference(a, b[:-1], np.arange(400))


def test_a_list_shorter_than_k_misses_what_it_has_no_place_for():
  """Two items of a catalogue of two, and an empty list: HI@10 is HI@2, and no metric fails."""
  ranked = np.array([[1, 0], [0, -1], [-1, -1]], np.int32)
  config = EvaluationConfig(ks=(1, 2, 10, 50), bootstrap=20)
  pairs = dataclasses.replace(hand_pairs(), item=np.array([1, 0, 1, 0]))
  row = metrics.evaluate(ranked, pairs, config, np.array([[0, 0], [0, 1]]))['all']
  assert row['HI@1'].mean == 0.25 and row['HI@2'].mean == row['HI@50'].mean == 0.5
  assert row['HS@10(L1)'].mean == 0.75 and row['MRR'].mean == pytest.approx(1.5 / 4)
  empty = np.full((3, 1), -1, np.int32)
  assert metrics.evaluate(empty, pairs, config)['all']['HI@50'].mean == 0
  assert metrics.compare(ranked, empty, pairs, config)['all'].mean == 0.5
