"""Occasions: what is predicted, from which context, for which cohort, in which split.

An occasion is a user and a timestamp at which the user bought something; its targets are the items bought then; its context
is everything of that user STRICTLY BEFORE that timestamp (rows with equal timestamps are unordered, so a day-level log uses
earlier days only). A leak here makes every later number worthless: `leaks.check_no_leak` is called wherever occasions are
made. O occasions, T targets, U users, N rows of the log.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
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

SPLITS = ('train', 'valid', 'test', 'none')
TRAIN, VALID, TEST, NONE = range(4)
D1, D2, D3, ACTIVE = map(COHORTS.index, ('D1', 'D2', 'D3', 'ACTIVE'))

_VIEW, _PURCHASE, _IMPRESSION = (
  EVENT_NAMES.index(name) for name in ('view', 'purchase', 'impression')
)
_DAY = 86_400  # seconds
_FILE = 'occasions.parquet'
_PER_OCCASION = ('user', 'timestamp', 'context_end', 'cohort', 'split')
_PER_TARGET = ('target', 'target_seen')


@dataclasses.dataclass(frozen=True, eq=False)
class Occasions:
  """Sorted by (timestamp, user). Users who never bought (cohort D3) have one occasion with split 'none', no target and
  the timestamp after the log's last. A context may be empty (context_end == log.offsets[user]); consumers drop those.
  """

  user: np.ndarray  # int32 [O] user index
  timestamp: np.ndarray  # int64 [O] seconds
  context_end: np.ndarray  # int64 [O] the context is rows log.offsets[user]:context_end
  cohort: np.ndarray  # int8 [O] index in config.COHORTS
  split: np.ndarray  # int8 [O] index in SPLITS
  target_offsets: np.ndarray  # int64 [O + 1]
  target: np.ndarray  # int32 [T] item index; distinct within an occasion
  target_seen: (
    np.ndarray
  )  # bool [T] the context holds an event of that item other than an impression
  rule: str  # DataConfig.split that made it: time | leave_one_out
  train_cut: (
    int  # seconds: under 'time', the last timestamp that training may use; -1 under 'leave_one_out'
  )
  log_digest: str  # of the log that every index points into

  @functools.cached_property
  def digest(self) -> str:
    """16 hex digits over every field."""
    content = hashlib.sha256(json.dumps([self.rule, self.train_cut, self.log_digest]).encode())
    for name in (*_PER_OCCASION, 'target_offsets', *_PER_TARGET):
      array = getattr(self, name)
      content.update(np.ascontiguousarray(array, array.dtype.newbyteorder('<')))
    return content.hexdigest()[:16]

  def train_end(self, log: InteractionLog) -> np.ndarray:
    """int64 [U]: training may use rows log.offsets[u]:train_end[u] and no other.

    time: the rows up to `train_cut`. leave_one_out: the rows before the user's first validation or test occasion.
    """
    if self.rule == 'time':
      usable = np.concatenate([[0], np.cumsum(log.timestamp <= self.train_cut)])
      return log.offsets[:-1] + usable[log.offsets[1:]] - usable[log.offsets[:-1]]
    end = log.offsets[1:].copy()
    held_out = (self.split == VALID) | (self.split == TEST)
    np.minimum.at(end, self.user[held_out], self.context_end[held_out])
    return end

  def save(self, folder: str | os.PathLike) -> None:
    """Writes occasions.parquet into `folder`."""
    frame = pl.DataFrame({name: getattr(self, name) for name in _PER_OCCASION}).with_row_index(
      'row'
    )
    lists = (
      pl.DataFrame(
        {
          'row': np.repeat(frame['row'].to_numpy(), np.diff(self.target_offsets)),
          **{name: getattr(self, name) for name in _PER_TARGET},
        }
      )
      .group_by('row', maintain_order=True)
      .agg(_PER_TARGET)
    )
    frame = frame.join(lists, on='row', how='left', maintain_order='left').drop('row')
    meta = {
      'rule': self.rule,
      'train_cut': str(self.train_cut),
      'log_digest': self.log_digest,
      'digest': self.digest,
    }
    write_parquet(frame, pathlib.Path(folder) / _FILE, meta)

  @classmethod
  def load(cls, folder: str | os.PathLike) -> Occasions:
    """The occasions that `save` wrote into `folder`. Raises DataError when the file is missing or damaged."""
    path = pathlib.Path(folder) / _FILE
    frame, meta = read_parquet(path), read_metadata(path)
    with as_data_error(path, 'occasions that Occasions.save wrote'):
      counts = frame['target'].list.len().fill_null(0).to_numpy()
      flat = {c: frame[c].drop_nulls().explode().to_numpy() for c in _PER_TARGET}
      occasions = cls(
        *(frame[c].to_numpy() for c in _PER_OCCASION),
        target_offsets=_offsets(counts),
        **flat,
        rule=meta['rule'],
        train_cut=int(meta['train_cut']),
        log_digest=meta['log_digest'],
      )
      got, want = occasions.digest, meta['digest']
    if got != want:
      raise DataError(
        f'{path}: its content has digest {got}, saved was {want}; prepare the data again'
      )
    return occasions


class Clock(NamedTuple):
  """Times of occasions, from which the cuts between the splits are taken. Those of several logs are concatenated."""

  dormant: np.ndarray  # int64 [.] seconds, of D1 and D2 occasions
  every: np.ndarray  # int64 [.] seconds, of all occasions with a target


class Cuts(NamedTuple):
  """Last timestamps of two splits, seconds: later is test; between the two is validation; up to `train` is training."""

  train: int
  valid: int


def find_occasions(log: InteractionLog, data: DataConfig, cuts: Cuts | None = None) -> Occasions:
  """All occasions of `log` with cohorts and splits as `data` says. `cuts`: of the larger log that this one is a part of.

  Cohorts by what the user did before: D1 no purchase and at least first_conversion_min_views views; D2 at least
  reactivation_min_days since the last purchase and at least reactivation_min_views views after it; ACTIVE every other.
  Repeated rows of the source count as so many views. Under leave_one_out every bought item is an occasion of its own and
  its cohort is ACTIVE: such logs hold purchases only and their clock is a rank.
  """
  apart = data.split == 'leave_one_out'
  rows = _purchases(log)
  user, timestamp, item = log.user[rows], log.timestamp[rows], log.item[rows]
  first = np.ones(len(rows), bool)  # of an occasion, in (user, timestamp) order
  if not apart:
    first[1:] = (user[1:] != user[:-1]) | (timestamp[1:] != timestamp[:-1])
  starts = np.flatnonzero(first)
  counts = np.diff(np.append(starts, len(rows)))
  tie_start, tie_end = _ties(log)
  context_end = tie_start[rows]
  seen = _seen_before(log, user, item, context_end)

  o_user, o_time, o_context = user[starts], timestamp[starts], context_end[starts]
  if apart:
    cohort, split, cut = np.full(len(starts), ACTIVE, np.int8), _leave_one_out(o_user), -1
  else:
    cohort = _cohorts(log, data, o_user, o_time, o_context, tie_end[rows][starts])
    split, cut = _by_time(o_time, cohort, data, cuts)

  never = _never_converted(log, data)
  o_user = np.concatenate([o_user, never]).astype(np.int32)
  o_time = np.concatenate([o_time, np.full(len(never), log.timestamp.max() + 1)])
  order = np.lexsort(
    (o_user, o_time)
  )  # stable: leave-one-out occasions of one tie keep their order
  counts = np.concatenate([counts, np.zeros(len(never), np.int64)])
  moved = _gather(_offsets(counts), order)
  return Occasions(
    user=o_user[order],
    timestamp=o_time[order],
    context_end=np.concatenate([o_context, log.offsets[never + 1]])[order],
    cohort=np.concatenate([cohort, np.full(len(never), D3)]).astype(np.int8)[order],
    split=np.concatenate([split, np.full(len(never), NONE)]).astype(np.int8)[order],
    target_offsets=_offsets(counts[order]),
    target=item[moved],
    target_seen=seen[moved],
    rule=data.split,
    train_cut=int(cut),
    log_digest=log.digest,
  )


def _offsets(counts: np.ndarray) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _gather(offsets: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Positions that list the segments of `offsets` in the order given, each whole."""
  lengths = np.diff(offsets)[order]
  ends = np.cumsum(lengths)
  return np.repeat(offsets[:-1][order] - (ends - lengths), lengths) + np.arange(lengths.sum())


