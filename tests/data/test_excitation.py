import numpy as np
import pytest

from rolegen_jax.data import excitation as lib
from rolegen_jax.data.occasions import find_occasions
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.config import DataConfig
from tests.data import random_logs

CODES = 5


def estimate(seed: int, keep: int = CODES):
  log = InteractionLog.build(*random_logs.random_tables(seed))
  train_end = find_occasions(log, DataConfig()).train_end(log)
  coarse = np.random.default_rng(seed).integers(0, CODES, len(log.items)).astype(np.int32)
  return log, train_end, coarse, lib.estimate_excitation(log, train_end, coarse, CODES, keep)


def dense(found, fold):
  table = np.zeros((found.code.shape[1], CODES))
  np.put_along_axis(table, found.code[fold], found.weight[fold], axis=1)
  return table


@pytest.mark.parametrize('seed', range(3))
def test_weights_against_counting_one_by_one(seed):
  log, train_end, coarse, found = estimate(seed)
  for fold in range(lib.FOLDS):
    count = np.zeros((len(log.items), CODES))
    for a in range(len(log.item)):
      for b in range(a + 1, min(a + lib.AHEAD + 1, train_end[log.user[a]])):
        later = log.timestamp[b] - log.timestamp[a]
        if log.user[a] == log.user[b] and later > 0 and log.user[a] % lib.FOLDS != fold:
          worth = lib.PURCHASE_WEIGHT if log.event[b] == lib.PURCHASE else 1.0
          count[log.item[a], coarse[log.item[b]]] += worth * np.exp(-later / 86_400 / lib.DECAY_DAYS)
    base = (count.sum(0) + 1) / (count.sum() + CODES)
    share = np.zeros_like(count)
    for i, own in enumerate(coarse):
      prior = count[coarse == own].sum(0) + lib.SHRINK * base
      share[i] = (count[i] + lib.SHRINK * prior / prior.sum()) / (count[i].sum() + lib.SHRINK)
    np.testing.assert_allclose(dense(found, fold), np.maximum(share - base, 0), atol=1e-5)


def test_a_user_is_never_told_of_their_own_events():
  """Another life of one user changes nothing of what that user's histories are said to lead to."""
  log, train_end, coarse, found = estimate(3)
  user = 6
  rows = slice(log.offsets[user], log.offsets[user + 1])
  item = log.item.copy()
  item[rows] = np.random.default_rng(0).permutation(item[rows])
  other = lib.estimate_excitation(InteractionLog(log.users, log.items, log.offsets, item, log.event, log.timestamp, log.count), train_end, coarse, CODES, CODES)
  history = np.arange(len(log.items))[None]
  before, after = (found_.of(np.array([user]), history) for found_ in (found, other))
  np.testing.assert_array_equal(before.weight, after.weight)
  assert (found.of(np.array([user + 1]), history).weight != other.of(np.array([user + 1]), history).weight).any()


def test_what_comes_after_training_is_not_counted():
  log, train_end, coarse, found = estimate(4)
  item = log.item.copy()
  late = np.arange(len(item)) >= train_end[log.user]
  item[late] = (item[late] + 1) % len(log.items)
  other = InteractionLog(log.users, log.items, log.offsets, item, log.event, log.timestamp, log.count)
  assert late.any()
  np.testing.assert_array_equal(found.weight, lib.estimate_excitation(other, train_end, coarse, CODES, CODES).weight)


def test_only_the_strongest_are_kept_and_padding_excites_nothing():
  *_, everything = estimate(5)
  *_, kept = estimate(5, keep=2)
  np.testing.assert_array_equal(kept.weight, everything.weight[..., :2])
  assert (np.diff(everything.weight, axis=-1) <= 0).all()
  assert (kept.of(np.array([0, 1]), np.array([[-1, 3], [-1, -1]])).weight[[0, 1, 1], [0, 0, 1]] == 0).all()
