"""Training rows of a log that memory does not hold: what is done to each part of it, whoever runs the parts.

A log of the contract goes through three steps, each a function of its arguments alone. `shard_build` runs them in the
processes of one machine, `shard_beam` on a cluster; both write the same bytes.

  split      chunk of an event file -> its rows, validated, items as indices, grouped by the shard of their user
  part_log   all rows of one shard  -> its `InteractionLog`: sorted by user and time, equal rows counted
  make_rows  that log               -> fixed-shape rows of the users' training windows, packed as `rows.pack_windows` does

Between the last two the cuts between the splits are found over all parts. Nothing depends on the order of the files or of
their rows, nor on the number of workers; only how windows share a row depends on the number of shards.

N rows of packed windows of at most n events each; ROW is the record of one of them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import zlib
from collections.abc import Iterable

import numpy as np
import polars as pl

from rolegen_jax.config import Config, ConfigError, digest
from rolegen_jax.data.batches import Trajectories, pack_windows, packed_rows
from rolegen_jax.data.events import Chunk, event_chunks, read_events, read_items
from rolegen_jax.data.files import DataError
from rolegen_jax.data.leaks import check_no_leak
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Clock, Cuts, clock, find_cuts, find_occasions

EVENTS_PER_SHARD = 2_000_000  # on average: what one worker sorts in a few hundred MB
SETTINGS = (
  'split',
  'test_fraction',
  'valid_fraction',
  'first_conversion_min_views',
  'reactivation_min_days',
  'reactivation_min_views',
)
FORMAT = 1  # of the files; another format is another key


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that the steps need to know; small, and the same on every worker."""

  folder: str  # of the log, as every worker sees it
  chunks: tuple[Chunk, ...]
  shards: int
  config: Config

  @property
  def events(self) -> int:
    """Rows of the event files."""
    return sum(chunk.rows for chunk in self.chunks)

  @functools.cached_property
  def key(self) -> str:
    """16 hex digits: changes with the settings that matter and with the files of the log (name, size, time)."""
    paths = sorted(
      {chunk.path for chunk in self.chunks} | {str(pathlib.Path(self.folder) / 'items.parquet')}
    )
    files = [(pathlib.Path(p).name, os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in paths]
    return digest(FORMAT, files, self.shards, settings(self.config))


def make_plan(config: Config, folder: str | os.PathLike, shards: int = 0) -> Plan:
  """The plan for the log in `folder`; shards=0: as many as keep each near EVENTS_PER_SHARD.

  Raises DataError when the log is absent or malformed, as far as that shows without reading rows, and ConfigError when
  `config` names another format than the contract's.
  """
  if config.data.format != 'contract':
    raise ConfigError(
      f"data.format={config.data.format!r}: must be 'contract' for a log that goes through shards"
    )
  if config.data.max_users:
    raise ConfigError(
      f'data.max_users={config.data.max_users}: must be 0 here, shards hold all users'
    )
  chunks = event_chunks(folder)
  catalogue(str(folder))
  wanted = -(-sum(chunk.rows for chunk in chunks) // EVENTS_PER_SHARD)
  return Plan(str(folder), tuple(chunks), shards or wanted, config)


def settings(config: Config) -> dict:
  """The fields of `config` that the content of shards depends on, by their full names."""
  return {f'data.{name}': getattr(config.data, name) for name in SETTINGS} | {
    'backbone.context': config.backbone.context
  }


@functools.lru_cache(maxsize=1)  # once per worker
def catalogue(folder: str) -> pl.DataFrame:
  """Column item_id, sorted: position = item index, as in `InteractionLog`."""
  return read_items(folder).select('item_id').sort('item_id')


def catalogue_digest(item_ids: pl.Series) -> str:
  """16 hex digits over sorted item ids: what an index into them means."""
  content = hashlib.sha256(str(item_ids.dtype).encode())
  content.update(item_ids.rename('item_id').to_frame().write_ndjson().encode())
  return content.hexdigest()[:16]


def split(plan: Plan, chunk: Chunk) -> pl.DataFrame:
  """The rows of `chunk`, sorted by column shard: shard, user_id, item_id (an index), event, timestamp. Raises DataError."""
  items = catalogue(plan.folder)
  events = read_events(plan.folder, chunk, items)
  return events.select(
    shard_of(events['user_id'], plan.shards),
    'user_id',
    items['item_id'].search_sorted(events['item_id']).cast(pl.Int64).alias('item_id'),
    'event',
    'timestamp',
  ).sort('shard')


def shard_of(users: pl.Series, shards: int) -> pl.Series:
  """UInt32 [.]: the shard of each user, from the CRC-32 of the id as text: the same on every machine and in every version."""
  text = users.cast(pl.String)
  distinct = text.unique()
  hashed = pl.Series([zlib.crc32(user.encode()) % shards for user in distinct], dtype=pl.UInt32)
  return text.replace_strict(distinct, hashed).rename('shard')


def part_log(plan: Plan, rows: pl.DataFrame) -> InteractionLog:
  """The log of one shard from all its rows, in any order. Its users are those of the shard, its items are numbered as in the whole."""
  items = pl.DataFrame({'item_id': pl.int_range(catalogue(plan.folder).height, eager=True)})
  return InteractionLog.build(rows, items)


def part_clock(plan: Plan, log: InteractionLog) -> Clock:
  """What this part adds to the times from which the cuts are taken."""
  return clock(find_occasions(log, plan.config.data))


def whole_cuts(plan: Plan, clocks: Iterable[Clock]) -> Cuts | None:
  """The cuts of the whole log; None under leave_one_out, which cuts by user. Raises DataError for a log without a purchase."""
  dormant, every = (np.concatenate(times) for times in zip(*clocks))
  if not len(every):
    raise DataError(
      f'{plan.folder}: has no event purchase; must have one with an earlier event of the same user'
    )
  return (
    find_cuts(Clock(dormant, every), plan.config.data) if plan.config.data.split == 'time' else None
  )


def row_type(width: int) -> np.dtype:
  """ROW: the fields of `Trajectories` for one row, as they lie in a file."""
  return np.dtype(
    [
      ('item', '<i4', width),
      ('timestamp', '<i4', width),
      ('count', '<i4', width),
      ('segment', '<u2', width),
      ('event', 'i1', width),
    ]
  )


def make_rows(plan: Plan, log: InteractionLog, cuts: Cuts | None) -> np.ndarray:
  """ROW [N]: what training may use of the users of `log`. N may be 0."""
  width, occasions = plan.config.backbone.context, find_occasions(log, plan.config.data, cuts)
  check_no_leak(log, occasions)
  packed = pack_windows(log.offsets, occasions.train_end(log), width)
  count = int(packed[0].max()) + 1 if packed.shape[1] else 0
  found = np.empty(count, row_type(width))
  for name, values in zip(Trajectories._fields, packed_rows(log, packed, np.arange(count), width)):
    found[name] = values
  return found


def entry(shard: int, log: InteractionLog, rows: np.ndarray) -> dict:
  """What the index says of a shard: file name, rows, training events (overlaps of windows counted twice), users, SHA-256 of the rows."""
  return dict(
    file=f'shard-{shard:05}.npy',
    rows=len(rows),
    events=int((rows['segment'] > 0).sum()),
    users=len(log.users),
    events_after_collapse=len(log.item),
    sha256=hashlib.sha256(rows.tobytes()).hexdigest(),
  )


def make_index(plan: Plan, cuts: Cuts | None, entries: Iterable[dict]) -> dict:
  """The content of index.json. Raises DataError when there is nothing to train on."""
  entries = sorted(entries, key=lambda e: e['file'])
  total = {
    name: sum(e[name] for e in entries)
    for name in ('rows', 'events', 'users', 'events_after_collapse')
  }
  if not total['rows']:
    raise DataError(
      f'{plan.folder}: no user has two events before the first held-out occasion; use a longer log'
    )
  content = dict(
    format=FORMAT,
    width=plan.config.backbone.context,
    settings=settings(plan.config),
    cuts=cuts and cuts._asdict(),
    items=catalogue(plan.folder).height,
    items_digest=catalogue_digest(catalogue(plan.folder)['item_id']),
    source_events=plan.events,
    **total,
    shards=[e for e in entries if e['rows']],
  )
  return dict(digest=digest(content), key=plan.key) | content
