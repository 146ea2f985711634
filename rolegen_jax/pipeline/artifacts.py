"""How a stage is cached: one folder per stage, bound to a record of what the stage reads.

KEY.json holds the record from the moment the stage begins, DONE.json once it is complete. Under
the same record a stage continues where it was cut off. Another one is an error that names the
difference: no stage is lost to a command that was not told to. With `retrain` the stage starts
afresh, and so does what depends on it.

In several processes all take the same path through the stages; process 0 writes the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from rolegen_jax import config as configs
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.files import as_data_error, lock, write_json
from rolegen_jax.pipeline import records
from rolegen_jax.pipeline.records import Difference, Record
from rolegen_jax.runtime import distributed, storage
from rolegen_jax.runtime.progress import say

# A sweep, which holds the folder of a point for its child, has `.lock` there.
RUN_LOCK = '.run.lock'
# A run that was updated: the folder of its versions, run folders all, and the file that names the
# one in use, by its path from the run folder.
VERSIONS, CURRENT = 'versions', 'current.json'
_OF_STAGE = 'what its stage wrote; remove the DONE.json of the stage to run it again'
_locks: dict[pathlib.Path, Any] = {}  # of the run folders that this process writes to


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a run folder: what it reads, where its files are, whether it is done."""

  record: Record
  folder: pathlib.Path
  is_complete: bool

  @property
  def key(self) -> str:
    """The digest of what it reads; its checkpoints are bound to it."""
    return self.record.key

  def finish(self, summary: str) -> None:
    """Mark the stage complete, and report it."""
    distributed.once(lambda: write_json(self.record.to_json(), self.folder / 'DONE.json'))
    say(f'{self.record.stage}: done, {summary} -> {self.folder}')


class RunFolder:
  """The folder of one run and the stages in it."""

  def __init__(self, path: str | os.PathLike, may_train: bool = True, retrain: bool = False):
    """Open the folder.

    may_train: False = nothing is written, and a stage that is not complete raises ConfigError.
    retrain: True = a stage that read something else starts afresh, which else is a ConfigError.
    """
    self.path, self.may_train, self.retrain = storage.absolute(path), may_train, retrain

  @property
  def root(self) -> pathlib.Path:
    """The run folder that this one is a version of; itself where it is none."""
    return self.path.parents[1] if self.path.parent.name == VERSIONS else self.path

  def adopt(self, config: Config, read: Iterable[Record]) -> None:
    """Make `config` that of the folder, unless a stage in it read something else.

    read: what stages read under `config`; their inputs, which earlier stages tell, do not count.
    Raises ConfigError, and has then changed nothing.
    """
    for record in read:
      self._require_usable(record, self._held(record.stage).difference(record, with_inputs=False))
    values, path = configs.to_dict(config), self.path / 'config.json'
    try:
      saved = json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):  # none, or cut off by a crash
      saved = None
    if saved != values:
      self.lock()
      write_json(values, path)

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

  def begin(self, record: Record) -> Stage:
    """Return the stage that reads `record`, its folder ready.

    Raises ConfigError when processes disagree on what it reads, when the stage that is there read
    something else, or when it is not complete and this folder was opened without `may_train`.
    """
    distributed.agree({f'artifacts of {record.stage}': record.key})
    is_complete = distributed.once(lambda: self._prepare(record))
    return Stage(record, self.path / record.stage, is_complete)

  def _prepare(self, record: Record) -> bool:
    """Make the stage's folder ready and return whether it holds the complete stage."""
    name, folder = record.stage, self.path / record.stage
    held = self._held(name)
    difference = held.difference(record)
    self._require_usable(record, difference)
    if held.is_complete and not difference:
      say(f'{name}: up to date')
      return True
    if not self.may_train:
      raise ConfigError(
        f'--workdir={self.path}: its stage {name} is not complete, and this command trains none; '
        'first run `rolegen train` or, with the ablation in evaluation.ablations, '
        '`rolegen evaluate`'
      )
    self.lock()
    if difference:
      say(f'{name}: {difference.what}; starting afresh')
    _remove(folder, only_leftovers=not difference)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record.to_json(), folder / 'KEY.json')
    say(f'{name}: {"continuing" if held.read and not difference else "running"}')
    return False

  def _held(self, stage: str) -> _Held:
    """Return what is in a stage's folder. Raises ConfigError when another version wrote it."""
    folder = self.path / stage
    try:
      done = records.read(folder / 'DONE.json')
      read = records.read(folder / 'KEY.json', otherwise=done)
    except KeyError:
      raise ConfigError(
        f'--workdir={self.path}: stage {stage} was written by another version, which did not keep '
        'what it read; use that version, or another --workdir'
      ) from None
    made = {path.name for path in folder.glob('*') if not path.name.startswith('.')} - {'KEY.json'}
    if not made:  # the stage ended before it had made anything, as one does on wrong data
      return _Held(None, False, False)
    return _Held(read, read is not None and read == done, read is None)

  def _require_usable(self, record: Record, difference: Difference | None) -> None:
    """Raise ConfigError where a difference would cost a stage that nobody gave up."""
    if difference and not self.retrain:
      raise ConfigError(
        f'--workdir={self.path}: stage {record.stage} {difference.what}; {difference.way_back}'
        'use another --workdir, or --retrain to train it again'
      )


