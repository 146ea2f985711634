"""What users turn to after contact with an item, item by item: the kernel of `excitation.py` between items instead of coarse codes.

For every item, the share of each other among the next events of its users, shrunk to its share at large, less that. Training events
only, and out of fold: what a user's events lead to is counted over other users.

Shapes: I items, F folds of users, S item transitions kept per item.
"""

from __future__ import annotations

import functools
import operator

import numpy as np
import scipy.sparse as sp

from rolegen_jax.data.log import InteractionLog
from rolegen_jax.features.interest_shift import FOLDS, near, worth

SHRINK = 5.0  # an item followed by so much is half-way between its own shares and those at large


def followed(log: InteractionLog, train_end: np.ndarray) -> list[sp.csr_array]:
  """Decayed counts fp32 [I, I], (item, a later one), by each fold of users. `train_end` [U]: absolute log rows."""
  shape = (len(log.items), len(log.items))
  counts = [sp.csr_array(shape, dtype=np.float32) for _ in range(FOLDS)]
  for first, then, fade in near(log, train_end):
    weight = (fade * worth(log, then)).astype(np.float32)
    for fold in range(FOLDS):
      on = log.user[first] % FOLDS == fold
      counts[fold] = counts[fold] + sp.csr_array(
        (weight[on], (log.item[first[on]], log.item[then[on]])), shape=shape
      )
  return counts


def excess(counts: list[sp.csr_array]) -> sp.csr_array:
  """fp64 [I, I]: the share of each item among what follows an item beyond its share at large, where there is any."""
  count_IxI = functools.reduce(operator.add, counts).astype(np.float64)
  of_I, base_I = count_IxI.sum(axis=1), count_IxI.sum(axis=0) / max(count_IxI.sum(), 1e-9)
  pairs = count_IxI.tocoo()
  row, column = pairs.coords
  above = (pairs.data - of_I[row] * base_I[column]) / (of_I[row] + SHRINK)
  up = above > 0
  return sp.csr_array((above[up], (row[up], column[up])), shape=count_IxI.shape)


def strongest(counts: list[sp.csr_array], keep: int) -> tuple[np.ndarray, np.ndarray]:
  """(item int32, share fp32) [F, I, keep]: of each fold, what follows among all other users; share 0 = nothing more."""
  items = counts[0].shape[0]
  item, share = np.zeros((FOLDS, items, keep), np.int32), np.zeros((FOLDS, items, keep), np.float32)
  for fold in range(FOLDS):
    found = excess([part for other, part in enumerate(counts) if other != fold])
    row = np.repeat(np.arange(items), np.diff(found.indptr))
    order = np.lexsort(
      (found.indices, -found.data, row)
    )  # rows stay as they are, the largest first in each
    place = np.arange(len(row)) - found.indptr[row]
    kept = place < keep
    item[fold, row[kept], place[kept]], share[fold, row[kept], place[kept]] = (
      found.indices[order][kept],
      found.data[order][kept],
    )
  return item, share
