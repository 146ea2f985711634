"""Interest shift: interest after contact with an item less interest before it.

Interest is how often users act in each coarse code, counted over training events. What follows
contact mixes two things, for people touch what they want already. The difference between after and
before, within the same trajectories, tells them apart as far as a log can (a before-after
comparison: Campbell & Stanley, 1963): a trigger is followed by interest that was not there, a
distractor by less of one that was. It is a cause only where contact came by chance; see README,
Limits.

I items, K coarse codes, U users, F folds of users.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.log import InteractionLog

FOLDS = 8
MAX_LAG = 12  # events of the user after a contact, and before it, that count
DECAY_DAYS = 10.0  # an event this many days away counts 1 / e
PURCHASE_WEIGHT = 5.0  # of a purchase, against 1 for other events
# An item with this much around its contacts is half-way between its own shares and those of its
# coarse code.
SHRINK = 60.0
CHUNK = 4096  # items whose shares over all coarse codes are held at once
PURCHASE = EVENT_NAMES.index('purchase')

_DAY = 86_400.0  # seconds


@dataclasses.dataclass(frozen=True, eq=False)
class Opens:
  """How much interest contact with each item opens where it was not before."""

  share: np.ndarray  # fp32 [I], of the interest, expected after shrinkage; 0 = none
  noise: float  # what chance alone adds to the largest shift of an item

  @property
  def scale(self) -> float:
    """What a share must exceed to count: the noise, or the median where that is more."""
    return max(self.noise, float(np.median(self.share)), 1e-3)

  @functools.cached_property
  def log(self) -> np.ndarray:
    """log(share + scale), fp [I]."""
    return np.log(self.share + self.scale)

  def padded(self, items: int) -> Opens:
    """Return this for `items` items, of which the last are new and open nothing we know of."""
    new = np.zeros(items - len(self.share), self.share.dtype)
    return Opens(np.concatenate([self.share, new]), self.scale)


@dataclasses.dataclass(frozen=True)
class InterestShift:
  """Decayed counts of events around contacts with each item, and around purchases.

  A contact is an event that is not a purchase.
  """

  coarse: np.ndarray  # int32 [I], coarse code of each item
  after: tuple[sp.csr_array, ...]  # fp32 [I, K] of each fold of users
  before: tuple[sp.csr_array, ...]
  bought_after: np.ndarray  # float64 [K, K], (coarse code of the purchase, of the event)
  bought_before: np.ndarray

  @classmethod
  def of(
    cls, log: InteractionLog, train_end: np.ndarray, coarse_I: np.ndarray, codes: int
  ) -> InterestShift:
    """Count over the training events.

    train_end: [U], the log row at which each user's training events end. coarse_I: below `codes`.
    """
    after, before = _Counts(log, coarse_I, codes), _Counts(log, coarse_I, codes)
    for earlier, later, decay in event_pairs(log, train_end):
      after.add(earlier, later, decay)
      before.add(later, earlier, decay)
    return cls(
      coarse_I,
      tuple(after.by_fold),
      tuple(before.by_fold),
      after.around_purchases_KxK,
      before.around_purchases_KxK,
    )

  def without_fold(self, fold: int) -> tuple[sp.csr_array, sp.csr_array]:
    """Return (after, before) of all users outside the fold.

    They are added up, not subtracted from the total: not even rounding may carry a user's own
    events.
    """
    return _sum_without(self.after, fold), _sum_without(self.before, fold)

  @functools.cached_property
  def total(self) -> tuple[sp.csr_array, sp.csr_array]:
    """(after, before) of all users."""
    return _sum_of(self.after), _sum_of(self.before)

  @functools.cached_property
  def shift_KxK(self) -> np.ndarray:
    """The share of each coarse code after contact with an item of a code, less the share before."""
    after_IxK, before_IxK = self.total
    after_KxK = _shares(sum_by_code(after_IxK, self.coarse))
    before_KxK = _shares(sum_by_code(before_IxK, self.coarse))
    return after_KxK - before_KxK

  @functools.cached_property
  def complement_KxK(self) -> np.ndarray:
    """The same around purchases: what a purchase makes users turn to."""
    return _shares(self.bought_after) - _shares(self.bought_before)

  def z(self, item: np.ndarray, coarse_code: np.ndarray) -> np.ndarray:
    """Return how contact with the item moves the coarse code's share, as a standard score.

    It is what the item moves beyond what items of its own coarse code do. item, coarse_code: of
    any one shape.
    """
    after_IxK, before_IxK = self.total

    def count(counts_IxK: sp.csr_array) -> np.ndarray:
      return np.asarray(counts_IxK[item.ravel(), coarse_code.ravel()]).reshape(item.shape)

    def total_count(counts_IxK: sp.csr_array) -> np.ndarray:
      return np.maximum(counts_IxK.sum(axis=1), 1.0)[item]

    n_after, n_before = total_count(after_IxK), total_count(before_IxK)
    after, before = count(after_IxK) / n_after, count(before_IxK) / n_before
    share = np.maximum((after + before) / 2, 0.1 / len(self.shift_KxK))
    sigma = np.sqrt(share * (1 / n_after + 1 / n_before))
    return (after - before - self.shift_KxK[self.coarse[item], coarse_code]) / sigma

  @functools.cached_property
  def opens(self) -> Opens:
    """What contact with each item opens: its power as a trigger.

    It is the shift to the one other coarse code that gains most. Of many shifts the largest is
    large by chance, too, so one half of the users says in which code an item's is, and the other
    half how large it is there. A regression of the second on the first says what to expect of an
    item's largest shift over all users; their mean difference is noise. Both are of halves, which
    are noisier than the whole: they err on the safe side.
    """
    halves = [(_sum_of(self.after[h::2]), _sum_of(self.before[h::2])) for h in (0, 1)]
    largest, chosen, checked = [], [], []
    for counted in zip(*(share_shifts(*c, self.coarse) for c in (self.total, *halves))):
      whole, one, two = (shift for _, shift in counted)
      rows = np.arange(len(whole))
      largest.append(whole.max(axis=1))
      for first, second in ((one, two), (two, one)):
        code = first.argmax(axis=1)
        chosen.append(first[rows, code])
        checked.append(second[rows, code])
    own, other = np.concatenate(chosen), np.concatenate(checked)
    slope = np.cov(own, other)[0, 1] / max(float(own.var(ddof=1)), 1e-12) if len(own) > 1 else 0.0
    slope = min(max(slope, 0.0), 1.0)
    expected = other.mean() + slope * (np.concatenate(largest) - own.mean())
    return Opens(np.maximum(expected, 0).astype(np.float32), float(own.mean() - other.mean()))


def event_pairs(
  log: InteractionLog, train_end: np.ndarray, lags: int = MAX_LAG
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yield pairs of training events of one user, a lag at a time: (earlier, later, decay).

  earlier, later: log rows, at most `lags` apart and at different times. decay: fp64.
  """
  usable = np.arange(len(log.item)) < train_end[log.user]
  for lag in range(1, min(lags, len(log.item) - 1) + 1):
    same_user = log.user[lag:] == log.user[:-lag]
    is_later = log.timestamp[lag:] > log.timestamp[:-lag]
    earlier = np.flatnonzero(same_user & usable[lag:] & is_later)
    later = earlier + lag
    seconds = log.timestamp[later] - log.timestamp[earlier]
    yield earlier, later, np.exp(-seconds / (_DAY * DECAY_DAYS))


