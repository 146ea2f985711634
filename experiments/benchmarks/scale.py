"""Time and memory of every stage of a run against users, items and events of the log.

  python -m experiments.benchmarks.scale --folder=DIR

Each point runs in a process of its own on a SIMULATED log: data, semantic IDs, choices, counted
features and the lists of counting baselines, with one axis varied at a time. The largest also
trains, WARMUP steps of the backbone and LOOP steps of both models, labels roles and recommends.
Memory is what a process has allocated (RssAnon); mapped files, whose pages the system may drop, are
told apart (RssFile).
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import jax
import numpy as np

from experiments import demo
from experiments.benchmarks import harness
from experiments.benchmarks.input_pipeline import folder_bytes, process_tree, simulate
from rolegen_jax import overrides
from rolegen_jax.data.occasions import D3, TEST
from rolegen_jax.evaluation import baselines
from rolegen_jax.pipeline import inputs, stages
from rolegen_jax.pipeline.context import Run, open_run
from rolegen_jax.pipeline.inputs import Inputs
from rolegen_jax.pipeline.stages import Trained
from rolegen_jax.reasoning import predict
from rolegen_jax.runtime.progress import say

GIB = 2**30
SAMPLE_S = 0.05  # between samples of memory
WARMUP, LOOP = 100, 20  # steps
FACTORS = (0.25, 1, 4)  # of an axis, times the base
SETTINGS = (
  'data.format=contract',
  'semantic_ids.codes=128',
  'semantic_ids.text=',
  f'warmup.steps={WARMUP}',
  'kinds.steps=20',
  'align.steps=20',
  'reason.steps=20',
  f'loop_stage.steps={LOOP}',
  'roles.max_conversions=5000',
  'calibration.examples=400',
)
# Counting baselines whose lists are made; the others train.
COUNTED = ('popularity', 'recency', 'item_transitions')
# Stage -> the functions of the pipeline that it is timed by.
STAGES: dict[str, tuple[Any, tuple[str, ...]]] = {
  'data': (inputs, ('prepare_data',)),
  'semantic IDs': (inputs, ('assign_semantic_ids',)),
  'choices': (inputs, ('choose_on_validation',)),
  'features': (inputs, ('count_features', 'training_examples')),
  'trie': (inputs, ('catalogue_tables',)),
  'warmup': (stages, ('warm_up',)),
  'roles': (stages, ('label_roles',)),
  'reasoner': (stages, ('learn_kinds', 'align', 'reason')),
  'loop': (stages, ('close_loop', 'calibrate')),
}


def measure(
  store: harness.Store,
  *,
  folder: str,
  users: int = 5_000,
  items: int = 5_000,
  events: int = 200_000,
  largest: tuple = (100_000, 50_000, 5_000_000),
  occasions: int = 2_000,
) -> dict:
  """Measure the largest log, and every axis at FACTORS times its value in the base.

  folder: Where logs and runs are written.
  users: Of the base.
  items: Of the base.
  events: Of the base.
  largest: Users, items and events of the largest log; empty = none.
  occasions: Test occasions that items are recommended for.
  """
  base = dict(users=users, items=items, events=events)
  points = [(dict(zip(base, map(int, largest))), True)] if largest else []
  points += [(base | {axis: round(base[axis] * f)}, False) for axis in base for f in FACTORS]
  for size, trains in points:
    name = ' '.join(f'{value} {axis}' for axis, value in size.items())
    settings = [*size.values(), occasions, trains]
    measure_point = functools.partial(harness.call_in_process, run, folder, *settings)
    store.point(name, settings, measure_point)
  return dict(base=base, points=store.points)


def run(folder: str, users: int, items: int, events: int, occasions: int, trains: bool) -> dict:
  """Run the stages on a log of these sizes; return seconds and peak bytes of each."""
  name = f'{users}-{items}-{events}'
  log, workdir = pathlib.Path(folder) / f'log-{name}', pathlib.Path(folder) / f'run-{name}'
  simulate(log, events, max(1, events // 3_000_000), users=users, items=items)
  shutil.rmtree(workdir, ignore_errors=True)
  config = overrides.apply(demo.get_config(), [*SETTINGS, f'data.path={log.absolute()}'])
  with Meter() as meter, contextlib.ExitStack() as stack:
    for stage, (module, functions) in STAGES.items():
      for function in functions:
        timed = meter.timed(stage, getattr(module, function))
        stack.enter_context(mock.patch.object(module, function, timed))
    begun, known = inputs.prepare_inputs(open_run(config, workdir))
    test = baselines.evaluation_rows(known.log, known.occasions, TEST)
    test = test[np.linspace(0, len(test) - 1, min(len(test), occasions)).astype(np.int64)]
    meter.timed('baselines', _rank)(begun, known, test)
    if trains:
      trained = _train(begun, known)
      meter.timed('recommend', _recommend)(begun, known, trained, test)
  return dict(
    rows=len(known.log.item),
    conversions=int((known.occasions.cohort != D3).sum()),
    occasions=len(test),
    device_table_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(known.trie)),
    log_bytes=folder_bytes(log),
    run_bytes=folder_bytes(workdir),
    stages=meter.stages(),
  )


def _train(begun: Run, known: Inputs) -> Trained:
  """Train both models as a run does."""
  warm = stages.warm_up(begun, known)
  labeled = stages.label_roles(begun, known)
  aligned = stages.align(begun, known, labeled, stages.learn_kinds(begun, known))
  reasoned = stages.reason(begun, known, labeled, aligned)
  return stages.calibrate(begun, known, stages.close_loop(begun, known, labeled, warm, reasoned))


def _recommend(begun: Run, known: Inputs, trained: Trained, test: np.ndarray) -> None:
  """Have RoleGen recommend for the test occasions."""
  occasions = known.occasions
  user, end, time_ = (getattr(occasions, n)[test] for n in ('user', 'context_end', 'timestamp'))
  table = inputs.inference_table(begun, known, user, end, time_)
  beam = begun.config.backbone.beam
  predict.predict(begun.rolegen, trained.load(), table, known.trie, begun.mesh, beam)


def _rank(begun: Run, known: Inputs, test: np.ndarray) -> None:
  """Make the lists of the baselines COUNTED."""
  read = baselines.BaselineInputs(
    known.log,
    known.occasions,
    known.interest_shift,
    begun.config,
    known.choices.kernel,
    known.bars_history,
    known.trending,
  )
  for name in COUNTED:
    baselines.BASELINES[name](read, test, max(begun.config.evaluation.ks))


class Meter:
  """Seconds and memory by stage; memory is read by a process of its own, which never waits."""

  def __enter__(self) -> Meter:
    context = multiprocessing.get_context('spawn')
    self._times: list[tuple[str, float, float]] = []
    self._end, far_end = context.Pipe()
    self._sampler = context.Process(target=_sample, args=(os.getpid(), far_end), daemon=True)
    self._sampler.start()
    self._end.recv()  # it has begun
    return self

  def timed(self, stage: str, function: Callable) -> Callable:
    """Return `function`, whose calls count as `stage`."""

    def call(*args: Any, **options: Any) -> Any:
      started = time.time()
      try:
        return function(*args, **options)
      finally:
        self._times.append((stage, started, time.time()))
        say(f'{stage}: {time.time() - started:.1f} s')

    return call

  def __exit__(self, *_: object) -> None:
    self._end.send('stop')
    self._samples = np.array(self._end.recv(), np.float64).reshape(-1, 3)
    self._sampler.join()

  def stages(self) -> dict[str, dict[str, float]]:
    """Return by stage: seconds, and the most bytes that any one process had, by kind."""
    result: dict[str, dict[str, float]] = {}
    at = self._samples[:, 0]
    for stage, started, ended in self._times:
      known = result.setdefault(stage, dict(seconds=0.0, allocated=0, mapped=0))
      known['seconds'] += ended - started
      within = self._samples[(at >= started) & (at <= ended + SAMPLE_S)]
      for column, kind in ((1, 'allocated'), (2, 'mapped')):
        known[kind] = max(known[kind], int(within[:, column].max(initial=0)))
    return result


def _sample(pid: int, connection: Connection) -> None:
  """Send (time, allocated, mapped), the most of any process of the tree, until told to stop."""
  samples, tree = [], [pid]
  connection.send('begun')
  while not connection.poll(SAMPLE_S):
    if len(samples) % 10 == 0:
      tree = [each for each in process_tree(pid) if each != os.getpid()]
    memory = [memory_of(each) for each in tree]
    samples.append((time.time(), *(max(kind) for kind in zip(*memory))))
  connection.send(samples)


def memory_of(pid: int) -> tuple[int, int]:
  """Return the bytes that a process has allocated, and those of files that it has mapped."""
  try:
    lines = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
  except OSError:  # it ended in the meantime
    return 0, 0
  fields = dict(line.split(':', 1) for line in lines)
  kib = [int(fields.get(name, '0 kB').split()[0]) for name in ('RssAnon', 'RssFile', 'RssShmem')]
  return 1024 * kib[0], 1024 * (kib[1] + kib[2])


def _points(results: dict) -> list[dict]:
  """Return the points with their sizes as fields."""
  named = []
  for name, point in results['points'].items():
    words = name.split()
    named.append(dict(zip(words[1::2], map(int, words[::2]))) | point)
  return named


def table(results: dict) -> str:
  """Return seconds and the most GiB that a process allocated, by stage, as Markdown."""
  points = _points(results)
  names = list(dict.fromkeys(stage for point in points for stage in point['stages']))
  lines = [
    '| users | items | events | ' + ' | '.join(names) + ' |',
    '|---' * (3 + len(names)) + '|',
  ]
  for point in points:
    sizes = [f'{point[axis]:,}' for axis in ('users', 'items', 'events')]
    used = [point['stages'].get(name) for name in names]
    cells = [f'{u["seconds"]:.0f} s, {u["allocated"] / GIB:.2f}' if u else '' for u in used]
    lines.append('| ' + ' | '.join([*sizes, *cells]) + ' |')
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw time and peak memory of every stage against each axis."""
  figure, panels = harness.panels(2, 3, (11, 6.4))
  base, points = results['base'], _points(results)
  for column, axis in enumerate(base):
    others = [other for other in base if other != axis]
    chosen = [p for p in points if all(p[other] == base[other] for other in others)]
    chosen.sort(key=lambda point: point[axis])
    for row, (field, unit, label) in enumerate(
      (('seconds', 1, 'seconds'), ('allocated', GIB, 'GiB allocated, any process'))
    ):
      panel = panels[row][column]
      for number, stage in enumerate(chosen[0]['stages']):
        values = [point['stages'][stage][field] / unit for point in chosen]
        style = '-' if number < 6 else '--'
        panel.plot([p[axis] for p in chosen], values, 'o' + style, ms=3, label=stage)
      panel.set(xscale='log', xlabel=f'{axis} (simulated)', ylabel=label)
      panel.set(**(dict(ylim=(0, None)) if row else dict(yscale='log')))
      sizes = [point[axis] for point in chosen]
      panel.set_xticks(sizes, [f'{size:,}' for size in sizes])
      panel.minorticks_off()
  panels[1][0].legend(fontsize=6)
  figure.savefig(figure_path)


if __name__ == '__main__':
  harness.main(measure, plot, table, packages=('polars', 'scipy'))
