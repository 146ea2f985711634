"""The indexed log, which every later stage reads in place of the two tables of the contract.

U users, I items, N rows. Rows are sorted by (user, timestamp, event code, item), so those of user u
are offsets[u]:offsets[u + 1]. A log that was saved is mapped, not read, and later stages take it
part by part (`parts`): what they allocate depends on users and items, and no longer on rows.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from rolegen_jax.data.events import EVENT_DTYPE
from rolegen_jax.data.files import (
  DataError,
  as_data_error,
  map_npy,
  read_metadata,
  read_parquet,
  write_npy,
  write_parquet,
)
from rolegen_jax.runtime import storage

# Name -> type on disk of what a log holds of each row.
COLUMNS = dict(item='<i4', event='i1', timestamp='<i8', count='<i4')
COLUMN_FILE = 'log_{}.npy'
# Rows that a stage reads at a time, about: a pass over a log allocates for a part, not for a log.
PART_ROWS = 4_000_000
USER_BLOCK = 64

_USERS_FILE = 'log_users.parquet'
_ITEMS_FILE = 'log_items.parquet'
_EVENTS_FILE = 'log_events.parquet'
_EXPECTED = 'a log that InteractionLog.save wrote'
_DIGEST_ROWS = 1 << 20  # of ids whose text is in memory at a time


@dataclasses.dataclass(frozen=True, eq=False)
class InteractionLog:
  """An immutable log by user and item index; two logs are the same when their digests are.

  Identical (user, item, event, timestamp) rows are one row with their number in `count`: day-level
  logs repeat rows, and within a tie there is no order that could tell them apart. Session and price
  of single events are dropped.
  """

  # [U] original user ids, sorted; position = user index
  users: pl.Series
  # [I] rows sorted by item_id, which is the first column; position = item index
  items: pl.DataFrame
  offsets: np.ndarray  # int64 [U + 1]
  item: np.ndarray  # int32 [N], item index
  event: np.ndarray  # int8 [N], index in config.EVENT_NAMES
  timestamp: np.ndarray  # int64 [N], seconds UTC
  count: np.ndarray  # int32 [N], number of source rows that this row stands for

  @classmethod
  def build(cls, events: pl.DataFrame, items: pl.DataFrame) -> InteractionLog:
    """Index two tables that `events.validate` returned."""
    users = events['user_id'].unique().sort()
    items = items.select('item_id', pl.exclude('item_id')).sort('item_id')
    indexed = pl.DataFrame(
      {
        'user': users.search_sorted(events['user_id']),
        'timestamp': events['timestamp'],
        'event': events['event'].cast(EVENT_DTYPE).to_physical(),
        'item': items['item_id'].search_sorted(events['item_id']),
      }
    )
    keys = ['user', 'timestamp', 'event', 'item']
    rows = indexed.group_by(keys).agg(pl.len().alias('count')).sort(keys)
    return cls._of_rows(users, items, rows)

  @classmethod
  def _of_rows(cls, users: pl.Series, items: pl.DataFrame, rows: pl.DataFrame) -> InteractionLog:
    per_user = np.bincount(rows['user'].to_numpy(), minlength=len(users))
    return cls(
      users=users.rename('user_id'),
      items=items,
      offsets=np.concatenate([[0], np.cumsum(per_user)]).astype(np.int64),
      **{name: rows[name].to_numpy().astype(dtype) for name, dtype in COLUMNS.items()},
    )

  @functools.cached_property
  def user(self) -> np.ndarray:
    """The user index of every row, int32 [N]; in memory, so of a part rather than of a log."""
    return np.repeat(np.arange(len(self.users), dtype=np.int32), np.diff(self.offsets))

  @functools.cached_property
  def digest(self) -> str:
    """16 hex digits over ids, item attributes and rows; the same on every machine."""
    content = hashlib.sha256()
    for table in (self.users.to_frame(), self.items):
      content.update(repr([(name, str(dtype)) for name, dtype in table.schema.items()]).encode())
      for rows in table.iter_slices(_DIGEST_ROWS):
        content.update(rows.write_ndjson().encode())
    for array in (self.offsets, *(getattr(self, name) for name in COLUMNS)):
      content.update(np.ascontiguousarray(array, array.dtype.newbyteorder('<')).data)
    return content.hexdigest()[:16]

  def part(self, first_user: int, end_user: int) -> InteractionLog:
    """Return the rows of users first_user:end_user, who are 0:end_user - first_user there."""
    start, end = self.offsets[first_user], self.offsets[end_user]
    return dataclasses.replace(
      self,
      users=self.users[first_user:end_user],
      offsets=self.offsets[first_user : end_user + 1] - start,
      **{name: getattr(self, name)[start:end] for name in COLUMNS},
    )

  def parts(self, rows: int = 0) -> Iterator[Part]:
    """Yield the log in parts of whole users, of about `rows` rows each; 0 = PART_ROWS.

    Only one of USER_BLOCK users may have more. A part begins at a multiple of USER_BLOCK, so that
    a user's index modulo any of its divisors is the same in part and log.
    """
    first_user, n_users = 0, len(self.users)
    while first_user < n_users:
      end_row = self.offsets[first_user] + (rows or PART_ROWS)
      end_user = int(np.searchsorted(self.offsets, end_row, side='right')) - 1
      if end_user < n_users:
        end_user = max(end_user // USER_BLOCK * USER_BLOCK, first_user + USER_BLOCK)
      end_user = min(end_user, n_users)
      yield Part(first_user, int(self.offsets[first_user]), self.part(first_user, end_user))
      first_user = end_user

  def sampled(self, rows: int) -> tuple[InteractionLog, np.ndarray]:
    """Return a log of every n-th user, of about `rows` rows or all of fewer, and those users.

    Its columns are in memory where users are left out.
    """
    step = max(len(self.item) // rows, 1)
    users = np.arange(0, len(self.users), step)
    if step == 1:
      return self, users
    sizes = np.diff(self.offsets)[users]
    place, _ = ranges(self.offsets[users], sizes)
    log = dataclasses.replace(
      self,
      users=self.users.gather(users),
      offsets=np.concatenate([[0], np.cumsum(sizes)]),
      **{name: getattr(self, name)[place] for name in COLUMNS},
    )
    return log, users

  def save(self, folder: str | os.PathLike) -> None:
    """Write the log into `folder`: users and items as parquet, and a .npy file of each column.

    The file of users is written last and carries the digest of all.
    """
    folder = storage.path(folder)
    self.save_columns(folder)
    write_parquet(self.items, folder / _ITEMS_FILE)
    write_parquet(self.users.to_frame(), folder / _USERS_FILE, {'digest': self.digest})
    (folder / _EVENTS_FILE).unlink(missing_ok=True)

  def save_columns(self, folder: pathlib.Path) -> None:
    """Write the columns alone, `offsets` last."""
    for name in (*COLUMNS, 'offsets'):
      write_npy(getattr(self, name), folder / COLUMN_FILE.format(name))

  @classmethod
  def load(cls, folder: str | os.PathLike) -> InteractionLog:
    """Return the log that `save` wrote into `folder`, its columns mapped.

    Raises DataError when files are missing, damaged or of different logs.
    """
    folder = storage.path(folder)
    users, items = read_parquet(folder / _USERS_FILE), read_parquet(folder / _ITEMS_FILE)
    last = folder / _EVENTS_FILE  # of an earlier version, which had all rows in one file
    if last.exists():
      rows = read_parquet(last)
      with as_data_error(last, _EXPECTED):
        log = cls._of_rows(users['user_id'], items, rows)
    else:
      last = folder / _USERS_FILE
      log = cls.of_columns(users['user_id'], items, folder)
    saved_digest = read_metadata(last).get('digest')
    if log.digest != saved_digest:
      raise DataError(
        f'{folder}: the content of the log has digest {log.digest}, saved was {saved_digest}; '
        'prepare the data again'
      )
    return log

  @classmethod
  def of_columns(
    cls, users: pl.Series, items: pl.DataFrame, folder: pathlib.Path
  ) -> InteractionLog:
    """Return the log of the mapped columns in `folder`. Raises DataError."""
    columns = {name: map_npy(folder / COLUMN_FILE.format(name)) for name in ('offsets', *COLUMNS)}
    offsets = columns['offsets']
    sizes = {len(columns[name]) for name in COLUMNS}
    if len(offsets) != len(users) + 1 or sizes != {int(offsets[-1])}:
      raise DataError(
        f'{folder}: its columns have {sorted(sizes)} rows for {len(users)} users; '
        'prepare the data again'
      )
    return cls(users, items, **columns)


class Part(NamedTuple):
  """Consecutive users of a log, as a log."""

  first_user: int  # index in the whole log
  first_row: int  # likewise
  log: InteractionLog

  @property
  def users(self) -> slice:
    """The users of the part in an array [U] of the whole log."""
    return slice(self.first_user, self.first_user + len(self.log.users))

  def ends(self, train_end: np.ndarray) -> np.ndarray:
    """Return the row of the part at which each of its users' training events end, int64 [u].

    train_end: of the whole log, [U].
    """
    return train_end[self.users] - self.first_row

  def training(self, train_end: np.ndarray) -> np.ndarray:
    """Return which rows of the part training may use, bool [n]; train_end: as `ends` takes it."""
    return np.arange(len(self.log.item)) < self.ends(train_end)[self.log.user]


def item_counts(
  log: InteractionLog, train_end: np.ndarray, repeats: bool = True, event: int = -1
) -> np.ndarray:
  """Return how often every item is in the training rows, int64 [I].

  repeats: whether rows repeated in the source count as often. event: of that kind only; -1 = all.
  """
  total = np.zeros(len(log.items), np.int64)
  for part in log.parts():
    chosen = part.training(train_end)
    rows = np.flatnonzero(chosen if event < 0 else chosen & (part.log.event == event))
    weight = part.log.count[rows] if repeats else None
    total += np.bincount(part.log.item[rows], weight, len(total)).astype(np.int64)
  return total


def ranges(first: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return the concatenated ranges [first, first + size), and which range each index is of.

  Both int64 [sum(sizes)].
  """
  sizes = np.asarray(sizes, np.int64)
  owner = np.repeat(np.arange(len(sizes)), sizes)
  within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  return np.asarray(first, np.int64)[owner] + within, owner
