"""Items held out of training: new ones, as far as any model or count can tell.

Their rows that training may use leave the log. What users do with them later stays, in contexts and
as targets, and their words and semantic IDs are known.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import TRAIN, Occasions

_SEED = 0  # every system and every seed of training has the same ones


def hold_out(
  log: InteractionLog, occasions: Occasions, share: float
) -> tuple[InteractionLog, np.ndarray]:
  """Return `log` without the training rows of a random `share` of its items, and those items.

  Users and items keep their indices. The items are sorted, int64 [.].
  """
  n_items = log.items.height
  n_held = round(share * n_items)
  held = np.sort(np.random.default_rng(_SEED).choice(n_items, n_held, replace=False))
  in_training = np.arange(len(log.item)) < np.repeat(occasions.train_end(log), np.diff(log.offsets))
  in_training |= _is_training_target(log, occasions)
  return _keep(log, ~(in_training & np.isin(log.item, held))), held


def _is_training_target(log: InteractionLog, occasions: Occasions) -> np.ndarray:
  """Return which rows have the user, time and item of a training target, bool [N].

  Under leave_one_out a tie of three purchases holds one of training beside those of validation and
  test, at their time.
  """
  occasion = np.repeat(np.arange(len(occasions.user)), np.diff(occasions.target_offsets))
  is_training = occasions.split[occasion] == TRAIN
  occasion, item = occasion[is_training], occasions.target[is_training]
  targets = _keys(occasions.user[occasion], occasions.timestamp[occasion], item)
  return np.isin(_keys(log.user, log.timestamp, log.item), targets)


def _keys(user: np.ndarray, timestamp: np.ndarray, item: np.ndarray) -> np.ndarray:
  fields = dict(user=np.int64, timestamp=np.int64, item=np.int64)
  keys = np.empty(len(user), list(fields.items()))
  keys['user'], keys['timestamp'], keys['item'] = user, timestamp, item
  return keys


def _keep(log: InteractionLog, rows: np.ndarray) -> InteractionLog:
  """Return the rows of `log` where `rows`, bool [N], says so."""
  per_user = np.bincount(log.user[rows], minlength=len(log.users))
  return dataclasses.replace(
    log,
    offsets=np.concatenate([[0], np.cumsum(per_user)]).astype(np.int64),
    item=log.item[rows],
    event=log.event[rows],
    timestamp=log.timestamp[rows],
    count=log.count[rows],
  )
