"""Occasions: what is predicted, from which context, for which cohort, in which split.

An occasion is a user and a timestamp at which the user bought something. Its targets are the items
bought then; its context is everything of that user STRICTLY BEFORE that timestamp (rows with equal
timestamps are unordered, so a day-level log uses earlier days only). A leak here makes every later
number worthless: `leaks.check_no_leak` is called wherever occasions are made.

O occasions, T targets, U users, N rows of the log.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from typing import NamedTuple

import numpy as np
import polars as pl

from rolegen_jax.config import COHORTS, EVENT_NAMES, DataConfig
from rolegen_jax.data.files import (
  DataError,
  as_data_error,
  read_metadata,
  read_parquet,
  write_parquet,
)
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.runtime import storage

SPLITS = ('train', 'valid', 'test', 'none')
TRAIN, VALID, TEST, NONE = range(4)
D1, D2, D3, ACTIVE = map(COHORTS.index, ('D1', 'D2', 'D3', 'ACTIVE'))

_VIEW = EVENT_NAMES.index('view')
_PURCHASE = EVENT_NAMES.index('purchase')
_IMPRESSION = EVENT_NAMES.index('impression')
_DAY = 86_400  # seconds
_FILE = 'occasions.parquet'
_PER_OCCASION = ('user', 'timestamp', 'context_end', 'cohort', 'split')
_PER_TARGET = ('target', 'target_seen')


@dataclasses.dataclass(frozen=True, eq=False)
class Occasions:
  """Occasions of one log, sorted by (timestamp, user).

  Users who never bought (cohort D3) have one occasion with split 'none', no target and the
  timestamp after the log's last. A context may be empty (context_end == log.offsets[user]);
  consumers drop such occasions.
  """

  user: np.ndarray  # int32 [O], user index
  timestamp: np.ndarray  # int64 [O], seconds
  context_end: np.ndarray  # int64 [O], the context is rows log.offsets[user]:context_end
  cohort: np.ndarray  # int8 [O], index in config.COHORTS
  split: np.ndarray  # int8 [O], index in SPLITS
  target_offsets: np.ndarray  # int64 [O + 1], targets of occasion o are offsets[o]:offsets[o + 1]
  target: np.ndarray  # int32 [T], item index; distinct within an occasion
  # bool [T], whether the context holds an event of that item other than an impression
  target_seen: np.ndarray
  # The DataConfig.split that made the occasions: time | leave_one_out.
  rule: str
  # Seconds: under 'time' the last timestamp that training may use; -1 under 'leave_one_out'.
  train_cut: int
  # Of the log that every index points into.
  log_digest: str

  @functools.cached_property
  def digest(self) -> str:
    """16 hex digits over every field."""
    content = hashlib.sha256(json.dumps([self.rule, self.train_cut, self.log_digest]).encode())
    for name in (*_PER_OCCASION, 'target_offsets', *_PER_TARGET):
      array = getattr(self, name)
      content.update(np.ascontiguousarray(array, array.dtype.newbyteorder('<')).data)
    return content.hexdigest()[:16]

  def train_end(self, log: InteractionLog) -> np.ndarray:
    """Return where training must stop, int64 [U]: it may use rows log.offsets[u]:train_end[u].

    Under 'time' these are the rows up to `train_cut`, under 'leave_one_out' those before the user's
    first validation or test occasion.
    """
    if self.rule == 'time':
      usable = np.concatenate([[0], np.cumsum(log.timestamp <= self.train_cut)])
      return log.offsets[:-1] + usable[log.offsets[1:]] - usable[log.offsets[:-1]]
    end = log.offsets[1:].copy()
    held_out = (self.split == VALID) | (self.split == TEST)
    np.minimum.at(end, self.user[held_out], self.context_end[held_out])
    return end

  def train_events(self, log: InteractionLog) -> np.ndarray:
    """Return how many rows of `log` training may use of every item, int64 [I]; 0 = cold."""
    is_training = np.arange(len(log.item)) < self.train_end(log)[log.user]
    return np.bincount(log.item[is_training], minlength=len(log.items))

  def save(self, folder: str | os.PathLike) -> None:
    """Write occasions.parquet into `folder`."""
    frame = pl.DataFrame({name: getattr(self, name) for name in _PER_OCCASION})
    frame = frame.with_row_index('row')
    target_row = np.repeat(frame['row'].to_numpy(), np.diff(self.target_offsets))
    targets = pl.DataFrame({'row': target_row} | {n: getattr(self, n) for n in _PER_TARGET})
    target_lists = targets.group_by('row', maintain_order=True).agg(_PER_TARGET)
    frame = frame.join(target_lists, on='row', how='left', maintain_order='left').drop('row')
    metadata = {
      'rule': self.rule,
      'train_cut': str(self.train_cut),
      'log_digest': self.log_digest,
      'digest': self.digest,
    }
    write_parquet(frame, storage.path(folder) / _FILE, metadata)

  @classmethod
  def load(cls, folder: str | os.PathLike) -> Occasions:
    """Return the occasions that `save` wrote into `folder`.

    Raises DataError when the file is missing or damaged.
    """
    path = storage.path(folder) / _FILE
    frame, metadata = read_parquet(path), read_metadata(path)
    with as_data_error(path, 'occasions that Occasions.save wrote'):
      n_targets = frame['target'].list.len().fill_null(0).to_numpy()
      occasions = cls(
        **{name: frame[name].to_numpy() for name in _PER_OCCASION},
        target_offsets=_offsets(n_targets),
        **{name: frame[name].drop_nulls().explode().to_numpy() for name in _PER_TARGET},
        rule=metadata['rule'],
        train_cut=int(metadata['train_cut']),
        log_digest=metadata['log_digest'],
      )
      digest, saved_digest = occasions.digest, metadata['digest']
    if digest != saved_digest:
      raise DataError(
        f'{path}: its content has digest {digest}, saved was {saved_digest}; prepare the data again'
      )
    return occasions


class OccasionTimes(NamedTuple):
  """Times of occasions, from which the cuts between the splits are taken.

  Those of several logs are concatenated.
  """

  dormant: np.ndarray  # int64 [.], seconds, of D1 and D2 occasions
  all_cohorts: np.ndarray  # int64 [.], seconds, of all occasions with a target


class Cuts(NamedTuple):
  """Last timestamps of two splits, seconds.

  Occasions up to `train` are training, later ones up to `valid` validation, all after that test.
  """

  train: int
  valid: int


def find_occasions(log: InteractionLog, data: DataConfig, cuts: Cuts | None = None) -> Occasions:
  """Return all occasions of `log` with cohorts and splits as `data` says.

  cuts: those of the larger log that this one is a part of; None finds them in this log.

  Cohorts follow from what the user did before. D1: no purchase and at least
  first_conversion_min_views views. D2: at least reactivation_min_days since the last purchase and
  at least reactivation_min_views views after it. ACTIVE: every other. Repeated rows of the source
  count as so many views. Under leave_one_out every bought item is an occasion of its own and its
  cohort is ACTIVE: such logs hold purchases only and their clock is a rank.
  """
  one_item_each = data.split == 'leave_one_out'
  rows = _purchases(log)
  user, timestamp, item = log.user[rows], log.timestamp[rows], log.item[rows]
  is_first = np.ones(len(rows), bool)  # first row of an occasion, in (user, timestamp) order
  if not one_item_each:
    is_first[1:] = (user[1:] != user[:-1]) | (timestamp[1:] != timestamp[:-1])
  starts = np.flatnonzero(is_first)
  n_targets = np.diff(np.append(starts, len(rows)))
  tie_start, tie_end = _ties(log)
  context_end = tie_start[rows]
  seen = _seen_before(log, user, item, context_end)

  user_O, time_O, context_end_O = user[starts], timestamp[starts], context_end[starts]
  if one_item_each:
    cohort, split, cut = np.full(len(starts), ACTIVE, np.int8), _leave_one_out(user_O), -1
  else:
    cohort = _cohorts(log, data, user_O, time_O, context_end_O, tie_end[rows][starts])
    split, cut = _by_time(time_O, cohort, data, cuts)

  never = _never_converted(log, data)
  user_O = np.concatenate([user_O, never]).astype(np.int32)
  time_O = np.concatenate([time_O, np.full(len(never), log.timestamp.max() + 1)])
  # Stable: leave-one-out occasions of one tie keep their order.
  order = np.lexsort((user_O, time_O))
  n_targets = np.concatenate([n_targets, np.zeros(len(never), np.int64)])
  target_order = _gather(_offsets(n_targets), order)
  return Occasions(
    user=user_O[order],
    timestamp=time_O[order],
    context_end=np.concatenate([context_end_O, log.offsets[never + 1]])[order],
    cohort=np.concatenate([cohort, np.full(len(never), D3)]).astype(np.int8)[order],
    split=np.concatenate([split, np.full(len(never), NONE)]).astype(np.int8)[order],
    target_offsets=_offsets(n_targets[order]),
    target=item[target_order],
    target_seen=seen[target_order],
    rule=data.split,
    train_cut=int(cut),
    log_digest=log.digest,
  )


def occasion_times(occasions: Occasions) -> OccasionTimes:
  """Return the times that `find_cuts` takes the cuts from."""
  dormant = (occasions.cohort == D1) | (occasions.cohort == D2)
  return OccasionTimes(occasions.timestamp[dormant], occasions.timestamp[occasions.cohort != D3])


def find_cuts(times: OccasionTimes, data: DataConfig) -> Cuts | None:
  """Return the cuts between the splits, or None without occasions.

  They are quantiles over DORMANT occasions, because those are what is measured. A log without any
  is cut at quantiles over all occasions. Where many occasions share a time and a quantile leaves a
  split empty, they lie at other times.
  """
  ordered = np.sort(times.dormant if len(times.dormant) else times.all_cohorts)
  if len(ordered) == 0:
    return None

  def cut(held_out: float) -> int:
    """Return the time of the last occasion outside the latest share `held_out`."""
    last = int(len(ordered) * (1 - held_out)) - 1
    return int(ordered[last] if last >= 0 else ordered[0] - 1)

  cuts = Cuts(
    train=cut(data.test_fraction + data.valid_fraction),
    valid=cut(data.test_fraction),
  )
  if ordered[0] <= cuts.train < cuts.valid < ordered[-1]:
    return cuts
  return _cuts_between_ties(times, ordered, data) or cuts


def _cuts_between_ties(times: OccasionTimes, ordered: np.ndarray, data: DataConfig) -> Cuts | None:
  """Return cuts that leave no split empty: test near its wanted share, the others near theirs.

  ordered: the times that shares are counted over, sorted. Fewer than three distinct times of
  dormant occasions leave a split to those of the others; with two times in all, nothing is left for
  validation. None where all times are one.
  """
  edges = np.unique(ordered)
  if len(edges) < 3:
    edges = np.unique(times.all_cohorts)
  if len(edges) < 2:
    return None
  until = np.searchsorted(ordered, edges, side='right') / len(ordered)

  def nearest(candidates: np.ndarray, wanted: float) -> int:
    """Return the candidate edge up to which the share is nearest to `wanted`, the last of equals.

    Those with a share on both sides come first, then those with one to be tested on.
    """
    share = until[candidates]
    good = [preferred for preferred in ((share > 0) & (share < 1), share < 1) if preferred.any()]
    candidates = candidates[good[0]] if good else candidates
    distance = np.abs(until[candidates] - wanted)
    return int(candidates[distance == distance.min()][-1])

  if len(edges) == 2:
    return Cuts(int(edges[0]), int(edges[0]))
  valid = nearest(np.arange(1, len(edges) - 1), 1 - data.test_fraction)
  # Of what is not test, training has the wanted share.
  of_rest = 1 - data.valid_fraction / (1 - data.test_fraction)
  train = nearest(np.arange(valid), until[valid] * of_rest)
  return Cuts(int(edges[train]), int(edges[valid]))


def _offsets(counts: np.ndarray) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _gather(offsets: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Return positions that list the segments of `offsets` in the given order, each in full."""
  lengths = np.diff(offsets)[order]
  ends = np.cumsum(lengths)
  return np.repeat(offsets[:-1][order] - (ends - lengths), lengths) + np.arange(lengths.sum())


