"""Rules without training that every model is reported beside: popularity, personal recency, ItemKNN, item transitions.

Each baseline is `baseline(log, occasions, rows, config, k) -> Ranking` for the evaluation occasions `rows`. It counts co-occurrence
and popularity over events usable for training, and reads every occasion's whole strict context (events before its own
time), which is what a serving system would know then. Settings are picked on VALIDATION occasions, never on test. Ties are
broken by popularity, then by item index.

Legend: O occasions, K list length, I items, U users, N log rows, E (occasion, context event) pairs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from rolegen_jax.config import EVENT_NAMES, Config
from rolegen_jax.data.occasions import D1, D2, VALID
from rolegen_jax.evaluation.metrics import Pairs, hit, ranges, ranks
from rolegen_jax.features import item_transitions as counted

DAY = 86_400.0
TAUS = tuple(
  days * DAY for days in (0.25, 1, 3, 7, 14, 30)
)  # seconds; grid of the recency baseline
BEHAVIOUR = {  # weight of one event by its name; names left out weigh nothing
  'equal': dict(view=1, fav=1, cart=1, purchase=1),
  'graded': dict(view=1, fav=2, cart=3, purchase=5),
}
STEP_DECAYS = (
  0.2,
  0.5,
  0.8,
  0.95,
  1.0,
)  # grid of ItemKNN: weight of a context event per distinct later time
SUCCESSOR_CONTEXT = 64  # latest events of a context that the item transitions baseline reads
TUNING_OCCASIONS = 2000  # at most so many validation occasions decide a setting
_CELLS = 1 << 23  # scores held at once: 64 MB


@dataclasses.dataclass(frozen=True)
class Ranking:
  """items int32 [O, K], -1 past the end, and the settings that made it (for the report)."""

  items: np.ndarray
  settings: dict


def popular_items(log, occasions) -> np.ndarray:
  """int64 [I]: all items by training purchases, then other training events, then index. Repeated source rows count."""
  train_N = np.arange(len(log.item)) < occasions.train_end(log)[log.user]
  bought_N = log.event == EVENT_NAMES.index('purchase')
  count_I = lambda rows_N: np.bincount(
    log.item[rows_N], weights=log.count[rows_N], minlength=len(log.items)
  )
  return np.lexsort((-count_I(train_N & ~bought_N), -count_I(train_N & bought_N)))


def popularity(log, occasions, rows: np.ndarray, config: Config, k: int) -> Ranking:
  """The same list for everyone: the most bought items of training, then the most viewed."""
  top = popular_items(log, occasions)[:k].astype(np.int32)
  padded = np.pad(top, (0, k - len(top)), constant_values=-1)
  return Ranking(np.tile(padded, (len(rows), 1)), {})


def recency(log, occasions, rows: np.ndarray, config: Config, k: int) -> Ranking:
  """Personal frequency decayed by age: score(i) = sum over context events of i of w(event) exp(-age / tau), then popularity.

  An identical row repeated in the source (day-level logs have them) counts once or as often as it stands there. That, tau
  (seconds) and the behavior weights are picked by validation.
  """
  popular = popular_items(log, occasions)
  make = lambda rows, **settings: _recency(log, occasions, rows, popular, k, **settings)
  return _pick(
    log, occasions, rows, make, dict(tau=TAUS, behaviour=tuple(BEHAVIOUR), repeats=(True, False))
  )


def item_knn(log, occasions, rows: np.ndarray, config: Config, k: int) -> Ranking:
  """Neighbours of the context by cosine over training co-occurrence (users x items, binary), then popularity.

  score(j) = sum over context items i of decay^(distinct later times) cosine(i, j). The decay, and whether items of the
  context itself may be listed, are picked by validation HI@10. Deshpande & Karypis, TOIS 2004.
  """
  popular = popular_items(log, occasions)
  train_N = np.arange(len(log.item)) < occasions.train_end(log)[log.user]
  users_UxI = sp.csr_matrix(
    (np.ones(train_N.sum(), np.float32), (log.user[train_N], log.item[train_N])),
    shape=(len(log.users), len(log.items)),
  )
  users_UxI.sum_duplicates()
  users_UxI.data[:] = 1  # repeated engagement is one
  norm_I = np.sqrt(np.maximum(np.bincount(users_UxI.indices, minlength=len(popular)), 1))
  normed_UxI = (users_UxI @ sp.diags_array(1 / norm_I)).tocsr()
  make = lambda rows, decay, own: _item_knn(
    log, occasions, rows, popular, k, normed_UxI, decay, own
  )
  return _pick(log, occasions, rows, make, dict(decay=STEP_DECAYS, own=(True, False)))


def item_transitions(log, occasions, rows: np.ndarray, config: Config, k: int) -> Ranking:
  """What users turn to after the items of the context, then popularity: `data/item transitions.py`.

  score(j) = sum over the latest SUCCESSOR_CONTEXT events i of exp(-age / tau) max(share of j among what follows i - share of j at large, 0).
  tau, and whether items of the context itself may be listed, are picked by validation HI@10.
  """
  popular = popular_items(log, occasions)
  excess_IxI = sp.csr_matrix(counted.excess(counted.followed(log, occasions.train_end(log))))
  make = lambda rows, tau, own: _item_transitions(
    log, occasions, rows, popular, k, excess_IxI, tau, own
  )
  return _pick(log, occasions, rows, make, dict(tau=TAUS, own=(True, False)))


BASELINES: dict[str, Callable[..., Ranking]] = {
  'popularity': popularity,
  'recency': recency,
  'item_knn': item_knn,
  'item_transitions': item_transitions,
}


def evaluation_rows(log, occasions, split: int) -> np.ndarray:
  """int64 indices of the occasions of `split` (occasions.VALID or TEST) that have a target and a context."""
  has_target = np.diff(occasions.target_offsets) > 0
  has_context = occasions.context_end > log.offsets[occasions.user]
  return np.flatnonzero((occasions.split == split) & has_target & has_context)


def tuning_rows(log, occasions) -> np.ndarray:
  """int64 indices of validation occasions that decide settings: the dormant ones, or all when no dormant one exists.

  At most TUNING_OCCASIONS, evenly spaced, so that the choice does not depend on a seed.
  """
  valid = evaluation_rows(log, occasions, VALID)
  dormant = valid[np.isin(occasions.cohort[valid], (D1, D2))]
  chosen = dormant if len(dormant) else valid
  return (
    chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), TUNING_OCCASIONS)).astype(np.int64)]
    if len(chosen)
    else chosen
  )


def validation_score(items_OxK: np.ndarray, pairs: Pairs) -> float:
  """HI@10, with MRR far behind it so that equal hits are decided by where they stand."""
  place = ranks(items_OxK, pairs)
  return float(hit(place, 10).mean() + 1e-3 * ((place > 0) / np.maximum(place, 1)).mean())


def _pick(log, occasions, rows, make, grid: dict[str, tuple]) -> Ranking:
  """`make(rows, **settings)` with the settings of the grid that score best on validation (the first when there is none)."""
  options = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
  tuning = tuning_rows(log, occasions)
  best = options[0]
  if len(tuning):
    pairs = Pairs.of(occasions, tuning)
    best = max(options, key=lambda settings: validation_score(make(tuning, **settings), pairs))
  return Ranking(make(rows, **best), best | {'validation_occasions': len(tuning)})


def _context(log, occasions, rows):
  """Log rows of every occasion's strict context, and which occasion each is of: int64 [E], int64 [E]."""
  first = log.offsets[occasions.user[rows]]
  return ranges(first, occasions.context_end[rows] - first)


