"""The check that nothing of the future is in a context or in what training may use."""

from __future__ import annotations

import numpy as np

from rolegen_jax.data.files import DataError
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import SPLITS, TEST, TRAIN, VALID, Occasions


def check_no_leak(
  log: InteractionLog, occasions: Occasions, train_end: np.ndarray | None = None
) -> None:
  """Raises DataError naming the first leak: of `occasions` into contexts, or of held-out time into training.

  train_end: int64 [U] rows that training is about to use; by default what `occasions.train_end` allows.
  Checks from the rows themselves, not from the code that made the occasions:
  - every context is of its own user, strictly before its occasion, and lacks no earlier row;
  - every row that training may use, and every training occasion, is before the first held-out occasion: of all users
    under 'time', of the same user under 'leave_one_out';
  - validation is before test in the same sense (not after it under 'leave_one_out', where ties are apart).
  """
  if occasions.log_digest != log.digest:
    raise DataError(
      f'occasions belong to log {occasions.log_digest}, this log is {log.digest}; must be the same log'
    )
  if (np.diff(log.timestamp)[np.diff(log.user) == 0] < 0).any():
    raise DataError('the log is not in time order within each user; must be')
  _check_contexts(log, occasions)
  _check_training(log, occasions, occasions.train_end(log) if train_end is None else train_end)


def _check_contexts(log: InteractionLog, occasions: Occasions) -> None:
  start, end = log.offsets[occasions.user], log.offsets[occasions.user + 1]
  context_end, timestamp = occasions.context_end, occasions.timestamp
  _refuse(
    (context_end < start) | (context_end > end),
    occasions,
    'context_end lies outside the rows of its user',
  )
  newest = log.timestamp[np.maximum(context_end - 1, 0)]
  late = (context_end > start) & (newest >= timestamp)
  _refuse(late, occasions, 'its context holds a row that is not strictly before it')
  following = log.timestamp[np.minimum(context_end, len(log.timestamp) - 1)]
  short = (context_end < end) & (following < timestamp)
  _refuse(short, occasions, 'its context lacks rows that are strictly before it')


def _check_training(log: InteractionLog, occasions: Occasions, train_end: np.ndarray) -> None:
  users = len(log.users)
  if ((train_end < log.offsets[:-1]) | (train_end > log.offsets[1:])).any():
    raise DataError('train_end lies outside the rows of its user')
  held_out = _first_time(occasions, (occasions.split == VALID) | (occasions.split == TEST), users)
  used = train_end > log.offsets[:-1]
  newest = np.where(used, log.timestamp[np.maximum(train_end - 1, 0)], -1)
  bad = np.flatnonzero(newest >= held_out)
  if len(bad):
    user = bad[0]
    raise DataError(
      f'user {log.users[int(user)]!r}: training may use a row at {newest[user]}, at or after the first held-out occasion '
      f'at {held_out[user]}; must be before it'
    )
  train = occasions.split == TRAIN
  valid = occasions.split == VALID
  test_start = _first_time(occasions, occasions.split == TEST, users)[occasions.user]
  after_training = occasions.timestamp >= held_out[occasions.user]
  if occasions.rule == 'leave_one_out':
    # Two purchases of one tie are two occasions with the same context: neither is in the other's past.
    after_training = occasions.timestamp > held_out[occasions.user]
    test_start = test_start + 1
  _refuse(
    train & after_training,
    occasions,
    'it is a training occasion at or after the first held-out one',
  )
  after_validation = occasions.timestamp >= test_start
  _refuse(
    valid & after_validation,
    occasions,
    'it is a validation occasion at or after the first test one',
  )


def _first_time(occasions: Occasions, chosen: np.ndarray, users: int) -> np.ndarray:
  """int64 [U]: the earliest timestamp of the chosen occasions: of the same user under leave_one_out, else of all."""
  never = np.iinfo(np.int64).max - 1
  first = np.full(users, never)
  if occasions.rule == 'leave_one_out':
    np.minimum.at(first, occasions.user[chosen], occasions.timestamp[chosen])
  else:
    first[:] = occasions.timestamp[chosen].min(initial=never)
  return first


def _refuse(bad: np.ndarray, occasions: Occasions, wrong: str) -> None:
  rows = np.flatnonzero(bad)
  if len(rows):
    row = rows[0]
    raise DataError(
      f'occasion {row} (user index {occasions.user[row]}, timestamp {occasions.timestamp[row]}, '
      f'{SPLITS[occasions.split[row]]}): {wrong}'
    )
