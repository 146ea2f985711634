"""Slates: which of the items that may be bought are shown.

By log p(bought) a list serves somebody who is about to buy. Who is dormant is not: most of what is shown is at best looked at, and what a
look does to later interest counts as well (the instrumental effect of RoleGen, arXiv 2602.13134). So a slate ranks by

  log p(item) + instrumental * log(opens(item) + opens of the median item)

opens: the share of interest that contact with the item moves to a neighbourhood where it was not (`data/aftermath.py`).

Shapes: N lists, K items of a list as the model ranked them, I items.
"""

from __future__ import annotations

import numpy as np


def slates(item_NxK: np.ndarray, score_NxK: np.ndarray, opens_I: np.ndarray, instrumental: float) -> np.ndarray:
  """int [N, K]: the order in which to show the items of each list, -1 (score: log p) last; as they stand where `instrumental` is 0."""
  worth_I = np.log(opens_I + max(float(np.median(opens_I)), 1e-6))
  value_NxK = score_NxK + instrumental * worth_I[np.maximum(item_NxK, 0)]
  return np.argsort(-np.where(item_NxK >= 0, value_NxK, -np.inf), axis=1, kind='stable')
