"""The leak check: planted leaks are caught, each by its own message; untouched occasions pass."""

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


def log_and_occasions(rule):
  log = InteractionLog.build(*random_tables(0))
  return log, find_occasions(log, CONFIGS[rule])


def changed(occasions, field, where, value):
  array = getattr(occasions, field).copy()
  array[where] = value
  return dataclasses.replace(occasions, **{field: array})


@pytest.mark.parametrize('rule', CONFIGS)
@pytest.mark.parametrize('split', [TRAIN, VALID, TEST])
def test_context_that_reaches_the_occasion_itself_is_refused(rule, split):
  log, occasions = log_and_occasions(rule)
  one = np.flatnonzero(occasions.split == split)[0]
  with pytest.raises(DataError, match=f'occasion {one} .*not strictly before'):
    check_no_leak(log, changed(occasions, 'context_end', one, occasions.context_end[one] + 1))


def test_context_of_another_user_or_too_short_is_refused():
  log, occasions = log_and_occasions('time')
  one = np.flatnonzero(occasions.context_end > log.offsets[occasions.user])[0]
  with pytest.raises(DataError, match='lacks rows'):
    check_no_leak(log, changed(occasions, 'context_end', one, occasions.context_end[one] - 1))
  with pytest.raises(DataError, match='outside the rows of its user'):
    check_no_leak(log, changed(occasions, 'context_end', one, log.offsets[occasions.user[one]] - 1))


def test_cut_moved_into_held_out_time_is_refused():
  log, occasions = log_and_occasions('time')
  first = occasions.timestamp[occasions.split == VALID].min()
  check_no_leak(log, dataclasses.replace(occasions, train_cut=int(first) - 1))
  for later in (first, occasions.timestamp[occasions.split == TEST].min(), log.timestamp.max()):
    with pytest.raises(
      DataError, match='training may use a row at .* at or after the first held-out occasion'
    ):
      check_no_leak(log, dataclasses.replace(occasions, train_cut=int(later)))


@pytest.mark.parametrize('rule', CONFIGS)
def test_training_rows_beyond_train_end_are_refused(rule):
  log, occasions = log_and_occasions(rule)
  end = occasions.train_end(log)
  check_no_leak(log, occasions, end)
  held_out = occasions.user[occasions.split == TEST][0]
  end[held_out] = log.offsets[held_out + 1]
  with pytest.raises(DataError, match='training may use a row'):
    check_no_leak(log, occasions, end)


@pytest.mark.parametrize('rule', CONFIGS)
def test_training_and_validation_occasions_in_later_time_are_refused(rule):
  log, occasions = log_and_occasions(rule)
  latest = np.flatnonzero(occasions.split == TEST)[-1]
  for split, message in ((TRAIN, 'training occasion at'), (VALID, 'validation occasion at')):
    if rule == 'time':
      moved = changed(occasions, 'split', latest, split)
    else:
      moved = with_swapped_order(occasions, split)
    with pytest.raises(DataError, match=f'{message} or after'):
      check_no_leak(log, moved)


def with_swapped_order(occasions, split):
  """Swap the last and an earlier occasion of one user, within which leave_one_out has an order."""
  for user in np.unique(occasions.user):
    mine = np.flatnonzero(occasions.user == user)
    if len(mine) >= 4 and len(np.unique(occasions.timestamp[mine])) == len(mine):
      earlier = mine[np.flatnonzero(occasions.split[mine] == split)[0]]
      return changed(changed(occasions, 'split', earlier, TEST), 'split', mine[-1], split)
  raise AssertionError('no user with four purchases at different times')


def test_occasions_of_another_log_are_refused():
  log, occasions = log_and_occasions('time')
  other = InteractionLog.build(*random_tables(1))
  with pytest.raises(DataError, match=f'log {log.digest}, this log is {other.digest}'):
    check_no_leak(other, occasions)
