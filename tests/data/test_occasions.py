"""Occasions against a plain-Python reading of the rules, and counts known for the real logs."""

import collections
import dataclasses
import itertools

import numpy as np
import polars as pl
import pytest
import real_logs
from random_logs import DAY, random_tables

from rolegen_jax.config import COHORTS, DataConfig
from rolegen_jax.data.adapters import ADAPTERS
from rolegen_jax.data.cuts import OccasionTimes, find_cuts
from rolegen_jax.data.events import MAX_TIMESTAMP, validate
from rolegen_jax.data.files import DataError
from rolegen_jax.data.leaks import check_no_leak
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import (
  ACTIVE,
  D1,
  D2,
  D3,
  NONE,
  SPLITS,
  TEST,
  Occasions,
  find_occasions,
)

TIME = DataConfig(first_conversion_min_views=6, reactivation_min_days=7.0, reactivation_min_views=3)


def by_hand(events: pl.DataFrame, data: DataConfig) -> set:
  """Apply the rules row by row.

  Returns {(user, timestamp, cohort, bought items, those of them seen, rows of context)}.
  """
  rows = collections.defaultdict(list)
  for user, item, event, time in events.select(
    'user_id', 'item_id', pl.col('event').cast(pl.String), 'timestamp'
  ).iter_rows():
    rows[user].append((time, event, item))
  expected = set()
  for user, history in rows.items():
    bought_at = sorted({t for t, e, _ in history if e == 'purchase'})
    for time in bought_at:
      before = {row for row in history if row[0] < time}
      views = [t for t, e, _ in history if e == 'view' and t < time]
      purchases = [t for t, e, _ in history if e == 'purchase' and t < time]
      cohort = 'ACTIVE'
      if not purchases and len(views) >= data.first_conversion_min_views:
        cohort = 'D1'
      if purchases and time - max(purchases) >= data.reactivation_min_days * DAY:
        if sum(t > max(purchases) for t in views) >= data.reactivation_min_views:
          cohort = 'D2'
      targets = frozenset(i for t, e, i in history if e == 'purchase' and t == time)
      engaged = {i for _, e, i in before if e != 'impression'}
      expected.add((user, time, cohort, targets, targets & engaged, len(before)))
    n_views = sum(e == 'view' for _, e, _ in history)
    if not bought_at and n_views >= data.first_conversion_min_views:
      after_log = events['timestamp'].max() + 1
      expected.add((user, after_log, 'D3', frozenset(), frozenset(), len(set(history))))
  return expected


def described(log: InteractionLog, occasions: Occasions) -> set:
  """Return the occasions in the form of `by_hand`."""
  ids, rows = log.items['item_id'], set()
  for o, (user, time) in enumerate(zip(occasions.user, occasions.timestamp)):
    span = slice(*occasions.target_offsets[o : o + 2])
    targets = [ids[int(i)] for i in occasions.target[span]]
    assert len(targets) == len(set(targets))
    seen = frozenset(t for t, s in zip(targets, occasions.target_seen[span]) if s)
    context = occasions.context_end[o] - log.offsets[user]
    who, cohort = log.users[int(user)], COHORTS[occasions.cohort[o]]
    rows.add((who, int(time), cohort, frozenset(targets), seen, int(context)))
  assert len(rows) == len(occasions.user)
  return rows


@pytest.mark.parametrize('seed', range(5))
def test_occasions_follow_the_rules(seed):
  events, items = random_tables(seed, text_ids=seed % 2 == 1)
  log = InteractionLog.build(events, items)
  occasions = find_occasions(log, TIME)
  expected = by_hand(events, TIME)
  assert described(log, occasions) == expected
  assert {cohort for _, _, cohort, _, _, _ in expected} == set(COHORTS)
  order = list(zip(occasions.timestamp.tolist(), occasions.user.tolist()))
  assert order == sorted(order)
  check_no_leak(log, occasions)


@pytest.mark.parametrize('seed', range(5))
def test_split_by_time(seed):
  log = InteractionLog.build(*random_tables(seed))
  occasions = find_occasions(log, TIME)
  has_target = occasions.cohort != D3
  dormant = np.sort(occasions.timestamp[np.isin(occasions.cohort, (D1, D2))])
  test_cut, train_cut = (
    dormant[int(len(dormant) * share) - 1] for share in (1 - TIME.test_fraction, 1 - 0.3 - 0.15)
  )
  expected = np.where(occasions.timestamp > train_cut, 'valid', 'train')
  expected = np.where(occasions.timestamp > test_cut, 'test', expected)
  expected = np.where(has_target, expected, 'none')
  assert np.array_equal(np.array(SPLITS)[occasions.split], expected)
  assert occasions.train_cut == train_cut
  usable = np.arange(len(log.item)) < occasions.train_end(log)[log.user]
  assert np.array_equal(usable, log.timestamp <= train_cut)


