"""Items held out of training: none of their rows trains anything, all later rows stay."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from random_logs import random_tables

from rolegen_jax.config import ConfigError, DataConfig
from rolegen_jax.data.cold_items import hold_out
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import (
  TEST,
  TRAIN,
  VALID,
  find_cuts,
  find_occasions,
  occasion_times,
)
from rolegen_jax.data.prepare import RawTables, prepare

TIME = DataConfig('contract', 'log', first_conversion_min_views=6, reactivation_min_views=2)
RULES = 'time', 'leave_one_out'


def rows(log, chosen):
  columns = log.user, log.item, log.event, log.timestamp, log.count
  return set(zip(*(column[chosen].tolist() for column in columns)))


def targets(occasions, split):
  chosen = np.repeat(occasions.split == split, np.diff(occasions.target_offsets))
  return occasions.target[chosen]


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('seed', range(4))
def test_only_training_rows_of_the_items_leave(rule, seed):
  data = dataclasses.replace(TIME, split=rule)
  log = InteractionLog.build(*random_tables(seed))
  occasions = find_occasions(log, data)
  kept, held = hold_out(log, occasions, 0.3)
  assert len(held) == round(0.3 * 13) == len(set(held))
  is_held = np.isin(log.item, held)
  before, after = rows(log, slice(None)), rows(kept, slice(None))
  assert rows(log, ~is_held) <= after < before
  # What goes lies before validation, or is a training target in a tie with it.
  trained = np.arange(len(log.item)) < occasions.train_end(log)[log.user]
  bought = {
    (int(user), int(time), int(item))
    for o in np.flatnonzero(occasions.split == TRAIN)
    for user, time in [(occasions.user[o], occasions.timestamp[o])]
    for item in occasions.target[occasions.target_offsets[o] : occasions.target_offsets[o + 1]]
  }
  gone = before - after
  assert rows(log, trained & is_held) <= gone
  again = find_occasions(kept, data, find_cuts(occasion_times(occasions), data))
  assert not np.isin(targets(again, TRAIN), held).any()
  for user, item, _, time, _ in gone - rows(log, trained & is_held):
    assert rule == 'leave_one_out' and (user, time, item) in bought


@pytest.mark.parametrize('rule', RULES)
def test_prepared_logs_have_cold_targets_that_nothing_trains_on(rule, tmp_path):
  data = dataclasses.replace(TIME, split=rule)
  events, items = random_tables(1)
  tables = RawTables(events, items, {'cut_last_line': 1}, None)
  before, whole, plain = prepare(data, tables, tmp_path / 'plain')
  cold = dataclasses.replace(data, cold_items=0.3)
  log, occasions, notes = prepare(cold, tables, tmp_path / 'cold')
  held = np.flatnonzero((occasions.train_events(log) == 0) & (whole.train_events(before) > 0))
  assert len(held) == 4
  assert not np.isin(targets(occasions, TRAIN), held).any()
  assert np.isin(targets(occasions, TEST), held).any()
  # The splits lie where they lay, so later purchases are the same.
  assert occasions.train_cut == whole.train_cut
  for split in (VALID, TEST):
    assert sorted(targets(occasions, split)) == sorted(targets(whole, split))
  removed = plain['rows'] - notes['rows']
  assert notes['left_out'] == {'cut_last_line': 1, 'training rows of 4 cold items': removed}
  assert removed > 0


def test_held_items_are_the_same_in_every_run_and_settings_say_what_is_right(tmp_path):
  log = InteractionLog.build(*random_tables(1))
  occasions = find_occasions(log, TIME)
  assert (hold_out(log, occasions, 0.3)[1] == hold_out(log, occasions, 0.3)[1]).all()
  with pytest.raises(ConfigError, match=r'data\.cold_items=1\.0: must be from 0 to below 1'):
    dataclasses.replace(TIME, cold_items=1.0).validate('data')
  with pytest.raises(ConfigError, match=r'must be 0 with data\.shards'):
    dataclasses.replace(TIME, cold_items=0.1, shards='shards').validate('data')


def test_a_user_left_without_rows_stays_a_user(tmp_path):
  events, items = random_tables(1)
  log = InteractionLog.build(events, items)
  kept, held = hold_out(log, find_occasions(log, TIME), 0.9)
  assert len(kept.users) == len(log.users) == len(kept.offsets) - 1
  alone = pl.DataFrame({'user_id': [-1], 'timestamp': [events['timestamp'].min()]})
  alone = alone.with_columns(
    item_id=pl.lit(kept.items['item_id'][int(held[0])]), event=pl.lit('view')
  )
  alone = alone.select(events.columns).cast(dict(events.schema))
  more = RawTables(pl.concat([events, alone]), items, {}, None)
  log, occasions, _ = prepare(dataclasses.replace(TIME, cold_items=0.9), more, tmp_path)
  assert log.offsets[1] == 0 and not (occasions.user == 0).any()