def _recency(log, occasions, rows, popular, k, tau, behaviour, repeats) -> np.ndarray:
  weight_by_event = np.array(
    [BEHAVIOUR[behaviour].get(name, 0) for name in EVENT_NAMES], np.float64
  )
  weight_N = weight_by_event[log.event] * (log.count if repeats else 1)

  def score(chunk):
    source_E, owner_E = _context(log, occasions, chunk)
    age_E = occasions.timestamp[chunk][owner_E] - log.timestamp[source_E]
    # exp(youngest age / tau) is common to an occasion: without it an old history underflows to scores of zero.
    youngest_O = np.full(len(chunk), np.iinfo(np.int64).max)
    np.minimum.at(youngest_O, owner_E, age_E)
    score_E = weight_N[source_E] * np.exp(-(age_E - youngest_O[owner_E]) / tau)
    return sp.csr_matrix(
      (score_E, (owner_E, log.item[source_E])), shape=(len(chunk), len(popular))
    ), None

  return _rank(rows, score, popular, k)


def _item_knn(log, occasions, rows, popular, k, normed_UxI, decay, own) -> np.ndarray:
  def score(chunk):
    source_E, owner_E = _context(log, occasions, chunk)
    time_E = log.timestamp[source_E]
    # Rows of one occasion are in time order, so a change of (occasion, time) starts a group; groups count back from the newest.
    changed_E = np.append(True, (owner_E[1:] != owner_E[:-1]) | (time_E[1:] != time_E[:-1]))[
      : len(owner_E)
    ]
    group_E = np.cumsum(changed_E)
    newest_O = np.zeros(len(chunk), np.int64)
    np.maximum.at(newest_O, owner_E, group_E)
    shape = (len(chunk), len(popular))
    query = sp.csr_matrix(
      (decay ** (newest_O[owner_E] - group_E), (owner_E, log.item[source_E])), shape=shape
    )
    return query @ normed_UxI.T @ normed_UxI, None if own else query

  return _rank(rows, score, popular, k)


