"""A sweep whose points are stand-ins: `python stand_in_sweep.py WORKDIR NAME:SECONDS:CODES ...`.

It runs two points at a time.
"""

import pathlib
import sys
from collections.abc import Sequence

from launch import points as sweep_points
from launch.pool import Limits, Point

STAND_IN = pathlib.Path(__file__).with_name('stand_in.py')


def run(workdir: pathlib.Path, *specs: str, retry: Sequence[str] = (), parallel: int = 1) -> int:
  """Run one stand-in per spec, NAME:SECONDS:CODES; return the exit code of the sweep."""
  selected, points = [], {}
  for spec in specs:
    name, seconds, codes = spec.split(':')
    folder = workdir / 'points' / name
    command = [sys.executable, str(STAND_IN), str(folder), seconds, codes]
    selected.append(Point(name, command, folder))
    points[name] = []
  limits = Limits(parallel, max_restarts=2, grace_s=60)
  return sweep_points.run('demo', points, selected, workdir, list(retry), limits)


if __name__ == '__main__':
  sys.exit(run(pathlib.Path(sys.argv[1]), *sys.argv[2:], parallel=2))
