"""What contact with an item leads to: coarse codes in which the same user acts soon after, more than users do at large.

This is the kernel of a self-exciting process (Hawkes, Biometrika 1971) between items and coarse codes, by counting: for every
item, the share of each coarse code among the next events of its users, shrunk to that of the item's own coarse code, less
the base rate; and beside it how that share moved from before the contact to after it (`interest shift.py`), which may be down; and the items
that follow it (`item transitions.py`). Training events only, and out of fold: what a user's events lead to is counted over OTHER users, or a rare
item would quote the very future that is to be predicted (alibaba2014: 2.1 nats on training conversions against 3.5 on test).

Shapes: I items, K coarse codes (coarse codes), F folds of users, R coarse codes and S item transitions kept per item, n events of a history.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp

from rolegen_jax.config import ReasonerConfig
from rolegen_jax.data.batches import Excites
from rolegen_jax.features import item_transitions
from rolegen_jax.features.interest_shift import FOLDS, InterestShift, coarse_codes, shifts

SHRINK = (
  20.0  # an item followed by so much is half-way between its own shares and its coarse code's
)


@dataclasses.dataclass(frozen=True)
class Excitation:
  """The coarse codes and the items that every item says most of, for each fold of users."""

  code: np.ndarray  # int32 [F, I, R]
  weight: np.ndarray  # fp32 [F, I, R], share above the base rate; 0 = nothing
  shift: (
    np.ndarray
  )  # fp32 [F, I, R], share after contact less share before; 0 in the item's own coarse code
  next_item: np.ndarray  # int32 [F, I, S], items that follow
  share: np.ndarray  # fp32 [F, I, S], how much more often than at large; 0 = nothing
  opens: (
    np.ndarray
  )  # fp32 [I], the largest of the shifts over all users; the item's power as a trigger

  @classmethod
  def of_counts(
    cls, counted: InterestShift, followed: list[sp.csr_array], config: ReasonerConfig
  ) -> Excitation:
    """`followed`: of `item transitions.followed`."""
    tables = [
      _strongest(*counted.others(fold), counted.coarse, config.coarse_codes)
      for fold in range(FOLDS)
    ]
    return cls(
      *(np.stack(column) for column in zip(*tables)),
      *item_transitions.strongest(followed, config.transitions),
      counted.opens_I,
    )

  def of(self, user: np.ndarray, item: np.ndarray) -> Excites:
    """Of histories: users [B] and their items [B, n], -1 = padding."""
    fold = (user % len(self.code))[:, None]
    known = (item >= 0)[..., None]
    item = np.maximum(item, 0)
    share = lambda table: np.where(known, table[fold, item], np.float32(0))
    return Excites(
      self.code[fold, item],
      share(self.weight),
      share(self.shift),
      self.next_item[fold, item],
      share(self.share),
    )


def _strongest(after_IxK: sp.csr_array, before_IxK: sp.csr_array, coarse_I, keep: int):
  """(code int32, weight fp32, shift fp32) [I, keep], by the larger of weight and shift up or down."""
  codes = after_IxK.shape[1]
  base_K = (after_IxK.sum(axis=0) + 1.0) / (after_IxK.sum() + codes)
  own_KxK = coarse_codes(after_IxK, coarse_I) + SHRINK * base_K
  own_KxK /= own_KxK.sum(axis=1, keepdims=True)
  kept = []
  for rows, shift in shifts(after_IxK, before_IxK, coarse_I):
    count = after_IxK[rows].toarray()
    share = (count + SHRINK * own_KxK[coarse_I[rows]]) / (count.sum(axis=1, keepdims=True) + SHRINK)
    excess = np.maximum(share - base_K, 0.0)
    best = np.argsort(-np.maximum(excess, np.abs(shift)), axis=1, kind='stable')[:, :keep]
    pick = lambda x: np.take_along_axis(x, best, axis=1).astype(np.float32)
    kept.append((best.astype(np.int32), pick(excess), pick(shift)))
  return tuple(np.concatenate(column) for column in zip(*kept))
