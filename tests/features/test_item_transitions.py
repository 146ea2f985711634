"""Item transitions against counting in plain Python."""

import numpy as np
import pytest

from rolegen_jax.config import EVENT_NAMES, DataConfig
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from rolegen_jax.features import item_transitions as lib
from rolegen_jax.features.interest_shift import DECAY_DAYS, FOLDS, MAX_LAG, PURCHASE_WEIGHT
from tests.data import random_logs


def counted_by_hand(log, train_end, fold):
  count = np.zeros((len(log.items),) * 2)
  for user in range(fold, len(log.users), FOLDS):
    for earlier in range(log.offsets[user], train_end[user]):
      for later in range(earlier + 1, min(earlier + MAX_LAG + 1, train_end[user])):
        days = (log.timestamp[later] - log.timestamp[earlier]) / 86_400
        if days > 0:
          is_purchase = EVENT_NAMES[log.event[later]] == 'purchase'
          weight = PURCHASE_WEIGHT if is_purchase else 1.0
          count[log.item[earlier], log.item[later]] += weight * np.exp(-days / DECAY_DAYS)
  return count


@pytest.mark.parametrize('seed', range(3))
def test_the_strongest_transitions_of_other_users(seed):
  log = InteractionLog.build(*random_logs.random_tables(seed))
  train_end = find_occasions(log, DataConfig()).train_end(log)
  counts = lib.followed(log, train_end)
  by_hand = [counted_by_hand(log, train_end, fold) for fold in range(FOLDS)]
  for counted, expected in zip(counts, by_hand):
    np.testing.assert_allclose(counted.toarray(), expected, rtol=1e-5)
  keep = 4
  item, share = lib.strongest(counts, keep)
  for fold in range(FOLDS):
    count = sum(part for other, part in enumerate(by_hand) if other != fold)
    followers = count.sum(1, keepdims=True)
    above_base = np.maximum(count - followers * count.sum(0) / count.sum(), 0)
    share_IxI = above_base / (followers + lib.SHRINK)
    np.testing.assert_allclose(share[fold], -np.sort(-share_IxI, axis=1)[:, :keep], atol=1e-5)
    is_kept = share[fold] > 0
    expected = np.take_along_axis(share_IxI, item[fold], axis=1)
    np.testing.assert_allclose(expected[is_kept], share[fold][is_kept], rtol=1e-4)
    assert is_kept.any()
    for row, kept in zip(item[fold], is_kept):
      assert len(set(row[kept])) == kept.sum()
