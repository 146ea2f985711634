"""Planted leaks are caught, each by its own message; untouched occasions pass."""

import dataclasses

import numpy as np
import pytest
from random_logs import random_tables

from rolegen_jax.config import DataConfig
from rolegen_jax.data.files import DataError
from rolegen_jax.data.leaks import check_no_leak
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import TEST, TRAIN, VALID, find_occasions

CONFIGS = {
  rule: DataConfig(split=rule, first_conversion_min_views=6, reactivation_min_days=7.0)
  for rule in ('time', 'leave_one_out')
}


def case(rule):
  log = InteractionLog.build(*random_tables(0))
  return log, find_occasions(log, CONFIGS[rule])


def changed(occasions, field, where, value):
  array = getattr(occasions, field).copy()
  array[where] = value
  return dataclasses.replace(occasions, **{field: array})


@pytest.mark.parametrize('rule', CONFIGS)
@pytest.mark.parametrize('split', [TRAIN, VALID, TEST])
def test_a_context_that_reaches_the_occasion_itself(rule, split):
  log, occasions = case(rule)
  one = np.flatnonzero(occasions.split == split)[0]
  with pytest.raises(DataError, match=f'occasion {one} .*not strictly before'):
    check_no_leak(log, changed(occasions, 'context_end', one, occasions.context_end[one] + 1))


def test_a_context_that_is_of_another_user_or_too_short():
  log, occasions = case('time')
  one = np.flatnonzero(occasions.context_end > log.offsets[occasions.user])[0]
  with pytest.raises(DataError, match='lacks rows'):
    check_no_leak(log, changed(occasions, 'context_end', one, occasions.context_end[one] - 1))
  with pytest.raises(DataError, match='outside the rows of its user'):
    check_no_leak(log, changed(occasions, 'context_end', one, log.offsets[occasions.user[one]] - 1))


def test_a_cut_moved_into_held_out_time():
  log, occasions = case('time')
  first = occasions.timestamp[occasions.split == VALID].min()
  check_no_leak(log, dataclasses.replace(occasions, train_cut=int(first) - 1))
  for later in (first, occasions.timestamp[occasions.split == TEST].min(), log.timestamp.max()):
    with pytest.raises(
      DataError, match='training may use a row at .* at or after the first held-out occasion'
    ):
      check_no_leak(log, dataclasses.replace(occasions, train_cut=int(later)))


@pytest.mark.parametrize('rule', CONFIGS)
def test_a_trainer_that_takes_one_row_more(rule):
  log, occasions = case(rule)
  end = occasions.train_end(log)
  check_no_leak(log, occasions, end)
  held_out = occasions.user[occasions.split == TEST][0]
  end[held_out] = log.offsets[held_out + 1]
  with pytest.raises(DataError, match='training may use a row'):
    check_no_leak(log, occasions, end)


@pytest.mark.parametrize('rule', CONFIGS)
def test_training_and_validation_occasions_in_later_time(rule):
  log, occasions = case(rule)
  latest = np.flatnonzero(occasions.split == TEST)[-1]
  with pytest.raises(DataError, match='training occasion at or after'):
    check_no_leak(
      log,
      changed(occasions, 'split', latest, TRAIN)
      if rule == 'time'
      else changed_order(occasions, TRAIN),
    )
  with pytest.raises(DataError, match='validation occasion at or after'):
    check_no_leak(
      log,
      changed(occasions, 'split', latest, VALID)
      if rule == 'time'
      else changed_order(occasions, VALID),
    )


def changed_order(occasions, split):
  """Under leave_one_out the order counts within a user: swaps the last and an earlier occasion of one user."""
  for user in np.unique(occasions.user):
    mine = np.flatnonzero(occasions.user == user)
    if len(mine) >= 4 and len(np.unique(occasions.timestamp[mine])) == len(mine):
      earlier = mine[np.flatnonzero(occasions.split[mine] == split)[0]]
      return changed(changed(occasions, 'split', earlier, TEST), 'split', mine[-1], split)
  raise AssertionError('no user with four purchases at different times')


def test_occasions_of_another_log():
  log, occasions = case('time')
  other = InteractionLog.build(*random_tables(1))
  with pytest.raises(DataError, match=f'log {log.digest}, this log is {other.digest}'):
    check_no_leak(other, occasions)
