"""One model on more and more TPU v5p chips, users per chip constant: memory, traffic and roofline.

  python -m experiments.benchmarks.weak_scaling    # needs libtpu (requirements-test.txt), no TPU

The models of `experiments/pod.py` (8 B + 1 B) under one rule for the mesh: tensor = 8, the rest
over fsdp up to 16, beyond that over data. JAX splits no dimension of a v5p torus between mesh axes,
so each axis is a product of whole dimensions. Every point is a compile_check.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.benchmarks import harness

EXPERIMENT = 'pod:v5p_128'
ITEMS = 1_000_000
USERS_PER_CHIP = 4
MESHES = {  # chips -> (torus, data, fsdp, tensor)
  16: ('2x2x4', 1, 2, 8),
  64: ('2x4x8', 1, 8, 8),
  128: ('4x4x8', 1, 16, 8),
  512: ('8x8x8', 8, 8, 8),
  2048: ('8x16x16', 16, 16, 8),
}
PHASES = {
  'rollout': harness.SKY,
  'execution': harness.GREEN,
  'reflection': harness.BLUE,
  'other': harness.ORANGE,
}
MEMORY = {'arguments': harness.GREEN, 'temporaries': harness.VERMILION, 'code': harness.GRAY}
GIB = 2**30


def measure(
  store: harness.Store, *, chips: tuple[int, ...] = tuple(MESHES), assignments: tuple[str, ...] = ()
) -> dict:
  """Compile the joint train step for each number of chips.

  chips: Some of 16, 64, 128, 512, 2048.
  assignments: Fields of the config to replace, section.field=value.
  """
  harness.require_known('chips', chips, list(MESHES))
  for count in chips:
    flags = check_flags(count, assignments)
    store.point(str(count), flags, functools.partial(measure_point, flags))
  return dict(users_per_chip=USERS_PER_CHIP, experiment=EXPERIMENT, points=store.points)


def check_flags(chips: int, assignments: Sequence[str] = ()) -> list[str]:
  """Return the flags of the compile_check of a point."""
  torus, data, fsdp, tensor = MESHES[chips]
  mesh = [f'mesh.data={data}', f'mesh.fsdp={fsdp}', f'mesh.tensor={tensor}']
  batch = f'loop_stage.batch={USERS_PER_CHIP * chips}'
  return [
    f'--experiment={EXPERIMENT}',
    f'--topology=tpu:v5p:{torus}',
    '--programs=step',
    f'--items={ITEMS}',
    '--optimization_level=O0',
    *(f'--set={a}' for a in (*mesh, batch, *assignments)),
  ]


def measure_point(flags: Sequence[str]) -> dict:
  """Return what the figure needs of a compile_check. Bytes are per chip."""
  check = harness.compile_check(*flags)
  step = check['programs'][0]
  roofline = step['roofline']
  traffic = step['collectives']['phases']
  return dict(
    topology=check['topology'],
    mesh=step['mesh'],
    users=check['config']['loop_stage']['batch'],
    compile_seconds=step['compile_seconds'],
    versions=check['versions'],
    memory={kind: step['memory'][kind] for kind in (*MEMORY, 'total', 'hbm')},
    sent={phase: sent['link'] + sent['network'] for phase, sent in traffic.items()},
    roofline={phase: bounds['roofline'] for phase, bounds in roofline['phases'].items()},
    bound={phase: bounds['bound'] for phase, bounds in roofline['phases'].items()},
    seconds=roofline['seconds'],
    mfu_at_roofline=roofline['mfu_at_roofline'],
  )


def table(results: dict) -> str:
  lines = [
    f'{"chips":>5} {"mesh":>12} {"GiB a chip":>10} {"arguments":>9} {"temporaries":>11}'
    f' {"GB sent":>8} {"roofline":>9} {"MFU":>5}'
  ]
  for point in _by_chips(results):
    mesh = ' x '.join(str(n) for n in point['mesh'].values())
    total, arguments, temporaries = (
      point['memory'][kind] / GIB for kind in ('total', 'arguments', 'temporaries')
    )
    lines.append(
      f'{_chips(point):>5} {mesh:>12} {total:10.2f} {arguments:9.2f} {temporaries:11.2f}'
      f' {sum(point["sent"].values()) / 1e9:8.1f} {1e3 * point["seconds"]:6.0f} ms'
      f' {100 * point["mfu_at_roofline"]:3.0f} %'
    )
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw the step at the roofline, memory and traffic per chip, over numbers of chips."""
  points = _by_chips(results)
  figure, grid = harness.panels(1, 3, (10.2, 2.8), grid='y')
  for panel in grid.flat:
    panel.set_xticks(range(len(points)), [_mesh_label(p) for p in points], fontsize=7.5)
  time, memory, traffic = grid[0]
  milliseconds = {phase: [1e3 * p['roofline'][phase] for p in points] for phase in PHASES}
  harness.stacked_bars(time, milliseconds, list(PHASES.values()))
  users = results['users_per_chip']
  _finish(time, f'v5p chips, {users} users each; data x fsdp x tensor', 'ms a step at the roofline')
  gib = {kind: [p['memory'][kind] / GIB for p in points] for kind in MEMORY}
  harness.stacked_bars(memory, gib, list(MEMORY.values()))
  capacity = points[0]['memory']['hbm'] / GIB
  _finish(memory, f'memory, compiled, of {capacity:.0f} GiB', 'GiB a chip')
  gigabytes = {phase: [p['sent'].get(phase, 0.0) / 1e9 for p in points] for phase in PHASES}
  harness.stacked_bars(traffic, gigabytes, list(PHASES.values()))
  _finish(traffic, 'sent in collectives, compiled', 'GB a step and chip')
  figure.savefig(figure_path, dpi=90)


def _chips(point: dict) -> int:
  return int(np.prod(list(point['mesh'].values())))


def _by_chips(results: dict) -> list[dict]:
  return sorted(results['points'].values(), key=_chips)


def _mesh_label(point: dict) -> str:
  return f'{_chips(point)}\n{"x".join(str(n) for n in point["mesh"].values())}'


def _finish(panel: Any, title: str, unit: str) -> None:
  panel.set_ylim(top=1.45 * panel.dataLim.y1)  # room for the legend
  panel.set_title(title, loc='left', fontsize=9)
  panel.set_ylabel(unit, fontsize=8)
  panel.legend(frameon=False, fontsize=7.5, ncols=2, loc='upper left')


if __name__ == '__main__':
  harness.main(measure, plot, table, packages=('libtpu',))
