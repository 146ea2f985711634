"""Training-free baselines: popularity, personal recency, ItemKNN, item transitions, and counting.

Each is `baseline(inputs, rows, k) -> Ranking` for the evaluation occasions `rows`. It counts over
events usable for training, and reads every occasion's strict context (events before its own time),
which is what a serving system would know then. Settings are chosen on VALIDATION occasions, never
on test. Ties are broken by popularity, then by item index. With `serving.filter_history` what the
context holds is barred before the list is cut, so that lists stay full.

Shapes: O occasions, K list length, I items, U users, N log rows, E (occasion, context event) pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp

from rolegen_jax.config import EVENT_NAMES, Config
from rolegen_jax.data.batches import histories
from rolegen_jax.data.log import InteractionLog, ranges
from rolegen_jax.data.occasions import D1, D2, VALID, Occasions
from rolegen_jax.evaluation.counting import Counting
from rolegen_jax.evaluation.metrics import Pairs, hit, ranks, reciprocal_rank
from rolegen_jax.features import item_transitions as counted
from rolegen_jax.features.interest_shift import InterestShift, event_weights
from rolegen_jax.serving.history_filter import held_items

DAY = 86_400.0
TAUS = tuple(days * DAY for days in (0.25, 1, 3, 7, 14, 30))  # seconds; grid of age decays
# Weight of one event by its name; names left out weigh nothing.
BEHAVIOR = {
  'equal': dict(view=1, fav=1, cart=1, purchase=1),
  'graded': dict(view=1, fav=2, cart=3, purchase=5),
}
STEP_DECAYS = (0.2, 0.5, 0.8, 0.95, 1.0)  # grid of ItemKNN, per distinct later time
TRANSITION_CONTEXT = 64  # latest events of a context that item transitions and counting read
TRANSITION_WEIGHTS, POWERS = (0.1, 0.3, 1.0), (1.0, 2.0)  # grids of `counting`
TUNING_OCCASIONS = 2000  # at most so many validation occasions decide a setting
_CELLS = 1 << 23  # scores held at once: 64 MB

# Scores [o, I] of some occasions, and None or a sparse matrix [o, I] that is nonzero where an item
# is barred.
Scores = tuple[sp.csr_matrix | np.ndarray, sp.csr_matrix | None]


@dataclasses.dataclass(frozen=True, eq=False)
class BaselineInputs:
  """What the baselines read; what several of them count is counted once."""

  log: InteractionLog
  occasions: Occasions
  shift: InterestShift  # counted over training events; it knows the coarse code of every item
  config: Config

  @functools.cached_property
  def train_N(self) -> np.ndarray:
    """Which log rows are training events, bool [N]."""
    return np.arange(len(self.log.item)) < self.occasions.train_end(self.log)[self.log.user]

  @functools.cached_property
  def popular(self) -> np.ndarray:
    """`popular_items`."""
    return popular_items(self.log, self.occasions)

  @functools.cached_property
  def excess(self) -> sp.csr_matrix:
    """`item_transitions.excess` over the training events, [I, I]."""
    train_end = self.occasions.train_end(self.log)
    return sp.csr_matrix(counted.excess(counted.followed(self.log, train_end)))

  @functools.cached_property
  def counting(self) -> Counting:
    """The counts of `counting`; an event weighs as in all counted features."""
    rows = np.flatnonzero(self.train_N)
    weight = event_weights(self.log, rows) * self.log.count[rows]
    events_I = np.bincount(self.log.item[rows], weight, len(self.log.items))
    return Counting(self.shift, self.excess, events_I, self.config.reasoner.coarse_codes)

  @property
  def own_choices(self) -> tuple[bool, ...]:
    """Whether lists may hold items of the context: by validation, unless all systems bar them."""
    return (False,) if self.config.serving.filter_history else (True, False)

  def held(self, chunk: np.ndarray) -> sp.csr_matrix:
    """Return what the contexts of the occasions `chunk` hold, bool [o, I]."""
    return held_items(self.log, self.occasions.user[chunk], self.occasions.context_end[chunk])


@dataclasses.dataclass(frozen=True)
class Ranking:
  """The lists of one baseline, and the settings that made them."""

  items: np.ndarray  # int32 [O, K], -1 past the end
  settings: dict[str, Any]


def popular_items(log: InteractionLog, occasions: Occasions) -> np.ndarray:
  """Return all items, int64 [I], by training purchases, then other training events, then index.

  Repeated source rows count.
  """
  train_N = np.arange(len(log.item)) < occasions.train_end(log)[log.user]
  bought_N = log.event == EVENT_NAMES.index('purchase')

  def count_I(rows_N: np.ndarray) -> np.ndarray:
    return np.bincount(log.item[rows_N], weights=log.count[rows_N], minlength=len(log.items))

  return np.lexsort((-count_I(train_N & ~bought_N), -count_I(train_N & bought_N)))


def popularity(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Give everyone the same list: the most bought items of training, then the most viewed."""
  if inputs.config.serving.filter_history:

    def score(chunk: np.ndarray) -> Scores:
      return sp.csr_matrix((len(chunk), len(inputs.popular))), inputs.held(chunk)

    return Ranking(_rank(rows, score, inputs.popular, k), {})
  top = inputs.popular[:k].astype(np.int32)
  padded = np.pad(top, (0, k - len(top)), constant_values=-1)
  return Ranking(np.tile(padded, (len(rows), 1)), {})


