"""The ledger of a sweep: what became of every point, in one JSON file that is whole at any moment.

A point is waiting, running, done, failed (why, exit code) or stopped (by a signal to the sweep). A sweep that was killed
leaves `running` behind: such a point is continued, as a stopped one is, because its own command continues where it was.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import pathlib
from collections.abc import Iterator

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import lock, write_json


class Ledger:
  """`folder/ledger.json`; every change is on disk before it is acted on."""

  def __init__(self, folder: pathlib.Path, experiment: str):
    """Raises ConfigError when the folder holds the sweep of another experiment, or a file that is no ledger."""
    self.path = folder / 'ledger.json'
    self.points: dict[str, dict] = {}
    self._experiment = experiment
    if self.path.exists():
      try:
        read = json.loads(self.path.read_text(encoding='utf-8'))
        found, self.points = read['experiment'], read['points']
      except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{self.path}: not the ledger of a sweep ({error}); use another --workdir') from error
      if found != experiment:
        raise ConfigError(f'--workdir={folder}: holds the sweep of --experiment={found}, not {experiment}; use another --workdir')

  def enter(self, name: str, assignments: list[str]) -> dict:
    """The point's entry. One that is new, or was run under other assignments, is waiting; nothing is written yet."""
    entry = self.points.get(name)
    if entry is None or entry['set'] != assignments:
      entry = self.points[name] = dict(state='waiting', set=assignments, why='', exit_code=None, starts=0, started=None, ended=None, wall_s=0.0)
    return entry

  def update(self, name: str, **fields) -> None:
    self.points[name].update(fields)
    write_json(dict(experiment=self._experiment, points=self.points), self.path)


@contextlib.contextmanager
def only_one(folder: pathlib.Path) -> Iterator[None]:
  """One sweep at a time runs in a folder. Raises ConfigError when another one does; a killed one holds nothing."""
  try:
    held = lock(folder / '.lock')
  except BlockingIOError as error:
    raise ConfigError(f'--workdir={folder}: a sweep is running there ({error}); wait for it, or use another --workdir') from error
  with held:
    yield


def now() -> str:
  return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
