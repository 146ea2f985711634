"""The indexed log, which every later stage reads in place of the two tables of the contract.

U users, I items, N rows. Rows are sorted by (user, timestamp, event code, item), so those of user u
are offsets[u]:offsets[u + 1].
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os

import numpy as np
import polars as pl

from rolegen_jax.data.events import EVENT_DTYPE
from rolegen_jax.data.files import (
  DataError,
  as_data_error,
  read_metadata,
  read_parquet,
  write_parquet,
)
from rolegen_jax.runtime import storage

_USERS_FILE = 'log_users.parquet'
_ITEMS_FILE = 'log_items.parquet'
_EVENTS_FILE = 'log_events.parquet'


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
      item=rows['item'].to_numpy().astype(np.int32),
      event=rows['event'].to_numpy().astype(np.int8),
      timestamp=rows['timestamp'].to_numpy().astype(np.int64),
      count=rows['count'].to_numpy().astype(np.int32),
    )

  @functools.cached_property
  def user(self) -> np.ndarray:
    """The user index of every row, int32 [N]."""
    return np.repeat(np.arange(len(self.users), dtype=np.int32), np.diff(self.offsets))

  @functools.cached_property
  def digest(self) -> str:
    """16 hex digits over ids, item attributes and rows; the same on every machine."""
    content = hashlib.sha256()
    for table in (self.users.to_frame(), self.items):
      content.update(repr([(name, str(dtype)) for name, dtype in table.schema.items()]).encode())
      content.update(table.write_ndjson().encode())
    for array in (self.offsets, self.item, self.event, self.timestamp, self.count):
      content.update(np.ascontiguousarray(array, array.dtype.newbyteorder('<')).data)
    return content.hexdigest()[:16]

  def save(self, folder: str | os.PathLike) -> None:
    """Write three parquet files into `folder`: users, items and events.

    The file of events is written last and carries the digest of all three.
    """
    folder = storage.path(folder)
    rows = pl.DataFrame(
      {
        'user': self.user,
        'timestamp': self.timestamp,
        'event': self.event,
        'item': self.item,
        'count': self.count,
      }
    )
    write_parquet(self.users.to_frame(), folder / _USERS_FILE)
    write_parquet(self.items, folder / _ITEMS_FILE)
    write_parquet(rows, folder / _EVENTS_FILE, {'digest': self.digest})

  @classmethod
  def load(cls, folder: str | os.PathLike) -> InteractionLog:
    """Return the log that `save` wrote into `folder`.

    Raises DataError when files are missing, damaged or of different logs.
    """
    folder = storage.path(folder)
    users = read_parquet(folder / _USERS_FILE)
    items = read_parquet(folder / _ITEMS_FILE)
    rows = read_parquet(folder / _EVENTS_FILE)
    saved_digest = read_metadata(folder / _EVENTS_FILE).get('digest')
    with as_data_error(folder / _EVENTS_FILE, 'a log that InteractionLog.save wrote'):
      log = cls._of_rows(users['user_id'], items, rows)
      digest = log.digest
    if digest != saved_digest:
      raise DataError(
        f'{folder}: the content of the log has digest {digest}, saved was {saved_digest}; '
        'prepare the data again'
      )
    return log


def ranges(first: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return the concatenated ranges [first, first + size), and which range each index is of.

  Both int64 [sum(sizes)].
  """
  sizes = np.asarray(sizes, np.int64)
  owner = np.repeat(np.arange(len(sizes)), sizes)
  within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  return np.asarray(first, np.int64)[owner] + within, owner
