"""What `reasoner.train` costs in memory: the joint train step of one config compiled for a pod.

  python -m experiments.benchmarks.train_modes    # needs libtpu (requirements-test.txt), no TPU

The modes train all of the reasoner, adapters (LoRA), or the rows of its own tokens alone. Beside
the step's memory stands what a checkpoint of the loop then holds.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from experiments.benchmarks import harness
from rolegen_jax.cli import entry
from rolegen_jax.config import Config
from rolegen_jax.models import functional
from rolegen_jax.reasoning.rolegen import RoleGen

MODES = ('all', 'lora', 'frozen')
MEMORY = {'arguments': harness.BLUE, 'temporaries': harness.ORANGE, 'code': harness.GRAY}
GIB = 2**30


def measure(
  store: harness.Store,
  *,
  experiment: str = 'pod:v5e_16',
  topology: str = 'tpu:v5e:4x4',
  items: int = 1_000_000,
  assignments: tuple[str, ...] = (),
) -> dict:
  """Compile the joint train step in every mode.

  experiment: What is compiled.
  topology: Where it would run, as compile_check takes it.
  items: Catalogue size.
  assignments: Fields of the config to replace, section.field=value.
  """
  for mode in MODES:
    fields = [*assignments, f'reasoner.train={mode}']
    flags = [
      f'--experiment={experiment}',
      f'--topology={topology}',
      '--programs=step',
      f'--items={items}',
      '--optimization_level=O0',
      *(f'--set={field}' for field in fields),
    ]
    config = entry.experiment(experiment, fields)
    store.point(mode, flags, functools.partial(measure_mode, flags, config))
  return dict(points=store.points)


def measure_mode(flags: Sequence[str], config: Config) -> dict:
  """Return what trains and what compile_check says; `error` has the sizes of what does not fit."""
  check = harness.compile_check(*flags)
  step = check['programs'][0]
  about = {field: check[field] for field in ('topology', 'versions')} | parameter_counts(config)
  if 'error' in step:
    return about | dict(error=step['error'])
  return about | dict(
    mesh=step['mesh'],
    users=check['config']['loop_stage']['batch'],
    compile_seconds=step['compile_seconds'],
    memory={kind: step['memory'][kind] for kind in (*MEMORY, 'total', 'hbm')},
    roofline_seconds=step['roofline']['seconds'],
  )


def parameter_counts(config: Config) -> dict[str, int]:
  """Return how many of the reasoner's numbers train and do not, and the bytes of a checkpoint.

  A checkpoint of the loop holds fp32: of both models what trains and two moments of it, and the
  reference's copy of the reasoner's.
  """
  rolegen = RoleGen(config)

  def count(model_fn: Callable) -> int:
    abstract = functional.abstract(model_fn)[1]
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract))

  trained = {name: count(model_fn) for name, model_fn in rolegen.trained.items()}
  return dict(
    trained=trained['reasoner'],
    frozen=sum(count(model_fn) for model_fn in rolegen.frozen.values()),
    checkpoint_bytes=4 * (3 * trained['backbone'] + 4 * trained['reasoner']),
  )


def table(results: dict) -> str:
  lines = [
    f'{"train":<7} {"trained":>9} {"arguments":>10} {"temporaries":>12} {"total":>7}'
    '  GiB a chip   checkpoint   roofline'
  ]
  for mode, point in results['points'].items():
    trained = f'{point["trained"] / 1e6:>7.1f} M'
    if 'error' in point:
      lines.append(f'{mode:<7} {trained} does not fit: {point["error"].splitlines()[0]}')
      continue
    gib = {kind: value / GIB for kind, value in point['memory'].items()}
    lines.append(
      f'{mode:<7} {trained} {gib["arguments"]:>10.2f} {gib["temporaries"]:>12.2f}'
      f' {gib["total"]:>7.2f}  of {gib["hbm"]:.0f}      '
      f' {point["checkpoint_bytes"] / GIB:>6.2f} GiB   {1e3 * point["roofline_seconds"]:.0f} ms'
    )
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw memory per chip and the size of a checkpoint, by mode."""
  points = {mode: p for mode, p in results['points'].items() if 'memory' in p}
  figure, grid = harness.panels(1, 2, (7.5, 2.9), grid='y')
  memory, checkpoint = grid[0]
  gib = {kind: [p['memory'][kind] / GIB for p in points.values()] for kind in MEMORY}
  harness.stacked_bars(memory, gib, list(MEMORY.values()))
  first = next(iter(points.values()))
  title = f'GiB a chip, {first["topology"]}, {first["users"]} users'
  memory.set_title(title, loc='left', fontsize=9)
  checkpoint_gib = [p['checkpoint_bytes'] / GIB for p in points.values()]
  harness.stacked_bars(checkpoint, dict(checkpoint=checkpoint_gib), [harness.GREEN])
  checkpoint.set_title('Checkpoint of the loop, both models, GiB', loc='left', fontsize=9)
  for panel in (memory, checkpoint):
    panel.set_xticks(range(len(points)), list(points))
    panel.margins(y=0.35)
  memory.legend(fontsize=7, frameon=False, ncols=3, loc='upper left')
  figure.savefig(figure_path, dpi=100)


if __name__ == '__main__':
  harness.main(measure, plot, table, packages=('libtpu',))
