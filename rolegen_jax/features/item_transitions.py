"""Item transitions: the items that users turn to after contact with an item.

This is the kernel of `excitation.py` between items instead of coarse codes. For every item: the
share of each other item among the next events of its users, shrunk to that item's share at large,
less that. Counts are over training events only, and out of fold: what a user's events lead to is
counted over other users.

I items, U users, F folds of users, S item transitions kept per item.
"""

from __future__ import annotations

import functools
import operator

import numpy as np
import scipy.sparse as sp

from rolegen_jax.data.log import InteractionLog
from rolegen_jax.features.interest_shift import FOLDS, event_pairs, event_weights

# An item followed by this much is half-way between its own shares and those at large.
SHRINK = 5.0


def followed(log: InteractionLog, train_end: np.ndarray) -> list[sp.csr_array]:
  """Return decayed counts of (item, a later item) for each fold of users, fp32 [I, I].

  train_end: [U], the log row at which each user's training events end.
  """
  shape = (len(log.items), len(log.items))
  counts = [sp.csr_array(shape, dtype=np.float32) for _ in range(FOLDS)]
  for earlier, later, decay in event_pairs(log, train_end):
    weight = (decay * event_weights(log, later)).astype(np.float32)
    for fold in range(FOLDS):
      chosen = log.user[earlier] % FOLDS == fold
      position = log.item[earlier[chosen]], log.item[later[chosen]]
      counts[fold] = counts[fold] + sp.csr_array((weight[chosen], position), shape=shape)
  return counts


def excess(counts: list[sp.csr_array]) -> sp.csr_array:
  """Return the share of each item among what follows an item, less its share at large.

  fp64 [I, I]; only the entries above 0 are stored. counts: to add up.
  """
  count_IxI = functools.reduce(operator.add, counts).astype(np.float64)
  followers_I = count_IxI.sum(axis=1)
  base_I = count_IxI.sum(axis=0) / max(count_IxI.sum(), 1e-9)
  pairs = count_IxI.tocoo()
  item, next_item = pairs.coords
  shrunk_total = followers_I[item] + SHRINK
  above = (pairs.data - followers_I[item] * base_I[next_item]) / shrunk_total
  is_above = above > 0
  position = item[is_above], next_item[is_above]
  return sp.csr_array((above[is_above], position), shape=count_IxI.shape)


def strongest(counts: list[sp.csr_array], keep: int) -> tuple[np.ndarray, np.ndarray]:
  """Return what follows each item most, counted over the users outside each fold.

  Returns (item int32, share fp32) [F, I, keep]; share 0 = no more.
  """
  n_items = counts[0].shape[0]
  item = np.zeros((FOLDS, n_items, keep), np.int32)
  share = np.zeros((FOLDS, n_items, keep), np.float32)
  for fold in range(FOLDS):
    excess_IxI = excess(counts[:fold] + counts[fold + 1 :])
    row = np.repeat(np.arange(n_items), np.diff(excess_IxI.indptr))
    # Rows stay where they are, each with the largest share first.
    order = np.lexsort((excess_IxI.indices, -excess_IxI.data, row))
    rank = np.arange(len(row)) - excess_IxI.indptr[row]
    kept = rank < keep
    item[fold, row[kept], rank[kept]] = excess_IxI.indices[order][kept]
    share[fold, row[kept], rank[kept]] = excess_IxI.data[order][kept]
  return item, share
