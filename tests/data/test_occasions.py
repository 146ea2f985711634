"""Occasions against a plain-Python reading of the rules, and against counts known for the real logs."""

import collections
import dataclasses

import numpy as np
import polars as pl
import pytest
import real_logs
from random_logs import DAY, random_tables

from rolegen_jax.config import COHORTS, DataConfig
from rolegen_jax.data.adapters import ADAPTERS
from rolegen_jax.data.events import validate
from rolegen_jax.data.files import DataError
from rolegen_jax.data.leaks import check_no_leak
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import SPLITS, Occasions, find_occasions

TIME = DataConfig(first_conversion_min_views=6, reactivation_min_days=7.0, reactivation_min_views=3)


def by_hand(events: pl.DataFrame, data: DataConfig) -> set:
  """{(user, timestamp, cohort, bought items, those of them seen, rows of context)} from the rules, one row at a time."""
  rows = collections.defaultdict(list)
  for user, item, event, time in events.select(
    'user_id', 'item_id', pl.col('event').cast(pl.String), 'timestamp'
  ).iter_rows():
    rows[user].append((time, event, item))
  found = set()
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
      seen = frozenset(
        i for i in targets if any(j == i and e != 'impression' for _, e, j in before)
      )
      found.add((user, time, cohort, targets, seen, len(before)))
    if not bought_at and sum(e == 'view' for _, e, _ in history) >= data.first_conversion_min_views:
      found.add(
        (user, events['timestamp'].max() + 1, 'D3', frozenset(), frozenset(), len(set(history)))
      )
  return found


def described(log: InteractionLog, occasions: Occasions) -> set:
  ids, found = log.items['item_id'], set()
  for o, (user, time) in enumerate(zip(occasions.user, occasions.timestamp)):
    span = slice(*occasions.target_offsets[o : o + 2])
    targets = [ids[int(i)] for i in occasions.target[span]]
    assert len(targets) == len(set(targets))
    seen = frozenset(t for t, s in zip(targets, occasions.target_seen[span]) if s)
    context = occasions.context_end[o] - log.offsets[user]
    found.add(
      (
        log.users[int(user)],
        int(time),
        COHORTS[occasions.cohort[o]],
        frozenset(targets),
        seen,
        int(context),
      )
    )
  assert len(found) == len(occasions.user)
  return found


@pytest.mark.parametrize('seed', range(5))
def test_occasions_are_those_of_the_rules(seed):
  events, items = random_tables(seed, text_ids=seed % 2 == 1)
  log = InteractionLog.build(events, items)
  occasions = find_occasions(log, TIME)
  want = by_hand(events, TIME)
  assert described(log, occasions) == want
  assert {o[2] for o in want} == set(COHORTS)
  order = list(zip(occasions.timestamp.tolist(), occasions.user.tolist()))
  assert order == sorted(order)
  check_no_leak(log, occasions)


@pytest.mark.parametrize('seed', range(5))
def test_split_by_time(seed):
  log = InteractionLog.build(*random_tables(seed))
  occasions = find_occasions(log, TIME)
  real = occasions.cohort != COHORTS.index('D3')
  dormant = np.sort(
    occasions.timestamp[np.isin(occasions.cohort, (COHORTS.index('D1'), COHORTS.index('D2')))]
  )
  test_cut, train_cut = (
    dormant[int(len(dormant) * share) - 1] for share in (1 - TIME.test_fraction, 1 - 0.3 - 0.15)
  )
  want = np.where(
    occasions.timestamp > test_cut,
    'test',
    np.where(occasions.timestamp > train_cut, 'valid', 'train'),
  )
  assert np.array_equal(np.array(SPLITS)[occasions.split], np.where(real, want, 'none'))
  assert occasions.train_cut == train_cut
  usable = np.arange(len(log.item)) < occasions.train_end(log)[log.user]
  assert np.array_equal(usable, log.timestamp <= train_cut)


def test_a_log_without_dormant_occasions_is_cut_at_quantiles_of_all():
  log = InteractionLog.build(*random_tables(0))
  occasions = find_occasions(
    log, dataclasses.replace(TIME, first_conversion_min_views=9999, reactivation_min_views=9999)
  )
  real = np.sort(occasions.timestamp[occasions.cohort == COHORTS.index('ACTIVE')])
  assert (
    (occasions.split == SPLITS.index('test')).sum()
    == (real > real[int(len(real) * 0.7) - 1]).sum()
    > 0
  )


def test_leave_one_out_keeps_every_purchase_apart():
  log = InteractionLog.build(*random_tables(2))
  occasions = find_occasions(log, dataclasses.replace(TIME, split='leave_one_out'))
  check_no_leak(log, occasions)
  bought = log.event == 5
  assert (np.diff(occasions.target_offsets)[occasions.split != SPLITS.index('none')] == 1).all()
  assert len(occasions.target) == bought.sum()
  end = occasions.train_end(log)
  for user in range(len(log.users)):
    mine = np.flatnonzero((occasions.user == user) & (occasions.split != SPLITS.index('none')))
    names = [SPLITS[s] for s in occasions.split[mine]]
    assert (
      names == (['train'] * len(mine) + ['valid', 'test'])[-len(mine) :]
      if len(mine) > 1
      else names in ([], ['test'])
    )
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
def test_files_come_back_and_wrong_ones_are_refused(tmp_path, rule):
  log = InteractionLog.build(*random_tables(3))
  occasions = find_occasions(log, dataclasses.replace(TIME, split=rule))
  occasions.save(tmp_path)
  loaded = Occasions.load(tmp_path)
  for field in dataclasses.fields(occasions):
    saved, got = getattr(occasions, field.name), getattr(loaded, field.name)
    np.testing.assert_array_equal(got, saved)
    assert not isinstance(saved, np.ndarray) or got.dtype == saved.dtype, field.name
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
  'kind, occasions_wanted, targets_wanted',
  [
    ('alibaba2014', 428, 488),
    ('taobao_userbehavior', 140, 149),
  ],
)
def test_dormant_test_occasions_of_the_real_logs(kind, occasions_wanted, targets_wanted):
  data = real_logs.RAW[kind]
  events, items, _ = ADAPTERS[kind](real_logs.need(data.path), data)
  log = InteractionLog.build(*validate(events, items))
  occasions = find_occasions(log, data)
  check_no_leak(log, occasions)
  dormant = np.isin(occasions.cohort, (COHORTS.index('D1'), COHORTS.index('D2'))) & (
    occasions.split == SPLITS.index('test')
  )
  assert dormant.sum() == occasions_wanted
  assert np.diff(occasions.target_offsets)[dormant].sum() == targets_wanted


def test_leave_one_out_of_a_real_log():
  data = real_logs.RAW['ranked_sequences']
  events, items, _ = ADAPTERS['ranked_sequences'](real_logs.need(data.path), data)
  log = InteractionLog.build(events, items)
  occasions = find_occasions(log, data)
  check_no_leak(log, occasions)
  assert np.bincount(occasions.split, minlength=4).tolist() == [
    198_502 - 2 * 22_363,
    22_363,
    22_363,
    0,
  ]
  assert log.items.height == 12_101