def _purchases(log: InteractionLog) -> np.ndarray:
  """[T] rows that are purchases; the log holds each (user, timestamp, item) of them once."""
  return np.flatnonzero(log.event == _PURCHASE)


def _ties(log: InteractionLog) -> tuple[np.ndarray, np.ndarray]:
  """int64 [N], [N]: first row, and row after the last, of the same user and timestamp as each row."""
  new = np.ones(len(log.item), bool)
  new[1:] = (np.diff(log.user) != 0) | (np.diff(log.timestamp) != 0)
  bounds = np.append(np.flatnonzero(new), len(new)).astype(np.int64)
  tie = np.cumsum(new) - 1
  return bounds[tie], bounds[tie + 1]


def _seen_before(log: InteractionLog, user, item, context_end) -> np.ndarray:
  """bool [T]: the user's first engagement with the item lies before context_end. Being shown an item is no engagement."""
  engaged = np.flatnonzero(log.event != _IMPRESSION)
  wide = np.int64(log.items.height)
  keys, position = np.unique(log.user[engaged] * wide + log.item[engaged], return_index=True)
  first = engaged[
    position
  ]  # rows are in time order within a user, so the first occurrence is the earliest
  return first[np.searchsorted(keys, user * wide + item)] < context_end


def _view_totals(log: InteractionLog) -> np.ndarray:
  """int64 [N + 1]: views in rows before each position."""
  return _offsets(np.where(log.event == _VIEW, log.count, 0))


