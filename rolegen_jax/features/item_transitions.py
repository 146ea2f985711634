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
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.sparse_sums import (
  Counts,
  SparseSum,
  largest_entries,
  strongest_entries,
  table,
)
from rolegen_jax.features.interest_shift import FOLDS, MAX_LAG, event_pairs, event_weights

DAY = 86_400.0  # seconds
TABLE = 64_000_000  # entries, 12 bytes each, of a table of counts that are too many for memory


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
  pairs: tuple[SparseSum, ...]  # fp64 [I, I] each
  events: tuple[np.ndarray, ...]  # fp64 [I] each, how often users acted on each item

  @classmethod
  def of(cls, log: InteractionLog, train_end: np.ndarray, kernel: Kernel) -> Transitions:
    """Count over the training events.

    train_end: [U], the log row at which each user's training events end.
    """
    n_items = len(log.items)
    pairs = [SparseSum(n_items, n_items, np.float64) for _ in range(FOLDS)]
    events = [np.zeros(n_items) for _ in range(FOLDS)]
    for part in log.parts():
      end = part.ends(train_end)
      for total, counted in zip(pairs, _pairs_of(part.log, end, kernel)):
        total.add(counted)
      rows = np.flatnonzero(part.training(train_end))
      weight, fold_E = event_weights(part.log, rows), part.log.user[rows] % FOLDS
      for fold in range(FOLDS):
        of_fold = fold_E == fold
        events[fold] += np.bincount(part.log.item[rows[of_fold]], weight[of_fold], n_items)
    return cls(kernel, tuple(pairs), tuple(events))

  def table(self, without: int = FOLDS) -> sp.csr_array:
    """Return the normalized counts, fp64 [I, I], of the users outside the fold `without`.

    Without a fold given, of all users. Only entries above 0 are stored, and of counts that are not
    in memory TABLE at most: the largest of each item, as many for all.
    """
    counts = self._counts(without)
    keep = counts.shape[0] if counts.in_memory else max(TABLE // counts.shape[0], 1)
    return sp.csr_array(
      sp.vstack([largest_entries(rows, keep) for _, rows in self._normalized(counts, without)])
    )

  def _counts(self, without: int) -> Counts:
    """Return the counts of the users outside a fold.

    Folds are added up, not subtracted from the total: not even rounding may carry a user's own
    events.
    """
    return Counts([self.pairs[fold] for fold in _others(without)])

  def _normalized(self, counts: Counts, without: int) -> Iterator[tuple[int, sp.csr_array]]:
    """Yield (first item, rows [., I]) of the normalized counts, a block of items at a time."""
    prior, is_cosine = self.kernel.prior, self.kernel.normalization == 'cosine'
    if is_cosine:
      kept = [self.events[fold] for fold in _others(without)]
      events_I = functools.reduce(operator.add, kept) + prior
    else:
      base_I = counts.sum(axis=0) / max(counts.sum(), 1e-9)
    for first, block in counts.blocks():
      pairs = block.tocoo()
      item, other = pairs.coords
      if is_cosine:
        value = pairs.data / np.sqrt(events_I[first + item] * events_I[other])
      else:
        total = block.sum(axis=1)
        value = (pairs.data - total[item] * base_I[other]) / (total[item] + prior)
      above = value > 0
      yield first, sp.csr_array((value[above], (item[above], other[above])), shape=block.shape)

  def strongest(self, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest transitions of each item, counted over the users outside each fold.

    Returns (item int32, value fp32) [F, I, keep]; value 0 = no more.
    """
    shape = FOLDS, len(self.events[0]), keep
    item, value = table(shape, np.int32), table(shape, np.float32)
    for fold in range(FOLDS):
      for first, rows in self._normalized(self._counts(fold), fold):
        row, rank, other, largest = strongest_entries(rows, keep)
        item[fold, first + row, rank] = other
        value[fold, first + row, rank] = largest
    return item, value


def _others(fold: int) -> list[int]:
  return [other for other in range(FOLDS) if other != fold]


def _pairs_of(log: InteractionLog, train_end: np.ndarray, kernel: Kernel) -> list[sp.csr_array]:
  """Return the counts of pairs of each fold of users of a part, fp64 [I, I] each."""
  shape = (len(log.items),) * 2
  pairs = [sp.csr_array(shape, dtype=np.float64) for _ in range(FOLDS)]
  by_lag = event_pairs(log, train_end, min(kernel.lags, MAX_LAG))
  for lag, (earlier, later, decay) in enumerate(by_lag, 1):
    fade = decay if kernel.fade == 'time' else np.full(len(later), 1 / lag)
    fold_E = log.user[earlier] % FOLDS
    for source, target, side in ((earlier, later, 1.0), (later, earlier, kernel.backward)):
      counted = side * fade * event_weights(log, target)
      for fold in range(FOLDS if side else 0):
        of_fold = fold_E == fold
        place = log.item[source[of_fold]], log.item[target[of_fold]]
        pairs[fold] += sp.csr_array((counted[of_fold], place), shape=shape)
  return pairs
