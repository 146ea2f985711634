import numpy as np
import pytest

from rolegen_jax.config import EVENT_NAMES, DataConfig
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from rolegen_jax.features import item_transitions as lib
from rolegen_jax.features.interest_shift import DECAY_DAYS, FOLDS, NEAR, PURCHASE_WEIGHT
from tests.data import random_logs


def counted_by_hand(log, train_end, fold):
  count = np.zeros((len(log.items),) * 2)
  for user in range(fold, len(log.users), FOLDS):
    for first in range(log.offsets[user], train_end[user]):
      for then in range(first + 1, min(first + NEAR + 1, train_end[user])):
        days = (log.timestamp[then] - log.timestamp[first]) / 86_400
        if days > 0:
          worth = PURCHASE_WEIGHT if EVENT_NAMES[log.event[then]] == 'purchase' else 1.0
          count[log.item[first], log.item[then]] += worth * np.exp(-days / DECAY_DAYS)
  return count


@pytest.mark.parametrize('seed', range(3))
def test_the_strongest_successors_of_other_users(seed):
  log = InteractionLog.build(*random_logs.random_tables(seed))
  train_end = find_occasions(log, DataConfig()).train_end(log)
  counts = lib.followed(log, train_end)
  by_hand = [counted_by_hand(log, train_end, fold) for fold in range(FOLDS)]
  for found, expected in zip(counts, by_hand):
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-5)
  keep = 4
  item, share = lib.strongest(counts, keep)
  for fold in range(FOLDS):
    count = sum(part for other, part in enumerate(by_hand) if other != fold)
    share_IxI = np.maximum(count - count.sum(1, keepdims=True) * count.sum(0) / count.sum(), 0) / (
      count.sum(1, keepdims=True) + lib.SHRINK
    )
    np.testing.assert_allclose(share[fold], -np.sort(-share_IxI, axis=1)[:, :keep], atol=1e-5)
    some = share[fold] > 0
    np.testing.assert_allclose(
      np.take_along_axis(share_IxI, item[fold], axis=1)[some], share[fold][some], rtol=1e-4
    )
    assert some.any() and all(len(set(row[on])) == on.sum() for row, on in zip(item[fold], some))