def _purchases(log: InteractionLog) -> np.ndarray:
  """Return the rows that are purchases; the log holds each (user, timestamp, item) of them once."""
  return np.flatnonzero(log.event == _PURCHASE)


def _ties(log: InteractionLog) -> tuple[np.ndarray, np.ndarray]:
  """Return the bounds of each row's tie, int64 [N] each: first row, and row after the last.

  A tie is all rows of the same user and timestamp.
  """
  is_new = np.ones(len(log.item), bool)
  is_new[1:] = (np.diff(log.user) != 0) | (np.diff(log.timestamp) != 0)
  bounds = np.append(np.flatnonzero(is_new), len(is_new)).astype(np.int64)
  tie = np.cumsum(is_new) - 1
  return bounds[tie], bounds[tie + 1]


def _seen_before(
  log: InteractionLog, user: np.ndarray, item: np.ndarray, context_end: np.ndarray
) -> np.ndarray:
  """Return whether the user engaged with the item before `context_end`, bool [T].

  An impression is not an engagement.
  """
  engaged = np.flatnonzero(log.event != _IMPRESSION)
  n_items = np.int64(log.items.height)
  pairs, position = np.unique(log.user[engaged] * n_items + log.item[engaged], return_index=True)
  # Rows are in time order within a user, so the first occurrence is the earliest.
  first_row = engaged[position]
  return first_row[np.searchsorted(pairs, user * n_items + item)] < context_end


