"""From scores to lists, and to the ranks of targets without making lists.

Items that score above zero come first, by score, then all others by popularity; ties are broken by
popularity, then by item index. What is barred is never listed.

Shapes: O occasions, o of them at once, K list length, I items, T (occasion, target) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from rolegen_jax.evaluation.metrics import Pairs

_CELLS = 1 << 23  # scores held at once: 64 MB


class Scores(NamedTuple):
  """The scores of some occasions, and what is barred there."""

  score: sp.csr_matrix | np.ndarray  # [o, I]
  barred: sp.csr_matrix | None  # [o, I], nonzero where an item is barred


Score = Callable[[np.ndarray], Scores]  # of occasions [o]


def lists(rows: np.ndarray, score: Score, popular: np.ndarray, k: int) -> np.ndarray:
  """Return the first items of the occasions `rows`, int32 [O, k], -1 past the end.

  popular: all items [I], the most popular one first.
  """
  n_items = len(popular)
  # Columns are put in popularity order: so are items without a score, and ties by `_top`.
  filler_I = -np.arange(1.0, n_items + 1)
  listed = np.full((len(rows), k), -1, np.int32)
  order_I = _order(popular)
  for place, (scores, barred) in _chunks(rows, score, n_items):
    if not isinstance(scores, np.ndarray):
      listed[place] = _sparse_lists(scores, barred, popular, order_I, k)
      continue
    dense = scores[:, popular].astype(np.float64)
    dense = np.where(dense > 0, dense, filler_I)
    if barred is not None:
      dense[barred[:, popular].toarray() > 0] = -np.inf
    columns, is_listed = _top(dense, min(k, n_items))
    listed[place, : columns.shape[1]] = np.where(is_listed, popular[columns], -1)
  return listed


def _sparse_lists(
  score: sp.csr_matrix,
  barred: sp.csr_matrix | None,
  popular: np.ndarray,
  order_I: np.ndarray,
  k: int,
) -> np.ndarray:
  """Return what `lists` does of sparse scores, int32 [o, k], without looking at every item."""
  listed = np.full((score.shape[0], k), -1, np.int32)
  score = score.tocsr()
  for row in range(len(listed)):
    entries = slice(score.indptr[row], score.indptr[row + 1])
    item, value = score.indices[entries], score.data[entries]
    item, value = item[value > 0], value[value > 0]
    item = item[np.lexsort((order_I[item], -value.astype(np.float64)))]
    left_out = np.zeros(0, np.int64)
    if barred is not None:
      left_out = barred.indices[barred.indptr[row] : barred.indptr[row + 1]]
      item = item[~np.isin(item, left_out)]
    # So many popular items that k are left of them without those that are listed or barred.
    filler = popular[: k + len(item) + len(left_out)]
    filler = filler[~np.isin(filler, np.concatenate([item, left_out]))]
    items = np.concatenate([item, filler])[:k]
    listed[row, : len(items)] = items
  return listed


def _order(popular: np.ndarray) -> np.ndarray:
  """Return the place of every item in `popular`, int64 [I]."""
  order_I = np.empty(len(popular), np.int64)
  order_I[popular] = np.arange(len(popular))
  return order_I


def target_ranks(rows: np.ndarray, score: Score, popular: np.ndarray, pairs: Pairs) -> np.ndarray:
  """Return the 1-based rank that each target has in the whole list, 0 = barred, int64 [T].

  pairs: of the occasions `rows`. Much quicker than `lists` where scores are sparse.
  """
  order_I = _order(popular)
  ranks = np.zeros(len(pairs.item), np.int64)
  for place, (scores, barred) in _chunks(rows, score, len(popular)):
    of_chunk = np.flatnonzero((pairs.occasion >= place.start) & (pairs.occasion < place.stop))
    row, item = pairs.occasion[of_chunk] - place.start, pairs.item[of_chunk]
    rank_in = _rank_in_dense if isinstance(scores, np.ndarray) else _rank_in_sparse
    ranks[of_chunk] = rank_in(scores, barred, order_I, row, item)
    if barred is not None:
      ranks[of_chunk[np.asarray(barred[row, item]).ravel() > 0]] = 0
  return ranks


def _rank_in_dense(
  score: np.ndarray,
  barred: sp.csr_matrix | None,
  order_I: np.ndarray,
  row: np.ndarray,
  item: np.ndarray,
) -> np.ndarray:
  filled = np.where(score > 0, score, -1.0 - order_I)
  if barred is not None:
    filled[barred.toarray() > 0] = -np.inf
  filled, own = filled[row], filled[row, item][:, None]
  is_before = (filled > own) | ((filled == own) & (order_I < order_I[item][:, None]))
  return is_before.sum(1) + 1


def _rank_in_sparse(
  score: sp.csr_matrix,
  barred: sp.csr_matrix | None,
  order_I: np.ndarray,
  row: np.ndarray,
  item: np.ndarray,
) -> np.ndarray:
  if barred is not None:
    score = score - score.multiply(barred)
  score.eliminate_zeros()
  own, order = np.asarray(score[row, item]).ravel(), order_I[item]
  owner, other, value = _entries(score, row)
  is_before = (value > own[owner]) | ((value == own[owner]) & (order_I[other] < order[owner]))
  before = np.bincount(owner[is_before], minlength=len(row))
  # A target without a score comes after those with one, and after those without one that are more
  # popular; barred items are of neither kind.
  taken = score != 0 if barred is None else (score != 0) + barred
  owner, other, _ = _entries(taken, row)
  taken_before = np.bincount(owner[order_I[other] < order[owner]], minlength=len(row))
  return before + 1 + np.where(own > 0, 0, order - taken_before)


def _chunks(rows: np.ndarray, score: Score, n_items: int) -> Iterator[tuple[slice, Scores]]:
  size = max(1, _CELLS // n_items)
  for start in range(0, len(rows), size):
    chunk = rows[start : start + size]
    yield slice(start, start + len(chunk)), score(chunk)


def _entries(matrix: sp.csr_matrix, row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return (position in `row`, column, value) of all entries of these rows."""
  entries = matrix[row].tocoo()
  return entries.row, entries.col, entries.data


def _top(scores_OxI: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Return the columns of the k highest scores, and which of them are finite, [O, k] each.

  In falling order, equal scores by column.
  """
  least_Ox1 = np.partition(scores_OxI, -k, axis=1)[:, [-k]]
  keep = scores_OxI >= least_Ox1
  # Of a tie at the end of the list, the first columns stay.
  crowded = np.flatnonzero(keep.sum(1) > k)
  if len(crowded):
    above = scores_OxI[crowded] > least_Ox1[crowded]
    tied = scores_OxI[crowded] == least_Ox1[crowded]
    left = k - above.sum(1, keepdims=True)
    keep[crowded] = above | (tied & (np.cumsum(tied, 1) <= left))
  columns = np.nonzero(keep)[1].reshape(-1, k)
  kept = np.take_along_axis(scores_OxI, columns, 1)
  order = np.argsort(-kept, axis=1, kind='stable')
  return np.take_along_axis(columns, order, 1), np.isfinite(np.take_along_axis(kept, order, 1))
