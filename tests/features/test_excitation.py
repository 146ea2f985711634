"""Excitation: shares in plain Python, and that no user's own or later events are in them."""

import jax
import numpy as np
import pytest

from rolegen_jax.config import DataConfig, ReasonerConfig
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from rolegen_jax.features import excitation as lib
from rolegen_jax.features.interest_shift import FOLDS, SHRINK, InterestShift
from rolegen_jax.features.item_transitions import Kernel, Transitions
from tests.data import random_logs

CODES = 5


def build(log, train_end, coarse, keep: int = CODES):
  """Return the interest shift and the excitation of a log."""
  shift = InterestShift.of(log, train_end, coarse, CODES)
  config = ReasonerConfig(coarse_codes=keep, transitions=4)
  return shift, lib.Excitation.of_counts(shift, Transitions.of(log, train_end, Kernel()), config)


def estimate(seed: int, keep: int = CODES):
  """Return a random log, its train_end and coarse codes, and what is counted on it."""
  log = InteractionLog.build(*random_logs.random_tables(seed))
  train_end = find_occasions(log, DataConfig()).train_end(log)
  coarse = np.random.default_rng(seed).integers(0, CODES, len(log.items)).astype(np.int32)
  return log, train_end, coarse, *build(log, train_end, coarse, keep)


def with_items(log, item):
  """Return the same log with other items."""
  return InteractionLog(
    log.users, log.items, log.offsets, item, log.event, log.timestamp, log.count
  )


def dense(excitation, fold, name):
  table = np.zeros((excitation.code.shape[1], CODES))
  np.put_along_axis(table, excitation.code[fold], getattr(excitation, name)[fold], axis=1)
  return table


def shares(count, coarse, shrink, least=0.0):
  """Return the shares of each item, shrunk to those of its coarse code, item by item."""
  share = np.zeros_like(count)
  for i, own in enumerate(coarse):
    prior = count[coarse == own].sum(0) + least
    share[i] = (count[i] + shrink * prior / max(prior.sum(), 1e-9)) / (count[i].sum() + shrink)
  return share


@pytest.mark.parametrize('seed', range(3))
def test_weights_and_shifts_of_shares(seed):
  log, _, coarse, counts, excitation = estimate(seed)
  for fold in range(FOLDS):
    after, before = (part.toarray().astype(np.float64) for part in counts.without_fold(fold))
    base = (after.sum(0) + 1) / (after.sum() + CODES)
    weight = np.maximum(shares(after, coarse, lib.SHRINK, lib.SHRINK * base) - base, 0)
    np.testing.assert_allclose(dense(excitation, fold, 'weight'), weight, atol=1e-5)
    shift = shares(after, coarse, SHRINK) - shares(before, coarse, SHRINK)
    shift[np.arange(len(coarse)), coarse] = 0
    np.testing.assert_allclose(dense(excitation, fold, 'shift'), shift, atol=1e-5)
    assert shift.min() < -0.01 and shift.max() > 0.01


def test_a_users_own_events_do_not_reach_that_user():
  """Other events of one user change nothing of what that user's histories are said to lead to."""
  log, train_end, coarse, _, excitation = estimate(3)
  user = 6
  rows = slice(log.offsets[user], log.offsets[user + 1])
  item = log.item.copy()
  item[rows] = np.random.default_rng(0).permutation(item[rows])
  _, other = build(with_items(log, item), train_end, coarse)
  history = np.arange(len(log.items))[None]
  own = [each.of(np.array([user]), history) for each in (excitation, other)]
  jax.tree.map(np.testing.assert_array_equal, *own)
  before, after = (each.of(np.array([user + 1]), history) for each in (excitation, other))
  assert (before.weight != after.weight).any() and (before.share != after.share).any()


def test_events_after_training_are_not_counted():
  log, train_end, coarse, _, excitation = estimate(4)
  item = log.item.copy()
  is_late = np.arange(len(item)) >= train_end[log.user]
  item[is_late] = (item[is_late] + 1) % len(log.items)
  assert is_late.any()
  _, other = build(with_items(log, item), train_end, coarse)
  np.testing.assert_array_equal(excitation.opens.share, other.opens.share)
  for name in ('code', 'weight', 'shift', 'next_item', 'share'):
    np.testing.assert_array_equal(getattr(excitation, name), getattr(other, name))


def test_only_the_strongest_are_kept_and_padding_excites_nothing():
  *_, every_code = estimate(5)
  *_, two_codes = estimate(5, keep=2)
  np.testing.assert_array_equal(two_codes.weight, every_code.weight[..., :2])
  strength = np.maximum(every_code.weight, np.abs(every_code.shift))
  assert (np.diff(strength, axis=-1) <= 0).all()
  excites = two_codes.of(np.array([0, 1]), np.array([[-1, 3], [-1, -1]]))
  for table in (excites.weight, excites.shift):
    assert (table[[0, 1, 1], [0, 0, 1]] == 0).all() and table[0, 1].any()
