"""Runs the points of an experiment's sweep; started again after any interruption it repeats nothing that is done.

  python -m launch.sweep --experiment=demo --workdir=runs/sweep --parallel=2

An experiment file offers `sweep(add, arg)` beside get_config: `add(name, 'section.field=value', ...)` adds a point. A point is
a run of `rolegen_jax.train` in WORKDIR/points/NAME, its output in log.txt there; WORKDIR/ledger.json says what became of each.
Exit codes: 0 every point is done, 1 some failed (the ledger says why), 2 bad setting, 42 stopped (run the same command again).
"""

from __future__ import annotations

import importlib
import pathlib
import re
import shlex
import sys

from absl import flags

from launch import entry, summary
from launch.ledger import Ledger, only_one
from launch.pool import Job, Pool, say
from rolegen_jax import commands
from rolegen_jax.config import ConfigError

TARGETS = ('local',)
POINT_NAME = re.compile(r'[A-Za-z0-9][\w.=+-]*')  # it names a folder
FAILED = 1

_EXPERIMENT = flags.DEFINE_string('experiment', 'demo', 'Name of a file in experiments/ that has a sweep, or NAME:ARG.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the sweep: ledger, summary, and a run folder per point. Made if absent.', required=True)
_TARGET = flags.DEFINE_string('target', 'local', 'Where points run: ' + ', '.join(TARGETS) + '.')
_LIST = flags.DEFINE_bool('list', False, 'Print the points, their state and assignments, and end.')
_ONLY = flags.DEFINE_list('only', [], 'Names of points, comma-separated; a failed one that is named here is tried again.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands that would be run, and end.')
_PARALLEL = flags.DEFINE_integer('parallel', 1, 'Points that run at the same time.', lower_bound=1)
_MAX_RESTARTS = flags.DEFINE_integer('max_restarts', 3, 'Restarts of a preempted or killed point before it counts as failed.', lower_bound=0)
_GRACE_S = flags.DEFINE_float('grace_s', 120.0, 'Seconds that points get to save when the sweep is stopped.', lower_bound=0)
_ARG = flags.DEFINE_string('arg', '', 'Argument of the sweep function.')
_SET = flags.DEFINE_multi_string('set', [], 'Assignment for every point, before the point\'s own. May be repeated.')


def points(experiment: str, arg: str, common: list[str]) -> dict[str, list[str]]:
  """name -> assignments of every point, all of them validated. Raises ConfigError."""
  commands.experiment(experiment, common)
  module = importlib.import_module(f'experiments.{experiment.partition(":")[0]}')
  if not hasattr(module, 'sweep'):
    raise ConfigError(f'--experiment={experiment}: experiments/{module.__name__.split(".")[-1]}.py has no sweep(add, arg)')
  found: dict[str, list[str]] = {}

  def add(name: str, *assignments: str) -> None:
    if not POINT_NAME.fullmatch(name):
      raise ConfigError(f'sweep of {experiment}: point {name!r}: must be letters, digits and _ . = + -, and begin with a letter or digit')
    if name in found:
      raise ConfigError(f'sweep of {experiment}: two points are named {name!r}; names must differ')
    found[name] = [*common, *assignments]

  try:
    module.sweep(add, arg)
    for name, assignments in found.items():
      commands.experiment(experiment, assignments)
  except ConfigError as error:
    raise ConfigError(str(error) if str(error).startswith('sweep of') else f'sweep of {experiment}: {error}') from error
  except ValueError as error:
    raise ConfigError(f'--arg={arg}: the sweep of {experiment} refuses it: {error}') from error
  if not found:
    raise ConfigError(f'--arg={arg}: the sweep of {experiment} has no points')
  return found


def chosen(found: dict[str, list[str]], only: list[str]) -> list[str]:
  """Names to run, in the sweep's order. Raises ConfigError on an unknown one."""
  unknown = [name for name in only if name not in found]
  if unknown:
    raise ConfigError(f'--only={unknown[0]}: no such point; must be some of {", ".join(found)}')
  return [name for name in found if not only or name in only]


def job(experiment: str, name: str, assignments: list[str], workdir: pathlib.Path) -> Job:
  folder = workdir / 'points' / name
  sets = [part for assignment in assignments for part in ('--set', assignment)]
  return Job(name, [sys.executable, '-m', 'rolegen_jax.train', f'--experiment={experiment}', f'--workdir={folder}', *sets], folder)


def is_due(each: Job, entry: dict, retry: list[str]) -> bool:
  """False, having said why, for a point that is done or that failed before and is not named to be tried again."""
  if entry['state'] == 'done' and each.is_there:
    say(f'{each.name}: done')
    return False
  if entry['state'] == 'failed' and each.name not in retry:
    say(f'{each.name}: failed before; --only={each.name} tries it again')
    return False
  return True


def run(experiment: str, found: dict[str, list[str]], jobs: list[Job], workdir: pathlib.Path, retry: list[str], **limits) -> int:
  """Runs those jobs that are not done (nor failed, unless in `retry`), writes the summary of all points; returns the exit code."""
  with only_one(workdir):
    ledger = Ledger(workdir, experiment)
    due = [each for each in jobs if is_due(each, ledger.enter(each.name, found[each.name]), retry)]
    through = Pool(ledger, **limits).run(due)
    for name in found:
      ledger.enter(name, found[name])
    made = summary.rows(ledger.points, {name: workdir / 'points' / name for name in found})
    print(summary.table(made), flush=True)
    say('summary -> ' + ', '.join(str(path) for path in summary.write(made, workdir, f'RoleGen-JAX: sweep of {experiment}')))
  if not through:
    return commands.PREEMPTED
  return FAILED if any(ledger.points[each.name]['state'] == 'failed' for each in jobs) else 0


def main() -> int:
  experiment, workdir = _EXPERIMENT.value, pathlib.Path(_WORKDIR.value).absolute()
  if _TARGET.value not in TARGETS:
    raise ConfigError(f'--target={_TARGET.value}: must be one of {", ".join(TARGETS)}')
  found = points(experiment, _ARG.value, _SET.value)
  names = chosen(found, _ONLY.value)
  jobs = [job(experiment, name, found[name], workdir) for name in names]
  if _LIST.value:
    ledger = Ledger(workdir, experiment)
    width = max(map(len, names))
    for name in names:
      print(f'{name:{width}}  {ledger.enter(name, found[name])["state"]:8}  {" ".join(found[name])}')
  elif _DRY_RUN.value:
    ledger = Ledger(workdir, experiment)
    for each in jobs:
      if is_due(each, ledger.enter(each.name, found[each.name]), _ONLY.value):
        print(shlex.join(each.command))
  else:
    return run(experiment, found, jobs, workdir, _ONLY.value, parallel=_PARALLEL.value, max_restarts=_MAX_RESTARTS.value, grace_s=_GRACE_S.value)
  return 0


if __name__ == '__main__':
  entry.run(main)
