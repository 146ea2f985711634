import jax
import numpy as np
import pytest

from rolegen_jax.config import DataConfig, ReasonerConfig
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from rolegen_jax.features import excitation as lib
from rolegen_jax.features.interest_shift import FOLDS, SHRINK, InterestShift
from rolegen_jax.features.item_transitions import followed
from tests.data import random_logs

CODES = 5


def estimate(seed: int, keep: int = CODES):
  log = InteractionLog.build(*random_logs.random_tables(seed))
  train_end = find_occasions(log, DataConfig()).train_end(log)
  coarse = np.random.default_rng(seed).integers(0, CODES, len(log.items)).astype(np.int32)
  counted = InterestShift.of(log, train_end, coarse, CODES)
  return (
    log,
    train_end,
    coarse,
    counted,
    lib.Excitation.of_counts(
      counted, followed(log, train_end), ReasonerConfig(coarse_codes=keep, transitions=4)
    ),
  )


def again(log, item, train_end, coarse):
  """The same log with other items."""
  log = InteractionLog(log.users, log.items, log.offsets, item, log.event, log.timestamp, log.count)
  config = ReasonerConfig(coarse_codes=CODES, transitions=4)
  return lib.Excitation.of_counts(
    InterestShift.of(log, train_end, coarse, CODES), followed(log, train_end), config
  )


def dense(found, fold, name):
  table = np.zeros((found.code.shape[1], CODES))
  np.put_along_axis(table, found.code[fold], getattr(found, name)[fold], axis=1)
  return table


def shares(count, coarse, shrink, least=0.0):
  """Of each item, shrunk to its coarse code's, by hand."""
  share = np.zeros_like(count)
  for i, own in enumerate(coarse):
    prior = count[coarse == own].sum(0) + least
    share[i] = (count[i] + shrink * prior / max(prior.sum(), 1e-9)) / (count[i].sum() + shrink)
  return share


@pytest.mark.parametrize('seed', range(3))
def test_weights_and_shifts_of_shares(seed):
  log, _, coarse, counted, found = estimate(seed)
  for fold in range(FOLDS):
    after, before = (counts.toarray().astype(np.float64) for counts in counted.others(fold))
    base = (after.sum(0) + 1) / (after.sum() + CODES)
    np.testing.assert_allclose(
      dense(found, fold, 'weight'),
      np.maximum(shares(after, coarse, lib.SHRINK, lib.SHRINK * base) - base, 0),
      atol=1e-5,
    )
    shift = shares(after, coarse, SHRINK) - shares(before, coarse, SHRINK)
    shift[np.arange(len(coarse)), coarse] = 0
    np.testing.assert_allclose(dense(found, fold, 'shift'), shift, atol=1e-5)
    assert shift.min() < -0.01 and shift.max() > 0.01


def test_a_user_is_never_told_of_their_own_events():
  """Another life of one user changes nothing of what that user's histories are said to lead to."""
  log, train_end, coarse, _, found = estimate(3)
  user = 6
  rows = slice(log.offsets[user], log.offsets[user + 1])
  item = log.item.copy()
  item[rows] = np.random.default_rng(0).permutation(item[rows])
  other = again(log, item, train_end, coarse)
  history = np.arange(len(log.items))[None]
  before, after = (found_.of(np.array([user]), history) for found_ in (found, other))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  told, told_then = (found_.of(np.array([user + 1]), history) for found_ in (found, other))
  assert (told.weight != told_then.weight).any() and (told.share != told_then.share).any()


def test_what_comes_after_training_is_not_counted():
  log, train_end, coarse, _, found = estimate(4)
  item = log.item.copy()
  late = np.arange(len(item)) >= train_end[log.user]
  item[late] = (item[late] + 1) % len(log.items)
  assert late.any()
  other = again(log, item, train_end, coarse)
  for name in ('code', 'weight', 'shift', 'next_item', 'share', 'opens'):
    np.testing.assert_array_equal(getattr(found, name), getattr(other, name))


def test_only_the_strongest_are_kept_and_padding_excites_nothing():
  *_, everything = estimate(5)
  *_, kept = estimate(5, keep=2)
  np.testing.assert_array_equal(kept.weight, everything.weight[..., :2])
  assert (np.diff(np.maximum(everything.weight, np.abs(everything.shift)), axis=-1) <= 0).all()
  told = kept.of(np.array([0, 1]), np.array([[-1, 3], [-1, -1]]))
  assert all(
    (x[[0, 1, 1], [0, 0, 1]] == 0).all() and x[0, 1].any() for x in (told.weight, told.shift)
  )
