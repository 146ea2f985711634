"""Whom to recommend for: all users, the dormant ones, or those that a file names.

Shapes: U users.
"""

from __future__ import annotations

import difflib
import pathlib
import re

import numpy as np

from rolegen_jax.config import EVENT_NAMES, DataConfig
from rolegen_jax.data.examples import PURCHASE
from rolegen_jax.data.files import DataError
from rolegen_jax.data.lines import read_text, split_lines
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.features.trending import DAY
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.progress import say

VIEW = EVENT_NAMES.index('view')
MAX_COMPARED = 20_000  # ids among which the nearest to an unknown one is looked for


def choose_users(log: InteractionLog, users: str, data: DataConfig, now: int) -> np.ndarray:
  """Return the indices int32 of the users that `users` names: all, dormant, or a file of ids.

  Raises DataError when there is none, or naming the line of an unknown id.
  """
  if users == 'all':
    chosen = np.arange(len(log.users))
  elif users == 'dormant':
    chosen = np.flatnonzero(dormant(log, data, now))
  else:
    chosen = _read_users(log, storage.path(users))
  if not len(chosen):
    raise DataError(f'--users={users}: no such user in the log')
  return chosen.astype(np.int32)


def dormant(log: InteractionLog, data: DataConfig, now: int) -> np.ndarray:
  """Return bool [U]: who would be dormant if they bought at time `now`.

  By the rules of cohorts D1 and D3 (never bought) and D2 (bought long ago).
  """
  return np.concatenate([_dormant(part.log, data, now) for part in log.parts()])


def _dormant(log: InteractionLog, data: DataConfig, now: int) -> np.ndarray:
  n_users = len(log.users)
  last_purchase = np.full(n_users, -1, np.int64)
  bought = log.event == PURCHASE
  np.maximum.at(last_purchase, log.user[bought], log.timestamp[bought])
  viewed_since = (log.event == VIEW) & (log.timestamp > last_purchase[log.user])
  views = np.bincount(log.user[viewed_since], weights=log.count[viewed_since], minlength=n_users)
  never = last_purchase < 0
  long_ago = now - last_purchase >= data.reactivation_min_days * DAY
  return np.where(
    never,
    views >= data.first_conversion_min_views,
    long_ago & (views >= data.reactivation_min_views),
  )


def _read_users(log: InteractionLog, path: pathlib.Path) -> np.ndarray:
  """Return the distinct indices of the users whose ids a file lists, one per line.

  Ids are taken as they stand, else without the spaces around them. Empty lines are skipped, and
  users that are named again are reported.
  """
  text = read_text(path, '--users=all, dormant or a text file of one user id per line')
  index_of = {str(user): index for index, user in enumerate(log.users)}
  chosen = []
  for number, line in enumerate(split_lines(text), 1):
    index = index_of.get(line)
    if index is None:
      user = line.strip()
      if not user:
        continue
      index = index_of.get(user)
      if index is None:
        right = _right_user(user, index_of)
        raise DataError(f'{path}: line {number}: user_id {user!r} is not in the log; {right}')
    chosen.append(index)
  if not chosen:
    raise DataError(f'{path}: names no user; must have one user id per line')
  distinct = np.unique(np.array(chosen, np.int64))
  if len(distinct) < len(chosen):
    say(f'{path}: {len(chosen) - len(distinct)} lines name a user again; each is listed once')
  return distinct


def _right_user(user: str, index_of: dict[str, int]) -> str:
  """Return what would be right in place of an unknown user id."""
  if user.lower() in ('user_id', 'user', 'userid', 'id'):
    return 'must be one user id per line, without a header'
  parts = [part.strip(' "\'') for part in re.split(r'[,;\t\r]', user)]
  if len(parts) > 1 and any(part in index_of for part in parts):
    return 'must be one user id per line, and nothing else'
  bare = user.strip('"\'\u201c\u201d\ufeff\u200b\u200e\u200f ')
  variants = [bare, bare.lower(), bare.upper(), re.sub(r'\.0*$', '', bare)]
  variants += [variant.lstrip('+0') or '0' for variant in variants]
  nearest = next((variant for variant in variants if variant in index_of), None)
  if nearest is None and len(index_of) <= MAX_COMPARED:
    nearest = next(iter(difflib.get_close_matches(user, index_of, 1)), None)
  return f'the nearest is {nearest!r}' if nearest else 'must be a user_id of its events'
