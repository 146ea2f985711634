"""How long a process takes before it works: imports, `--help` of every command, and a start of a stage with and without a cache.

Every sample is a process of its own, from its start as the parent sees it to its end, or to the end of its first step. Sides take
turns. Beside wall time, imports carry processor time, which a busy machine disturbs less.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from experiments.benchmarks import measure
from rolegen_jax import distributed
from rolegen_jax.config import digest
from rolegen_jax.provenance import machine

ROOT = pathlib.Path(__file__).parents[2]
TARGETS = dict(import_s=2.0, help_s=1.0, second_start_share=1 / 3)
RUN = 'rolegen_jax.stages'  # what a run imports, all of it
# The libraries of a run in the order in which each brings the fewest of the others; a bar each in the picture.
LIBRARIES = ('numpy', 'jax', 'optax', 'flax.nnx', 'orbax.checkpoint', 'grain', 'polars', 'scipy.sparse', 'tensorboardX', RUN)
TREES = ('rolegen_jax', 'launch', 'experiments')
PREEMPTED = 42
POLL_S = 0.02


def process(*command: str, codes: tuple[int, ...] = (0,)) -> dict[str, float]:
  """wall_s and cpu_s of a command of this project, run to its end. Raises RuntimeError with its last lines on another exit code."""
  started = time.perf_counter()
  child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
  said = child.stderr.read()  # ends with the process
  _, status, used = os.wait4(child.pid, 0)
  wall = time.perf_counter() - started
  child.returncode = os.waitstatus_to_exitcode(status)
  if child.returncode not in codes:
    raise RuntimeError(f'{" ".join(command)} ended with {child.returncode}:\n' + '\n'.join(said.splitlines()[-8:]))
  return dict(wall_s=wall, cpu_s=used.ru_utime + used.ru_stime)


def in_turn(sides: dict[str, Callable[[], dict]], repeats: int, warm_up: int = 1) -> dict[str, dict]:
  """Side -> {field: summary} of what its calls return; rounds as `measure.alternate`, the first ones warm the disk's cache."""
  found = {name: [] for name in sides}
  names = list(sides)
  for i in range(warm_up + repeats):
    for name in names[i % len(names):] + names[:i % len(names)]:
      found[name].append(sides[name]())
  return {name: {field: measure.summary([row[field] for row in rows[warm_up:]]) for field in rows[0]} for name, rows in found.items()}


# Imports


def imports(repeats: int) -> dict[str, dict]:
  """nothing, jax, run: {wall_s, cpu_s} of a process that imports nothing, jax alone, RUN; parts: what `parts` says."""
  python = lambda code: lambda: process(sys.executable, '-c', code)
  return in_turn(dict(nothing=python('pass'), jax=python('import jax'), run=python(f'import {RUN}'), parts=parts), repeats)


def parts() -> dict[str, float]:
  """Processor seconds that each of LIBRARIES adds in one process, in their order."""
  code = f'''import importlib, json, time
last, found = time.process_time(), dict()
for name in {LIBRARIES!r}:
  importlib.import_module(name)
  now = time.process_time()
  found[name], last = now - last, now
print(json.dumps(found))'''
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


# --help


def commands() -> list[str]:
  """Every module of the project that defines flags and is run with -m."""
  texts = {path: path.read_text(encoding='utf-8') for tree in TREES for path in sorted((ROOT / tree).rglob('*.py'))}
  is_one = lambda text: re.search(r'^(\w+ = )?flags\.DEFINE_', text, re.MULTILINE) and re.search(r'^if __name__ ==', text, re.MULTILINE)
  return ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for path, text in texts.items() if is_one(text)]


def helps(names: list[str], repeats: int) -> dict:
  """Command -> {wall_s, cpu_s} of `--help`. absl ends with 1 after it."""
  return in_turn({name: lambda name=name: process(sys.executable, '-m', name, '--help', codes=(0, 1)) for name in names}, repeats)


# A start of a training stage

FLAGS = ('--experiment=demo', *(f'--set={a}' for a in (  # the demo's models and batches; of the stages before the loop just something
    'world.users=1000', 'warmup.steps=2', 'align.steps=2', 'reason.steps=2', 'roles.max_conversions=128', 'loop_stage.steps=100000', 'loop_stage.save_every=1')))


def prepare(folder: pathlib.Path, flags: tuple[str, ...]) -> None:
  """A run folder with every stage before the closed loop complete, and no compiled programs. Nothing is done again that is there."""
  code = 'import sys; from rolegen_jax import commands; from rolegen_jax.stages import Run\nRun(commands.experiment(sys.argv[2], sys.argv[3:]), sys.argv[1]).reasoned'
  experiment, assignments = flags[0].removeprefix('--experiment='), [flag.removeprefix('--set=') for flag in flags[1:]]
  process(sys.executable, '-c', code, str(folder), experiment, *assignments)
  shutil.rmtree(folder / 'compilation_cache', ignore_errors=True)


