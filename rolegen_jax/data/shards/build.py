"""Build shards in the processes of one machine, out of core.

The same call continues after any interruption.

  DIR/shard-00000.npy ...  ROW [N] each, see `convert.row_type`
  DIR/index.json           written last: a folder with it is complete
  DIR/building/            until then:
    KEY.json               what the folder is being built from
    split/CHUNK.parquet    the rows of a chunk, by shard
    part/SHARD/            the log of a shard
    times/SHARD.npz        times of its occasions
    entry/SHARD.json       what the index will say of it

Every file appears under its name when it is complete, and is what its step returned: a step whose
file is there is not run again.
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
from typing import Any

import numpy as np
import polars as pl

from rolegen_jax.config import ConfigError
from rolegen_jax.data.cuts import Cuts, OccasionTimes
from rolegen_jax.data.files import (
  Lock,
  as_data_error,
  lock,
  renamed,
  write_json,
  write_npz,
  write_parquet,
)
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.shards import convert
from rolegen_jax.runtime.progress import progress

INDEX, BUILDING = 'index.json', 'building'
SPLIT_ROWS = 65_536  # of a row group: a shard's rows of one chunk lie in one or two of them

_THREADS = 'POLARS_MAX_THREADS'


def build(plan: convert.Plan, output: str | os.PathLike, workers: int = 0) -> dict[str, Any]:
  """Make the shards of `plan` in `output` and return the index.

  workers: number of processes; 0 = one per core. Each holds one chunk or one shard in memory.

  Raises DataError for the first fault of the log, and ConfigError when `output` holds something
  else.
  """
  output = pathlib.Path(output)
  with hold(output):
    return begin(plan, output) or _build(plan, output, workers)


def _build(plan: convert.Plan, output: pathlib.Path, workers: int) -> dict[str, Any]:
  building = output / BUILDING
  shards = range(plan.shards)
  with Pool(workers or len(os.sched_getaffinity(0))) as pool:
    pool.run(_split, [(plan, building, number) for number in range(len(plan.chunks))], 'split')
    pool.run(_sort, [(plan, building, shard) for shard in shards], 'sort')
    cuts = convert.global_cuts(plan, (_load_times(building, shard) for shard in shards))
    entries = pool.run(_pack, [(plan, output, shard, cuts) for shard in shards], 'pack')
  return finish(convert.make_index(plan, cuts, filter(None, entries)), output)


def hold(output: pathlib.Path) -> Lock:
  """Return a lock on `output`, held until it is closed. Raises ConfigError."""
  try:
    return lock(output / '.lock')
  except BlockingIOError as error:
    raise ConfigError(
      f'--output={output}: being written by {error}; wait for it, or use another folder'
    ) from error


def begin(plan: convert.Plan, output: pathlib.Path) -> dict[str, Any] | None:
  """Return the index if `output` is complete for `plan`; else prepare it and return None.

  A prepared folder holds at most what the same plan began. Raises ConfigError for a folder of other
  files, also for shards of another plan: they may have taken hours.
  """
  index_path, key_path = output / INDEX, output / BUILDING / 'KEY.json'
  index, key = read(index_path), read(key_path)
  is_ours = index is not None and 'key' in index or key is not None
  if not is_ours and any(path.name != '.lock' for path in output.glob('*')):
    raise ConfigError(
      f'--output={output}: holds files that are no shards; '
      'must be a new or empty folder, or one of an earlier run'
    )
  if is_ours and plan.key not in ((index or {}).get('key'), (key or {}).get('key')):
    raise ConfigError(
      f'--output={output}: holds shards of {_difference(index or key or {}, plan)}; '
      'use another --output, or remove that folder first'
    )
  for temporary in output.glob('.shard-*.tmp'):  # of a process that was killed
    temporary.unlink()
  if index is not None and index['key'] == plan.key:
    shutil.rmtree(output / BUILDING, ignore_errors=True)  # cut off while cleaning up
    return index
  write_json({'key': plan.key, 'settings': convert.settings(plan.config)}, key_path)
  return None


def _difference(begun: dict[str, Any], plan: convert.Plan) -> str:
  """Return in words what another plan has than `plan`; `begun` is its index or key file."""
  made_with = begun.get('settings', {})
  for name, value in convert.settings(plan.config).items():
    if name in made_with and made_with[name] != value:
      return f'{name}={made_with[name]!r}, now {value!r}'
  return 'another log, number of shards or version'


def finish(index: dict[str, Any], output: pathlib.Path) -> dict[str, Any]:
  """Write the index, which makes the folder complete, and drop what was only for building it."""
  write_json(index, output / INDEX)
  shutil.rmtree(output / BUILDING)
  return index


def write_rows(rows: np.ndarray, path: pathlib.Path) -> None:
  """Write ROW [N] to `path` through a temporary name."""
  with renamed(path) as temporary, temporary.open('wb') as file:
    np.save(file, rows)


def read(path: pathlib.Path) -> dict[str, Any] | None:
  """Return the content of a JSON file, or None where there is none. Raises DataError."""
  if not path.exists():
    return None
  with as_data_error(path, 'what rolegen prepare_shards wrote; without it the folder is of no use'):
    return json.loads(path.read_text(encoding='utf-8'))


def _split(plan: convert.Plan, building: pathlib.Path, number: int) -> None:
  path = building / 'split' / f'{number:05}.parquet'
  if not path.exists():
    rows = convert.split(plan, plan.chunks[number])
    write_parquet(rows, path, row_group_size=SPLIT_ROWS, compression='lz4')


def _sort(plan: convert.Plan, building: pathlib.Path, shard: int) -> None:
  path = building / 'times' / f'{shard:05}.npz'
  if path.exists():
    return
  # Sorted by shard, so that the statistics of their row groups leave all others unread.
  chunks = pl.scan_parquet(sorted((building / 'split').glob('*.parquet')), glob=False)
  rows = chunks.filter(pl.col('shard') == shard).drop('shard').collect()
  times = OccasionTimes(np.zeros(0, np.int64), np.zeros(0, np.int64))
  if rows.height:
    log = convert.shard_log(plan, rows)
    times = convert.shard_times(plan, log)
    log.save(building / 'part' / f'{shard:05}')
  write_npz(times._asdict(), path)


def _load_times(building: pathlib.Path, shard: int) -> OccasionTimes:
  with np.load(building / 'times' / f'{shard:05}.npz') as arrays:
    return OccasionTimes(**arrays)


def _pack(
  plan: convert.Plan, output: pathlib.Path, shard: int, cuts: Cuts | None
) -> dict[str, Any] | None:
  """Write the shard's rows and return its entry; None when no user is in it."""
  log_folder = output / BUILDING / 'part' / f'{shard:05}'
  entry_path = output / BUILDING / 'entry' / f'{shard:05}.json'
  if not log_folder.exists():
    return None
  if not entry_path.exists():
    log = InteractionLog.load(log_folder)
    rows = convert.make_rows(plan, log, cuts)
    entry = convert.entry(shard, log, rows)
    if len(rows):
      write_rows(rows, output / entry['file'])
    write_json(entry, entry_path)
  return read(entry_path)


