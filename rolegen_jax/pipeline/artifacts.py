"""How a stage is cached: one folder per stage, bound to a key.

A key is a digest of the settings and artifacts that the stage depends on. KEY.json holds it from
the moment the stage begins, DONE.json once it is complete. The same key continues where the stage
was cut off; another key starts the stage afresh, and so all that depend on it.

In several processes all take the same path through the stages; process 0 writes the files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

from rolegen_jax import config as configs
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.files import lock, write_json
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.progress import say

# A sweep, which holds the folder of a point for its child, has `.lock` there.
RUN_LOCK = '.run.lock'
_locks: dict[pathlib.Path, Any] = {}  # of the run folders that this process writes to


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a run folder: where its files are, the key it runs under, whether it is done."""

  name: str
  folder: pathlib.Path
  key: str
  is_complete: bool

  def finish(self, summary: str) -> None:
    """Mark the stage complete under its key, and report it."""
    distributed.once(lambda: write_json({'key': self.key}, self.folder / 'DONE.json'))
    say(f'{self.name}: done, {summary} -> {self.folder}')


class RunFolder:
  """The folder of one run and the stages in it."""

  def __init__(self, path: str | os.PathLike, may_train: bool = True):
    """Open the folder. With `may_train` False a stage that is not complete raises ConfigError."""
    self.path, self._may_train = pathlib.Path(path).absolute(), may_train

  def save_config(self, config: Config) -> None:
    """Write the resolved config, unless it stands there already."""
    values = configs.to_dict(config)
    if _read_json(self.path / 'config.json') != values:
      self.lock()
      write_json(values, self.path / 'config.json')

  def lock(self) -> None:
    """Reserve the folder for this process until it ends: one run at a time writes to it.

    What is complete may be read by many. Raises ConfigError when another run is at work.
    """
    if self.path in _locks:
      return
    try:
      _locks[self.path] = lock(self.path / RUN_LOCK)
    except BlockingIOError as error:
      raise ConfigError(
        f'--workdir={self.path}: another run is at work there ({error}); '
        'wait for it, or use another --workdir'
      ) from error

  def begin(self, name: str, key: str) -> Stage:
    """Return the stage of this name, its folder ready for `key`.

    Raises ConfigError when processes disagree on the key, or when the stage is not complete and
    this folder was opened without `may_train`.
    """
    distributed.agree({f'artifacts of {name}': key})
    is_complete = distributed.once(lambda: self._prepare(name, key))
    return Stage(name, self.path / name, key, is_complete)

  def _prepare(self, name: str, key: str) -> bool:
    """Make the stage's folder ready for `key` and return whether it holds the complete stage."""
    folder = self.path / name
    begun, done = _read_json(folder / 'KEY.json'), _read_json(folder / 'DONE.json')
    if begun == done == {'key': key}:
      say(f'{name}: up to date')
      return True
    if not self._may_train:
      raise ConfigError(
        f'--workdir={self.path}: its stage {name} is not complete, and this command trains none; '
        'first run `rolegen train` or, with the ablation in evaluation.ablations, '
        '`rolegen evaluate`'
      )
    self.lock()
    if begun is not None and begun != {'key': key}:
      say(f'{name}: settings or inputs changed, starting afresh')
      shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json({'key': key}, folder / 'KEY.json')
    say(f'{name}: {"continuing" if begun == {"key": key} else "running"}')
    return False


def saved_config(workdir: str | os.PathLike) -> Config:
  """Return the resolved config of a run folder. Raises ConfigError where none can be read."""
  path = pathlib.Path(workdir) / 'config.json'
  if not path.exists():
    raise ConfigError(
      f'--workdir={workdir}: no config.json there; must be the folder of a run of `rolegen train`'
    )
  return configs.load(path)


def _read_json(path: pathlib.Path) -> Any:
  return json.loads(path.read_text(encoding='utf-8')) if path.exists() else None
