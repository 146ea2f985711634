"""The check that nothing of the future is in a context or in what training may use."""

from __future__ import annotations

import numpy as np

from rolegen_jax.data.files import DataError
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import SPLITS, TEST, TRAIN, VALID, Occasions


def check_no_leak(
  log: InteractionLog, occasions: Occasions, train_end: np.ndarray | None = None
) -> None:
  """Raise DataError naming the first leak into a context, or of held-out time into training.

  train_end: int64 [U], rows that training is about to use; by default what `occasions.train_end`
  allows.

  Checks the rows themselves, not the code that made the occasions:
  - every context is of its own user, strictly before its occasion, and lacks no earlier row;
  - every row that training may use, and every training occasion, is before the first held-out
    occasion: of all users under 'time', of the same user under 'leave_one_out';
  - validation is before test in the same sense (not after it under 'leave_one_out', where every
    purchase of a tie is an occasion of its own).
  """
  if occasions.log_digest != log.digest:
    raise DataError(
      f'occasions belong to log {occasions.log_digest}, this log is {log.digest}; '
      'must be the same log'
    )
  for part in log.parts():
    user, timestamp = part.log.user, part.log.timestamp
    if (np.diff(timestamp)[np.diff(user) == 0] < 0).any():
      raise DataError('the log is not in time order within each user; must be')
  _check_contexts(log, occasions)
  if train_end is None:
    train_end = occasions.train_end(log)
  _check_training_rows(log, occasions, train_end)
  _check_splits(log, occasions)


def _check_contexts(log: InteractionLog, occasions: Occasions) -> None:
  start, end = log.offsets[occasions.user], log.offsets[occasions.user + 1]
  context_end, timestamp = occasions.context_end, occasions.timestamp
  outside = (context_end < start) | (context_end > end)
  _refuse(outside, occasions, 'context_end lies outside the rows of its user')
  newest = log.timestamp[np.maximum(context_end - 1, 0)]
  too_long = (context_end > start) & (newest >= timestamp)
  _refuse(too_long, occasions, 'its context holds a row that is not strictly before it')
  following = log.timestamp[np.minimum(context_end, len(log.timestamp) - 1)]
  too_short = (context_end < end) & (following < timestamp)
  _refuse(too_short, occasions, 'its context lacks rows that are strictly before it')


def _check_training_rows(log: InteractionLog, occasions: Occasions, train_end: np.ndarray) -> None:
  if ((train_end < log.offsets[:-1]) | (train_end > log.offsets[1:])).any():
    raise DataError('train_end lies outside the rows of its user')
  held_out = _first_held_out(log, occasions)
  has_rows = train_end > log.offsets[:-1]
  newest = np.where(has_rows, log.timestamp[np.maximum(train_end - 1, 0)], -1)
  bad = np.flatnonzero(newest >= held_out)
  if len(bad):
    user = bad[0]
    raise DataError(
      f'user {log.users[int(user)]!r}: training may use a row at {newest[user]}, '
      f'at or after the first held-out occasion at {held_out[user]}; must be before it'
    )


def _check_splits(log: InteractionLog, occasions: Occasions) -> None:
  held_out = _first_held_out(log, occasions)[occasions.user]
  test_start = _first_time(log, occasions, occasions.split == TEST)[occasions.user]
  after_training = occasions.timestamp >= held_out
  after_validation = occasions.timestamp >= test_start
  if occasions.rule == 'leave_one_out':
    # Two purchases of one tie are two occasions with the same context: neither is in the other's
    # past.
    after_training = occasions.timestamp > held_out
    after_validation = occasions.timestamp > test_start
  _refuse(
    (occasions.split == TRAIN) & after_training,
    occasions,
    'it is a training occasion at or after the first held-out one',
  )
  _refuse(
    (occasions.split == VALID) & after_validation,
    occasions,
    'it is a validation occasion at or after the first test one',
  )


def _first_held_out(log: InteractionLog, occasions: Occasions) -> np.ndarray:
  """Return the earliest timestamp of validation and test for each user, int64 [U]."""
  return _first_time(log, occasions, (occasions.split == VALID) | (occasions.split == TEST))


def _first_time(log: InteractionLog, occasions: Occasions, chosen: np.ndarray) -> np.ndarray:
  """Return the earliest timestamp of the chosen occasions for each user, int64 [U].

  Under leave_one_out those of the same user count, else those of all users.
  """
  never = np.iinfo(np.int64).max
  first = np.full(len(log.users), never)
  if occasions.rule == 'leave_one_out':
    np.minimum.at(first, occasions.user[chosen], occasions.timestamp[chosen])
  else:
    first[:] = occasions.timestamp[chosen].min(initial=never)
  return first


def _refuse(bad: np.ndarray, occasions: Occasions, fault: str) -> None:
  """Raise DataError for the first occasion where `bad` is true."""
  rows = np.flatnonzero(bad)
  if len(rows):
    row = rows[0]
    raise DataError(
      f'occasion {row} (user index {occasions.user[row]}, timestamp {occasions.timestamp[row]}, '
      f'{SPLITS[occasions.split[row]]}): {fault}'
    )
