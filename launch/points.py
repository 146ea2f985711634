"""The points of a sweep: enumerate them, build the command of each, and run those that are due.

`Assignments` maps the name of every point to its `section.field=value` strings.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Callable
from types import ModuleType

from launch import summary
from launch.ledger import Entry, Ledger, exclusive
from launch.pool import Limits, Point, Pool, say
from rolegen_jax import overrides
from rolegen_jax.cli import entry as cli
from rolegen_jax.config import ConfigError
from rolegen_jax.pipeline.artifacts import saved_config

Assignments = dict[str, list[str]]

POINT_NAME = re.compile(r'[A-Za-z0-9][\w.=+-]*')  # it names a folder
JOB_NAME_LENGTH = 40  # that launch.run accepts
SOME_FAILED = 1  # exit code of a sweep with failed points


def enumerate_points(experiment: str, arg: str, common: list[str]) -> Assignments:
  """Return every point that the experiment's `sweep(add, arg)` adds, all of them validated.

  `common` assignments come before a point's own. Raises ConfigError.
  """
  cli.experiment(experiment, common)
  module, _ = cli.load_experiment(experiment)
  if not hasattr(module, 'sweep'):
    raise ConfigError(f'--experiment={experiment}: {module.__file__} has no sweep(add, arg)')
  points: Assignments = {}

  def add(name: str, *assignments: str) -> None:
    if not POINT_NAME.fullmatch(name):
      raise ConfigError(
        f'sweep of {experiment}: point {name!r}: '
        'must be letters, digits and _ . = + -, starting with a letter or digit'
      )
    if name in points:
      raise ConfigError(f'sweep of {experiment}: two points are named {name!r}; names must differ')
    points[name] = [*common, *assignments]

  try:
    with cli.told_in_one_line(f'sweep of {experiment}', module.__file__):
      _call_sweep(module, add, arg, experiment)
    for assignments in points.values():
      cli.experiment(experiment, assignments)
  except ConfigError as error:
    if str(error).startswith(('sweep of', '--arg')):
      raise
    raise ConfigError(f'sweep of {experiment}: {error}') from error
  if not points:
    raise ConfigError(f'--arg={arg}: the sweep of {experiment} has no points')
  return points


def _call_sweep(module: ModuleType, add: Callable[..., None], arg: str, experiment: str) -> None:
  try:
    module.sweep(add, arg)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f'--arg={arg}: rejected by the sweep of {experiment}: {error}') from error


def select(points: Assignments, only: list[str]) -> list[str]:
  """Return the names in `only`, or all, in the sweep's order; raise ConfigError on unknown ones."""
  for name in only:
    if name not in points:
      raise ConfigError(f'--only={name}: no such point; must be among {", ".join(points)}')
  return [name for name in points if not only or name in only]


def local_point(experiment: str, name: str, assignments: list[str], workdir: pathlib.Path) -> Point:
  """Return the point as a training run on this machine."""
  folder = point_folder(workdir, name)
  flags = [f'--experiment={experiment}', f'--workdir={folder}', *_set_flags(assignments)]
  return Point(name, [sys.executable, '-m', 'rolegen_jax', 'train', *flags], folder)


def remote_points(
  experiment: str, points: Assignments, workdir: pathlib.Path, target: str, run_flags: list[str]
) -> list[Point]:
  """Return the points as commands of `launch.run`, each with a job name of its own.

  Raises ConfigError when two job names would be equal.
  """
  by_job: dict[str, Point] = {}
  for name, assignments in points.items():
    job = _job_name(experiment, name)
    if job in by_job:
      raise ConfigError(
        f'sweep of {experiment}: points {by_job[job].name!r} and {name!r} would both be '
        f'job {job!r}; must differ in their first {JOB_NAME_LENGTH} letters and digits'
      )
    folder = point_folder(workdir, name)
    flags = [f'--target={target}', f'--name={job}', *run_flags]
    flags += [f'--experiment={experiment}', f'--workdir={folder}', *_set_flags(assignments)]
    by_job[job] = Point(name, ['python', '-m', 'launch.run', *flags], folder)
  return list(by_job.values())


def has_report(point: Point, assignments: list[str]) -> bool:
  """Return whether the point's folder holds a report of a run with these assignments."""
  if not point.product_path.exists() or not (point.folder / 'config.json').exists():
    return point.product_path.exists()
  saved = saved_config(point.folder)
  return overrides.apply(saved, assignments) == saved


def point_folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / 'points' / name


def _set_flags(assignments: list[str]) -> list[str]:
  return [part for assignment in assignments for part in ('--set', assignment)]


def _job_name(experiment: str, point: str) -> str:
  name = re.sub('[^a-z0-9]+', '-', f'{experiment}-{point}'.lower())
  return name[:JOB_NAME_LENGTH].strip('-')


def is_due(point: Point, entry: Entry, retry: list[str]) -> bool:
  """Return whether to run the point; say why not.

  A done point is not due, nor is a failed one that `retry` does not name.
  """
  if entry.state == 'done' and point.product_path.exists():
    say(f'{point.name}: done')
    return False
  if entry.state == 'failed' and point.name not in retry:
    say(f'{point.name}: failed before; --only={point.name} runs it again')
    return False
  return True


def run(
  experiment: str,
  points: Assignments,
  selected: list[Point],
  workdir: pathlib.Path,
  retry: list[str],
  limits: Limits,
) -> int:
  """Run the selected points that are due, and summarize all points; return the exit code."""
  with exclusive(workdir):
    ledger = Ledger(workdir, experiment)
    due = []
    for point in selected:
      entry = ledger.enter(point.name, points[point.name])
      if is_due(point, entry, retry):
        due.append(point)
    completed = Pool(ledger, limits).run(due)
    entries = {name: ledger.enter(name, assignments) for name, assignments in points.items()}
    rows = summary.rows(entries, {name: point_folder(workdir, name) for name in points})
    paths = summary.write(rows, workdir, f'RoleGen-JAX: sweep of {experiment}')
    print(summary.table(rows), flush=True)
    say('summary -> ' + ', '.join(map(str, paths)))
  if not completed:
    return cli.PREEMPTED
  failed = any(ledger.entries[point.name].state == 'failed' for point in selected)
  return SOME_FAILED if failed else 0
