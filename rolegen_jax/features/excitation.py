"""Excitation: the coarse codes in which users act soon after contact with an item, above average.

This is the kernel of a self-exciting process (Hawkes, Biometrika 1971) between items and coarse
codes, by counting. For every item: the share of each coarse code among the next events of its
users, shrunk to that of the item's own coarse code, less the base rate; how that share moved from
before the contact to after it (`interest_shift.py`), which may be down; and the items that follow
it (`item_transitions.py`). Counts are over training events only, and out of fold: what a user's
events lead to is counted over OTHER users, or a rare item would quote the very future that is to be
predicted (alibaba2014: 2.1 nats on training conversions against 3.5 on test).

I items, K coarse codes, F folds of users, R coarse codes and S item transitions kept per item, B
histories of n events.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rolegen_jax.config import ReasonerConfig
from rolegen_jax.data.batches import Excites
from rolegen_jax.data.sparse_sums import Counts, table
from rolegen_jax.features.interest_shift import (
  FOLDS,
  InterestShift,
  Opens,
  share_shifts,
  sum_by_code,
)
from rolegen_jax.features.item_transitions import Transitions

# An item followed by this much is half-way between its own shares and those of its coarse code.
SHRINK = 20.0


@dataclasses.dataclass(frozen=True)
class Excitation:
  """The coarse codes and items that contact with each item excites most, for each fold of users."""

  code: np.ndarray  # int32 [F, I, R]
  weight: np.ndarray  # fp32 [F, I, R], share above the base rate; 0 = nothing
  # fp32 [F, I, R], share after contact less share before; 0 in the item's own coarse code
  shift: np.ndarray
  next_item: np.ndarray  # int32 [F, I, S], items that follow
  share: np.ndarray  # fp32 [F, I, S], how strongly; 0 = nothing
  opens: Opens  # of all users: the items' power as triggers
  attribute: np.ndarray | None = None  # int32 [F, I, A], the same for all folds; -1 = no more

  @property
  def attribute_IxA(self) -> np.ndarray:
    """The attributes of items, int32 [I, A]; none where there are no kinds of users."""
    if self.attribute is None:
      return np.full((self.code.shape[1], 0), -1, np.int32)
    return self.attribute[0]

  @classmethod
  def of_counts(
    cls,
    shift: InterestShift,
    transitions: Transitions,
    config: ReasonerConfig,
    attribute_IxA: np.ndarray | None = None,
  ) -> Excitation:
    """Build the tables from counts, and what is known of items."""
    n_items, n_codes = Counts(shift.after).shape
    shape = FOLDS, n_items, min(config.coarse_codes, n_codes)
    code, weight, code_shift = (table(shape, dt) for dt in (np.int32, np.float32, np.float32))
    for fold in range(FOLDS):
      counts = shift.without_fold(fold)
      code[fold], weight[fold], code_shift[fold] = strongest_codes(
        *counts, shift.coarse, config.coarse_codes
      )
    next_item, share = transitions.strongest(config.transitions)
    if attribute_IxA is not None:
      attribute_IxA = np.broadcast_to(attribute_IxA, (FOLDS, *attribute_IxA.shape))
    return cls(code, weight, code_shift, next_item, share, shift.opens, attribute_IxA)

  def of(self, user: np.ndarray, item: np.ndarray) -> Excites:
    """Return what the events of users [B] with items [B, n] lead to; item -1 = padding."""
    fold = (user % len(self.code))[:, None]
    is_event = (item >= 0)[..., None]
    item = np.maximum(item, 0)

    def at_events(values: np.ndarray, nothing: int = 0) -> np.ndarray:
      return np.where(is_event, values[fold, item], values.dtype.type(nothing))

    attribute = self.attribute

    return Excites(
      code=self.code[fold, item],
      weight=at_events(self.weight),
      shift=at_events(self.shift),
      next_item=self.next_item[fold, item],
      share=at_events(self.share),
      attribute=None if attribute is None else at_events(attribute, -1),
    )


def strongest_codes(
  after_IxK: Counts, before_IxK: Counts, coarse_I: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return (code int32, weight fp32, shift fp32) [I, keep] of each item's strongest codes.

  A code is as strong as the larger of its weight and its shift, up or down.
  """
  n_codes = after_IxK.shape[1]
  base_K = (after_IxK.sum(axis=0) + 1.0) / (after_IxK.sum() + n_codes)
  prior_KxK = sum_by_code(after_IxK, coarse_I) + SHRINK * base_K
  prior_KxK /= prior_KxK.sum(axis=1, keepdims=True)
  shape = len(coarse_I), min(keep, n_codes)
  codes, weights, shifts = (table(shape, dtype) for dtype in (np.int32, np.float32, np.float32))
  for items, shift in share_shifts(after_IxK, before_IxK, coarse_I):
    count = after_IxK.take(items).toarray()
    n_events = count.sum(axis=1, keepdims=True)
    share = (count + SHRINK * prior_KxK[coarse_I[items]]) / (n_events + SHRINK)
    weight = np.maximum(share - base_K, 0.0)
    strength = np.maximum(weight, np.abs(shift))
    code = np.argsort(-strength, axis=1, kind='stable')[:, :keep]
    codes[items] = code
    weights[items] = np.take_along_axis(weight, code, axis=1)
    shifts[items] = np.take_along_axis(shift, code, axis=1)
  return codes, weights, shifts
