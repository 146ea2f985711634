"""Slates: which of the items that a user may buy are shown.

A list ranked by log p(bought) serves somebody who is about to buy. A dormant user is not: most of
what is shown is at best looked at, and what a look does to later interest counts as well (the
instrumental effect of RoleGen, arXiv 2602.13134). Moreover, lists made independently show all users
the same few items. So a slate ranks by

  log p(item)
  + exploration_weight * log(opens(item) + opens of the median item)
  - exposure_penalty * log(1 + shown(item) / shown of the average item)

opens: the share of interest that contact with the item moves to a coarse code where it was not
before (`features/interest_shift.py`).
shown: how often the item was among the first of the lists before this one.

Shapes: N lists, K items of a list as the model ranked them, I items.
"""

from __future__ import annotations

import numpy as np


def slates(
  item_NxK: np.ndarray,
  score_NxK: np.ndarray,
  opens_I: np.ndarray,
  exploration_weight: float,
  exposure_penalty: float = 0.0,
  top: int = 10,
) -> np.ndarray:
  """Return the order int [N, K] in which to show the items of each list.

  Where both weights are 0, the order is that of the lists. With `exposure_penalty`, a list depends
  on those before it.

  Args:
    item_NxK: int, the items; -1 = empty slot, shown last.
    score_NxK: log p of the items.
    opens_I: see the module docstring.
    exploration_weight: weight of `opens`.
    exposure_penalty: weight of `shown`.
    top: how many items of each list count as shown.
  """
  opens_score_I = np.log(opens_I + max(float(np.median(opens_I)), 1e-6))
  value_NxK = np.where(
    item_NxK >= 0,
    score_NxK + exploration_weight * opens_score_I[np.maximum(item_NxK, 0)],
    -np.inf,
  )
  if not exposure_penalty:
    return np.argsort(-value_NxK, axis=1, kind='stable')
  order_NxK = np.empty(item_NxK.shape, np.int64)
  shown_I = np.zeros(len(opens_I))
  for item_K, value_K, order_K in zip(item_NxK, value_NxK, order_NxK):
    relative_exposure_K = shown_I[np.maximum(item_K, 0)] / max(shown_I.mean(), 1e-9)
    penalty_K = exposure_penalty * np.log1p(relative_exposure_K)
    order_K[:] = np.argsort(-(value_K - penalty_K), kind='stable')
    shown = item_K[order_K[:top]]
    shown_I[shown[shown >= 0]] += 1
  return order_NxK
