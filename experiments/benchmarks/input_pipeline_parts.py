"""The parts of the benchmark of the input pipeline: a simulated log of any size, preparing it, reading it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.files import write_parquet
from rolegen_jax.data.loader import Batches
from rolegen_jax.data.shards.reader import Shards
from rolegen_jax.runtime.progress import progress

EVENTS_PER_USER, ITEMS, DAYS = 50, 1_000_000, 90
SHARES = (0.10, 0.78, 0.03, 0.04, 0.01, 0.04)  # of EVENT_NAMES
START = 1_700_000_000  # seconds UTC
SAMPLE_S = 0.1
_ODD = 2_654_435_761  # times it modulo 2**32 is one-to-one: ids in no order


def simulate(folder: pathlib.Path, events: int, files: int, seed: int = 0) -> None:
  """A SIMULATED log of the contract, made for its size and not for what is in it; files that are there are left.

  Users and items are heavy-tailed (densities u**-1/2 and u**-2/3 over ranks), every user's events are spread over all files, in no
  order; 2 % of the rows are there twice and times are whole minutes, so that there are ties to settle.
  """
  users, items = max(events // EVENTS_PER_USER, 1), max(min(ITEMS, events // 20), 1)
  if not (folder / 'items.parquet').exists():
    write_parquet(pl.DataFrame({'item_id': _ids(np.arange(items))}), folder / 'items.parquet')
  for number in progress(range(files), f'simulate {events:,} events'):
    path, count = folder / f'events/{number:04}.parquet', len(range(number, events, files))
    if path.exists():
      continue
    rng = np.random.default_rng([seed, number])
    row = lambda: rng.random(count)
    user, item = (row() ** 2 * users).astype(np.int64), (row() ** 3 * items).astype(np.int64)
    event = np.searchsorted(np.cumsum(SHARES)[:-1], row())
    minute = (row() * DAYS * 24 * 60).astype(np.int64)
    twice = np.maximum(np.arange(count) - (row() < 0.02), 0)  # the row before once more
    table = pl.DataFrame({'user_id': _ids(user), 'item_id': _ids(item), 'event': pl.Series(EVENT_NAMES)[event], 'timestamp': START + minute * 60})
    write_parquet(table[twice], path, row_group_size=500_000)


def _ids(ranks: np.ndarray) -> np.ndarray:
  return ranks * _ODD % 2**32


def prepare(log: pathlib.Path, output: pathlib.Path, *options: str) -> dict:
  """Runs the command on the log in `log`, from nothing. Returns seconds, the phases' own, peak memory, and what the index says."""
  shutil.rmtree(output, ignore_errors=True)
  command = [sys.executable, '-m', 'rolegen_jax', 'prepare_shards', f'--set=data.path={log.absolute()}', f'--output={output}', *options]
  started = time.perf_counter()
  with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
    peak = 0
    while process.poll() is None:
      peak = max(peak, tree_memory(process.pid))
      time.sleep(SAMPLE_S)
    seconds = time.perf_counter() - started
    out, told = process.communicate()
  if process.returncode:
    raise RuntimeError(f'{" ".join(command)}: exit code {process.returncode}\n{told}')
  index = json.loads(out)
  phases = {name: int(s) for name, done, s in re.findall(r'^(split|sort|pack): (\d+)/\2 \((\d+) s\)', told, re.MULTILINE)}
  return dict(
    events=index['source_events'], seconds=seconds, events_per_s=index['source_events'] / seconds, peak_bytes=peak, phases_s=phases,
    log_bytes=size(log), shard_bytes=size(output), **{name: index[name] for name in ('rows', 'width', 'users', 'items', 'digest')},
  )


def size(folder: pathlib.Path) -> int:
  return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


def tree_memory(pid: int) -> int:
  """Bytes resident in a process and all it started; what they share, mapped files too, is counted in each."""
  return sum(_resident(each) for each in tree(pid))


def tree(pid: int) -> list[int]:
  """The process and all that it started, parents first."""
  children = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      parent = int(path.read_text().rpartition(')')[2].split()[1])
    except OSError:  # it ended in the meantime
      continue
    children.setdefault(parent, []).append(int(path.parent.name))
  found = [pid]
  for each in found:
    found += children.get(each, [])
  return found


def _resident(pid: int) -> int:
  try:
    return int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except OSError:
    return 0


def forget(folder: pathlib.Path) -> None:
  """Asks the system to drop what it keeps of these files in memory, so that the next read is from the disk."""
  for path in folder.glob('*.npy'):
    with path.open('rb') as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(folder: pathlib.Path, batch: int, steps: int, step_s: float, cold: bool) -> dict:
  """A loop of `steps` steps of `step_s` seconds each (asleep, as a host is that waits for its device) over batches of `batch` rows.

  Returns the share of the loop that was spent waiting for a batch, and rows per second. cold: the files are not in memory at first.
  """
  if cold:
    forget(folder)
  shards = Shards(folder)
  batches = Batches(len(shards), batch, 0, shards.rows)
  next(batches)  # starts the thread
  waited, started = 0.0, time.perf_counter()
  for _ in range(steps):
    asked = time.perf_counter()
    next(batches)
    waited += time.perf_counter() - asked
    if step_s:
      time.sleep(step_s)
  seconds = time.perf_counter() - started
  return dict(batch=batch, steps=steps, step_s=step_s, cold=cold, wait_share=waited / seconds, rows_per_s=steps * batch / seconds)