def start(workdir: pathlib.Path, flags: tuple[str, ...], stage: str = 'loop') -> dict[str, float]:
  """Starts rolegen_jax.train, waits for the first step of `stage` that it completes, and preempts it. Needs `save_every=1` there.

  total_s: from the start of the process to the end of that step. Its parts: before_s (imports, data, the stages before), and of
  the stage's own account restore_s, data_s, compile_s, step_s. Raises RuntimeError when it ends by itself.
  """
  account, log = workdir / stage / 'time.0.jsonl', workdir / 'start.log'
  known, rows = len(_rows(account)), []
  own_cache = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
  with log.open('w') as said:
    began = time.time()
    child = subprocess.Popen([sys.executable, '-m', 'rolegen_jax.train', f'--workdir={workdir}', *flags], cwd=ROOT, env=own_cache, stdout=said, stderr=said)
    try:
      while child.poll() is None and not any('step' in row for row in rows):
        time.sleep(POLL_S)
        rows = _rows(account)[known:]
      child.send_signal(signal.SIGTERM)
      child.wait()
    finally:  # nothing is left running when this is interrupted
      child.kill()
  if child.returncode != PREEMPTED:
    raise RuntimeError(f'{workdir}: ended with {child.returncode}, not preempted with {PREEMPTED}:\n{log.read_text()[-2000:]}')
  entered, step = next(row for row in rows if 'start' in row), next(row for row in rows if 'step' in row)
  # The checkpoint comes after the step; its flush of the metrics has waited for the device.
  total = step['at'] - step.get('checkpoint_s', 0.0) - began
  inside = {'restore_s': entered['restore_s']} | {kind: step[kind] for kind in ('data_s', 'compile_s', 'step_s')}
  return dict(total_s=total, before_s=total - sum(inside.values()), **inside)


def starts(
    prepared: pathlib.Path, folder: pathlib.Path, flags: tuple[str, ...], repeats: int, kept: list[dict], save: Callable[[list[dict]], None], stage: str = 'loop'
) -> list[dict]:
  """`kept` rounds and as many new ones as make `repeats`: {first, second} of `start`, the first in a fresh copy of `prepared`, the
  second the same command again in the same folder. `save` gets all rounds after each."""
  rounds = list(kept)[:repeats]
  while len(rounds) < repeats:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared, folder)
    rounds.append({side: start(folder, flags, stage) for side in ('first', 'second')})
    save(rounds)
  return rounds


def medians(rounds: list[dict]) -> dict:
  """Of all rounds: medians of every part of the first and of the second start, and of the second's share of the first."""
  median = lambda side: {kind: float(np.median([r[side][kind] for r in rounds])) for kind in rounds[0][side]}
  share = float(np.median([r['second']['total_s'] / r['first']['total_s'] for r in rounds]))
  return dict(first=median('first'), second=median('second'), second_share=share)


def key() -> str:
  """Rounds of one key may stand together: equal code, versions, machine and flags."""
  known = machine()
  return digest(distributed.code_digest(), known['versions'], known['device_kind'], measure.processor(), FLAGS)


def table(found: dict) -> str:
  lines = []
  if 'imports' in found:
    i = {name: found['imports'][name]['wall_s']['median_s'] for name in ('nothing', 'jax', 'run')}
    lines.append(f'import {RUN}: {i["run"]:.2f} s of at most {TARGETS["import_s"]:g} (jax alone {i["jax"]:.2f}, an empty process {i["nothing"]:.2f})')
    lines += [f'  {name:<20} {part["median_s"]:.2f} s of processor time' for name, part in found['imports']['parts'].items()]
  for name, times in sorted(found.get('help', {}).items(), key=lambda item: -item[1]['wall_s']['median_s']):
    lines.append(f'{name} --help: {times["wall_s"]["median_s"]:.2f} s of at most {TARGETS["help_s"]:g}')
  if 'starts' in found:
    for side in ('first', 'second'):
      parts = found['starts'][side]
      lines.append(f'{side} start: {parts["total_s"]:.1f} s to the end of step 1; ' + ', '.join(f'{kind[:-2]} {s:.1f}' for kind, s in parts.items() if kind != 'total_s'))
    lines.append(f'the second takes {100 * found["starts"]["second_share"]:.0f} % of the first, at most {100 * TARGETS["second_start_share"]:.0f} %')
  return '\n'.join(lines)


def _rows(path: pathlib.Path) -> list[dict]:
  """Complete lines of a stage's account."""
  return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith('\n')] if path.exists() else []
