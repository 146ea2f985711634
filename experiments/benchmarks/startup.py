"""Start-up: importing what a run needs, `--help` of every command, and a first and second start.

  python -m experiments.benchmarks.startup

A start is timed from the start of the process to the end of the first step of a stage, by default
the closed loop of the demo, whose program is the largest, with the stages before it complete. The
first start has an empty cache; the second is the same command after a preemption. Targets: import
in 2 s, `--help` in 1 s, and a second start in a third of the first, as the run folder keeps the
compiled programs. Every sample is a process of its own. Beside wall time stands processor time,
which a busy machine disturbs less.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmarks import harness
from rolegen_jax.__main__ import COMMANDS
from rolegen_jax.cli import entry

TARGETS = {'import_s': 2.0, 'help_s': 1.0, 'second_start_share': 1 / 3}
RUN = 'rolegen_jax.pipeline.run'  # imports all that a run needs
# Its libraries, in the order in which each brings the fewest of the others.
LIBRARIES = (
  'numpy',
  'jax',
  'optax',
  'flax.nnx',
  'orbax.checkpoint',
  'grain',
  'polars',
  'scipy.sparse',
  'tensorboardX',
  RUN,
)
HELP = {
  **{f'rolegen {name}': ('rolegen_jax', name) for name in COMMANDS},
  **{f'launch.{name}': (f'launch.{name}',) for name in ('run', 'sweep', 'status', 'doctor')},
}
# The demo's models and batches; of the stages before the loop just something. A save after each
# step flushes the account that `start` reads.
FIELDS = (
  'simulator.users=1000',
  'warmup.steps=2',
  'align.steps=2',
  'reason.steps=2',
  'roles.max_conversions=128',
  'loop_stage.steps=100000',
  'loop_stage.save_every=1',
)
START_PARTS = {  # of a start, in order
  'before_s': (harness.GRAY, 'imports, data, stages before'),
  'restore_s': (harness.SKY, 'state made or restored'),
  'data_s': (harness.GREEN, 'first batch'),
  'compile_s': (harness.BLUE, 'compile, or read from the cache'),
  'step_s': (harness.ORANGE, 'first step'),
}
POLL_S = 0.02


def measure(
  store: harness.Store,
  *,
  repeats: int = 5,
  rounds: int = 3,
  stage: str = 'loop',
  fields: tuple[str, ...] = FIELDS,
) -> dict:
  """Time imports, --help and starts.

  repeats: Timed processes of each import and each --help.
  rounds: First and second starts.
  stage: The stage whose first step ends a start.
  fields: Fields of the demo's config to replace; the stage must save after each step.
  """
  store.point('imports', [repeats], functools.partial(measure_imports, repeats))
  store.point('help', [repeats], functools.partial(measure_help, repeats))
  with tempfile.TemporaryDirectory() as folder:
    prepared, workdir = pathlib.Path(folder, 'prepared'), pathlib.Path(folder, 'run')
    for i in range(rounds):
      settings = [stage, *fields]
      round_ = functools.partial(measure_starts, prepared, workdir, stage, fields)
      store.point(f'start {i}', settings, round_)
  return dict(targets=TARGETS, fields=list(fields), points=store.points)


def run_process(*arguments: str, exit_codes: Sequence[int] = (0,)) -> dict[str, float]:
  """Run a Python process to its end; return its wall_s and cpu_s.

  Raises RuntimeError with its last lines on an exit code that is not among `exit_codes`.
  """
  command = [sys.executable, *arguments]
  started = time.perf_counter()
  child = subprocess.Popen(
    command, cwd=harness.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
  )
  stderr = child.stderr.read()  # ends with the process
  _, status, usage = os.wait4(child.pid, 0)
  wall_s = time.perf_counter() - started
  child.returncode = os.waitstatus_to_exitcode(status)
  if child.returncode not in exit_codes:
    last_lines = '\n'.join(stderr.splitlines()[-8:])
    raise RuntimeError(f'{" ".join(command)} ended with {child.returncode}:\n{last_lines}')
  return dict(wall_s=wall_s, cpu_s=usage.ru_utime + usage.ru_stime)


def summaries(
  sides: Mapping[str, Callable[[], dict[str, float]]], repeats: int
) -> dict[str, dict[str, dict]]:
  """Return side -> {field: summary}; an untimed first round warms the disk's cache."""
  samples = harness.in_turn(sides, repeats)
  return {
    side: {field: harness.summary([row[field] for row in rows]) for field in rows[0]}
    for side, rows in samples.items()
  }


# Imports and --help


