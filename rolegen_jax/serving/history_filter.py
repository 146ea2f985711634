"""Lists without what the user's history holds: `serving.filter_history`, alike for every system.

The history of an occasion is its whole strict context, however few of its events a model reads.

Shapes: N lists, K items of a list, I items, E (list, context event) pairs.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from rolegen_jax.data.log import InteractionLog, ranges

_CHUNK = 1 << 14  # lists whose histories are held at once


def held_items(log: InteractionLog, user: np.ndarray, end: np.ndarray) -> sp.csr_matrix:
  """Return the items of log rows offsets[user]:end for each of `user`, `end` [N], bool [N, I]."""
  first = log.offsets[user]
  source_E, owner_E = ranges(first, end - first)
  held = sp.csr_matrix(
    (np.ones(len(source_E), bool), (owner_E, log.item[source_E])),
    shape=(len(user), len(log.items)),
  )
  held.sum_duplicates()
  return held


def holds(
  log: InteractionLog, user: np.ndarray, end: np.ndarray, item_NxK: np.ndarray
) -> np.ndarray:
  """Return whether the histories `user`, `end` [N] hold items, bool [N, K]; meaningless at -1."""
  held_NxK = np.zeros(item_NxK.shape, bool)
  for start in range(0, len(item_NxK), _CHUNK):
    rows = slice(start, start + _CHUNK)
    item = np.maximum(item_NxK[rows], 0)
    held = held_items(log, user[rows], end[rows])
    held_NxK[rows] = np.asarray(held[np.arange(len(item))[:, None], item].todense())
  return held_NxK


def without_history(
  item_NxK: np.ndarray,
  score_NxK: np.ndarray,
  log: InteractionLog,
  user: np.ndarray,
  end: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Return items and scores without what the histories `user`, `end` [N] of the lists hold.

  The others move up in order; -1, of score -inf, fills the end.
  """
  return without(item_NxK, score_NxK, holds(log, user, end, item_NxK))


def without(
  item_NxK: np.ndarray, score_NxK: np.ndarray, drop_NxK: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Return items and scores without the places to drop; see `without_history`."""
  keep = (item_NxK >= 0) & ~drop_NxK
  order = np.argsort(~keep, axis=1, kind='stable')
  keep, item, score = (np.take_along_axis(x, order, 1) for x in (keep, item_NxK, score_NxK))
  return np.where(keep, item, -1), np.where(keep, score, -np.inf).astype(score.dtype)
