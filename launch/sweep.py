"""Runs the points of an experiment's sweep; started again after any interruption it repeats nothing that is done.

  python -m launch.sweep --experiment=demo --workdir=runs/sweep --parallel=2
  python -m launch.sweep --experiment=demo --workdir=runs/sweep --target=slurm --run_flags='--nodes=2 --gpus_per_node=8' | bash

An experiment file offers `sweep(add, arg)` beside get_config: `add(name, 'section.field=value', ...)` adds a point. A point is
a run of `rolegen_jax.train` in WORKDIR/points/NAME, its output in log.txt there; WORKDIR/ledger.json says what became of each.
On other targets than local the commands of launch.run are printed, for those points that have no report yet.
Exit codes: 0 every point is done, 1 some failed (the ledger says why), 2 bad setting, 42 stopped (run the same command again).
"""

from __future__ import annotations

import pathlib
import shlex

from absl import flags

from launch import entry, points
from launch.ledger import Ledger
from rolegen_jax.config import ConfigError

TARGETS = ('local', 'slurm', 'tpu_vm', 'gke_jobset')  # of launch.run

_EXPERIMENT = flags.DEFINE_string('experiment', 'demo', 'Name of a file in experiments/ that has a sweep, or NAME:ARG.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the sweep: ledger, summary, and a run folder per point. Made if absent.', required=True)
_TARGET = flags.DEFINE_string('target', 'local', 'Where points run: ' + ', '.join(TARGETS) + '.')
_RUN_FLAGS = flags.DEFINE_string('run_flags', '', 'Further flags of launch.run, for other targets than local.')
_LIST = flags.DEFINE_bool('list', False, 'Print the points, their state and assignments, and end.')
_ONLY = flags.DEFINE_list('only', [], 'Names of points, comma-separated; a failed one that is named here is tried again.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands that would be run, and end.')
_PARALLEL = flags.DEFINE_integer('parallel', 1, 'Points that run at the same time.', lower_bound=1)
_MAX_RESTARTS = flags.DEFINE_integer('max_restarts', 3, 'Restarts of a preempted or killed point before it counts as failed.', lower_bound=0)
_GRACE_S = flags.DEFINE_float('grace_s', 120.0, 'Seconds that points get to save when the sweep is stopped.', lower_bound=0)
_ARG = flags.DEFINE_string('arg', '', 'Argument of the sweep function.')
_SET = flags.DEFINE_multi_string('set', [], 'Assignment for every point, before the point\'s own. May be repeated.')


def main() -> int:
  experiment, workdir = _EXPERIMENT.value, pathlib.Path(_WORKDIR.value).absolute()
  if _TARGET.value not in TARGETS:
    raise ConfigError(f'--target={_TARGET.value}: must be one of {", ".join(TARGETS)}')
  found = points.enumerated(experiment, _ARG.value, _SET.value)
  names = points.chosen(found, _ONLY.value)
  if _LIST.value:
    ledger = Ledger(workdir, experiment)
    width = max(map(len, names))
    for name in names:
      print(f'{name:{width}}  {ledger.enter(name, found[name])["state"]:8}  {" ".join(found[name])}')
    return 0
  if _TARGET.value != 'local':
    for each in points.remote(_TARGET.value, shlex.split(_RUN_FLAGS.value), experiment, found, names, workdir):
      if not each.path.exists():
        print(shlex.join(each.command))
    return 0
  wanted = [points.local(experiment, name, found[name], workdir) for name in names]
  if _DRY_RUN.value:
    ledger = Ledger(workdir, experiment)
    for each in wanted:
      if points.is_due(each, ledger.enter(each.name, found[each.name]), _ONLY.value):
        print(shlex.join(each.command))
    return 0
  return points.run(experiment, found, wanted, workdir, _ONLY.value, parallel=_PARALLEL.value, max_restarts=_MAX_RESTARTS.value, grace_s=_GRACE_S.value)


if __name__ == '__main__':
  entry.run(main)
