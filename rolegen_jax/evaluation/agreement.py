"""How well inferred roles and removal effects agree with a known truth, such as the simulator's."""

from __future__ import annotations

import numpy as np

from rolegen_jax.config import ROLE_NAMES


def role_agreement(
  true_N: np.ndarray, predicted_N: np.ndarray, names: tuple[str, ...] = ROLE_NAMES
) -> dict:
  """Return precision, recall and F1 of every role, macro-F1, accuracy and the confusion matrix.

  Inputs are role indices int [N]; rows where either is negative (unknown) are left out. macro_f1
  averages the roles that occur in the truth. A role that is never predicted has precision 0.
  confusion[t][p] counts true t predicted as p.
  """
  known = (true_N >= 0) & (predicted_N >= 0)
  n = len(names)
  confusion = np.bincount(true_N[known] * n + predicted_N[known], minlength=n * n).reshape(n, n)
  right, support, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
  precision, recall = right / np.maximum(predicted, 1), right / np.maximum(support, 1)
  f1 = 2 * right / np.maximum(support + predicted, 1)
  present = support > 0
  return {
    'names': list(names),
    'per_role': {
      name: {
        'precision': float(precision[i]),
        'recall': float(recall[i]),
        'f1': float(f1[i]),
        'support': int(support[i]),
      }
      for i, name in enumerate(names)
    },
    'macro_f1': float(f1[present].mean()) if present.any() else float('nan'),
    'accuracy': float(right.sum() / max(int(support.sum()), 1)),
    'confusion': confusion.tolist(),
    'events': int(known.sum()),
  }


def effect_agreement(estimated_N: np.ndarray, true_N: np.ndarray, most: int = 1500) -> dict:
  """Return Spearman correlation, mean absolute error and share of equal signs of effects in nats.

  `estimated` and `true` hold at most `most` evenly spaced points, for the scatter plot.
  """
  from scipy import stats  # slow to import

  if len(estimated_N) != len(true_N) or len(true_N) < 2:
    raise ValueError(
      f'need two effects or more, as many estimated ({len(estimated_N)}) as true ({len(true_N)})'
    )
  shown = np.linspace(0, len(true_N) - 1, min(len(true_N), most)).astype(int)
  return {
    'spearman': float(stats.spearmanr(estimated_N, true_N).statistic),
    'mean_absolute_error': float(np.abs(estimated_N - true_N).mean()),
    'same_sign': float((np.sign(estimated_N) == np.sign(true_N)).mean()),
    'effects': len(true_N),
    'estimated': np.round(estimated_N[shown], 4).tolist(),
    'true': np.round(true_N[shown], 4).tolist(),
  }


def rank_agreement(estimated_NxK: np.ndarray, true_NxK: np.ndarray) -> float:
  """Return the mean over rows of the Spearman correlation of their K values.

  Rows in which either is constant have none; NaN where all are.
  """
  from scipy import stats  # slow to import

  x, y = (stats.rankdata(values, axis=1) for values in (estimated_NxK, true_NxK))
  x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (x, y))
  scale = np.sqrt((x**2).sum(1) * (y**2).sum(1))
  differ = scale > 0
  return float(((x * y).sum(1)[differ] / scale[differ]).mean()) if differ.any() else float('nan')