def _cohorts(
  log: InteractionLog, data: DataConfig, user, timestamp, context_end, tie_end
) -> np.ndarray:
  """int8 [O] for occasions in (user, timestamp) order, where the one before, if of the same user, is the last purchase."""
  views = _view_totals(log)
  first = np.ones(len(user), bool)
  first[1:] = user[1:] != user[:-1]
  since = np.where(first, log.offsets[user], np.roll(tie_end, 1))
  seen_views = views[context_end] - views[since]
  rested = ~first & (timestamp - np.roll(timestamp, 1) >= data.reactivation_min_days * _DAY)
  cohort = np.full(len(user), ACTIVE, np.int8)
  cohort[first & (seen_views >= data.first_conversion_min_views)] = D1
  cohort[rested & (seen_views >= data.reactivation_min_views)] = D2
  return cohort


def _never_converted(log: InteractionLog, data: DataConfig) -> np.ndarray:
  """int64 [.]: users without a purchase and with enough views."""
  views = np.diff(_view_totals(log)[log.offsets])
  bought = np.bincount(log.user[_purchases(log)], minlength=len(log.users)) > 0
  return np.flatnonzero(~bought & (views >= data.first_conversion_min_views))


def clock(occasions: Occasions) -> Clock:
  """The times that `find_cuts` takes the cuts from."""
  dormant = (occasions.cohort == D1) | (occasions.cohort == D2)
  return Clock(occasions.timestamp[dormant], occasions.timestamp[occasions.cohort != D3])


def find_cuts(times: Clock, data: DataConfig) -> Cuts | None:
  """The cuts are quantiles over DORMANT occasions, because those are what is measured; a log without any is cut at quantiles
  over all occasions, one without occasions nowhere (None).
  """
  ordered = np.sort(times.dormant if len(times.dormant) else times.every)
  if len(ordered) == 0:
    return None
  last = [
    int(len(ordered) * (1 - held_out)) - 1
    for held_out in (data.test_fraction + data.valid_fraction, data.test_fraction)
  ]
  return Cuts(
    *(int(ordered[i] if i >= 0 else ordered[0] - 1) for i in last)
  )  # i: the last occasion that is not held out


def _by_time(
  timestamp: np.ndarray, cohort: np.ndarray, data: DataConfig, cuts: Cuts | None
) -> tuple[np.ndarray, int]:
  """Splits and the last timestamp of training. Every occasion later than a cut is on its far side, whatever its cohort."""
  dormant = timestamp[(cohort == D1) | (cohort == D2)]
  cuts = cuts or find_cuts(Clock(dormant, timestamp), data)
  split = np.full(len(timestamp), TRAIN, np.int8)
  if cuts is None:
    return split, -1
  split[timestamp > cuts.train] = VALID
  split[timestamp > cuts.valid] = TEST
  return split, cuts.train


def _leave_one_out(user: np.ndarray) -> np.ndarray:
  """int8 [O] for occasions in (user, timestamp) order: the last of each user is test, the one before it validation."""
  last = np.append(user[1:] != user[:-1], True)[: len(user)]
  split = np.full(len(user), TRAIN, np.int8)
  split[np.append((user[1:] == user[:-1]) & last[1:], False)[: len(user)]] = VALID
  split[last] = TEST
  return split
