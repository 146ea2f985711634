"""Shards made by the processes of one machine, out of core, continued by the same call after any interruption.

  DIR/shard-00000.npy ...   ROW [N] each, see `shards.row_type`
  DIR/index.json            written last: a folder with it is complete
  DIR/building/             until then: KEY.json, split/CHUNK.parquet, part/SHARD/ (logs), clock/SHARD.npz, entry/SHARD.json

Every file appears under its real name when it is complete, and is what its step returned: a step whose file is there is not
run again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import IO

import numpy as np
import polars as pl

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import lock, renamed, write_json, write_parquet
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Clock, Cuts
from rolegen_jax.data.shards import convert
from rolegen_jax.runtime.progress import progress

INDEX, BUILDING = 'index.json', 'building'
SPLIT_ROWS = 65_536  # of a row group: a shard's rows of one chunk lie in one or two of them


def build(plan: convert.Plan, output: str | os.PathLike, workers: int = 0) -> dict:
  """Makes the shards of `plan` in `output` and returns the index; workers=0: one per core.

  Memory is that of one chunk or one shard per worker. Raises DataError for the first thing that is wrong with the log, and
  ConfigError when `output` holds something else.
  """
  output = pathlib.Path(output)
  with hold(output):
    return begin(plan, output) or _build(plan, output, workers)


def _build(plan: convert.Plan, output: pathlib.Path, workers: int) -> dict:
  building = output / BUILDING
  with _Pool(workers or len(os.sched_getaffinity(0))) as pool:
    pool.run(_split, [(plan, building, i) for i in range(len(plan.chunks))], 'split')
    pool.run(_part, [(plan, building, shard) for shard in range(plan.shards)], 'sort')
    cuts = convert.whole_cuts(plan, (_load_clock(building, shard) for shard in range(plan.shards)))
    found = pool.run(_pack, [(plan, output, shard, cuts) for shard in range(plan.shards)], 'pack')
  return finish(convert.make_index(plan, cuts, filter(None, found)), output)


def hold(output: pathlib.Path) -> IO:
  """A lock on `output` until it is closed. Raises ConfigError."""
  try:
    return lock(output / '.lock')
  except BlockingIOError as error:
    raise ConfigError(
      f'--output={output}: being written by {error}; wait for it, or use another folder'
    ) from error


def begin(plan: convert.Plan, output: pathlib.Path) -> dict | None:
  """The index of a complete folder of the same plan; else None, and `output` holds at most what the same plan began."""
  index, key = output / INDEX, output / BUILDING / 'KEY.json'
  found, begun = read(index), read(key)
  ours = found is not None and 'key' in found or begun is not None
  if not ours and any(path.name != '.lock' for path in output.glob('*')):
    raise ConfigError(
      f'--output={output}: holds files that are no shards; must be a new or empty folder, or one of an earlier run'
    )
  for left in output.glob('.shard-*.tmp'):  # of a process that was killed
    left.unlink()
  if found is not None and found['key'] == plan.key:
    shutil.rmtree(output / BUILDING, ignore_errors=True)  # cut off while cleaning up
    return found
  if begun != {'key': plan.key}:
    index.unlink(missing_ok=True)  # first: without it nothing else counts
    shutil.rmtree(output / BUILDING, ignore_errors=True)
    for old in output.glob('shard-*.npy'):
      old.unlink()
    write_json({'key': plan.key}, key)
  return None


def finish(index: dict, output: pathlib.Path) -> dict:
  """Writes the index, which makes the folder complete, and drops what was only for building it."""
  write_json(index, output / INDEX)
  shutil.rmtree(output / BUILDING)
  return index


def write_rows(rows: np.ndarray, path: pathlib.Path) -> None:
  with renamed(path) as temporary, temporary.open('wb') as file:
    np.save(file, rows)


def read(path: pathlib.Path) -> dict | None:
  """A JSON file, None where there is none."""
  return json.loads(path.read_text()) if path.exists() else None


def _split(plan: convert.Plan, building: pathlib.Path, number: int) -> None:
  path = building / 'split' / f'{number:05}.parquet'
  if not path.exists():
    write_parquet(
      convert.split(plan, plan.chunks[number]), path, row_group_size=SPLIT_ROWS, compression='lz4'
    )


def _part(plan: convert.Plan, building: pathlib.Path, shard: int) -> None:
  path = building / 'clock' / f'{shard:05}.npz'
  if path.exists():
    return
  # Sorted by shard, so that the statistics of their row groups leave all others unread.
  rows = (
    pl.scan_parquet(sorted((building / 'split').glob('*.parquet')), glob=False)
    .filter(pl.col('shard') == shard)
    .drop('shard')
    .collect()
  )
  times = Clock(*(np.zeros(0, np.int64),) * 2)
  if rows.height:
    log = convert.part_log(plan, rows)
    times = convert.part_clock(plan, log)
    log.save(building / 'part' / f'{shard:05}')
  with renamed(path) as temporary, temporary.open('wb') as file:
    np.savez(file, **times._asdict())


def _load_clock(building: pathlib.Path, shard: int) -> Clock:
  with np.load(building / 'clock' / f'{shard:05}.npz') as found:
    return Clock(**found)


def _pack(plan: convert.Plan, output: pathlib.Path, shard: int, cuts: Cuts | None) -> dict | None:
  """The shard's entry, or None when no user is in it."""
  part, path = (
    output / BUILDING / 'part' / f'{shard:05}',
    output / BUILDING / 'entry' / f'{shard:05}.json',
  )
  if not part.exists():
    return None
  if not path.exists():
    log = InteractionLog.load(part)
    rows = convert.make_rows(plan, log, cuts)
    found = convert.entry(shard, log, rows)
    if len(rows):
      write_rows(rows, output / found['file'])
    write_json(found, path)
  return read(path)


class _Pool:
  """Processes that each take one call at a time, and leave when this one is gone."""

  def __init__(self, workers: int):
    self._workers = workers

  def __enter__(self) -> _Pool:
    threads = os.environ.get('POLARS_MAX_THREADS')
    os.environ['POLARS_MAX_THREADS'] = '1'  # cores are shared out to processes: numpy uses one each
    self._restore = lambda: (
      os.environ.pop('POLARS_MAX_THREADS')
      if threads is None
      else os.environ.update(POLARS_MAX_THREADS=threads)
    )
    self._pool = ProcessPoolExecutor(
      self._workers, multiprocessing.get_context('spawn'), _leave_with_parent
    )
    return self

  def run(self, work: Callable, calls: list[tuple], label: str) -> list:
    """What `work(*call)` returned for each. The first call that raised decides what is raised; calls not begun are dropped."""
    futures = [self._pool.submit(work, *call) for call in calls]
    return [future.result() for future in progress(futures, label)]

  def __exit__(self, *_) -> None:
    self._pool.shutdown(cancel_futures=True)
    self._restore()


def _leave_with_parent() -> None:
  """A process pool's workers outlive a killed parent: this thread ends them with it."""
  parent = multiprocessing.parent_process()
  threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
