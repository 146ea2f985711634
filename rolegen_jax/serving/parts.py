"""A table that is written in parts: what is cut off goes on where it was.

The parts lie beside the output, in .NAME.parts/, until all are there and become one file. In
several processes all take the same path through the parts; process 0 writes the files.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import polars as pl

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import Lock, lock, read_parquet, renamed, write_json, write_parquet
from rolegen_jax.runtime import distributed, storage
from rolegen_jax.runtime.progress import say

KEY = 'KEY.json'


class Parts:
  """The parts of the table at `output`, reserved for this job until it is closed."""

  def __init__(self, output: str | os.PathLike, key: str, parts: int):
    """key: of what decides the table; parts under another one are dropped. parts: how many.

    Raises ConfigError where another job writes them.
    """
    self._output, self._parts = storage.path(output), parts
    self._folder = self._output.with_name(f'.{self._output.name}.parts')
    self._lock: Lock | None = None
    distributed.once(lambda: self._begin(key))

  def __enter__(self) -> Parts:
    return self

  def __exit__(self, *_: object) -> None:
    if self._lock:
      self._lock.close()

  def read(self, number: int) -> pl.DataFrame | None:
    """Return a part, None where it is not there yet."""
    path = self._path(number)
    return read_parquet(path) if distributed.once(path.exists) else None

  def write(self, number: int, frame: pl.DataFrame) -> None:
    """Write a part."""
    distributed.once(lambda: write_parquet(frame, self._path(number)))

  def join(self) -> None:
    """Write the output, in the order of the parts, and drop them.

    Raises FileNotFoundError where one is missing.
    """
    distributed.once(self._join)

  def _begin(self, key: str) -> None:
    try:
      # Beside the folder, which goes; a lock that somebody else may hold must not.
      self._lock = lock(self._output.with_name(f'.{self._output.name}.lock'))
    except BlockingIOError as error:
      raise ConfigError(
        f'--output={self._output}: being written by {error}; wait for it, or use another file'
      ) from error
    there, is_ours = self._there(), self._key() == key
    if there:
      what = 'going on after' if is_ours else 'dropping, as they are of other lists,'
      say(f'{self._output}: {what} {len(there)} parts of an earlier call')
    if not is_ours:
      self._clear()
      write_json(dict(key=key), self._folder / KEY)

  def _join(self) -> None:
    parts = [storage.local(self._path(number)) for number in range(self._parts)]
    with renamed(self._output) as temporary:
      pl.scan_parquet(parts, glob=False, hive_partitioning=False).sink_parquet(temporary)
    self._clear()
    if not storage.is_remote(self._folder):
      shutil.rmtree(self._folder, ignore_errors=True)

  def _path(self, number: int) -> pathlib.Path:
    return self._folder / f'{number:06}.parquet'

  def _there(self) -> list[pathlib.Path]:
    """Return the parts that are there, of whichever key."""
    if not self._folder.is_dir():
      return []
    return [path for path in self._folder.iterdir() if path.suffix == '.parquet']

  def _key(self) -> str:
    try:
      return json.loads((self._folder / KEY).read_text(encoding='utf-8'))['key']
    except (OSError, ValueError, KeyError):
      return ''

  def _clear(self) -> None:
    for path in (*self._there(), self._folder / KEY):
      path.unlink(missing_ok=True)