def measure_imports(repeats: int) -> dict[str, dict]:
  """Time processes that import nothing, jax alone and RUN; libraries: as `library_seconds`."""
  sides = {
    'nothing': functools.partial(run_process, '-c', 'pass'),
    'jax': functools.partial(run_process, '-c', 'import jax'),
    'run': functools.partial(run_process, '-c', f'import {RUN}'),
    'libraries': library_seconds,
  }
  return summaries(sides, repeats)


def library_seconds() -> dict[str, float]:
  """Return the processor seconds that each of LIBRARIES adds in a new process, in order."""
  code = (
    'import importlib, json, time\n'
    'seconds, last = {}, time.process_time()\n'
    f'for name in {LIBRARIES!r}:\n'
    '  importlib.import_module(name)\n'
    '  now = time.process_time()\n'
    '  seconds[name], last = now - last, now\n'
    'print(json.dumps(seconds))\n'
  )
  command = [sys.executable, '-c', code]
  ended = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, check=True)
  return json.loads(ended.stdout.splitlines()[-1])


def measure_help(repeats: int) -> dict[str, dict]:
  """Time `--help` of all commands; absl ends with 1 after it."""
  sides = {
    name: functools.partial(run_process, '-m', *module, '--help', exit_codes=(0, 1))
    for name, module in HELP.items()
  }
  return dict(commands=summaries(sides, repeats))


# Starts


def measure_starts(
  prepared: pathlib.Path, workdir: pathlib.Path, stage: str, fields: Sequence[str]
) -> dict[str, dict[str, float]]:
  """Return a first start, from a copy of the folder `prepared`, and a second one in that copy.

  `prepared` is made when it is not there: a run folder that has every stage before `stage`, and no
  compiled programs.
  """
  if not prepared.exists():
    start(prepared, stage, fields)
    shutil.rmtree(prepared / stage)
    shutil.rmtree(prepared / 'compilation_cache', ignore_errors=True)
  shutil.rmtree(workdir, ignore_errors=True)
  shutil.copytree(prepared, workdir)
  return {side: start(workdir, stage, fields) for side in ('first', 'second')}


def start(workdir: pathlib.Path, stage: str, fields: Sequence[str]) -> dict[str, float]:
  """Start `rolegen train`, wait for the first step of `stage` that it completes, and preempt it.

  Returns total_s, from the start of the process to the end of that step, and its parts: before_s
  (imports, data, the stages before) and, of the stage's own account, restore_s, data_s, compile_s
  and step_s. Raises RuntimeError when the process ends by itself.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  account, log = workdir / stage / 'time.0.jsonl', workdir / 'start.log'
  n_known, rows = len(_read_rows(account)), []
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
  command = [sys.executable, '-m', 'rolegen_jax', 'train', '--experiment=demo']
  command += [f'--workdir={workdir}', *(f'--set={field}' for field in fields)]
  with log.open('w') as output:
    began = time.time()
    child = subprocess.Popen(
      command, cwd=harness.ROOT, env=environment, stdout=output, stderr=output
    )
    try:
      while child.poll() is None and not any('step' in row for row in rows):
        time.sleep(POLL_S)
        rows = _read_rows(account)[n_known:]
      child.send_signal(signal.SIGTERM)
      child.wait()
    finally:  # nothing is left running when this is interrupted
      child.kill()
  if child.returncode != entry.PREEMPTED:
    raise RuntimeError(
      f'{workdir}: ended with {child.returncode}, not preempted with {entry.PREEMPTED}:\n'
      + log.read_text()[-2000:]
    )
  entered = next(row for row in rows if 'start' in row)
  step = next(row for row in rows if 'step' in row)
  # The checkpoint comes after the step; its flush of the metrics has waited for the device.
  total_s = step['at'] - step.get('checkpoint_s', 0.0) - began
  inside = {kind: step[kind] for kind in ('data_s', 'compile_s', 'step_s')}
  inside['restore_s'] = entered['restore_s']
  return dict(total_s=total_s, before_s=total_s - sum(inside.values()), **inside)


def _read_rows(path: pathlib.Path) -> list[dict]:
  """Return the complete lines of a stage's account."""
  if not path.exists():
    return []
  lines = path.read_text().splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.endswith('\n')]


# What the numbers say


def median_starts(results: dict) -> dict[str, Any]:
  """Return medians over rounds: the parts of both starts, and the second's share of the first."""
  rounds = [point for name, point in results['points'].items() if name.startswith('start ')]
  kinds = ('total_s', *START_PARTS)
  medians = {
    side: {kind: float(np.median([r[side][kind] for r in rounds])) for kind in kinds}
    for side in ('first', 'second')
  }
  shares = [r['second']['total_s'] / r['first']['total_s'] for r in rounds]
  return medians | dict(second_share=float(np.median(shares)), rounds=len(rounds))