class _Held(NamedTuple):
  """What is in the folder of a stage."""

  read: Record | None  # what the stage read; None = there is no stage, or that is not known
  is_complete: bool
  is_damaged: bool

  def difference(self, record: Record, with_inputs: bool = True) -> Difference | None:
    """Return why it cannot be used by a stage that reads `record`; None = it can, if there."""
    if self.is_damaged:
      return Difference('is damaged: its KEY.json is missing or cut off')
    return self.read.difference(record, with_inputs) if self.read else None


def current(workdir: str | os.PathLike) -> pathlib.Path:
  """Return the version of a run folder that is in use; the folder itself where it has none.

  Raises ConfigError where current.json names no version that is there.
  """
  root = storage.path(workdir)
  if not (root / CURRENT).is_file():
    return root
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    folder = root / json.loads((root / CURRENT).read_text(encoding='utf-8'))['version']
    if folder == root or (folder.parent == root / VERSIONS and folder.is_dir()):
      return folder
  raise ConfigError(
    f'{root / CURRENT}: names no version in {root / VERSIONS}; '
    'rolegen update --go_back=VERSION names one'
  )


def last_key(workdir: str | os.PathLike) -> str:
  """Return the key of the last training stage of a complete run.

  Raises ConfigError where a stage is missing or was run again since, so that what follows is of
  what it was before: a run that is being trained again is no complete one until its end.
  """
  root, config = storage.path(workdir), saved_config(workdir)
  names = ['data', 'semantic_ids', 'warmup', 'loop']
  names += [] if config.update.parent else ['reason']
  names += ['loop/calibration'] if config.calibration.steps else []
  done = {name: records.read(root / name / 'DONE.json') for name in names}
  present = {name: record for name, record in done.items() if record}
  if len(present) == len(names) and _are_of_one_run(root, present, config):
    return present['loop/calibration' if config.calibration.steps else 'loop'].key
  raise ConfigError(
    f'{workdir}: is no complete run; must be the folder of a run of `rolegen train` to its end'
  )


def _are_of_one_run(root: pathlib.Path, done: dict[str, Record], config: Config) -> bool:
  """Return whether the stages of a run folder read what is there now."""
  notes, ids = (read_json(root / name) for name in ('data/notes.json', 'semantic_ids/report.json'))
  read = dict(log=notes['log_digest'], semantic_ids=ids['digest'], warmup=done['warmup'].key)
  if 'reason' in done:
    read |= dict(reason=done['reason'].key)
  if not config.update.appends:  # else those of the whole log, which follow from it
    read |= dict(occasions=notes['occasions_digest'])
  loop, calibration = done['loop'], done.get('loop/calibration')
  is_of_loop = calibration is None or calibration.inputs.get('loop') == loop.key
  return is_of_loop and all(loop.inputs.get(name) == value for name, value in read.items())


def saved_config(workdir: str | os.PathLike) -> Config:
  """Return the resolved config of a run folder. Raises ConfigError where none can be read."""
  path = storage.path(workdir) / 'config.json'
  if not path.exists():
    raise ConfigError(
      f'--workdir={workdir}: no config.json there; must be the folder of a run of `rolegen train`'
    )
  return configs.load(path)


def read_arrays(path: pathlib.Path, *names: str) -> dict[str, np.ndarray]:
  """Return the arrays of a file that a stage wrote: those of `names`, or all.

  Raises DataError where the file is missing, damaged or another.
  """
  with as_data_error(path, _OF_STAGE), np.load(storage.local(path)) as file:
    return {name: file[name] for name in names or file.files}


def read_json(path: pathlib.Path) -> Any:
  """Return the content of a JSON file that a stage wrote. Raises DataError."""
  with as_data_error(path, _OF_STAGE):
    return json.loads(path.read_text(encoding='utf-8'))


def _remove(folder: pathlib.Path, only_leftovers: bool) -> None:
  """Remove a stage: it goes aside whole, so that a kill leaves no half of it under its name.

  In a bucket, which moves no folders, KEY.json goes last: what is left of it is no complete stage.
  only_leftovers: remove only what a killed removal left aside.
  """
  if storage.is_remote(folder):
    if not only_leftovers:
      storage.remove(folder, last='KEY.json')
    return
  aside = folder.with_name(f'.{folder.name}.removed')
  shutil.rmtree(aside, ignore_errors=True)
  if not only_leftovers and folder.exists():
    os.rename(folder, aside)
    shutil.rmtree(aside)
