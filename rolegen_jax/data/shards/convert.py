"""Convert a log that does not fit in memory to packed training rows, part by part.

A log of the contract goes through three steps, each a function of its arguments alone. `build` runs
them in the processes of one machine, `beam` on a cluster; both write the same bytes.

  split      chunk of an event file -> its rows, validated, items as indices, grouped by the shard
             of their user
  shard_log  all rows of one shard  -> its `InteractionLog`: sorted by user and time, equal rows
             counted
  make_rows  that log               -> fixed-shape rows of the users' training windows, packed by
             `batches.pack_windows`

Between the last two, the cuts between the splits are found over all shards. Nothing depends on the
order of the files or of their rows, nor on the number of workers; only how windows share a row
depends on the number of shards.

N rows of packed windows of at most n events each; ROW is the record of one of them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl

from rolegen_jax.config import Config, ConfigError, DataConfig, digest, to_dict
from rolegen_jax.data.batches import Trajectories, pack_windows, packed_rows
from rolegen_jax.data.contract import Chunk, event_chunks, read_events, read_items
from rolegen_jax.data.cuts import Cuts, OccasionTimes, find_cuts
from rolegen_jax.data.files import DataError
from rolegen_jax.data.folders import Fingerprint, fingerprint, log_files, text_suffix
from rolegen_jax.data.leaks import check_no_leak
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions, occasion_times

# On average: what one worker sorts in a few hundred MB.
EVENTS_PER_SHARD = 2_000_000
# Fields of DataConfig that the content of shards depends on.
SETTINGS = (
  'split',
  'test_fraction',
  'valid_fraction',
  'first_conversion_min_views',
  'reactivation_min_days',
  'reactivation_min_views',
  'columns',
  'time_unit',
)
# Of the files; another format is another key.
FORMAT = 2

_TOTALS = ('rows', 'events', 'users', 'source_events', 'events_after_collapse')
# Windows have at least two events, and ROW numbers them in uint16.
_MAX_WIDTH = 2 * (2**16 - 1)


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that the steps need to know; small, and the same on every worker."""

  folder: str  # of the log, or a glob of its events, as every worker sees it
  chunks: tuple[Chunk, ...]
  shards: int
  config: Config
  files: Fingerprint  # of the log, as `folders.fingerprint` returns them

  @property
  def events(self) -> int:
    """The number of rows of the event files."""
    return sum(chunk.rows for chunk in self.chunks)

  @functools.cached_property
  def key(self) -> str:
    """16 hex digits over the settings that matter and the log's files."""
    made_with = settings(self.config)
    for name in LATER:
      if made_with[name] == DEFAULTS[name]:
        del made_with[name]
    return digest(FORMAT, self.files, self.shards, made_with)