def table(results: dict) -> str:
  points, targets = results['points'], results['targets']
  imports = points['imports']
  nothing, jax_alone, run = (
    imports[name]['wall_s']['median_s'] for name in ('nothing', 'jax', 'run')
  )
  lines = [
    f'import {RUN}: {run:.2f} s of at most {targets["import_s"]:g}'
    f' (jax alone {jax_alone:.2f}, an empty process {nothing:.2f})'
  ]
  for name, seconds in imports['libraries'].items():
    lines.append(f'  {name:<24} {seconds["median_s"]:.2f} s of processor time')
  for name, seconds in _help_by_time(results):
    lines.append(f'{name} --help: {seconds["median_s"]:.2f} s of at most {targets["help_s"]:g}')
  medians = median_starts(results)
  for side in ('first', 'second'):
    parts = ', '.join(f'{kind[:-2]} {medians[side][kind]:.1f}' for kind in START_PARTS)
    lines.append(f'{side} start: {medians[side]["total_s"]:.1f} s to the end of step 1; {parts}')
  share, target = 100 * medians['second_share'], 100 * targets['second_start_share']
  lines.append(f'the second takes {share:.0f} % of the first, at most {target:.0f} %')
  return '\n'.join(lines)


def _help_by_time(results: dict) -> list[tuple[str, dict]]:
  """Return (command, summary of wall seconds), the slowest first."""
  commands = results['points']['help']['commands']
  wall_s = [(name, times['wall_s']) for name, times in commands.items()]
  return sorted(wall_s, key=lambda row: -row[1]['median_s'])


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw what an import consists of, --help of every command, and both starts."""
  figure, grid = harness.panels(1, 3, (12.6, 3.6), grid='x')
  imports, help_, starts = grid[0]
  targets = results['targets']
  _plot_imports(imports, results['points']['imports'], targets['import_s'])
  rows = _help_by_time(results)[::-1]
  for i, (_, seconds) in enumerate(rows):
    help_.barh(i, seconds['median_s'], color=harness.BLUE, xerr=harness.error_bars(seconds))
  help_.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
  help_.set_xlabel('seconds', fontsize=8)
  help_.set_title('--help', loc='left', fontsize=10)
  _draw_target(help_, targets['help_s'])
  _plot_starts(starts, median_starts(results), targets['second_start_share'])
  figure.savefig(figure_path, dpi=100)


def _draw_target(panel: Any, seconds: float) -> None:
  panel.axvline(seconds, color=harness.VERMILION, linestyle='--', linewidth=1)


def _plot_imports(panel: Any, imports: dict, target_s: float) -> None:
  total = imports['run']['wall_s']
  libraries = {name: seconds['median_s'] for name, seconds in imports['libraries'].items()}
  n = len(libraries)
  panel.barh(range(n), list(libraries.values()), color=harness.GRAY)
  panel.barh(n, total['median_s'], color=harness.BLUE, xerr=harness.error_bars(total))
  _draw_target(panel, target_s)
  panel.set_yticks(range(n + 1), [*(f'+ {name}' for name in libraries), 'a whole import'])
  panel.set_xlabel('seconds; gray: processor time that each adds', fontsize=8)
  panel.set_title('Importing what a run needs', loc='left', fontsize=10)


def _plot_starts(panel: Any, medians: dict, target_share: float) -> None:
  """Stack the medians of the parts; the median of the whole stands beside and is not their sum."""
  for i, side in enumerate(('second', 'first')):
    left = 0.0
    for kind, (color, part) in START_PARTS.items():
      label = part if side == 'first' else None
      panel.barh(i, medians[side][kind], 0.55, left=left, color=color, label=label)
      left += medians[side][kind]
    panel.text(left, i, f' {medians[side]["total_s"]:.1f} s', va='center', fontsize=8)
  first_s = medians['first']['total_s']
  _draw_target(panel, target_share * first_s)
  panel.set_yticks([0, 1], ['second start', 'first start'])
  panel.set_xlim(right=1.2 * first_s)
  panel.set_ylim(-0.5, 2.9)
  panel.set_xlabel('seconds to the end of step 1; dashed: target', fontsize=8)
  panel.set_title(f'Closed loop of the demo, {medians["rounds"]} rounds', loc='left', fontsize=10)
  panel.legend(frameon=False, fontsize=7.5, loc='upper left')


if __name__ == '__main__':
  harness.main(measure, plot, table)