def recency(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Rank by personal frequency decayed by age, then popularity.

    score(i) = sum over context events of i of w(event) exp(-age / tau)

  A row repeated in the source (day-level logs have such rows) counts once, or as often as it
  occurs. That, tau (seconds) and the behavior weights are chosen on validation.
  """
  rank = functools.partial(_recency, inputs, k)
  grid = dict(tau=TAUS, behavior=tuple(BEHAVIOR), repeats=(True, False))
  return _choose(inputs, rows, rank, grid)


def item_knn(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Rank by cosine over training co-occurrence (users x items, binary), then popularity.

    score(j) = sum over context items i of decay^(distinct later times) cosine(i, j)

  The decay, and whether items of the context itself may be listed, are chosen by validation HI@10.
  Deshpande & Karypis, TOIS 2004.
  """
  log, train_N = inputs.log, inputs.train_N
  users_UxI = sp.csr_matrix(
    (np.ones(train_N.sum(), np.float32), (log.user[train_N], log.item[train_N])),
    shape=(len(log.users), len(log.items)),
  )
  users_UxI.sum_duplicates()
  users_UxI.data[:] = 1  # repeated engagement is one
  norm_I = np.sqrt(np.maximum(np.bincount(users_UxI.indices, minlength=len(log.items)), 1))
  normed_UxI = (users_UxI @ sp.diags_array(1 / norm_I)).tocsr()
  rank = functools.partial(_item_knn, inputs, k, normed_UxI)
  return _choose(inputs, rows, rank, dict(decay=STEP_DECAYS, own=inputs.own_choices))


def item_transitions(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Rank by what users turn to after the items of the context, then popularity.

    score(j) = sum over the latest TRANSITION_CONTEXT events i of
               exp(-age / tau) max(share of j among what follows i - share of j at large, 0)

  `features/item_transitions.py` counts them. tau, and whether items of the context itself may be
  listed, are chosen by validation HI@10.
  """
  rank = functools.partial(_item_transitions, inputs, k)
  return _choose(inputs, rows, rank, dict(tau=TAUS, own=inputs.own_choices))


def counting(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Rank by item transitions and by the intensity of coarse codes together: `counting.py`.

  It has all that RoleGen counts and nothing that RoleGen trains. tau, the weight of transitions,
  the power of the intensity, and whether items of the context itself may be listed, are chosen by
  validation HI@10.
  """
  rank = functools.partial(_counting, inputs, k)
  grid = dict(tau=TAUS, transitions=TRANSITION_WEIGHTS, power=POWERS, own=inputs.own_choices)
  return _choose(inputs, rows, rank, grid)


BASELINES: dict[str, Callable[[BaselineInputs, np.ndarray, int], Ranking]] = {
  'popularity': popularity,
  'recency': recency,
  'item_knn': item_knn,
  'item_transitions': item_transitions,
  'counting': counting,
}


def evaluation_rows(log: InteractionLog, occasions: Occasions, split: int) -> np.ndarray:
  """Return the occasions of `split` (VALID or TEST) that have a target and a context, int64."""
  has_target = np.diff(occasions.target_offsets) > 0
  has_context = occasions.context_end > log.offsets[occasions.user]
  return np.flatnonzero((occasions.split == split) & has_target & has_context)


def tuning_rows(log: InteractionLog, occasions: Occasions) -> np.ndarray:
  """Return the validation occasions that decide settings, int64.

  The dormant ones, or all when no dormant one exists; at most TUNING_OCCASIONS, evenly spaced, so
  that the choice does not depend on a seed.
  """
  valid = evaluation_rows(log, occasions, VALID)
  dormant = valid[np.isin(occasions.cohort[valid], (D1, D2))]
  candidates = dormant if len(dormant) else valid
  if not len(candidates):
    return candidates
  most = min(len(candidates), TUNING_OCCASIONS)
  return candidates[np.linspace(0, len(candidates) - 1, most).astype(np.int64)]


def validation_score(items_OxK: np.ndarray, pairs: Pairs) -> float:
  """Return HI@10 plus a little MRR, so that equal hits are decided by their ranks."""
  rank = ranks(items_OxK, pairs)
  return float(hit(rank, 10).mean() + 1e-3 * reciprocal_rank(rank).mean())


def _choose(
  inputs: BaselineInputs,
  rows: np.ndarray,
  rank: Callable[..., np.ndarray],
  grid: dict[str, tuple],
) -> Ranking:
  """Return `rank(rows, **settings)` with the settings of the grid that score best on validation.

  The first ones when there are no validation occasions.
  """
  options = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
  tuning = tuning_rows(inputs.log, inputs.occasions)
  best = options[0]
  if len(tuning):
    pairs = Pairs.of(inputs.occasions, tuning)
    best = max(options, key=lambda settings: validation_score(rank(tuning, **settings), pairs))
  return Ranking(rank(rows, **best), best | {'validation_occasions': len(tuning)})


def _context(inputs: BaselineInputs, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return the log rows of every strict context, and which occasion each is of: int64 [E] both."""
  occasions, first = inputs.occasions, inputs.log.offsets[inputs.occasions.user[rows]]
  return ranges(first, occasions.context_end[rows] - first)


# The settings that are chosen come last.
def _recency(
  inputs: BaselineInputs, k: int, rows: np.ndarray, tau: float, behavior: str, repeats: bool
) -> np.ndarray:
  log, occasions = inputs.log, inputs.occasions
  weights = BEHAVIOR[behavior]
  weight_by_event = np.array([weights.get(name, 0) for name in EVENT_NAMES], np.float64)
  weight_N = weight_by_event[log.event] * (log.count if repeats else 1)

  def score(chunk: np.ndarray) -> Scores:
    source_E, owner_E = _context(inputs, chunk)
    age_E = occasions.timestamp[chunk][owner_E] - log.timestamp[source_E]
    # exp(youngest age / tau) is common to an occasion: without it an old history underflows to
    # scores of zero.
    youngest_O = np.full(len(chunk), np.iinfo(np.int64).max)
    np.minimum.at(youngest_O, owner_E, age_E)
    score_E = weight_N[source_E] * np.exp(-(age_E - youngest_O[owner_E]) / tau)
    shape = (len(chunk), len(log.items))
    barred = inputs.held(chunk) if inputs.config.serving.filter_history else None
    return sp.csr_matrix((score_E, (owner_E, log.item[source_E])), shape=shape), barred

  return _rank(rows, score, inputs.popular, k)


def _item_knn(
  inputs: BaselineInputs,
  k: int,
  normed_UxI: sp.csr_matrix,
  rows: np.ndarray,
  decay: float,
  own: bool,
) -> np.ndarray:
  log = inputs.log

  def score(chunk: np.ndarray) -> Scores:
    source_E, owner_E = _context(inputs, chunk)
    time_E = log.timestamp[source_E]
    # Rows of one occasion are in time order, so a change of (occasion, time) starts a group; groups
    # count back from the newest.
    differs_E = (owner_E[1:] != owner_E[:-1]) | (time_E[1:] != time_E[:-1])
    group_E = np.cumsum(np.append(True, differs_E)[: len(owner_E)])
    newest_O = np.zeros(len(chunk), np.int64)
    np.maximum.at(newest_O, owner_E, group_E)
    shape = (len(chunk), len(log.items))
    weight_E = decay ** (newest_O[owner_E] - group_E)
    query = sp.csr_matrix((weight_E, (owner_E, log.item[source_E])), shape=shape)
    return query @ normed_UxI.T @ normed_UxI, None if own else inputs.held(chunk)

  return _rank(rows, score, inputs.popular, k)


def _item_transitions(
  inputs: BaselineInputs, k: int, rows: np.ndarray, tau: float, own: bool
) -> np.ndarray:
  log, occasions = inputs.log, inputs.occasions

  def score(chunk: np.ndarray) -> Scores:
    end = occasions.context_end[chunk]
    first = np.maximum(log.offsets[occasions.user[chunk]], end - TRANSITION_CONTEXT)
    source_E, owner_E = ranges(first, end - first)
    newest_O = log.timestamp[end - 1]  # as in `_recency`, a factor common to an occasion
    decay_E = np.exp(-(newest_O[owner_E] - log.timestamp[source_E]) / tau)
    shape = (len(chunk), len(log.items))
    query = sp.csr_matrix((decay_E, (owner_E, log.item[source_E])), shape=shape)
    return query @ inputs.excess, None if own else inputs.held(chunk)

  return _rank(rows, score, inputs.popular, k)


def _counting(
  inputs: BaselineInputs,
  k: int,
  rows: np.ndarray,
  tau: float,
  transitions: float,
  power: float,
  own: bool,
) -> np.ndarray:
  log, occasions = inputs.log, inputs.occasions

  def score(chunk: np.ndarray) -> Scores:
    user, end = occasions.user[chunk], occasions.context_end[chunk]
    history = histories(log, user, end, TRANSITION_CONTEXT)
    now = occasions.timestamp[chunk]
    scores = inputs.counting.scores(history, now, tau, transitions, power)
    return scores, None if own else inputs.held(chunk)

  return _rank(rows, score, inputs.popular, k)


def _rank(
  rows: np.ndarray, score: Callable[[np.ndarray], Scores], popular: np.ndarray, k: int
) -> np.ndarray:
  """Return the items that score highest, int32 [O, k], then the popular ones without a score.

  Barred items are never listed.
  """
  items = len(popular)
  # Columns are put in popularity order: so are zero scores, and ties by `_top`.
  filler_I = -np.arange(1.0, items + 1)
  lists = np.full((len(rows), k), -1, np.int32)
  chunk = max(1, _CELLS // items)
  for start in range(0, len(rows), chunk):
    scores, barred = score(rows[start : start + chunk])
    dense = scores if isinstance(scores, np.ndarray) else scores.toarray()
    dense = dense[:, popular].astype(np.float64)
    dense = np.where(dense > 0, dense, filler_I)
    if barred is not None:
      dense[barred[:, popular].toarray() > 0] = -np.inf
    columns, listed = _top(dense, min(k, items))
    lists[start : start + chunk, : columns.shape[1]] = np.where(listed, popular[columns], -1)
  return lists


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