def make_plan(config: Config, folder: str | os.PathLike, shards: int = 0) -> Plan:
  """Return the plan for the log in `folder`.

  shards: their number; 0 = as many as keep each near EVENTS_PER_SHARD.

  Raises DataError when the log is absent or malformed, as far as that shows without reading rows,
  and ConfigError when `config` names another format than the contract's.
  """
  if config.data.format != 'contract':
    raise ConfigError(
      f"data.format={config.data.format!r}: must be 'contract' for a log that goes through shards"
    )
  for name, what in (('max_users', 'users'), ('cold_items', 'items')):
    value = getattr(config.data, name)
    if value:
      raise ConfigError(f'data.{name}={value}: must be 0 here, shards hold all {what}')
  if config.data.on_error != 'stop':
    raise ConfigError("data.on_error='skip': must be 'stop' here, shards hold all rows")
  if config.backbone.context > _MAX_WIDTH:
    raise ConfigError(
      f'backbone.context={config.backbone.context}: must be at most {_MAX_WIDTH} for shards'
    )
  log = log_files(folder)
  for path in log.paths:
    if text_suffix(path):
      raise DataError(f'{path}: is text; must be parquet for a log that goes through shards')
  # Before anything is read: what changes from here on is another log.
  files = fingerprint(log.root, log.paths)
  chunks = tuple(event_chunks(folder, config.data))
  catalogue(str(folder), config.data)  # checks the items
  n_events = sum(chunk.rows for chunk in chunks)
  return Plan(str(folder), chunks, shards or -(-n_events // EVENTS_PER_SHARD), config, files)


def settings(config: Config) -> dict[str, Any]:
  """Return the fields of `config` that the content of shards depends on, by their full names."""
  section = to_dict(config.data)
  data_settings = {f'data.{name}': section[name] for name in SETTINGS}
  return data_settings | {'backbone.context': config.backbone.context}


# What shards have that were made before these were settings: they stay valid.
LATER = ('data.columns', 'data.time_unit')
DEFAULTS = {name: value for name, value in settings(Config()).items() if name in LATER}


@functools.lru_cache(maxsize=1)  # once per worker
def catalogue(folder: str, data: DataConfig) -> pl.DataFrame:
  """Return column item_id, sorted: position = item index, as in `InteractionLog`."""
  return read_items(folder, data).select('item_id').sort('item_id')


def catalogue_digest(item_ids: pl.Series) -> str:
  """Return 16 hex digits over sorted item ids: what an index into them means."""
  content = hashlib.sha256(str(item_ids.dtype).encode())
  content.update(item_ids.rename('item_id').to_frame().write_ndjson().encode())
  return content.hexdigest()[:16]


def split(plan: Plan, chunk: Chunk) -> pl.DataFrame:
  """Return the rows of `chunk` sorted by shard: shard, user_id, item_id, event, timestamp.

  item_id is an index. Raises DataError.
  """
  items = catalogue(plan.folder, plan.config.data)
  events = read_events(chunk, items, plan.config.data)
  return events.select(
    shard_of(events['user_id'], plan.shards),
    'user_id',
    items['item_id'].search_sorted(events['item_id']).cast(pl.Int64).alias('item_id'),
    'event',
    'timestamp',
  ).sort('shard')


def shard_of(users: pl.Series, shards: int) -> pl.Series:
  """Return the shard of each user, UInt32 [.].

  It is the CRC-32 of the id as text: the same on every machine and in every version.
  """
  text = users.cast(pl.String)
  distinct = text.unique()
  hashes = pl.Series([zlib.crc32(user.encode()) % shards for user in distinct], dtype=pl.UInt32)
  # Cast: without users, polars leaves it text.
  return text.replace_strict(distinct, hashes).cast(pl.UInt32).rename('shard')


def shard_log(plan: Plan, rows: pl.DataFrame) -> InteractionLog:
  """Return the log of one shard from all its rows, in any order.

  Its users are those of the shard, its items are numbered as in the full log.
  """
  items = pl.DataFrame(
    {'item_id': pl.int_range(catalogue(plan.folder, plan.config.data).height, eager=True)}
  )
  return InteractionLog.build(rows, items)


def shard_times(plan: Plan, log: InteractionLog) -> OccasionTimes:
  """Return the times that this shard adds to those from which the cuts are taken."""
  return occasion_times(find_occasions(log, plan.config.data))


def global_cuts(plan: Plan, times: Iterable[OccasionTimes]) -> Cuts | None:
  """Return the cuts of the full log; None under leave_one_out, which cuts by user.

  times: of every shard. Raises DataError for a log without a purchase.
  """
  dormant, all_cohorts = (np.concatenate(parts) for parts in zip(*times))
  if not len(all_cohorts):
    raise DataError(
      f'{plan.folder}: has no event purchase; must have one with an earlier event of the same user'
    )
  if plan.config.data.split != 'time':
    return None
  return find_cuts(OccasionTimes(dormant, all_cohorts), plan.config.data)


def row_type(width: int) -> np.dtype:
  """Return ROW: the fields of `Trajectories` for one row of `width` events, as files hold them."""
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
  """Return what training may use of the users of `log`, ROW [N]. N may be 0."""
  width = plan.config.backbone.context
  occasions = find_occasions(log, plan.config.data, cuts)
  check_no_leak(log, occasions)
  packed = pack_windows(log.offsets, occasions.train_end(log), width)
  n_rows = int(packed[0].max()) + 1 if packed.shape[1] else 0
  trajectories = packed_rows(log, packed, np.arange(n_rows), width)
  rows = np.empty(n_rows, row_type(width))
  for name, values in zip(Trajectories._fields, trajectories):
    rows[name] = values
  return rows


def entry(shard: int, log: InteractionLog, rows: np.ndarray) -> dict[str, Any]:
  """Return what the index says of a shard.

  source_events: rows of the event files. events: training events, those in the overlaps of windows
  counted twice. sha256: of the rows.
  """
  return dict(
    file=f'shard-{shard:05}.npy',
    rows=len(rows),
    events=int((rows['segment'] > 0).sum()),
    users=len(log.users),
    source_events=int(log.count.sum(dtype=np.int64)),
    events_after_collapse=len(log.item),
    sha256=hashlib.sha256(rows.tobytes()).hexdigest(),
  )


def make_index(plan: Plan, cuts: Cuts | None, entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
  """Return the content of index.json.

  Raises DataError when rows were lost or there is nothing to train on.
  """
  ordered = sorted(entries, key=lambda entry: entry['file'])
  totals = {name: sum(entry[name] for entry in ordered) for name in _TOTALS}
  if totals['source_events'] != plan.events:
    raise DataError(
      f'{plan.folder}: has {plan.events} events, {totals["source_events"]} are in the shards; '
      'must be as many: prepare the shards again, in an empty folder'
    )
  if not totals['rows']:
    raise DataError(
      f'{plan.folder}: no user has two events before the first held-out occasion; use a longer log'
    )
  items = catalogue(plan.folder, plan.config.data)
  content = dict(
    format=FORMAT,
    width=plan.config.backbone.context,
    settings=settings(plan.config),
    cuts=cuts and cuts._asdict(),
    items=items.height,
    items_digest=catalogue_digest(items['item_id']),
    **totals,
    shards=[entry for entry in ordered if entry['rows']],
  )
  return dict(digest=digest(content), key=plan.key, files=plan.files) | content
