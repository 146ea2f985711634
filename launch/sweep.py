"""Run the points of an experiment's sweep.

  python -m launch.sweep --experiment=demo --workdir=runs/sweep --parallel=2
  python -m launch.sweep --experiment=demo --workdir=runs/sweep --target=slurm \
      --run_flags='--nodes=2 --gpus_per_node=8' | bash

Started again after any interruption, it repeats nothing that is done. An experiment file defines
`sweep(add, arg)` beside get_config: `add(name, 'section.field=value', ...)` adds a point. A point
is a training run in WORKDIR/points/NAME, with its output in log.txt there. WORKDIR/ledger.json
records the state of each point. On targets other than local the commands of launch.run are
printed, for those points that have no report yet.

Exit codes: 0 every point is done, 1 some failed (the ledger says why), 2 bad setting, 42 stopped
(run the same command again).
"""

from __future__ import annotations

import shlex

from absl import flags

from launch import entry
from launch import points as sweep_points
from launch.job import TARGETS, is_written_out
from launch.ledger import Ledger
from launch.pool import Limits, Point
from rolegen_jax.config import ConfigError
from rolegen_jax.fields import local_path
from rolegen_jax.runtime import storage

_EXPERIMENT = flags.DEFINE_string(
  'experiment', 'demo', 'Name of a file in experiments/ that has a sweep, or path of one; NAME:ARG.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder, also in a bucket, for ledger, summary and one run folder per point; made if absent.',
  required=True,
)
_TARGET = flags.DEFINE_string('target', 'local', f'Where points run: {", ".join(TARGETS)}.')
_RUN_FLAGS = flags.DEFINE_string(
  'run_flags', '', 'Further flags of launch.run, for targets other than local.'
)
_LIST = flags.DEFINE_bool('list', False, 'Print the points, their states and assignments; exit.')
_ONLY = flags.DEFINE_list(
  'only', [], 'Names of points, separated by commas; a failed one named here runs again.'
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands that would run, and exit.')
_PARALLEL = flags.DEFINE_integer('parallel', 1, 'Points that run at the same time.', lower_bound=1)
_MAX_RESTARTS = flags.DEFINE_integer(
  'max_restarts', 3, 'Restarts of a preempted or killed point before it fails.', lower_bound=0
)
_GRACE_S = flags.DEFINE_float(
  'grace_s', 120.0, 'Seconds that points have to save when the sweep is stopped.', lower_bound=0
)
_ARG = flags.DEFINE_string('arg', '', 'Argument of the sweep function.')
_SET = flags.DEFINE_multi_string(
  'set', [], "Assignment for every point, before the point's own. May be repeated."
)


def main() -> int:
  if _TARGET.value not in TARGETS:
    raise ConfigError(f'--target={_TARGET.value}: must be one of {", ".join(TARGETS)}')
  experiment, folder = _EXPERIMENT.value, local_path(_WORKDIR.value, '--workdir', urls=True)
  if _TARGET.value != 'local' and not is_written_out(_WORKDIR.value, urls=True):
    raise ConfigError(
      f'--workdir={_WORKDIR.value}: must be written out with --target={_TARGET.value}: '
      '~ and $VARIABLES are those of this machine'
    )
  workdir = storage.absolute(folder)
  points = sweep_points.enumerate_points(experiment, _ARG.value, _SET.value)
  names = sweep_points.select(points, _ONLY.value)
  if _LIST.value:
    print_points(Ledger(workdir, experiment), {name: points[name] for name in names})
    return 0
  if _TARGET.value != 'local':
    chosen = {name: points[name] for name in names}
    try:
      run_flags = shlex.split(_RUN_FLAGS.value)
    except ValueError as error:
      raise ConfigError(f'--run_flags={_RUN_FLAGS.value}: {error}; must be flags') from error
    jobs = sweep_points.remote_points(experiment, chosen, workdir, _TARGET.value, run_flags)
    print_commands([job for job in jobs if not sweep_points.has_report(job, points[job.name])])
    return 0
  selected = [sweep_points.local_point(experiment, name, points[name], workdir) for name in names]
  if _DRY_RUN.value:
    ledger = Ledger(workdir, experiment)
    for point in selected:
      if sweep_points.is_due(point, ledger.enter(point.name, points[point.name]), _ONLY.value):
        print_commands([point])
    return 0
  limits = Limits(_PARALLEL.value, _MAX_RESTARTS.value, _GRACE_S.value)
  return sweep_points.run(experiment, points, selected, workdir, _ONLY.value, limits)


def print_points(ledger: Ledger, points: sweep_points.Assignments) -> None:
  """Print name, state and assignments of each point."""
  width = max(map(len, points))
  for name, assignments in points.items():
    print(f'{name:{width}}  {ledger.enter(name, assignments).state:8}  {" ".join(assignments)}')


def print_commands(points: list[Point]) -> None:
  for point in points:
    print(shlex.join(point.command))


if __name__ == '__main__':
  entry.run(main)