def _view_totals(log: InteractionLog) -> np.ndarray:
  """Return the number of views in rows before each position, int64 [N + 1]."""
  return _offsets(np.where(log.event == _VIEW, log.count, 0))


def _cohorts(
  log: InteractionLog,
  data: DataConfig,
  user: np.ndarray,
  timestamp: np.ndarray,
  context_end: np.ndarray,
  tie_end: np.ndarray,
) -> np.ndarray:
  """Return the cohorts of occasions in (user, timestamp) order, int8 [O].

  In that order the occasion before, if it is of the same user, is the last purchase.
  """
  view_totals = _view_totals(log)
  is_first = np.ones(len(user), bool)
  is_first[1:] = user[1:] != user[:-1]
  since = np.where(is_first, log.offsets[user], np.roll(tie_end, 1))
  n_views = view_totals[context_end] - view_totals[since]
  days_enough = timestamp - np.roll(timestamp, 1) >= data.reactivation_min_days * _DAY
  cohort = np.full(len(user), ACTIVE, np.int8)
  cohort[is_first & (n_views >= data.first_conversion_min_views)] = D1
  cohort[~is_first & days_enough & (n_views >= data.reactivation_min_views)] = D2
  return cohort


def _never_converted(log: InteractionLog, data: DataConfig) -> np.ndarray:
  """Return the users without a purchase and with enough views, int64 [.]."""
  n_views = np.diff(_view_totals(log)[log.offsets])
  has_bought = np.bincount(log.user[_purchases(log)], minlength=len(log.users)) > 0
  return np.flatnonzero(~has_bought & (n_views >= data.first_conversion_min_views))


def _by_time(
  timestamp: np.ndarray, cohort: np.ndarray, data: DataConfig, cuts: Cuts | None
) -> tuple[np.ndarray, int]:
  """Return the splits, int8 [O], and the last timestamp of training.

  Every occasion later than a cut is on its far side, whatever its cohort.
  """
  dormant = timestamp[(cohort == D1) | (cohort == D2)]
  cuts = cuts or find_cuts(OccasionTimes(dormant, timestamp), data)
  split = np.full(len(timestamp), TRAIN, np.int8)
  if cuts is None:
    return split, -1
  split[timestamp > cuts.train] = VALID
  split[timestamp > cuts.valid] = TEST
  return split, cuts.train


def _leave_one_out(user: np.ndarray) -> np.ndarray:
  """Return the splits of occasions in (user, timestamp) order, int8 [O].

  The last occasion of each user is test, the one before it validation.
  """
  is_last = np.append(user[1:] != user[:-1], True)[: len(user)]
  split = np.full(len(user), TRAIN, np.int8)
  split[np.append((user[1:] == user[:-1]) & is_last[1:], False)[: len(user)]] = VALID
  split[is_last] = TEST
  return split
