"""Preparing and reading a log that does not fit in memory: events per second, peak memory, waiting.

  python -m experiments.benchmarks.input_pipeline --folder=DIR

The log is SIMULATED. It stays in DIR with its shards, 10 GB for 100 million events. Reading is a
loop of short steps over batches of the largest log; waiting is the share of it that no batch was
ready.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import polars as pl

from experiments.benchmarks import harness
from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.files import write_parquet
from rolegen_jax.data.loader import Batches
from rolegen_jax.data.shards.reader import Shards
from rolegen_jax.runtime.progress import progress

EVENTS_PER_USER, MAX_ITEMS, DAYS = 50, 1_000_000, 90
EVENT_SHARES = (0.10, 0.78, 0.03, 0.04, 0.01, 0.04)  # of EVENT_NAMES
REPEATED = 0.02  # share of rows that are the row before once more
START = 1_700_000_000  # seconds UTC
ODD = 2_654_435_761  # times it modulo 2**32 is one-to-one: IDs in no order

BATCHES = (16, 32, 64, 128)  # rows; the experiments' warmups read 16 and 32
STEP_S = (0.001, 0.0)  # seconds of a step; 0 = nothing but reading
SAMPLE_S = 0.1  # between samples of memory
MEMORY_LIMIT = 4 * 2**30  # bytes, the target
GIB = 2**30


def measure(
  store: harness.Store,
  *,
  folder: str,
  events: tuple = (1_000_000, 10_000_000, 100_000_000),
  files: int = 32,
  steps: int = 2000,
) -> dict:
  """Measure a point per log and one for reading the shards of the last.

  folder: Where logs and shards are written.
  events: Sizes of the simulated logs.
  files: Event files of each log.
  steps: Steps of each reading loop.
  """
  for count in events:
    log, shards = pathlib.Path(folder) / f'log{count}', pathlib.Path(folder) / f'shards{count}'
    simulate(log, count, files)
    store.point(f'prepare {count}', [files], functools.partial(prepare, log, shards))
  loops = functools.partial(measure_reading, shards, steps)
  store.point('read', [events[-1], files, steps], loops)
  return dict(points=store.points)


def simulate(
  folder: pathlib.Path, events: int, files: int, seed: int = 0, users: int = 0, items: int = 0
) -> None:
  """Write a SIMULATED log of the contract, made for its size; keep files that are already there.

  users, items: their numbers; 0 = as many as EVENTS_PER_USER and MAX_ITEMS say.

  Users and items are heavy-tailed: densities u**-1/2 and u**-2/3 over ranks. A user's events are
  spread over all files in no order. Times are whole minutes, and REPEATED rows are there twice, so
  that there are ties to settle.
  """
  users = users or max(events // EVENTS_PER_USER, 1)
  items = items or max(min(MAX_ITEMS, events // 20), 1)
  if not (folder / 'items.parquet').exists():
    write_parquet(pl.DataFrame({'item_id': _ids(np.arange(items))}), folder / 'items.parquet')
  for number in progress(range(files), f'simulate {events:,} events'):
    path, rows = folder / f'events/{number:04}.parquet', len(range(number, events, files))
    if path.exists():
      continue
    rng = np.random.default_rng([seed, number])
    user = (rng.random(rows) ** 2 * users).astype(np.int64)
    item = (rng.random(rows) ** 3 * items).astype(np.int64)
    event = np.searchsorted(np.cumsum(EVENT_SHARES)[:-1], rng.random(rows))
    minute = (rng.random(rows) * DAYS * 24 * 60).astype(np.int64)
    source = np.maximum(np.arange(rows) - (rng.random(rows) < REPEATED), 0)
    columns = {
      'user_id': _ids(user),
      'item_id': _ids(item),
      'event': pl.Series(EVENT_NAMES)[event],
      'timestamp': START + minute * 60,
    }
    write_parquet(pl.DataFrame(columns)[source], path, row_group_size=500_000)


def _ids(ranks: np.ndarray) -> np.ndarray:
  return ranks * ODD % 2**32


def prepare(log: pathlib.Path, output: pathlib.Path, *options: str) -> dict:
  """Run prepare_shards from nothing; return its rate, peak memory and what the index says.

  Raises RuntimeError with the command's messages where it fails.
  """
  shutil.rmtree(output, ignore_errors=True)
  command = [sys.executable, '-m', 'rolegen_jax', 'prepare_shards']
  command += [f'--set=data.path={log.absolute()}', f'--output={output}', *options]
  started, peak = time.perf_counter(), 0
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  with subprocess.Popen(command, **pipes) as process:
    while process.poll() is None:
      peak = max(peak, tree_memory(process.pid))
      time.sleep(SAMPLE_S)
    seconds = time.perf_counter() - started
    output_text, messages = process.communicate()
  if process.returncode:
    raise RuntimeError(f'{" ".join(command)}: exit code {process.returncode}\n{messages}')
  index = json.loads(output_text)
  events = index['source_events']
  fields = ('rows', 'width', 'users', 'items', 'digest')
  return dict(
    events=events,
    seconds=seconds,
    events_per_s=events / seconds,
    peak_bytes=peak,
    log_bytes=folder_bytes(log),
    shard_bytes=folder_bytes(output),
    **{name: index[name] for name in fields},
  )


def folder_bytes(folder: pathlib.Path) -> int:
  """Return the bytes of all files below the folder."""
  return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


def tree_memory(pid: int) -> int:
  """Return the bytes resident in a process and all that it started, shared pages in each."""
  return sum(_resident(each) for each in process_tree(pid))


def process_tree(pid: int) -> list[int]:
  """Return the process and all that it started, parents first."""
  children: dict[int, list[int]] = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      parent = int(path.read_text().rpartition(')')[2].split()[1])
    except OSError:  # it ended in the meantime
      continue
    children.setdefault(parent, []).append(int(path.parent.name))
  tree = [pid]
  for each in tree:
    tree += children.get(each, [])
  return tree


def _resident(pid: int) -> int:
  try:
    pages = pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1]
  except OSError:
    return 0
  return int(pages) * os.sysconf('SC_PAGE_SIZE')


def measure_reading(shards: pathlib.Path, steps: int) -> dict:
  """Return the reading loops of all batch sizes and steps, from the disk and from memory."""
  return dict(
    loops=[
      read(shards, batch, steps, step_s, cold)
      for cold in (True, False)
      for batch in BATCHES
      for step_s in STEP_S
    ]
  )


def read(folder: pathlib.Path, batch: int, steps: int, step_s: float, cold: bool) -> dict:
  """Return the share of a loop that waits for batches, and its rows per second.

  A step sleeps `step_s` seconds, as a host does that waits for its device. cold: the shards are not
  in memory at first.
  """
  if cold:
    _drop_page_cache(folder)
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
  return dict(
    batch=batch,
    steps=steps,
    step_s=step_s,
    cold=cold,
    wait_share=waited / seconds,
    rows_per_s=steps * batch / seconds,
  )


def _drop_page_cache(folder: pathlib.Path) -> None:
  for path in folder.glob('*.npy'):
    with path.open('rb') as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _prepared(results: dict) -> list[dict]:
  points = [point for name, point in results['points'].items() if name.startswith('prepare')]
  return sorted(points, key=lambda point: point['events'])


def table(results: dict) -> str:
  """Return preparing by log size, and waiting of short steps by batch size."""
  lines = [f'{"events":>12}{"events/s":>12}{"peak, GiB":>12}']
  for point in _prepared(results):
    rate, peak = point['events_per_s'], point['peak_bytes'] / GIB
    lines.append(f'{point["events"]:>12,}{rate:>12,.0f}{peak:>12.2f}')
  lines.append(f'{"batch":>12}{"from":>12}{"waiting, %":>12}{"rows/s":>12}')
  for loop in results['points']['read']['loops']:
    source = 'disk' if loop['cold'] else 'memory'
    if loop['step_s']:
      figures = f'{100 * loop["wait_share"]:>12.1f}{loop["rows_per_s"]:>12,.0f}'
      lines.append(f'{loop["batch"]:>12}{source:>12}{figures}')
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw rate and memory of preparing by log size, and waiting of steps of 1 ms by batch size."""
  figure, [[rate, memory, waiting]] = harness.panels(1, 3, (11, 3.2))
  prepared, loops = _prepared(results), results['points']['read']['loops']
  events = [point['events'] for point in prepared]
  rate.plot(events, [point['events_per_s'] / 1e3 for point in prepared], 'o-')
  rate.set(ylabel='thousand events / s', title='Preparing')
  memory.plot(events, [point['peak_bytes'] / GIB for point in prepared], 'o-')
  memory.axhline(MEMORY_LIMIT / GIB, color='gray', ls='--', label='limit')
  memory.set(ylabel='GiB, all processes', title='Peak memory')
  memory.legend()
  for panel in (rate, memory):
    panel.set(xscale='log', xlabel='events of the log (simulated)', ylim=(0, None))
  for cold, label in ((True, 'from the disk'), (False, 'in the page cache')):
    short = [loop for loop in loops if loop['cold'] == cold and loop['step_s']]
    shares = [100 * loop['wait_share'] for loop in short]
    waiting.plot([loop['batch'] for loop in short], shares, 'o-', label=label)
  waiting.set(xscale='log', xlabel='rows of a batch', ylabel='% of the loop', ylim=(0, None))
  waiting.set_title('Waiting for data, steps of 1 ms')
  batches = sorted({loop['batch'] for loop in loops})
  waiting.set_xticks(batches, map(str, batches))
  waiting.minorticks_off()
  waiting.legend()
  figure.savefig(figure_path)


if __name__ == '__main__':
  harness.main(measure, plot, table, packages=('polars', 'grain'))
