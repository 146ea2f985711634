"""A table that is written in parts: what is cut off goes on where it was.

The parts lie beside the output, in .NAME.parts/, until all are there and become one file.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import polars as pl

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import lock, read_parquet, renamed, write_json, write_parquet
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.progress import say

KEY = 'KEY.json'


class Parts:
  """The parts of the table at `output`, reserved for this process until it is closed."""

  def __init__(self, output: str | os.PathLike, key: str):
    """key: of what decides the table; parts under another one are dropped.

    Raises ConfigError where another process writes them.
    """
    self._output = storage.path(output)
    self._folder = self._output.with_name(f'.{self._output.name}.parts')
    try:
      self._lock = lock(self._folder / '.lock')
    except BlockingIOError as error:
      raise ConfigError(
        f'--output={output}: being written by {error}; wait for it, or use another file'
      ) from error
    self._is_joined = False
    if self._key() != key:
      self._clear()
      write_json(dict(key=key), self._folder / KEY)
    elif n_parts := len(list(self._folder.glob('*.parquet'))):
      say(f'{output}: going on after {n_parts} parts of an earlier call')

  def __enter__(self) -> Parts:
    return self

  def __exit__(self, *_: object) -> None:
    if self._is_joined and not storage.is_remote(self._folder):
      shutil.rmtree(self._folder)
    self._lock.close()

  def read(self, number: int) -> pl.DataFrame | None:
    """Return a part, None where it is not there yet."""
    path = self._path(number)
    return read_parquet(path) if path.exists() else None

  def write(self, number: int, frame: pl.DataFrame) -> None:
    """Write a part."""
    write_parquet(frame, self._path(number))

  def join(self) -> None:
    """Write the output, in the order of the parts, and drop them."""
    parts = [storage.local(path) for path in sorted(self._folder.glob('*.parquet'))]
    with renamed(self._output) as temporary:
      pl.scan_parquet(parts, glob=False, hive_partitioning=False).sink_parquet(temporary)
    self._clear()
    self._is_joined = True

  def _path(self, number: int) -> pathlib.Path:
    return self._folder / f'{number:06}.parquet'

  def _key(self) -> str:
    try:
      return json.loads((self._folder / KEY).read_text(encoding='utf-8'))['key']
    except (OSError, ValueError, KeyError):
      return ''

  def _clear(self) -> None:
    for path in (*self._folder.glob('*.parquet'), self._folder / KEY):
      path.unlink(missing_ok=True)
