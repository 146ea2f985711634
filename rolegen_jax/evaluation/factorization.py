"""U2I: matrix factorization of implicit feedback, by the `implicit` library's ALS.

Hu, Koren & Volinsky, ICDM 2008. The vector of a user is solved for from the strict context of the
occasion, so that it knows what a serving system would, and users without training events have one.

Shapes: O occasions, o of them at once, U users, I items, F factors.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from rolegen_jax.data.log import ranges
from rolegen_jax.evaluation.baselines import (
  BaselineInputs,
  Ranking,
  tuning_rows,
  user_items,
  validation_score,
)
from rolegen_jax.evaluation.metrics import Pairs
from rolegen_jax.evaluation.ranking import Scores, lists
from rolegen_jax.features.interest_shift import event_weights
from rolegen_jax.runtime.progress import progress

FACTORS, REGULARIZATIONS, ALPHAS = (32, 128), (0.01, 1.0), (1.0, 10.0)  # grid
ITERATIONS = 15


class Settings(NamedTuple):
  """What is chosen on validation."""

  factors: int
  regularization: float
  alpha: float  # how much more an event tells than its absence


def u2i(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Rank by the product of user and item vectors; factors, alpha and penalty by validation.

  One thread and the run's seed: the same lists whenever it runs.
  """
  options = [Settings(*values) for values in itertools.product(FACTORS, REGULARIZATIONS, ALPHAS)]
  tuning, told = tuning_rows(inputs.log, inputs.occasions), {}
  best, model = options[0], None
  if len(tuning):
    pairs, score = Pairs.of(inputs.occasions, tuning), -1.0
    for settings in progress(options, 'settings of u2i'):
      fitted = _Factors(inputs, settings)
      if (found := validation_score(inputs, tuning, pairs, fitted.scores)) > score:
        score, best, model = found, settings, fitted
    told = {'validation HI@10': round(score, 4)}
  model = model or _Factors(inputs, best)
  ranking = lists(rows, model.scores, inputs.popular, k)
  chosen = best._asdict() | dict(iterations=ITERATIONS)
  return Ranking(ranking, chosen | told | {'validation_occasions': len(tuning)})


class _Factors:
  """Item vectors, fitted to the training events."""

  def __init__(self, inputs: BaselineInputs, settings: Settings):
    from implicit.cpu.als import AlternatingLeastSquares  # only this baseline needs it
    from threadpoolctl import threadpool_limits

    self._inputs, self._limits = inputs, threadpool_limits
    with threadpool_limits(1, 'blas'):
      self._model = AlternatingLeastSquares(
        **settings._asdict(),
        iterations=ITERATIONS,
        num_threads=1,
        random_state=inputs.config.seed,
      )
      self._model.fit(user_items(inputs.log, inputs.train_end, event_weights), show_progress=False)

  def scores(self, chunk: np.ndarray) -> Scores:
    """Return the score of every item for the occasions `chunk`, all above zero, fp32 [o, I]."""
    log, occasions = self._inputs.log, self._inputs.occasions
    first = log.offsets[occasions.user[chunk]]
    source, owner = ranges(first, occasions.context_end[chunk] - first)
    context = self._matrix(source, owner, len(chunk))
    with self._limits(1, 'blas'):
      users_OxF = self._model.recalculate_user(np.arange(len(chunk)), context)
      score = users_OxF @ self._model.item_factors.T
    return Scores(score - score.min(1, keepdims=True) + 1.0, self._inputs.barred(chunk))

  def _matrix(self, source: np.ndarray, owner: np.ndarray, rows: int) -> sp.csr_matrix:
    """Return how much these log rows say of each (owner, item), fp32 [rows, I]."""
    weight = event_weights(self._inputs.log, source).astype(np.float32)
    shape = (rows, len(self._inputs.log.items))
    matrix = sp.csr_matrix((weight, (owner, self._inputs.log.item[source])), shape=shape)
    matrix.sum_duplicates()
    return matrix
