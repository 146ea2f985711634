"""Measure how varied recommendations are, over lists and between worlds.

No targets are needed.

Shapes: O lists, K slots, I catalogue items, L codes per item, U users, W worlds, P candidates of a
world; -1 = empty slot.
"""

from __future__ import annotations

import numpy as np

HEAD_SHARE = 0.2  # the most used fifth of the catalogue is the head, the rest the long tail


def head_items(train_events_I: np.ndarray) -> np.ndarray:
  """Return which items are among the ceil(20 %) with the most training events, bool [I].

  Of items with equal counts, the smaller index comes first.
  """
  order = np.argsort(-np.asarray(train_events_I), kind='stable')
  head = np.zeros(len(order), bool)
  head[order[: int(np.ceil(HEAD_SHARE * len(order)))]] = True
  return head


def gini(counts_I: np.ndarray) -> float:
  """Return the Gini coefficient of how often each catalogue item is recommended.

  0: all items alike; toward 1: few items take all; NaN if nothing is recommended.
  """
  counts_I = np.sort(np.asarray(counts_I, np.float64))
  total = counts_I.sum()
  if total == 0:
    return float('nan')
  n = len(counts_I)
  return float((2 * np.arange(1, n + 1) - n - 1) @ counts_I / (n * total))


def entropy(labels_N: np.ndarray) -> float:
  """Return the entropy in nats of the empirical distribution of integer labels; 0 without any."""
  _, counts = np.unique(labels_N, return_counts=True)
  p = counts / max(int(counts.sum()), 1)
  return float(-(p * np.log(p)).sum())


def intra_list_distance(ranked_OxK: np.ndarray, codes_IxL: np.ndarray) -> float:
  """Return the mean over lists of the mean pairwise distance 1 - (shared leading codes / L).

  Lists of fewer than two items are left out.
  """
  shared_OxKxK = np.zeros(ranked_OxK.shape + ranked_OxK.shape[-1:])
  same = np.ones_like(shared_OxKxK, bool)
  for level in range(codes_IxL.shape[1]):
    code_OxK = codes_IxL[ranked_OxK, level]
    same &= code_OxK[:, :, None] == code_OxK[:, None, :]
    shared_OxKxK += same
  full = ranked_OxK >= 0
  pair = full[:, :, None] & full[:, None, :] & ~np.eye(ranked_OxK.shape[1], dtype=bool)
  pairs_O = pair.sum((1, 2))
  distance_O = ((1 - shared_OxKxK / codes_IxL.shape[1]) * pair).sum((1, 2)) / np.maximum(pairs_O, 1)
  return float(distance_O[pairs_O > 0].mean()) if (pairs_O > 0).any() else float('nan')


def list_diversity(
  ranked_OxK: np.ndarray, codes_IxL: np.ndarray, train_events_I: np.ndarray, k: int = 10
) -> dict[str, float]:
  """Return the diversity of the first k items of every list, over all slots together.

  coverage             share of the catalogue recommended at least once
  coarse_entropy       nats, over level-0 codes of the slots
  gini                 over how often each catalogue item is recommended
  long_tail_share      share of slots outside `head_items`
  intra_list_distance  of `intra_list_distance`
  """
  top = ranked_OxK[:, :k]
  slots = top[top >= 0]
  counts_I = np.bincount(slots, minlength=len(codes_IxL))
  return {
    'coverage': float((counts_I > 0).mean()),
    'coarse_entropy': entropy(codes_IxL[slots, 0]),
    'gini': gini(counts_I),
    'long_tail_share': _long_tail_share(slots, train_events_I),
    'intra_list_distance': intra_list_distance(top, codes_IxL),
  }


def _long_tail_share(slots: np.ndarray, train_events_I: np.ndarray) -> float:
  return float(1 - head_items(train_events_I)[slots].mean()) if len(slots) else float('nan')


def world_diversity(
  candidates_UxWxP: np.ndarray, codes_IxL: np.ndarray, train_events_I: np.ndarray
) -> dict[str, float | list]:
  """Return how different the worlds of one user are, averaged, and what all worlds cover.

  jaccard_WxW is the mean over users of 1 - |A & B| / |A | B| of the candidate SETS of two worlds
  (two empty sets: 0); jaccard is its mean off the diagonal; union_size is the number of distinct
  candidates of a user over all worlds. The other figures are those of `list_diversity` for all
  candidates of a user as one list.
  """
  users, worlds, _ = candidates_UxWxP.shape
  distance_WxW = _jaccard_distances(candidates_UxWxP)
  unions = [np.unique(row[row >= 0]) for row in candidates_UxWxP.reshape(users, -1)]
  longest = max(map(len, unions))
  union_UxM = np.full((users, max(1, longest)), -1, np.int32)
  for row, items in zip(union_UxM, unions):
    row[: len(items)] = items
  off_diagonal = ~np.eye(worlds, dtype=bool)
  figures: dict[str, float | list] = {
    'jaccard': float(distance_WxW[off_diagonal].mean()) if worlds > 1 else 0.0,
    'jaccard_WxW': distance_WxW.round(4).tolist(),
    'union_size': float(np.mean([len(items) for items in unions])),
  }
  figures.update(list_diversity(union_UxM, codes_IxL, train_events_I, k=union_UxM.shape[1]))
  return figures


def _jaccard_distances(candidates_UxWxP: np.ndarray) -> np.ndarray:
  """Return the mean Jaccard distance over users of every two worlds, fp64 [W, W]."""
  _, worlds, n_candidates = candidates_UxWxP.shape
  # An item counts once per world: only its first occurrence in the world's row does.
  same = candidates_UxWxP[:, :, :, None] == candidates_UxWxP[:, :, None, :]
  is_first = np.argmax(same, -1) == np.arange(n_candidates)
  distinct = (candidates_UxWxP >= 0) & is_first
  size_UxW = distinct.sum(-1)
  distance_WxW = np.zeros((worlds, worlds))
  for one in range(worlds):
    for other in range(worlds):
      equal = candidates_UxWxP[:, one, :, None] == candidates_UxWxP[:, other, None, :]
      both_U = (distinct[:, one] & equal.any(-1)).sum(-1)
      either_U = size_UxW[:, one] + size_UxW[:, other] - both_U
      distance_U = np.where(either_U > 0, 1 - both_U / np.maximum(either_U, 1), 0.0)
      distance_WxW[one, other] = np.mean(distance_U)
  return distance_WxW