class Pool:
  """Processes that each take one call at a time, and leave when this one is gone."""

  def __init__(self, workers: int) -> None:
    self._workers = workers
    self._threads = os.environ.get(_THREADS)

  def __enter__(self) -> Pool:
    # Cores are shared out to processes; numpy uses one thread in each.
    os.environ[_THREADS] = '1'
    context = multiprocessing.get_context('spawn')
    self._pool = ProcessPoolExecutor(self._workers, context, _leave_with_parent)
    return self

  def run(self, work: Callable[..., Any], calls: list[tuple], label: str) -> list[Any]:
    """Return what `work(*call)` returned for each call.

    The first call that raised decides what is raised; calls that have not begun are dropped.
    """
    futures = [self._pool.submit(work, *call) for call in calls]
    return [future.result() for future in progress(futures, label)]

  def __exit__(self, *_: object) -> None:
    self._pool.shutdown(cancel_futures=True)
    if self._threads is None:
      os.environ.pop(_THREADS)
    else:
      os.environ[_THREADS] = self._threads


def _leave_with_parent() -> None:
  """End this worker with its parent: without that, workers outlive a parent that was killed."""
  parent = multiprocessing.parent_process()
  assert parent is not None, 'runs in the workers of a pool only'

  def leave() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=leave, daemon=True).start()