def _item_transitions(log, occasions, rows, popular, k, excess_IxI, tau, own) -> np.ndarray:
  def score(chunk):
    end = occasions.context_end[chunk]
    first = np.maximum(log.offsets[occasions.user[chunk]], end - SUCCESSOR_CONTEXT)
    source_E, owner_E = ranges(first, end - first)
    newest_O = log.timestamp[end - 1]  # as in `_recency`, a factor common to an occasion
    faded_E = np.exp(-(newest_O[owner_E] - log.timestamp[source_E]) / tau)
    query = sp.csr_matrix(
      (faded_E, (owner_E, log.item[source_E])), shape=(len(chunk), len(popular))
    )
    known_E, of_E = _context(log, occasions, chunk)
    known = sp.csr_matrix((np.ones(len(known_E)), (of_E, log.item[known_E])), shape=query.shape)
    return query @ excess_IxI, None if own else known

  return _rank(rows, score, popular, k)


def _rank(rows, score, popular, k: int) -> np.ndarray:
  """int32 [O, k] of the items that score highest, then the popular ones that have no score; barred items never.

  `score(rows)` gives sparse scores [o, I] and None or a sparse matrix [o, I] that is nonzero where an item is barred.
  """
  items = len(popular)
  filler_I = -np.arange(
    1.0, items + 1
  )  # columns are put in popularity order: so are zero scores, and ties by `_top`
  lists = np.full((len(rows), k), -1, np.int32)
  chunk = max(1, _CELLS // items)
  for start in range(0, len(rows), chunk):
    scores, barred = score(rows[start : start + chunk])
    dense = scores.tocsr()[:, popular].toarray().astype(np.float64)
    dense = np.where(dense > 0, dense, filler_I)
    if barred is not None:
      dense[barred[:, popular].toarray() > 0] = -np.inf
    columns, listed = _top(dense, min(k, items))
    lists[start : start + chunk, : columns.shape[1]] = np.where(listed, popular[columns], -1)
  return lists


def _top(scores_OxI: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Columns of the k highest scores in falling order, equal scores by column, and which of them are finite. [O, k] each."""
  least_Ox1 = np.partition(scores_OxI, -k, axis=1)[:, [-k]]
  keep = scores_OxI >= least_Ox1
  crowded = np.flatnonzero(
    keep.sum(1) > k
  )  # a tie at the end of the list: the first columns of it stay
  if len(crowded):
    above, level = (
      scores_OxI[crowded] > least_Ox1[crowded],
      scores_OxI[crowded] == least_Ox1[crowded],
    )
    keep[crowded] = above | (level & (np.cumsum(level, 1) <= k - above.sum(1, keepdims=True)))
  columns = np.nonzero(keep)[1].reshape(-1, k)
  kept = np.take_along_axis(scores_OxI, columns, 1)
  order = np.argsort(-kept, axis=1, kind='stable')
  return np.take_along_axis(columns, order, 1), np.isfinite(np.take_along_axis(kept, order, 1))
