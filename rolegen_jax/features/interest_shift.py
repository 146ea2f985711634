"""Interest after contact with an item against interest before it: how often users act in each coarse code, in training events.

What follows contact mixes two things, for people touch what they want already. The difference between after and before, within the
same trajectories, tells them apart as far as a log can (a before-after comparison: Campbell & Stanley, 1963): a trigger is followed by
interest that was not there, a distractor by less of one that was. It is a cause only where contact came by chance; see README, Limits.

Shapes: I items, K coarse codes (coarse codes), F folds of users.
"""

from __future__ import annotations

import dataclasses
import functools
import operator

import numpy as np
import scipy.sparse as sp

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.log import InteractionLog

FOLDS = 4
NEAR = 12  # events of the user after a contact, and before it, that count
DECAY_DAYS = 10.0  # one so many days away counts 1 / e
PURCHASE_WEIGHT = 5.0  # of a purchase among them, against 1 for other events
SHRINK = 60.0  # an item with so much around its contacts is half-way between its own shares and its coarse code's
CHUNK = 4096  # items whose shares over all coarse codes are held at once
PURCHASE = EVENT_NAMES.index('purchase')


@dataclasses.dataclass(frozen=True)
class InterestShift:
  """Decayed counts of events around contacts (events that are no purchase) with each item, and around purchases in each coarse code."""

  coarse: np.ndarray  # int32 [I], coarse code of each item
  after: tuple[sp.csr_array, ...]  # fp32 [I, K] of each fold of users
  before: tuple[sp.csr_array, ...]
  bought_after: np.ndarray  # float64 [K, K], (coarse code of the purchase, of the event)
  bought_before: np.ndarray

  @classmethod
  def of(
    cls, log: InteractionLog, train_end: np.ndarray, coarse_I: np.ndarray, codes: int
  ) -> InterestShift:
    """Counts over the events before `train_end` [U] (absolute log rows). `coarse_I`: below `codes`."""
    contact, shape = log.event != PURCHASE, (len(coarse_I), codes)
    after, before = (
      [sp.csr_array(shape, dtype=np.float32) for _ in range(FOLDS)] for _ in range(2)
    )
    bought = np.zeros((2, codes, codes))
    for first, then, fade in near(log, train_end):
      for counts, table, of, other in (
        (after, bought[0], first, then),
        (before, bought[1], then, first),
      ):
        weight, where = (fade * worth(log, other)).astype(np.float32), coarse_I[log.item[other]]
        for fold in range(FOLDS):
          on = (log.user[of] % FOLDS == fold) & contact[of]
          counts[fold] = counts[fold] + sp.csr_array(
            (weight[on], (log.item[of[on]], where[on])), shape=shape
          )
        np.add.at(
          table, (coarse_I[log.item[of[~contact[of]]]], where[~contact[of]]), weight[~contact[of]]
        )
    return cls(coarse_I, tuple(after), tuple(before), *bought)

  def others(self, fold: int) -> tuple[sp.csr_array, sp.csr_array]:
    """(after, before) of all users outside the fold. Added up, not taken out of the total: not even rounding may tell of a user's own events."""
    add = lambda parts: functools.reduce(
      operator.add, (part for other, part in enumerate(parts) if other != fold)
    )
    return add(self.after), add(self.before)

  @functools.cached_property
  def total(self) -> tuple[sp.csr_array, sp.csr_array]:
    """(after, before) of all users."""
    return tuple(functools.reduce(operator.add, parts) for parts in (self.after, self.before))

  # How shares move

  @functools.cached_property
  def shift_KxK(self) -> np.ndarray:
    """Share of each coarse code after contact with an item of a coarse code, less the share before."""
    after, before = (_shares(coarse_codes(counts, self.coarse)) for counts in self.total)
    return after - before

  @functools.cached_property
  def complement_KxK(self) -> np.ndarray:
    """The same around purchases: what a purchase makes users turn to."""
    return _shares(self.bought_after) - _shares(self.bought_before)

  def z(self, item: np.ndarray, coarse_code: np.ndarray) -> np.ndarray:
    """Standard score, any shape, of how contact with the item moves the coarse code's share, beyond what items of its own kind do."""
    after, before = (
      np.asarray(counts[item.ravel(), coarse_code.ravel()]).reshape(item.shape)
      for counts in self.total
    )
    n_after, n_before = (np.maximum(counts.sum(axis=1), 1.0)[item] for counts in self.total)
    after, before = after / n_after, before / n_before
    share = np.maximum((after + before) / 2, 0.1 / len(self.shift_KxK))
    return (after - before - self.shift_KxK[self.coarse[item], coarse_code]) / np.sqrt(
      share * (1 / n_after + 1 / n_before)
    )

  @functools.cached_property
  def opens_I(self) -> np.ndarray:
    """fp32 [I]: the share that contact with the item moves to the one other coarse code that gains most; its power as a trigger."""
    found = [shift.max(axis=1) for _, shift in shifts(*self.total, self.coarse)]
    return np.maximum(np.concatenate(found), 0.0).astype(np.float32)


def near(log: InteractionLog, train_end: np.ndarray):
  """Yields (rows, rows that follow them, fp64 fade) of one user each, a lag at a time: at most NEAR events apart, strictly later, in training."""
  usable = np.arange(len(log.item)) < train_end[log.user]
  for lag in range(1, min(NEAR, len(log.item) - 1) + 1):
    first = np.flatnonzero(
      (log.user[lag:] == log.user[:-lag])
      & usable[lag:]
      & (log.timestamp[lag:] > log.timestamp[:-lag])
    )
    yield (
      first,
      first + lag,
      np.exp(-(log.timestamp[first + lag] - log.timestamp[first]) / (86_400.0 * DECAY_DAYS)),
    )


def worth(log: InteractionLog, rows: np.ndarray) -> np.ndarray:
  """How much these events count."""
  return np.where(log.event[rows] == PURCHASE, PURCHASE_WEIGHT, 1.0)


def coarse_codes(counts_IxK: sp.csr_array, coarse_I: np.ndarray) -> np.ndarray:
  """Counts [K, K] by the coarse code of the item."""
  own_KxI = sp.csr_array(
    (np.ones(len(coarse_I), np.float32), (coarse_I, np.arange(len(coarse_I)))),
    shape=(counts_IxK.shape[1], len(coarse_I)),
  )
  return (own_KxI @ counts_IxK).toarray()


def shifts(after_IxK: sp.csr_array, before_IxK: sp.csr_array, coarse_I: np.ndarray):
  """Yields (items, shift [items, K]) a CHUNK of items at a time: how contact with an item moves the shares of other coarse codes.

  Shares are shrunk to those of the item's coarse code; 0 in its own, where interest rises and falls with the contact's cause.
  """
  own = [_shares(coarse_codes(counts, coarse_I)) for counts in (after_IxK, before_IxK)]
  for start in range(0, len(coarse_I), CHUNK):
    rows = np.arange(start, min(start + CHUNK, len(coarse_I)))
    after, before = (
      (counts[rows].toarray() + SHRINK * shares[coarse_I[rows]])
      / (counts[rows].sum(axis=1)[:, None] + SHRINK)
      for counts, shares in zip((after_IxK, before_IxK), own)
    )
    shift = after - before
    shift[np.arange(len(rows)), coarse_I[rows]] = 0.0
    yield rows, shift


def _shares(counts_KxK: np.ndarray) -> np.ndarray:
  return counts_KxK / np.maximum(counts_KxK.sum(axis=1, keepdims=True), 1e-9)
