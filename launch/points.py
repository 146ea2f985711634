"""The points of a sweep: what an experiment's `sweep(add, arg)` names, the run of each, and running those that are due."""

from __future__ import annotations

import importlib
import pathlib
import re
import sys

from launch import summary
from launch.ledger import Ledger, only_one
from launch.pool import Point, Pool, say
from rolegen_jax import commands
from rolegen_jax.config import ConfigError

POINT_NAME = re.compile(r'[A-Za-z0-9][\w.=+-]*')  # it names a folder
JOB_NAME = 40  # characters that launch.run takes
FAILED = 1  # exit code of a sweep some of whose points failed


def enumerated(experiment: str, arg: str, common: list[str]) -> dict[str, list[str]]:
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


def local(experiment: str, name: str, assignments: list[str], workdir: pathlib.Path) -> Point:
  folder = workdir / 'points' / name
  sets = [part for assignment in assignments for part in ('--set', assignment)]
  return Point(name, [sys.executable, '-m', 'rolegen_jax.train', f'--experiment={experiment}', f'--workdir={folder}', *sets], folder)


def remote(target: str, flags: list[str], experiment: str, found: dict[str, list[str]], names: list[str], workdir: pathlib.Path) -> list[Point]:
  """The named points as commands of `launch.run`, each with a job name of its own. Raises ConfigError when two would be equal."""
  made: dict[str, Point] = {}
  for name in names:
    job = re.sub('[^a-z0-9]+', '-', f'{experiment}-{name}'.lower())[:JOB_NAME].strip('-')
    if job in made:
      raise ConfigError(f'sweep of {experiment}: points {made[job].name!r} and {name!r} would both be job {job!r}; must differ in their first {JOB_NAME} letters and digits')
    folder = workdir / 'points' / name
    sets = [part for assignment in found[name] for part in ('--set', assignment)]
    command = ['python', '-m', 'launch.run', f'--target={target}', f'--name={job}', *flags, f'--experiment={experiment}', f'--workdir={folder}', *sets]
    made[job] = Point(name, command, folder)
  return list(made.values())


def is_due(each: Point, entry: dict, retry: list[str]) -> bool:
  """False, having said why, for a point that is done or that failed before and is not named to be tried again."""
  if entry['state'] == 'done' and each.path.exists():
    say(f'{each.name}: done')
    return False
  if entry['state'] == 'failed' and each.name not in retry:
    say(f'{each.name}: failed before; --only={each.name} tries it again')
    return False
  return True


def run(experiment: str, found: dict[str, list[str]], wanted: list[Point], workdir: pathlib.Path, retry: list[str], **limits) -> int:
  """Runs those points that are not done (nor failed, unless in `retry`), writes the summary of all points; returns the exit code."""
  with only_one(workdir):
    ledger = Ledger(workdir, experiment)
    due = [each for each in wanted if is_due(each, ledger.enter(each.name, found[each.name]), retry)]
    through = Pool(ledger, **limits).run(due)
    for name in found:
      ledger.enter(name, found[name])
    made = summary.rows(ledger.points, {name: workdir / 'points' / name for name in found})
    written = summary.write(made, workdir, f'RoleGen-JAX: sweep of {experiment}')
    print(summary.table(made), flush=True)
    say('summary -> ' + ', '.join(map(str, written)))
  if not through:
    return commands.PREEMPTED
  return FAILED if any(ledger.points[each.name]['state'] == 'failed' for each in wanted) else 0
