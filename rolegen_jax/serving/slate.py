"""Slates: which of the items that may be bought are shown.

By log p(bought) a list serves somebody who is about to buy. Who is dormant is not: most of what is shown is at best looked at, and what a
look does to later interest counts as well (the instrumental effect of RoleGen, arXiv 2602.13134). And lists of their own make all users
see the same few items. So a slate ranks by

  log p(item) + instrumental * log(opens(item) + opens of the median item) - spread * log(1 + shown(item) / shown of the average item)

opens: the share of interest that contact with the item moves to a coarse code where it was not (`data/interest shift.py`). shown: how often the
item was among the first of the lists before this one.

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
  """int [N, K]: the order in which to show the items of each list, -1 (score: log p) last; as they stand where both weights are 0.

  With `spread` a list depends on those before it, of which the first `top` items count as shown.
  """
  worth_I = np.log(opens_I + max(float(np.median(opens_I)), 1e-6))
  value_NxK = np.where(
    item_NxK >= 0, score_NxK + exploration_weight * worth_I[np.maximum(item_NxK, 0)], -np.inf
  )
  if not exposure_penalty:
    return np.argsort(-value_NxK, axis=1, kind='stable')
  order_NxK, shown_I = np.empty(item_NxK.shape, np.int64), np.zeros(len(opens_I))
  for item_K, value_K, order_K in zip(item_NxK, value_NxK, order_NxK):
    crowded_K = np.log1p(shown_I[np.maximum(item_K, 0)] / max(shown_I.mean(), 1e-9))
    order_K[:] = np.argsort(-(value_K - exposure_penalty * crowded_K), kind='stable')
    first = item_K[order_K[:top]]
    shown_I[first[first >= 0]] += 1
  return order_NxK
