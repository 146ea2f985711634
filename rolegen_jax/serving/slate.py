"""Slates: which of the items that a user may buy are shown.

A list ranked by log p(bought) serves somebody who is about to buy. A dormant user is not: most of
what is shown is at best looked at, and what a look does to later interest counts as well (the
instrumental effect of RoleGen, arXiv 2602.13134). Moreover, lists made independently show all users
the same few items. So a slate ranks by

  log p(item)
  + exploration_weight * log(opens(item) + scale of opens)
  - exposure_penalty * log(1 + shown(item) / shown of the average item)

opens: the share of interest that contact with the item moves to a coarse code where it was not
before, counted for everybody alike; the scale is its noise, or its median where that is more
(`features/interest_shift.py`). Where nothing but noise is found, the order is nearly that of log p.
Where kinds of users are known, it is how much of this user's interest a view, now, would move
(`reasoning/looks.py`), and the scale the median of the list.
shown: how often the item was among the first of the lists before this one (`Exposure`).

Shapes: N lists, K items of a list as the model ranked them, I items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rolegen_jax.features.interest_shift import Opens

LEAST_SHARE = 1e-3  # of interest that can count


class Opened(NamedTuple):
  """What contact with the items of N lists opens."""

  share: np.ndarray  # fp [N, K]
  scale: np.ndarray | float  # of shares, fp [N, 1] or one for all: what they must exceed to count

  @classmethod
  def at_large(cls, opens: Opens, item_NxK: np.ndarray) -> Opened:
    """Return what is counted for everybody alike."""
    return cls(opens.share[np.maximum(item_NxK, 0)], opens.scale)

  @classmethod
  def for_users(cls, share_NxK: np.ndarray, item_NxK: np.ndarray) -> Opened:
    """Return shares that are of the user of each list."""
    of_items = np.ma.masked_array(share_NxK, item_NxK < 0)
    median = np.ma.median(of_items, axis=1, keepdims=True).filled(0.0)
    return cls(share_NxK, np.maximum(median, LEAST_SHARE))


class Slates(NamedTuple):
  """N lists, each in the order in which its items are shown."""

  item: np.ndarray  # int [N, K]; -1 = empty slot, at the end
  log_prob: np.ndarray  # fp [N, K], log p of the item: what the model says, not what orders
  # fp [N, K], what orders: falls along a list; -inf in an empty slot. See the module docstring.
  rank_score: np.ndarray
  opens: np.ndarray  # fp [N, K], share of interest that the item opens


class Exposure:
  """How often each item was among the first of the lists so far."""

  def __init__(self, penalty: float, items: int, top: int = 10):
    """penalty: weight of `shown`. items: how many there are. top: of each list count as shown."""
    self.penalty, self.top = penalty, top
    self._shown_I, self._total = np.zeros(items), 0

  def add(self, item: np.ndarray) -> None:
    """Count items that were shown, int [n]."""
    np.add.at(self._shown_I, item, 1)
    self._total += len(item)

  def of(self, item_K: np.ndarray) -> np.ndarray:
    """Return how often items were shown, over how often the average one was; -1 = any number."""
    average = max(self._total / max(len(self._shown_I), 1), 1e-9)
    return self._shown_I[np.maximum(item_K, 0)] / average


def slates(
  item_NxK: np.ndarray,
  log_prob_NxK: np.ndarray,
  opened: Opened,
  exploration_weight: float,
  exposure: Exposure | None = None,
) -> Slates:
  """Return the lists in the order in which to show them.

  Where both weights are 0, the order is that of the lists. With an exposure penalty, a list depends
  on those before it.

  Args:
    item_NxK: int, the items; -1 = empty slot.
    log_prob_NxK: log p of the items.
    opened: see the module docstring.
    exploration_weight: its weight.
    exposure: of the lists before these, which are added to it.
  """
  worth_NxK = exploration_weight * np.log(opened.share + opened.scale)
  value_NxK = np.where(item_NxK >= 0, log_prob_NxK + worth_NxK, -np.inf)
  lists = item_NxK, log_prob_NxK, value_NxK, opened.share
  if exposure is None or not exposure.penalty:
    return _ordered(*lists)
  for item_K, value_K in zip(item_NxK, value_NxK):
    value_K -= exposure.penalty * np.log1p(exposure.of(item_K))
    shown = item_K[np.argsort(-value_K, kind='stable')[: exposure.top]]
    exposure.add(shown[shown >= 0])
  return _ordered(*lists)


def _ordered(
  item: np.ndarray, log_prob: np.ndarray, value: np.ndarray, opens: np.ndarray
) -> Slates:
  order = np.argsort(-value, axis=1, kind='stable')
  return Slates(*(np.take_along_axis(x, order, 1) for x in (item, log_prob, value, opens)))