def test_a_log_without_dormant_occasions_is_cut_at_quantiles_of_all():
  log = InteractionLog.build(*random_tables(0))
  nobody = dataclasses.replace(TIME, first_conversion_min_views=9999, reactivation_min_views=9999)
  occasions = find_occasions(log, nobody)
  times = np.sort(occasions.timestamp[occasions.cohort == ACTIVE])
  after_cut = (times > times[int(len(times) * 0.7) - 1]).sum()
  assert (occasions.split == TEST).sum() == after_cut > 0


def test_leave_one_out_makes_every_purchase_an_occasion():
  log = InteractionLog.build(*random_tables(2))
  occasions = find_occasions(log, dataclasses.replace(TIME, split='leave_one_out'))
  check_no_leak(log, occasions)
  assert (np.diff(occasions.target_offsets)[occasions.split != NONE] == 1).all()
  assert len(occasions.target) == (log.event == 5).sum()
  end = occasions.train_end(log)
  for user in range(len(log.users)):
    mine = np.flatnonzero((occasions.user == user) & (occasions.split != NONE))
    splits = [SPLITS[split] for split in occasions.split[mine]]
    if len(mine) > 1:
      assert splits == (['train'] * len(mine) + ['valid', 'test'])[-len(mine) :]
    else:
      assert splits in ([], ['test'])
    held_out = occasions.timestamp[mine[-2:]].min(initial=2**40)
    rows = slice(log.offsets[user], log.offsets[user + 1])
    assert end[user] - log.offsets[user] == (log.timestamp[rows] < held_out).sum()


def tiny(*rows):
  events = pl.DataFrame(rows, schema=['user_id', 'item_id', 'event', 'timestamp'], orient='row')
  log = InteractionLog.build(*validate(events, events.select('item_id').unique()))
  return log, find_occasions(log, TIME)


def test_an_occasion_without_earlier_rows_is_kept_with_an_empty_context():
  log, occasions = tiny((1, 1, 'view', 9), (1, 1, 'purchase', 9))
  assert occasions.context_end.tolist() == [0] and occasions.target_seen.tolist() == [False]
  check_no_leak(log, occasions)


def test_repeated_rows_count_as_so_many_views():
  log, occasions = tiny(
    *[(1, 1, 'view', 9)] * 6,
    (1, 2, 'purchase', 10),
    (1, 3, 'impression', 9),
    (1, 3, 'purchase', 10),
  )
  assert COHORTS[occasions.cohort[0]] == 'D1'
  assert occasions.target_seen.tolist() == [False, False]  # an impression alone is no engagement
  assert occasions.context_end.tolist() == [2]


def test_a_log_without_purchases_has_no_occasion_with_a_target():
  log, occasions = tiny(*[(1, 1, 'view', t) for t in range(1, 9)])
  assert [SPLITS[s] for s in occasions.split] == ['none'] and occasions.timestamp.tolist() == [9]
  check_no_leak(log, occasions)


@pytest.mark.parametrize('rule', ['time', 'leave_one_out'])
def test_saved_occasions_load_again_and_wrong_files_are_refused(tmp_path, rule):
  log = InteractionLog.build(*random_tables(3))
  occasions = find_occasions(log, dataclasses.replace(TIME, split=rule))
  occasions.save(tmp_path)
  loaded = Occasions.load(tmp_path)
  for field in dataclasses.fields(occasions):
    saved, read = getattr(occasions, field.name), getattr(loaded, field.name)
    np.testing.assert_array_equal(read, saved)
    assert not isinstance(saved, np.ndarray) or read.dtype == saved.dtype, field.name
  assert loaded.digest == occasions.digest != dataclasses.replace(occasions, train_cut=1).digest
  path = tmp_path / 'occasions.parquet'
  metadata = {k: v for k, v in pl.read_parquet_metadata(path).items() if not k.startswith('ARROW')}
  pl.read_parquet(path).reverse().write_parquet(path, metadata=metadata)
  with pytest.raises(DataError, match=f'saved was {occasions.digest}'):
    Occasions.load(tmp_path)
  pl.read_parquet(path).write_parquet(path)
  with pytest.raises(DataError, match='occasions that Occasions.save wrote'):
    Occasions.load(tmp_path)


@pytest.mark.parametrize(
  'kind, n_occasions, n_targets',
  [
    ('alibaba2014', 428, 488),
    ('taobao_userbehavior', 140, 149),
    ('ijcai15', 903, 1090),
  ],
)
def test_dormant_test_occasions_of_the_real_logs(kind, n_occasions, n_targets):
  data = real_logs.RAW[kind]
  events, items, _ = ADAPTERS[data.format](real_logs.need(data.path), data)
  log = InteractionLog.build(*validate(events, items))
  occasions = find_occasions(log, data)
  check_no_leak(log, occasions)
  dormant_test = np.isin(occasions.cohort, (D1, D2)) & (occasions.split == TEST)
  assert dormant_test.sum() == n_occasions
  assert np.diff(occasions.target_offsets)[dormant_test].sum() == n_targets