def event_weights(log: InteractionLog, rows: np.ndarray) -> np.ndarray:
  """Return how much these events count."""
  return np.where(log.event[rows] == PURCHASE, PURCHASE_WEIGHT, 1.0)


def sum_by_code(counts_IxK: sp.csr_array, coarse_I: np.ndarray) -> np.ndarray:
  """Add up counts by the coarse code of the item, [K, K]."""
  n_items = len(coarse_I)
  one_hot_KxI = sp.csr_array(
    (np.ones(n_items, np.float32), (coarse_I, np.arange(n_items))),
    shape=(counts_IxK.shape[1], n_items),
  )
  return (one_hot_KxI @ counts_IxK).toarray()


def share_shifts(
  after_IxK: sp.csr_array, before_IxK: sp.csr_array, coarse_I: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yield (items, shift [items, K]), a CHUNK of items at a time.

  The shift is how contact with an item moves the shares of other coarse codes. Shares are shrunk to
  those of the item's coarse code. The shift is 0 in the item's own code, where interest rises and
  falls with the contact's cause.
  """
  prior_after_KxK = _shares(sum_by_code(after_IxK, coarse_I))
  prior_before_KxK = _shares(sum_by_code(before_IxK, coarse_I))
  for start in range(0, len(coarse_I), CHUNK):
    items = np.arange(start, min(start + CHUNK, len(coarse_I)))
    after = _shrunk_shares(after_IxK[items], prior_after_KxK[coarse_I[items]])
    before = _shrunk_shares(before_IxK[items], prior_before_KxK[coarse_I[items]])
    shift = after - before
    shift[np.arange(len(items)), coarse_I[items]] = 0.0
    yield items, shift


class _Counts:
  """Decayed counts of the events on one side, after or before, of contacts and purchases."""

  def __init__(self, log: InteractionLog, coarse_I: np.ndarray, codes: int) -> None:
    self._log = log
    self._coarse_I = coarse_I
    self._shape = (len(coarse_I), codes)
    self.by_fold = [sp.csr_array(self._shape, dtype=np.float32) for _ in range(FOLDS)]
    self.around_purchases_KxK = np.zeros((codes, codes))

  def add(self, center: np.ndarray, event: np.ndarray, decay: np.ndarray) -> None:
    """Count each row of `event` at the contact or purchase in the same place of `center`."""
    log, coarse_I = self._log, self._coarse_I
    weight = (decay * event_weights(log, event)).astype(np.float32)
    event_code = coarse_I[log.item[event]]
    is_contact = log.event[center] != PURCHASE
    for fold in range(FOLDS):
      chosen = (log.user[center] % FOLDS == fold) & is_contact
      position = log.item[center[chosen]], event_code[chosen]
      added = sp.csr_array((weight[chosen], position), shape=self._shape)
      self.by_fold[fold] = self.by_fold[fold] + added
    bought_code = coarse_I[log.item[center[~is_contact]]]
    position = bought_code, event_code[~is_contact]
    np.add.at(self.around_purchases_KxK, position, weight[~is_contact])


def _sum_without(parts: tuple[sp.csr_array, ...], fold: int) -> sp.csr_array:
  return _sum_of(parts[:fold] + parts[fold + 1 :])


def _sum_of(parts: tuple[sp.csr_array, ...]) -> sp.csr_array:
  return functools.reduce(operator.add, parts)


def _shares(counts_KxK: np.ndarray) -> np.ndarray:
  return counts_KxK / np.maximum(counts_KxK.sum(axis=1, keepdims=True), 1e-9)


def _shrunk_shares(counts: sp.csr_array, prior: np.ndarray) -> np.ndarray:
  """Return the shares of counts [items, K], shrunk to `prior` [items, K]."""
  return (counts.toarray() + SHRINK * prior) / (counts.sum(axis=1)[:, None] + SHRINK)
