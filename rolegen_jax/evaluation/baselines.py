"""The baselines that are counted: popularity, trending, recency, ItemKNN (I2I), item transitions,
counting.

Each is `baseline(inputs, rows, k) -> Ranking` for the evaluation occasions `rows`. It counts over
events usable for training, and reads every occasion's strict context (events before its own time)
and, where the split is by time, what everybody did before that day (`features/trending.py`): what a
serving system would know then. Settings are chosen on VALIDATION occasions, never on test. Ties are
broken by popularity, then by item index. Where the run bars what a history holds, such items are
left out before a list is cut, so that lists stay full.

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

from rolegen_jax.config import COHORTS, EVENT_NAMES, Config
from rolegen_jax.data.batches import histories
from rolegen_jax.data.log import InteractionLog, item_counts, ranges
from rolegen_jax.data.occasions import D1, D2, VALID, Occasions
from rolegen_jax.evaluation.counting import Counting
from rolegen_jax.evaluation.metrics import Pairs, hit, reciprocal_rank
from rolegen_jax.evaluation.ranking import Scores, lists, target_ranks
from rolegen_jax.features.interest_shift import InterestShift, event_weights
from rolegen_jax.features.item_transitions import DAY, Kernel, Transitions
from rolegen_jax.features.trending import Trending
from rolegen_jax.runtime.progress import progress
from rolegen_jax.serving.history_filter import held_items

TAUS = tuple(days * DAY for days in (0.25, 1, 3, 7, 14, 30))  # seconds; grid of age decays
# Weight of one event by its name; names left out weigh nothing.
BEHAVIOR = {
  'equal': dict(view=1, fav=1, cart=1, purchase=1),
  'graded': dict(view=1, fav=2, cart=3, purchase=5),
}
STEP_DECAYS = (0.2, 0.5, 0.8, 0.95, 1.0)  # grid of ItemKNN, per distinct later time
TRANSITION_CONTEXT = 64  # latest events of a context that item transitions and counting read
TRANSITION_WEIGHTS, POWERS = (0.1, 0.3, 1.0, 3.0), (1.0, 2.0)  # grids of `counting`
TRENDING_WEIGHTS = (0.0, 1e-6, 0.03, 0.3, 3.0, 30.0)  # 1e-6: after all but the oldest
TUNING_OCCASIONS = 2000  # at most so many validation occasions decide a setting


@dataclasses.dataclass(frozen=True, eq=False)
class BaselineInputs:
  """What the baselines read; what several of them count is counted once."""

  log: InteractionLog
  occasions: Occasions
  shift: InterestShift  # counted over training events; it knows the coarse code of every item
  config: Config
  kernel: Kernel  # of item transitions
  bars_history: bool  # whether lists leave out what the context holds
  trending: Trending | None  # None: nothing is known of that

  @functools.cached_property
  def train_end(self) -> np.ndarray:
    """The log row at which the training events of each user end, int64 [U]."""
    return self.occasions.train_end(self.log)

  @functools.cached_property
  def popular(self) -> np.ndarray:
    """`popular_items`."""
    return popular_items(self.log, self.occasions)

  @functools.cached_property
  def transitions(self) -> sp.csr_array:
    """The table of item transitions over the training events, [I, I]."""
    return Transitions.of(self.log, self.train_end, self.kernel).table()

  @functools.cached_property
  def counting(self) -> Counting:
    """The counts of `counting`; an event weighs as in all counted features."""
    events_I = np.zeros(len(self.log.items))
    for part in self.log.parts():
      rows = np.flatnonzero(part.training(self.train_end))
      weight = event_weights(part.log, rows) * part.log.count[rows]
      events_I += np.bincount(part.log.item[rows], weight, len(events_I))
    coarse_codes = self.config.reasoner.coarse_codes
    return Counting(self.shift, self.kernel, self.transitions, events_I, coarse_codes)

  @property
  def trending_weights(self) -> tuple[float, ...]:
    """The weights that validation chooses from for what is trending, beside other scores."""
    return TRENDING_WEIGHTS if self.trending else (0.0,)

  def trending_scores(self, chunk: np.ndarray) -> sp.csr_matrix:
    """Return the shares of what is trending at the occasions `chunk`, [o, I]."""
    shape = len(chunk), len(self.log.items)
    if self.trending is None:
      return sp.csr_matrix(shape)
    return self.trending.of_rows(self.occasions.timestamp[chunk], shape[1])

  def barred(self, chunk: np.ndarray) -> sp.csr_matrix | None:
    """Return what lists of the occasions `chunk` must not hold, bool [o, I], if anything."""
    if not self.bars_history:
      return None
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
  train_end = occasions.train_end(log)
  bought_I, all_I = purchase_counts(log, train_end), item_counts(log, train_end)
  return np.lexsort((bought_I - all_I, -bought_I))


def purchase_counts(log: InteractionLog, train_end: np.ndarray) -> np.ndarray:
  """Return how often every item was bought in the training rows, int64 [I]."""
  return item_counts(log, train_end, event=EVENT_NAMES.index('purchase'))


def popularity(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Give everyone the same list: the most bought items of training, then the most viewed."""

  def score(chunk: np.ndarray) -> Scores:
    return Scores(sp.csr_matrix((len(chunk), len(inputs.popular))), inputs.barred(chunk))

  return Ranking(lists(rows, score, inputs.popular, k), {})


