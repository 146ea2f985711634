"""Item transitions: the items that users act on around contact with an item, by counting.

A kernel is a few settings. One serves the baselines `item_transitions` and `counting`; what the
reasoner retrieves is counted by another, the best by cosine. Every pair of training events of one
user, at different times and at most `lags` events apart, adds to the count of (earlier item, later
item) and, with weight `backward`, to that of (later item, earlier item). A purchase counts as much
as five other events. Counts are then normalized:

  cosine  count_ij / sqrt((events_i + prior) (events_j + prior))
  shares  max(count_ij - total_i base_j, 0) / (total_i + prior), base_j the share of j at large

Out of fold, what a user's events lead to is counted over other users.

I items, U users, F folds of users, S item transitions kept per item, E events of contexts.
"""

from __future__ import annotations

import dataclasses
import functools
import operator

import numpy as np
import scipy.sparse as sp

from rolegen_jax.data.log import InteractionLog
from rolegen_jax.features.interest_shift import FOLDS, MAX_LAG, event_pairs, event_weights

DAY = 86_400.0  # seconds


@dataclasses.dataclass(frozen=True)
class Kernel:
  """How transitions are counted, and how the events of a context add up."""

  lags: int = 5  # events apart, at most MAX_LAG
  fade: str = 'lag'  # a pair counts lag: 1 / lag | time: exp(-days between / DECAY_DAYS)
  backward: float = 0.5  # weight of what came before, against 1 for what came after
  normalization: str = 'cosine'  # cosine | shares
  prior: float = 0.0  # events
  # A context event weighs step ^ (events since) exp(-days since the newest event / days).
  step: float = 0.8
  days: float = 0.0  # 0 = whatever the time

  def context_weights(self, since_E: np.ndarray, seconds_E: np.ndarray) -> np.ndarray:
    """Return what events weigh by the events and the seconds from them to the newest one."""
    weight_E = self.step**since_E
    return weight_E * np.exp(-seconds_E / (DAY * self.days)) if self.days else weight_E


@dataclasses.dataclass(frozen=True, eq=False)
class Transitions:
  """Counts over the training events of each fold of users."""

  kernel: Kernel
  pairs: tuple[sp.csr_array, ...]  # fp64 [I, I] each
  events: tuple[np.ndarray, ...]  # fp64 [I] each, how often users acted on each item

  @classmethod
  def of(cls, log: InteractionLog, train_end: np.ndarray, kernel: Kernel) -> Transitions:
    """Count over the training events.

    train_end: [U], the log row at which each user's training events end.
    """
    n_items = len(log.items)
    pairs = [sp.csr_array((n_items, n_items), dtype=np.float64) for _ in range(FOLDS)]
    by_lag = event_pairs(log, train_end, min(kernel.lags, MAX_LAG))
    for lag, (earlier, later, decay) in enumerate(by_lag, 1):
      fade = decay if kernel.fade == 'time' else np.full(len(later), 1 / lag)
      fold_E = log.user[earlier] % FOLDS
      for source, target, side in ((earlier, later, 1.0), (later, earlier, kernel.backward)):
        counted = side * fade * event_weights(log, target)
        for fold in range(FOLDS if side else 0):
          of_fold = fold_E == fold
          place = log.item[source[of_fold]], log.item[target[of_fold]]
          pairs[fold] += sp.csr_array((counted[of_fold], place), shape=(n_items, n_items))
    train = np.flatnonzero(np.arange(len(log.item)) < train_end[log.user])
    weight, fold_E = event_weights(log, train), log.user[train] % FOLDS
    events = [
      np.bincount(log.item[train[fold_E == fold]], weight[fold_E == fold], n_items)
      for fold in range(FOLDS)
    ]
    return cls(kernel, tuple(pairs), tuple(events))

  def table(self, without: int = FOLDS) -> sp.csr_array:
    """Return the normalized counts, fp64 [I, I], of the users outside the fold `without`.

    Folds are added up, not subtracted from the total: not even rounding may carry a user's own
    events. Without a fold given, of all users. Only entries above 0 are stored.
    """
    kept = [fold for fold in range(FOLDS) if fold != without]
    count_IxI = functools.reduce(operator.add, [self.pairs[fold] for fold in kept])
    pairs, prior = count_IxI.tocoo(), self.kernel.prior
    item, other = pairs.coords
    if self.kernel.normalization == 'cosine':
      events_I = functools.reduce(operator.add, [self.events[fold] for fold in kept]) + prior
      value = pairs.data / np.sqrt(events_I[item] * events_I[other])
    else:
      total_I = count_IxI.sum(axis=1)
      base_I = count_IxI.sum(axis=0) / max(count_IxI.sum(), 1e-9)
      value = (pairs.data - total_I[item] * base_I[other]) / (total_I[item] + prior)
    above = value > 0
    return sp.csr_array((value[above], (item[above], other[above])), shape=count_IxI.shape)

  def strongest(self, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest transitions of each item, counted over the users outside each fold.

    Returns (item int32, value fp32) [F, I, keep]; value 0 = no more.
    """
    n_items = len(self.events[0])
    item = np.zeros((FOLDS, n_items, keep), np.int32)
    value = np.zeros((FOLDS, n_items, keep), np.float32)
    for fold in range(FOLDS):
      table_IxI = self.table(without=fold)
      row = np.repeat(np.arange(n_items), np.diff(table_IxI.indptr))
      # Rows stay where they are, each with the largest value first.
      order = np.lexsort((table_IxI.indices, -table_IxI.data, row))
      rank = np.arange(len(row)) - table_IxI.indptr[row]
      kept = rank < keep
      item[fold, row[kept], rank[kept]] = table_IxI.indices[order][kept]
      value[fold, row[kept], rank[kept]] = table_IxI.data[order][kept]
    return item, value
