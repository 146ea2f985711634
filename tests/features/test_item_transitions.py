"""Item transitions against counting in plain Python."""

import dataclasses

import numpy as np
import pytest

from rolegen_jax.config import EVENT_NAMES, DataConfig
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from rolegen_jax.features.interest_shift import DECAY_DAYS, FOLDS, MAX_LAG, PURCHASE_WEIGHT
from rolegen_jax.features.item_transitions import Kernel, Transitions
from tests.data import random_logs
from tests.evaluation import tiny_log

KERNELS = (
  Kernel(),
  Kernel(lags=2, backward=1.0, prior=3.0),
  Kernel(fade='time', backward=0.0),
  Kernel(MAX_LAG, 'time', backward=0.0, normalization='shares', prior=5.0),
  Kernel(3, 'lag', backward=0.5, normalization='shares', prior=1.0),
)


def weight_of(log, row) -> float:
  return PURCHASE_WEIGHT if EVENT_NAMES[log.event[row]] == 'purchase' else 1.0


def counted_by_hand(log, train_end, fold, kernel):
  """(pairs, events) of one fold of users."""
  count, events = np.zeros((len(log.items),) * 2), np.zeros(len(log.items))
  for user in range(fold, len(log.users), FOLDS):
    for earlier in range(log.offsets[user], train_end[user]):
      events[log.item[earlier]] += weight_of(log, earlier)
      for later in range(earlier + 1, min(earlier + kernel.lags + 1, train_end[user])):
        days = (log.timestamp[later] - log.timestamp[earlier]) / 86_400
        if days > 0:
          fade = np.exp(-days / DECAY_DAYS) if kernel.fade == 'time' else 1 / (later - earlier)
          count[log.item[earlier], log.item[later]] += fade * weight_of(log, later)
          back = kernel.backward * fade * weight_of(log, earlier)
          count[log.item[later], log.item[earlier]] += back
  return count, events


def normalized(count, events, kernel):
  if kernel.normalization == 'cosine':
    root = np.sqrt(np.maximum(events + kernel.prior, 1e-9))
    return count / root / root[:, None]
  total = count.sum(1, keepdims=True)
  above_base = np.maximum(count - total * count.sum(0) / count.sum(), 0)
  return above_base / (total + kernel.prior)


@pytest.mark.parametrize('kernel', KERNELS, ids=str)
def test_the_strongest_transitions_of_other_users(kernel):
  log = InteractionLog.build(*random_logs.random_tables(0))
  train_end = find_occasions(log, DataConfig()).train_end(log)
  transitions = Transitions.of(log, train_end, kernel)
  by_hand = [counted_by_hand(log, train_end, fold, kernel) for fold in range(FOLDS)]

  def expected(folds):
    pairs, events = zip(*(by_hand[fold] for fold in folds))
    return normalized(sum(pairs), sum(events), kernel)

  everybody = transitions.table().toarray()
  np.testing.assert_allclose(everybody, expected(range(FOLDS)), rtol=1e-9, atol=1e-12)
  keep = 4
  item, value = transitions.strongest(keep)
  for fold in range(FOLDS):
    value_IxI = expected([other for other in range(FOLDS) if other != fold])
    np.testing.assert_allclose(value[fold], -np.sort(-value_IxI, axis=1)[:, :keep], atol=1e-5)
    is_kept = value[fold] > 0
    kept = np.take_along_axis(value_IxI, item[fold], axis=1)
    np.testing.assert_allclose(kept[is_kept], value[fold][is_kept], rtol=1e-4)
    assert is_kept.any()
    for row, of_row in zip(item[fold], is_kept):
      assert len(set(row[of_row])) == of_row.sum()


def test_a_table_by_hand():
  """One user: 0, 1, 2 on days of their own, then 0 again. Cosine of pairs at most two apart."""
  rows = [(0, 0, 'purchase', 0), (0, 1, 'purchase', 1), (0, 2, 'purchase', 2)]
  log, _ = tiny_log.make(rows + [(0, 0, 'purchase', 3)], 3)
  kernel = Kernel(lags=2, backward=0.5)
  table = Transitions.of(log, log.offsets[1:], kernel).table().toarray()
  # 0 -> 1 at lag 1, and back from the last 0 to 1 at lag 2; 0 counts twice.
  assert table[0, 1] == pytest.approx((1 + 0.5 / 2) / np.sqrt(2 * 1))
  # 0 -> 2 at lag 2, and back from the last 0 to 2 at lag 1.
  assert table[0, 2] == pytest.approx((1 / 2 + 0.5) / np.sqrt(2))
  assert table[1, 2] == pytest.approx(1) and table[2, 1] == pytest.approx(0.5)
  assert table[1, 0] == pytest.approx((0.5 + 1 / 2) / np.sqrt(2))
  one_way = dataclasses.replace(kernel, backward=0.0)
  assert Transitions.of(log, log.offsets[1:], one_way).table()[2, 1] == 0


def test_events_of_a_context_fade_by_their_number_and_their_age():
  since, seconds = np.array([0, 1, 3]), np.array([0, 86_400, 4 * 86_400])
  np.testing.assert_allclose(Kernel(step=0.5).context_weights(since, seconds), [1, 0.5, 0.125])
  by_time = Kernel(step=1.0, days=2.0).context_weights(since, seconds)
  np.testing.assert_allclose(by_time, np.exp([0, -0.5, -2]))
