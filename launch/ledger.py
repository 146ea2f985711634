"""The ledger of a sweep: the state of every point, in one JSON file that is always complete.

A sweep that was killed leaves points in state `running`. They are continued, as stopped ones are:
a point's own command continues where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import lock, write_json


@dataclasses.dataclass(frozen=True)
class Entry:
  """What the ledger records about one point."""

  state: str  # waiting | running | done | failed | stopped (by a signal to the sweep)
  set: list[str]  # the assignments of its config
  why: str = ''  # it failed, was stopped or waits for a restart
  exit_code: int | None = None  # of its latest start
  starts: int = 0
  started: str | None = None  # UTC, ISO 8601: its latest start
  ended: str | None = None
  wall_s: float = 0.0  # over all starts


class Ledger:
  """`folder/ledger.json`. Every change is on disk before the sweep acts on it."""

  def __init__(self, folder: pathlib.Path, experiment: str) -> None:
    """Read the ledger if there is one.

    Raises ConfigError when it belongs to another experiment or cannot be read.
    """
    self.path = folder / 'ledger.json'
    self.entries: dict[str, Entry] = {}
    self._experiment = experiment
    if not self.path.exists():
      return
    try:
      content = json.loads(self.path.read_text(encoding='utf-8'))
      owner = content['experiment']
      self.entries = {name: Entry(**fields) for name, fields in content['points'].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      message = f'{self.path}: not the ledger of a sweep ({error}); use another --workdir'
      raise ConfigError(message) from error
    if owner != experiment:
      raise ConfigError(
        f'--workdir={folder}: holds the sweep of --experiment={owner}, not {experiment}; '
        'use another --workdir'
      )

  def enter(self, name: str, assignments: list[str]) -> Entry:
    """Return the entry of a point, without writing it.

    A point that is new, or whose assignments have changed, becomes `waiting`.
    """
    entry = self.entries.get(name)
    if entry is None or entry.set != assignments:
      entry = self.entries[name] = Entry('waiting', assignments)
    return entry

  def update(self, name: str, **changes: Any) -> Entry:
    """Change fields of an entry, write the ledger, and return the new entry."""
    entry = self.entries[name] = dataclasses.replace(self.entries[name], **changes)
    points = {key: dataclasses.asdict(value) for key, value in self.entries.items()}
    write_json(dict(experiment=self._experiment, points=points), self.path)
    return entry


@contextlib.contextmanager
def exclusive(folder: pathlib.Path) -> Iterator[None]:
  """Hold the folder's lock: one sweep at a time runs in it.

  Raises ConfigError when another one does. The lock of a killed sweep is released.
  """
  try:
    lock_file = lock(folder / '.lock')
  except BlockingIOError as error:
    raise ConfigError(
      f'--workdir={folder}: a sweep is running there ({error}); '
      'wait for it, or use another --workdir'
    ) from error
  with lock_file:
    yield


def utc_now() -> str:
  """Return the time as the ledger writes it."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