def test_leave_one_out_of_a_real_log():
  data = real_logs.RAW['ranked_sequences']
  events, items, _ = ADAPTERS['ranked_sequences'](real_logs.need(data.path), data)
  log = InteractionLog.build(events, items)
  occasions = find_occasions(log, data)
  check_no_leak(log, occasions)
  users, purchases = 22_363, 198_502
  by_split = np.bincount(occasions.split, minlength=4).tolist()
  assert by_split == [purchases - 2 * users, users, users, 0]
  assert log.items.height == 12_101


def quantile_cuts(times: np.ndarray, data: DataConfig) -> tuple[int, int]:
  """Return quantiles of sorted times; in a tie of more than what is held out, its nearer edge."""
  cuts = []
  for held_out in (data.test_fraction + data.valid_fraction, data.test_fraction):
    place = int(len(times) * (1 - held_out) + 1e-9)
    time = times[place - 1]
    before, until = (times < time).sum(), (times <= time).sum()
    is_large = before and until - before > held_out * len(times)
    cuts.append(times[before - 1] if is_large and place - before < until - place else time)
  return tuple(cuts)


def sizes(times: np.ndarray, train: int, valid: int) -> list[int]:
  """Return how many times are in each split."""
  splits = (times > train).astype(int) + (times > valid)
  return np.bincount(splits, minlength=3).tolist()


@pytest.mark.parametrize('seed', range(40))
def test_cuts_are_quantiles_unless_a_tie_leaves_a_split_empty(seed):
  rng = np.random.default_rng(seed)
  days = rng.integers(3, 12)
  share = rng.dirichlet(np.full(days, 0.3))
  times = np.sort(np.concatenate([np.arange(days), rng.choice(days, 200, p=share)])) * DAY
  cuts = find_cuts(OccasionTimes(times, times), DataConfig())
  quantiles = quantile_cuts(times, DataConfig())
  assert all(sizes(times, *cuts)), cuts
  if all(sizes(times, *quantiles)):
    assert cuts == quantiles
    return
  edges = np.unique(times)
  distances = [
    abs((times > valid).mean() - DataConfig().test_fraction)
    for train, valid in itertools.combinations(edges[:-1], 2)
  ]
  assert abs((times > cuts.valid).mean() - DataConfig().test_fraction) == pytest.approx(
    min(distances)
  )


def at(*days: int) -> np.ndarray:
  return np.array(days, np.int64) * DAY


CUTS = {
  'a sale across the cut': (at(*range(1, 12), *[20] * 8, 30), None, (9, 11)),
  'a sale mostly before it': (at(*range(1, 9), *[20] * 7, *range(21, 26)), None, (8, 20)),
  'sale at the end': (at(1, 2, 3, *[9] * 20), None, (2, 3)),
  'sale at the start': (at(*[1] * 20, 2, 3, 4), None, (1, 2)),
  'sale in the middle': (at(1, *[2] * 20, 3), None, (1, 2)),
  'two sales': (at(1, *[2] * 9, 3, *[4] * 10), None, (2, 3)),
  'what a sale leaves is divided as asked': (at(*range(1, 41), *[60] * 60), None, (31, 40)),
  'two days': (at(1, *[2] * 9), None, (1, 1)),
  'one day': (at(*[5] * 9), None, (5, 5)),
  'dormant on the last day only': (at(9, 9, 9), at(1, 2, 3, 9, 9, 9), (2, 3)),
  'dormant on two days': (at(1, 9), at(1, 2, 2, 5, 9), (2, 5)),
  'dormant on two days that follow': (at(8, 9), at(1, 2, 8, 9), (2, 8)),
  'few': (at(1, 2, 3), None, (1, 2)),
}


@pytest.mark.parametrize('dormant, all_cohorts, expected', CUTS.values(), ids=CUTS)
def test_cuts_of_days_with_many_occasions(dormant, all_cohorts, expected):
  times = OccasionTimes(dormant, dormant if all_cohorts is None else all_cohorts)
  cuts = find_cuts(times, DataConfig())
  assert tuple(cut // DAY for cut in cuts) == expected
  shuffled = OccasionTimes(*(np.random.default_rng(0).permutation(part) for part in times))
  assert find_cuts(shuffled, DataConfig()) == cuts
  if len(np.unique(times.all_cohorts)) > 2:
    assert all(sizes(times.all_cohorts, *cuts))


def test_the_latest_time_of_a_log_and_the_one_after_it_fit_int32():
  log, occasions = tiny(*[(1, 1, 'view', MAX_TIMESTAMP)] * 6)
  assert occasions.timestamp.tolist() == [MAX_TIMESTAMP + 1]
  year = 365 * DAY
  assert MAX_TIMESTAMP + year < np.iinfo(np.int32).max
  assert log.timestamp.astype(np.int32).tolist() == [MAX_TIMESTAMP]
