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
from rolegen_jax.data.cuts import Cuts, OccasionTimes, find_cuts
from rolegen_jax.data.files import (
  DataError,
  as_data_error,
  read_metadata,
  read_parquet,
  write_parquet,
)
from rolegen_jax.data.log import InteractionLog, Part, item_counts
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
      ends = [part.first_row + _ends_by(part.log, self.train_cut) for part in log.parts()]
      return np.concatenate(ends)
    end = np.array(log.offsets[1:])
    held_out = (self.split == VALID) | (self.split == TEST)
    np.minimum.at(end, self.user[held_out], self.context_end[held_out])
    return end

  def all_training(self, log: InteractionLog) -> Occasions:
    """Return the same occasions, every one with a target a training occasion; under 'time' only."""
    split = np.where(self.split == NONE, NONE, TRAIN).astype(self.split.dtype)
    return dataclasses.replace(self, split=split, train_cut=int(log.timestamp.max()))

  def train_events(self, log: InteractionLog) -> np.ndarray:
    """Return how many rows of `log` training may use of every item, int64 [I]; 0 = cold."""
    return item_counts(log, self.train_end(log), repeats=False)

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


def find_occasions(log: InteractionLog, data: DataConfig, cuts: Cuts | None = None) -> Occasions:
  """Return all occasions of `log` with cohorts and splits as `data` says.

  cuts: those of the larger log that this one is a part of; None finds them in this log.

  Cohorts follow from what the user did before. D1: no purchase and at least
  first_conversion_min_views views. D2: at least reactivation_min_days since the last purchase and
  at least reactivation_min_views views after it. ACTIVE: every other. Repeated rows of the source
  count as so many views. Under leave_one_out every bought item is an occasion of its own and its
  cohort is ACTIVE: such logs hold purchases only and their clock is a rank.
  """
  found = [_find_in_part(part, data) for part in log.parts()]
  never = np.concatenate([each.never for each in found])
  user_O, time_O, context_end_O, cohort, n_targets, item, seen = (
    np.concatenate(fields) for fields in zip(*(each[:-1] for each in found))
  )
  if data.split == 'leave_one_out':
    split, cut = _leave_one_out(user_O), -1
  else:
    split, cut = _by_time(time_O, cohort, data, cuts)

  last = max(int(part.log.timestamp.max()) for part in log.parts())
  user_O = np.concatenate([user_O, never]).astype(np.int32)
  time_O = np.concatenate([time_O, np.full(len(never), last + 1)])
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


class _Found(NamedTuple):
  """Occasions of some users in (user, timestamp) order, by the indices of the whole log."""

  user: np.ndarray  # int64 [O]
  timestamp: np.ndarray  # int64 [O]
  context_end: np.ndarray  # int64 [O]
  cohort: np.ndarray  # int8 [O]
  n_targets: np.ndarray  # int64 [O]
  target: np.ndarray  # int32 [T]
  seen: np.ndarray  # bool [T]
  never: np.ndarray  # int64 [.], users of cohort D3


def _find_in_part(part: Part, data: DataConfig) -> _Found:
  log, one_item_each = part.log, data.split == 'leave_one_out'
  rows = _purchases(log)
  user, timestamp, item = log.user[rows], log.timestamp[rows], log.item[rows]
  is_first = np.ones(len(rows), bool)  # first row of an occasion, in (user, timestamp) order
  if not one_item_each:
    is_first[1:] = (user[1:] != user[:-1]) | (timestamp[1:] != timestamp[:-1])
  starts = np.flatnonzero(is_first)
  tie_start, tie_end = _ties(log)
  context_end = tie_start[rows]
  user_O, time_O, context_end_O = user[starts], timestamp[starts], context_end[starts]
  cohort = np.full(len(starts), ACTIVE, np.int8)
  if not one_item_each:
    cohort = _cohorts(log, data, user_O, time_O, context_end_O, tie_end[rows][starts])
  return _Found(
    user=user_O.astype(np.int64) + part.first_user,
    timestamp=time_O,
    context_end=context_end_O + part.first_row,
    cohort=cohort,
    n_targets=np.diff(np.append(starts, len(rows))),
    target=item,
    seen=_seen_before(log, user, item, context_end),
    never=_never_converted(log, data) + part.first_user,
  )


def occasion_times(occasions: Occasions) -> OccasionTimes:
  """Return the times that `find_cuts` takes the cuts from."""
  dormant = (occasions.cohort == D1) | (occasions.cohort == D2)
  return OccasionTimes(occasions.timestamp[dormant], occasions.timestamp[occasions.cohort != D3])


def _offsets(counts: np.ndarray) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _gather(offsets: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Return positions that list the segments of `offsets` in the given order, each in full."""
  lengths = np.diff(offsets)[order]
  ends = np.cumsum(lengths)
  return np.repeat(offsets[:-1][order] - (ends - lengths), lengths) + np.arange(lengths.sum())


def _ends_by(log: InteractionLog, last: int) -> np.ndarray:
  """Return the row after the last at or before the time `last` of each user, int64 [U]."""
  usable = np.concatenate([[0], np.cumsum(log.timestamp <= last)])
  return log.offsets[:-1] + usable[log.offsets[1:]] - usable[log.offsets[:-1]]


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
