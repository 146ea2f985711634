"""Sort a log that does not fit in memory: the log that `InteractionLog.build` makes, on disk.

  FOLDER/chunk-00000.parquet ...  the rows of a chunk of an event file, validated, by user
  FOLDER/users-00000.parquet ...  its users, and the number of rows of each
  FOLDER/part-00000/              consecutive users, about PART_ROWS rows: their log
  FOLDER/log_*.npy                the parts one after the other

The first two steps run in processes, which hold a chunk or a part each. Users are in order over the
parts, so the log is the same however many chunks, parts and processes there are. Every file appears
when it is complete, and a step whose file is there is not run again.

U users, I items, N rows.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import polars as pl

from rolegen_jax.config import DataConfig
from rolegen_jax.data import log
from rolegen_jax.data.contract import Chunk, event_chunks, read_events, read_items
from rolegen_jax.data.files import (
  count_rows,
  map_npy,
  read_parquet,
  renamed,
  write_npy,
  write_parquet,
)
from rolegen_jax.data.folders import log_files, text_suffix
from rolegen_jax.data.log import COLUMN_FILE, COLUMNS, InteractionLog
from rolegen_jax.data.shards import convert
from rolegen_jax.data.shards.build import SPLIT_ROWS, Pool


def is_long(data: DataConfig, path: str | os.PathLike) -> bool:
  """Return whether the log at `path` is to be sorted on disk.

  path: of a log of the contract. It has more than one part, is parquet and is read to the last row:
  what is left out follows the order of rows. Raises DataError for a file that is not parquet.
  """
  if data.max_users or data.on_error != 'stop':
    return False
  found = log_files(path)
  if any(map(text_suffix, found.paths)):
    return False
  return sum(map(count_rows, found.events)) > log.PART_ROWS


def sort(
  data: DataConfig, path: str | os.PathLike, folder: pathlib.Path, workers: int = 0
) -> InteractionLog:
  """Return the log at `path`, whose columns are mapped files in `folder`.

  workers: number of processes; 0 = one per core. Raises DataError for the first fault of the log.
  """
  chunks, items = event_chunks(path, data), read_items(path, data)
  items = items.select('item_id', pl.exclude('item_id')).sort('item_id')
  with Pool(workers or len(os.sched_getaffinity(0))) as pool:
    calls = [(data, str(path), chunk, folder, number) for number, chunk in enumerate(chunks)]
    pool.run(_split, calls, 'split')
    users = _users([folder / f'users-{number:05}.parquet' for number in range(len(chunks))])
    bounds = _bounds(users['rows'].to_numpy())
    ids = users['user_id']
    parts = [
      (folder, number, len(items), ids[int(first)], ids[int(last) - 1])
      for number, (first, last) in enumerate(zip(bounds, bounds[1:]))
    ]
    pool.run(_sort, parts, 'sort')
  _join([folder / f'part-{number:05}' for number in range(len(bounds) - 1)], folder)
  return InteractionLog.of_columns(ids, items, folder)


def _split(data: DataConfig, path: str, chunk: Chunk, folder: pathlib.Path, number: int) -> None:
  counts_path = folder / f'users-{number:05}.parquet'
  if counts_path.exists():
    return
  items = convert.catalogue(path, data)
  events = read_events(chunk, items, data)
  item = items['item_id'].search_sorted(events['item_id']).cast(pl.Int64).alias('item_id')
  rows = events.select('user_id', item, 'event', 'timestamp').sort('user_id')
  # In order, so that the statistics of their row groups leave the users of other parts unread.
  write_parquet(
    rows, folder / f'chunk-{number:05}.parquet', row_group_size=SPLIT_ROWS, compression='lz4'
  )
  counts = rows.group_by('user_id', maintain_order=True).agg(pl.len().alias('rows'))
  write_parquet(counts, counts_path)


def _users(paths: list[pathlib.Path]) -> pl.DataFrame:
  """Return all users in order, and how many rows the source has of each: user_id, rows."""
  counts = pl.concat([read_parquet(path) for path in paths])
  return counts.group_by('user_id').agg(pl.col('rows').sum()).sort('user_id')


def _bounds(rows_U: np.ndarray) -> np.ndarray:
  """Return where parts of about PART_ROWS rows begin, and U, int64 [parts + 1]."""
  rows_before = np.cumsum(rows_U) - rows_U
  first = np.searchsorted(rows_before, np.arange(0, rows_U.sum(), log.PART_ROWS))
  return np.unique(np.append(first, len(rows_U)))


def _sort(folder: pathlib.Path, number: int, items: int, first: Any, last: Any) -> None:
  """Write the log of the users first..last."""
  output = folder / f'part-{number:05}'
  if (output / COLUMN_FILE.format('offsets')).exists():
    return
  chunks = pl.scan_parquet(sorted(folder.glob('chunk-*.parquet')), glob=False)
  rows = chunks.filter(pl.col('user_id').is_between(first, last)).collect()
  numbers = pl.DataFrame({'item_id': pl.int_range(items, eager=True)})
  InteractionLog.build(rows, numbers).save_columns(output)


def _join(parts: list[pathlib.Path], folder: pathlib.Path) -> None:
  """Write the columns of the parts one after the other."""
  columns = {
    name: [map_npy(part / COLUMN_FILE.format(name)) for part in parts]
    for name in ('offsets', *COLUMNS)
  }
  for name, dtype in COLUMNS.items():
    with renamed(folder / COLUMN_FILE.format(name)) as temporary:
      shape = (sum(map(len, columns[name])),)
      whole = np.lib.format.open_memmap(temporary, 'w+', dtype, shape)
      np.concatenate(columns[name], out=whole)
      whole.flush()
  ends = np.cumsum([0] + [len(item) for item in columns['item']])
  offsets = [[0], *(start + part[1:] for start, part in zip(ends, columns['offsets']))]
  write_npy(np.concatenate(offsets), folder / COLUMN_FILE.format('offsets'))
