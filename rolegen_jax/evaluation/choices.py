"""What is chosen once per run, on validation occasions, and holds for every system alike.

The kernels of item transitions, the half-life of what is trending, and whether lists may hold what
the user's history holds.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from rolegen_jax.config import Config, digest
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Occasions
from rolegen_jax.evaluation.baselines import (
  TAUS,
  BaselineInputs,
  recency_scores,
  transition_scores,
  tuning_rows,
  validation_score,
)
from rolegen_jax.evaluation.metrics import Pairs
from rolegen_jax.features import trending
from rolegen_jax.features.interest_shift import MAX_LAG, InterestShift
from rolegen_jax.features.item_transitions import Kernel, Transitions
from rolegen_jax.features.trending import Trending
from rolegen_jax.runtime.progress import say

# Where the search for a kernel starts: cosine by events since, and shares by time.
STARTS = (
  Kernel(),
  Kernel(MAX_LAG, 'time', backward=0.0, normalization='shares', prior=5.0, step=1.0, days=7.0),
)
GRID: dict[str, tuple] = dict(
  lags=(1, 2, 3, 5, MAX_LAG),
  fade=('lag', 'time'),
  backward=(0.0, 0.5, 1.0),
  prior=(0.0, 2.0, 5.0, 20.0),
  step=(0.5, 0.65, 0.8, 0.9, 1.0),
  days=(0.0, 1.0, 3.0, 7.0, 14.0, 30.0),
)
COUNTED_ROWS = 1_000_000  # of the log, about, that transitions are counted on
HALF_LIVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # days, of what is trending
ROUNDS = 2  # through the settings of a kernel, one after the other


@dataclasses.dataclass(frozen=True)
class Choices:
  """What was chosen, and the validation HI@10 that decided."""

  kernel: Kernel  # of the baselines: the best there is
  # Of what the reasoner retrieves: the best by cosine. It is multiplied with an expert of
  # popularity, which shares would count once more.
  retrieval: Kernel
  bars_history: bool
  scores: dict[str, float]
  # By which kinds of users tell items apart (`features/attributes.py`); validation does not decide.
  words: tuple[str, ...] = ()
  # Half-life, in days, of events in what is trending; 0 = nothing is known of that.
  trending: float = 0.0

  def trending_in(self, log: InteractionLog, width: int) -> Trending | None:
    """Return what is trending in a log, `width` items a day, if anything is."""
    if not self.trending:
      return None
    return trending.of_counts(*trending.daily_counts(log), self.trending, width)

  def told(self, bars_history: bool) -> str:
    """Return a sentence for the report: what lists hold, and what validation says of that."""
    verb = 'leave out' if bars_history else 'may hold'
    sentence = f"The lists of every system {verb} items of the user's history."
    if not self.scores:
      return f'{sentence} There are no validation occasions to choose by.'
    return (
      f'{sentence} Validation HI@10 of the better of recency and item transitions: '
      f'{self.scores["history_allowed"]:.4f} with such items, '
      f'{self.scores["history_barred"]:.4f} without.'
    )

  @property
  def digest(self) -> str:
    """16 hex digits over all of it; words that there are none of leave no trace."""
    values = dataclasses.asdict(self)
    return digest({name: x for name, x in values.items() if name != 'words' or x})

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> Choices:
    """Return the choices of `dataclasses.asdict`."""
    kernels = {name: Kernel(**values[name]) for name in ('kernel', 'retrieval')}
    return cls(**values | kernels | dict(words=tuple(values.get('words', ()))))


def choose(log: InteractionLog, occasions: Occasions, config: Config) -> Choices:
  """Choose on validation occasions; the defaults where there are none.

  Lists hold nothing of the history where the better of recency and item transitions gains by that.
  The kernel is found one setting at a time, from either of STARTS.
  """
  search = _Search(log, occasions, config)
  if not len(search.tuning):
    half_life = _half_life(log, occasions, search.tuning, config)
    return Choices(Kernel(), Kernel(), False, {}, trending=half_life)
  allowed, barred = search.best_simple(False), search.best_simple(True)
  bars_history = barred > allowed
  found = [search.climb(kernel, bars_history) for kernel in STARTS]
  score, kernel = max(found, key=lambda pair: pair[0])
  say(f'item transitions: validation HI@10 {score:.4f} with {kernel}')
  scores = dict(item_transitions=score, history_allowed=allowed, history_barred=barred)
  half_life = _half_life(log, occasions, search.tuning, config)
  made = Choices(kernel, found[0][1], bars_history, scores, trending=half_life)
  say(made.told(bars_history))
  return made


def _half_life(
  log: InteractionLog, occasions: Occasions, tuning: np.ndarray, config: Config
) -> float:
  """Return the half-life, in days, by which what is new to users was likeliest to be bought.

  0 where the split is not by time, as where times are ranks: nothing says what others did before
  an occasion.
  """
  if occasions.rule != 'time':
    return 0.0
  pairs = Pairs.of(occasions, tuning)
  new = np.flatnonzero(~pairs.seen)
  if not len(new):
    return HALF_LIVES[len(HALF_LIVES) // 2]
  timestamp, target = occasions.timestamp[tuning[pairs.occasion[new]]], pairs.item[new]
  first_day, counts = trending.daily_counts(log)
  scores = [
    trending.log_likelihood(
      trending.of_counts(first_day, counts, days, config.backbone.trending),
      len(log.items),
      timestamp,
      target,
    )
    for days in HALF_LIVES
  ]
  best = HALF_LIVES[int(np.argmax(scores))]
  say(f'trending: half-life of {best:g} days, by {len(new)} validation targets new to their users')
  return best


class _Search:
  """Validation scores of kernels; what several of them count is counted once."""

  def __init__(self, log: InteractionLog, occasions: Occasions, config: Config):
    self.tuning = tuning_rows(log, occasions)
    self._pairs = Pairs.of(occasions, self.tuning)
    # Kernels are compared, so a sample of a long log does.
    self._log, users = log.sampled(COUNTED_ROWS)
    n_training = occasions.train_end(log) - log.offsets[:-1]
    self._train_end = self._log.offsets[:-1] + n_training[users]
    coarse_I = np.zeros(len(log.items), np.int32)  # nothing here reads coarse codes
    shift = InterestShift(coarse_I, (), (), np.zeros((1, 1)), np.zeros((1, 1)))
    self._inputs = BaselineInputs(log, occasions, shift, config, Kernel(), False, None)
    self._counted = functools.lru_cache(maxsize=4)(self._count)
    self._table = functools.lru_cache(maxsize=1)(self._make_table)

  def best_simple(self, bars_history: bool) -> float:
    """Return the best score of recency and of the kernels that the search starts from."""
    inputs = dataclasses.replace(self._inputs, bars_history=bars_history)
    recency = [
      validation_score(
        inputs,
        self.tuning,
        self._pairs,
        functools.partial(recency_scores, inputs, tau=tau, behavior='equal', repeats=True),
      )
      for tau in TAUS
    ]
    return max(*recency, *(self.score(kernel, bars_history) for kernel in STARTS))

  def climb(self, kernel: Kernel, bars_history: bool) -> tuple[float, Kernel]:
    """Return the score and the kernel that changing one setting after the other leads to."""
    score = self.score(kernel, bars_history)
    for name, values in [*GRID.items()] * ROUNDS:
      for value in values:
        changed = dataclasses.replace(kernel, **{name: value})
        if changed != kernel and (found := self.score(changed, bars_history)) > score:
          score, kernel = found, changed
    return score, kernel

  def score(self, kernel: Kernel, bars_history: bool) -> float:
    """Return validation HI@10 of item transitions by this kernel."""
    inputs = dataclasses.replace(self._inputs, kernel=kernel, bars_history=bars_history)
    vars(inputs)['popular'] = self._inputs.popular
    vars(inputs)['transitions'] = self._table(dataclasses.replace(kernel, step=1.0, days=0.0))
    score = functools.partial(transition_scores, inputs)
    return validation_score(inputs, self.tuning, self._pairs, score)

  def _make_table(self, kernel: Kernel) -> Any:
    counted = self._counted(kernel.lags, kernel.fade, kernel.backward)
    return dataclasses.replace(counted, kernel=kernel).table()

  def _count(self, lags: int, fade: str, backward: float) -> Transitions:
    return Transitions.of(self._log, self._train_end, Kernel(lags, fade, backward))
