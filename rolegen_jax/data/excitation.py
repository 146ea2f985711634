"""What contact with an item leads to: neighbourhoods in which the same user acts soon after, more than users do at large.

This is the kernel of a self-exciting process (Hawkes, Biometrika 1971) between items and neighbourhoods, by counting: for every
item, the share of each neighbourhood among the next events of its users, shrunk to that of the item's own neighbourhood, less
the base rate. Training events only, and out of fold: what a user's events lead to is counted over OTHER users, or a rare
item would quote the very future that is to be predicted (alibaba2014: 2.1 nats on training conversions against 3.5 on test).

Shapes: I items, K neighbourhoods (coarse codes), F folds of users, R neighbourhoods kept per item, n events of a history.
"""

from __future__ import annotations

import dataclasses
import functools
import operator

import numpy as np
import scipy.sparse as sp

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.rows import Excites

FOLDS = 4
AHEAD = 12  # later events of the user that count as following
DECAY_DAYS = 10.0  # what follows counts exp(-days / this)
PURCHASE_WEIGHT = 5.0  # of a purchase that follows, against 1 for other events
SHRINK = 20.0  # an item followed by so much is half-way between its own shares and its neighbourhood's
CHUNK = 4096  # items whose shares over all neighbourhoods are held at once
PURCHASE = EVENT_NAMES.index('purchase')


@dataclasses.dataclass(frozen=True)
class Excitation:
  """The strongest R neighbourhoods of every item, for each fold of users."""

  code: np.ndarray  # int32 [F, I, R]
  weight: np.ndarray  # fp32 [F, I, R], share above the base rate; 0 = nothing

  def of(self, user: np.ndarray, item: np.ndarray) -> Excites:
    """Of histories: users [B] and their items [B, n], -1 = padding."""
    fold = (user % len(self.code))[:, None]
    known = (item >= 0)[..., None]
    item = np.maximum(item, 0)
    return Excites(self.code[fold, item], np.where(known, self.weight[fold, item], np.float32(0)))


def estimate_excitation(log: InteractionLog, train_end: np.ndarray, coarse_I: np.ndarray, codes: int, keep: int) -> Excitation:
  """Counts over the events before `train_end` [U] (absolute log rows). `coarse_I`: neighbourhood of each item, below `codes`."""
  usable = np.arange(len(log.item)) < train_end[log.user]
  shape = (len(coarse_I), codes)
  parts = [sp.csr_array(shape, dtype=np.float32) for _ in range(FOLDS)]
  for lag in range(1, min(AHEAD, len(log.item) - 1) + 1):
    first = np.flatnonzero((log.user[lag:] == log.user[:-lag]) & usable[lag:] & (log.timestamp[lag:] > log.timestamp[:-lag]))
    days = (log.timestamp[first + lag] - log.timestamp[first]) / 86_400.0
    weight = np.exp(-days / DECAY_DAYS) * np.where(log.event[first + lag] == PURCHASE, PURCHASE_WEIGHT, 1.0)
    for fold in range(FOLDS):
      here = log.user[first] % FOLDS == fold
      pair = (log.item[first[here]], coarse_I[log.item[first[here] + lag]])
      parts[fold] = parts[fold] + sp.csr_array((weight[here].astype(np.float32), pair), shape=shape)
  # Added up, not taken out of the total: not even rounding may tell a user of their own events.
  others = lambda fold: functools.reduce(operator.add, (part for other, part in enumerate(parts) if other != fold))
  tables = [_strongest(sp.csr_array(others(fold)), coarse_I, codes, keep) for fold in range(FOLDS)]
  return Excitation(*(np.stack(column) for column in zip(*tables)))


def _strongest(count_IxK: sp.csr_array, coarse_I, codes: int, keep: int):
  """(code int32, weight fp32) [I, keep] of the largest shares above the base rate."""
  base_K = (count_IxK.sum(axis=0) + 1.0) / (count_IxK.sum() + codes)
  own_KxI = sp.csr_array((np.ones(len(coarse_I), np.float32), (coarse_I, np.arange(len(coarse_I)))), shape=(codes, len(coarse_I)))
  neighbourhood_KxK = (own_KxI @ count_IxK).toarray() + SHRINK * base_K
  neighbourhood_KxK /= neighbourhood_KxK.sum(axis=1, keepdims=True)
  code, weight = [], []
  for start in range(0, len(coarse_I), CHUNK):
    count = count_IxK[start:start + CHUNK].toarray()
    share = (count + SHRINK * neighbourhood_KxK[coarse_I[start:start + CHUNK]]) / (count.sum(axis=1, keepdims=True) + SHRINK)
    excess = np.maximum(share - base_K, 0.0)
    best = np.argsort(-excess, axis=1, kind='stable')[:, :keep]
    code.append(best.astype(np.int32))
    weight.append(np.take_along_axis(excess, best, axis=1).astype(np.float32))
  return np.concatenate(code), np.concatenate(weight)
