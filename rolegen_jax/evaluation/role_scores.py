"""How good chances of roles are, beside what is easy and what is possible.

A prediction gives every event a chance of each role. Beside the reasoner's stand the shares of the
roles in the training labels, and a logistic regression on what is plain from the history.

N examples of n events, M last events of each, R roles, F features.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.data.batches import Trajectories
from rolegen_jax.evaluation.agreement import role_agreement

PURCHASE, CONVERT = EVENT_NAMES.index('purchase'), ROLE_NAMES.index('CONVERT')
LEAST = 1e-3  # a chance counts as this at least, and all are scaled again: draws may miss a role
BINS = 10
AGE_DAYS = (1.0, 7.0, 30.0)
L2 = 1e-4  # of the logistic regression
DAY_S = 86_400.0


def scores(chances_NxMxR: np.ndarray, roles_NxM: np.ndarray) -> dict:
  """Return log_loss in nats, macro_f1 and f1 by role of the likeliest roles, shares, reliability.

  Events whose role is -1 are left out. shares: the mean chance of each role. reliability:
  rows {chance, share, events}, the share that holds of all (event, role) with about that chance.
  """
  known = roles_NxM >= 0
  chances, roles = chances_NxMxR[known].astype(np.float64), roles_NxM[known]
  chances = np.maximum(chances, LEAST)
  chances /= chances.sum(-1, keepdims=True)
  agreement = role_agreement(roles, chances.argmax(-1))
  holds = roles[:, None] == np.arange(len(ROLE_NAMES))
  place = np.minimum((chances * BINS).astype(int), BINS - 1)
  bins = [place == b for b in range(BINS)]
  return dict(
    log_loss=float(-np.log(chances[holds]).mean()),
    macro_f1=agreement['macro_f1'],
    f1={name: role['f1'] for name, role in agreement['per_role'].items() if role['support']},
    shares=dict(zip(ROLE_NAMES, chances.mean(0).round(5).tolist())),
    reliability=[
      dict(
        chance=float(chances[here].mean()), share=float(holds[here].mean()), events=int(here.sum())
      )
      for here in bins
      if here.any()
    ],
  )


def marginal(labels_NxM: np.ndarray, event_NxM: np.ndarray) -> np.ndarray:
  """Return the shares of roles among labels [any, M] as chances of events [N, M], [N, M, R]."""
  others = labels_NxM[(labels_NxM >= 0) & (labels_NxM != CONVERT)]
  share = np.bincount(others, minlength=len(ROLE_NAMES)) / max(len(others), 1)
  return _fitting(np.broadcast_to(share, (*event_NxM.shape, len(share))), event_NxM)


def features(
  history: Trajectories,
  end_N: np.ndarray,
  codes_I: np.ndarray,
  last: int,
  told_N: np.ndarray | None,
) -> np.ndarray:
  """Return what is plain of each of the M = `last` last events, fp64 [N, M, F].

  Its type, age, how often the history has its coarse code and its item, and whether its code is
  that of the latest event; with `told`, a coarse code each, all of it again for events in it. end:
  the times of the occasions.
  """
  item, event, real = history.item, history.event, history.segment > 0
  code = np.where(real, codes_I[np.maximum(item, 0)], -1)
  latest = slice(item.shape[1] - last, None)
  age = (end_N[:, None] - history.timestamp[:, latest]) / DAY_S
  is_earlier = np.arange(item.shape[1]) < np.arange(item.shape[1])[latest, None]

  def often(field: np.ndarray) -> np.ndarray:
    same = field[:, None] == field[:, latest, None]
    return np.stack([same.sum(-1), (same & is_earlier).sum(-1)], axis=-1)

  columns = [
    np.ones((*age.shape, 1)),
    np.eye(len(EVENT_NAMES))[event[:, latest]],
    np.exp(-age[..., None] / np.array(AGE_DAYS)),
    np.log1p(often(code)),
    np.log1p(often(np.where(real, item, -1))),
    (code[:, latest] == code[:, -1:])[..., None],
  ]
  plain = np.concatenate(columns, axis=-1)
  if told_N is None:
    return plain
  inside = code[:, latest] == told_N[:, None]
  return np.concatenate([plain, plain * inside[..., None]], axis=-1)


def logistic(
  features_NxMxF: np.ndarray, labels_NxM: np.ndarray, asked_NxMxF: np.ndarray, event_NxM: np.ndarray
) -> np.ndarray:
  """Fit a logistic regression of roles, and return chances [N, M, R] of the events asked for."""
  known = (labels_NxM >= 0) & (labels_NxM != CONVERT)
  x, roles = features_NxMxF[known], labels_NxM[known]
  n = max(len(roles), 1)  # where all that is known are purchases, nothing is left to fit
  shape, one_hot = (x.shape[1], len(ROLE_NAMES)), np.eye(len(ROLE_NAMES))[roles]

  def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
    weight = flat.reshape(shape)
    p = _softmax(x @ weight)
    nll = -np.log(np.maximum(p[np.arange(len(p)), roles], 1e-12)).sum() / n
    gradient = x.T @ (p - one_hot) / n + L2 * weight
    return nll + L2 / 2 * np.sum(flat**2), gradient.ravel()

  options = dict(maxiter=200)
  fitted = scipy.optimize.minimize(loss, np.zeros(np.prod(shape)), jac=True, options=options)
  return _fitting(_softmax(asked_NxMxF @ fitted.x.reshape(shape)), event_NxM)


def _softmax(logits: np.ndarray) -> np.ndarray:
  e = np.exp(logits - logits.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def _fitting(chances_NxMxR: np.ndarray, event_NxM: np.ndarray) -> np.ndarray:
  """Return chances of roles that fit their events: CONVERT exactly on purchases."""
  is_convert = np.arange(len(ROLE_NAMES)) == CONVERT
  rest = np.where(is_convert, 0.0, chances_NxMxR)
  rest = rest / np.maximum(rest.sum(-1, keepdims=True), 1e-12)
  return np.where((event_NxM == PURCHASE)[..., None], is_convert.astype(float), rest)