def trending(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Give everyone of a day the same list: what is trending on it, then the most popular items."""

  def score(chunk: np.ndarray) -> Scores:
    return Scores(inputs.trending_scores(chunk), inputs.barred(chunk))

  return Ranking(lists(rows, score, inputs.popular, k), {})


def recency(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Rank by personal frequency decayed by age, and what is trending; then popularity.

    score(i) = sum over context events of i of w(event) exp(-age / tau) + u share(i)

  share is that of what is trending. A row repeated in the source (day-level logs have such rows)
  counts once, or as often as it occurs. That, tau (seconds), the behavior weights and u are chosen
  on validation.
  """
  score = functools.partial(recency_scores, inputs)
  grid = dict(tau=TAUS, behavior=tuple(BEHAVIOR), repeats=(True, False))
  return choose(inputs, rows, k, 'recency', score, grid | dict(trending=inputs.trending_weights))


def item_knn(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Rank by item-to-item cosine over training co-occurrence (users x items, binary): I2I.

    score(j) = sum over context items i of decay^(distinct later times) cosine(i, j)

  The decay is chosen on validation. Deshpande & Karypis, TOIS 2004.
  """
  log = inputs.log
  users_UxI = user_items(log, inputs.train_end, lambda _, rows: np.ones(len(rows)))
  users_UxI.data[:] = 1  # repeated engagement is one
  norm_I = np.sqrt(np.maximum(np.bincount(users_UxI.indices, minlength=len(log.items)), 1))
  normed_UxI = (users_UxI @ sp.diags_array(1 / norm_I)).tocsr()
  score = functools.partial(_item_knn_scores, inputs, normed_UxI)
  return choose(inputs, rows, k, 'item_knn', score, dict(decay=STEP_DECAYS))


def user_items(
  log: InteractionLog,
  train_end: np.ndarray,
  weigh: Callable[[InteractionLog, np.ndarray], np.ndarray],
) -> sp.csr_matrix:
  """Return the weight of all training events of each user with each item, fp32 [U, I].

  weigh: (log, its rows) -> how much each counts.
  """
  parts = []
  for part in log.parts():
    rows = np.flatnonzero(part.training(train_end))
    weight = weigh(part.log, rows).astype(np.float32)
    place, shape = (part.log.user[rows], part.log.item[rows]), (len(part.log.users), len(log.items))
    parts.append(sp.csr_matrix((weight, place), shape=shape))
    parts[-1].sum_duplicates()
  return sp.vstack(parts, format='csr')


def item_transitions(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Rank by the items that users act on around contact with those of the context.

    score(j) = sum over the latest TRANSITION_CONTEXT events i of weight(i) table(i, j)

  `features/item_transitions.py` says what weights and table are. Its kernel is that of the run,
  which was chosen on validation (`choices.py`).
  """
  score = functools.partial(transition_scores, inputs)
  ranking = lists(rows, score, inputs.popular, k)
  return Ranking(ranking, dataclasses.asdict(inputs.kernel))


def counting(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Rank by item transitions and by the intensity of coarse codes together: `counting.py`.

  It has all that RoleGen counts and nothing that RoleGen trains. tau, the weights of transitions
  and of what is trending, and the power of the intensity are chosen on validation.
  """
  score = functools.partial(counting_scores, inputs)
  grid = dict(tau=TAUS, transitions=TRANSITION_WEIGHTS, power=POWERS)
  return choose(inputs, rows, k, 'counting', score, grid, dict(trending=inputs.trending_weights))


BASELINES: dict[str, Callable[[BaselineInputs, np.ndarray, int], Ranking]] = {
  'popularity': popularity,
  'trending': trending,
  'recency': recency,
  'item_knn': item_knn,
  'item_transitions': item_transitions,
  'counting': counting,
}


def evaluation_rows(
  log: InteractionLog, occasions: Occasions, split: int, most: int = 0
) -> np.ndarray:
  """Return the occasions of `split` (VALID or TEST) that have a target and a context, int64.

  With `most`, at most so many of each cohort, evenly spaced in time.
  """
  has_target = np.diff(occasions.target_offsets) > 0
  has_context = occasions.context_end > log.offsets[occasions.user]
  rows = np.flatnonzero((occasions.split == split) & has_target & has_context)
  if not most:
    return rows
  cohorts = (rows[occasions.cohort[rows] == cohort] for cohort in range(len(COHORTS)))
  return np.sort(np.concatenate([_evenly(cohort, most) for cohort in cohorts]))


def _evenly(rows: np.ndarray, most: int) -> np.ndarray:
  """Return at most `most` of `rows`, evenly spaced."""
  if len(rows) <= most:
    return rows
  return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def tuning_rows(log: InteractionLog, occasions: Occasions) -> np.ndarray:
  """Return the validation occasions that decide settings, int64.

  The dormant ones, or all when no dormant one exists; at most TUNING_OCCASIONS, evenly spaced, so
  that the choice does not depend on a seed.
  """
  valid = evaluation_rows(log, occasions, VALID)
  dormant = valid[np.isin(occasions.cohort[valid], (D1, D2))]
  return _evenly(dormant if len(dormant) else valid, TUNING_OCCASIONS)


def validation_score(
  inputs: BaselineInputs, tuning: np.ndarray, pairs: Pairs, score: Callable[..., Scores]
) -> float:
  """Return HI@10 plus a little MRR, so that equal hits are decided by their ranks."""
  rank = target_ranks(tuning, score, inputs.popular, pairs)
  return float(hit(rank, 10).mean() + 1e-5 * reciprocal_rank(rank).mean())


def choose(
  inputs: BaselineInputs,
  rows: np.ndarray,
  k: int,
  label: str,
  score: Callable[..., Scores],
  grid: dict[str, tuple],
  then: dict[str, tuple] | None = None,
) -> Ranking:
  """Return the lists by `score(chunk, **settings)`, with what scores best on validation.

  Settings are those of the grid, with the first of `then`; beside the best of them, those of `then`
  are chosen. The first ones when there are no validation occasions.
  """
  tuning = tuning_rows(inputs.log, inputs.occasions)
  best = {name: values[0] for name, values in (grid | (then or {})).items()}
  told: dict[str, Any] = {}
  pairs = Pairs.of(inputs.occasions, tuning)
  for searched in (grid, then):
    if not searched or not len(tuning):
      continue
    options = [
      best | dict(zip(searched, values)) for values in itertools.product(*searched.values())
    ]
    scored = [
      validation_score(inputs, tuning, pairs, functools.partial(score, **settings))
      for settings in progress(options, f'settings of {label}')
    ]
    best = options[int(np.argmax(scored))]
    told = {'validation HI@10': round(max(scored), 4)}
  ranking = lists(rows, functools.partial(score, **best), inputs.popular, k)
  return Ranking(ranking, best | told | {'validation_occasions': len(tuning)})


def recency_scores(
  inputs: BaselineInputs,
  chunk: np.ndarray,
  tau: float,
  behavior: str,
  repeats: bool,
  trending: float = 0.0,
) -> Scores:
  """Return the scores of `recency` for the occasions `chunk`."""
  log, occasions = inputs.log, inputs.occasions
  weights = BEHAVIOR[behavior]
  weight_by_event = np.array([weights.get(name, 0) for name in EVENT_NAMES], np.float64)
  source_E, owner_E = _context(inputs, chunk)
  age_E = occasions.timestamp[chunk][owner_E] - log.timestamp[source_E]
  # exp(youngest age / tau) is common to an occasion: without it an old history underflows to scores
  # of zero.
  youngest_O = np.full(len(chunk), np.iinfo(np.int64).max)
  np.minimum.at(youngest_O, owner_E, age_E)
  weight_E = weight_by_event[log.event[source_E]] * (log.count[source_E] if repeats else 1)
  score_E = weight_E * np.exp(-(age_E - youngest_O[owner_E]) / tau)
  shape = (len(chunk), len(log.items))
  scores = sp.csr_matrix((score_E, (owner_E, log.item[source_E])), shape=shape)
  if trending:
    scores = scores + trending * inputs.trending_scores(chunk)
  return Scores(scores, inputs.barred(chunk))


def _item_knn_scores(
  inputs: BaselineInputs, normed_UxI: sp.csr_matrix, chunk: np.ndarray, decay: float
) -> Scores:
  log = inputs.log
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
  return Scores(query @ normed_UxI.T @ normed_UxI, inputs.barred(chunk))


def transition_scores(inputs: BaselineInputs, chunk: np.ndarray) -> Scores:
  """Return the scores of `item_transitions` for the occasions `chunk`."""
  log, occasions = inputs.log, inputs.occasions
  end = occasions.context_end[chunk]
  first = np.maximum(log.offsets[occasions.user[chunk]], end - TRANSITION_CONTEXT)
  source_E, owner_E = ranges(first, end - first)
  seconds_E = log.timestamp[end - 1][owner_E] - log.timestamp[source_E]
  weight_E = inputs.kernel.context_weights(end[owner_E] - 1 - source_E, seconds_E)
  shape = (len(chunk), len(log.items))
  query = sp.csr_matrix((weight_E, (owner_E, log.item[source_E])), shape=shape)
  return Scores(query @ inputs.transitions, inputs.barred(chunk))


def counting_scores(
  inputs: BaselineInputs,
  chunk: np.ndarray,
  tau: float,
  transitions: float,
  power: float,
  trending: float = 0.0,
) -> Scores:
  """Return the scores of `counting` for the occasions `chunk`."""
  occasions = inputs.occasions
  user, end = occasions.user[chunk], occasions.context_end[chunk]
  history = histories(inputs.log, user, end, TRANSITION_CONTEXT)
  scores = inputs.counting.scores(history, occasions.timestamp[chunk], tau, transitions, power)
  if trending:
    scores += trending * inputs.trending_scores(chunk).toarray()
  return Scores(scores, inputs.barred(chunk))


def _context(inputs: BaselineInputs, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return the log rows of every strict context, and which occasion each is of: int64 [E] both."""
  occasions, first = inputs.occasions, inputs.log.offsets[inputs.occasions.user[rows]]
  return ranges(first, occasions.context_end[rows] - first)
