"""The answers file of `endpoint.py`: answers are appended as they come, here or in a bucket."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import lock
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.progress import say
from rolegen_jax.text.records import json_line

SEND_EVERY_S = 30.0  # what a kill loses of a file in a bucket


@contextlib.contextmanager
def locked(answers: pathlib.Path) -> Iterator[None]:
  """Keep a second process from asking for the same answers."""
  try:
    file = lock(answers.with_name(f'.{answers.name}.lock'))
  except BlockingIOError as error:
    raise ConfigError(
      f'--answers={answers}: is being written ({error}); wait for it, or use another file'
    ) from error
  with file:
    yield


class Answers:
  """The answers file, open for more; in a bucket it is put there now and then, and at the end."""

  def __init__(self, path: pathlib.Path, size: int):
    """Cut off what a killed process left unfinished after `size` bytes, and end the last line."""
    self._path, self._spool = path, storage.Spool(path)
    self._file = self._spool.here.open('ab')
    cut_off = self._file.tell() - size
    if cut_off:
      say(f'{path}: {cut_off} bytes of an unfinished answer at its end are dropped')
      self._file.truncate(size)
    if size and self._spool.here.read_bytes()[-1:] != b'\n':
      self._file.write(b'\n')

  def append(self, row: dict[str, Any]) -> None:
    """Append an answer."""
    self._file.write(json_line(row).encode())
    self._file.flush()

  async def send(self) -> None:
    """Put the file into its bucket every SEND_EVERY_S, until this is cancelled."""
    while True:
      await asyncio.sleep(SEND_EVERY_S)
      try:
        await asyncio.to_thread(self._spool.flush)
      except Exception as error:  # whatever the store says; it may take the file in a while
        say(f'{self._path}: could not be written ({error!r}); trying again')

  def close(self) -> None:
    """Close the file, and put it into its bucket where it has one.

    Raises ConfigError naming a copy on this machine where the bucket does not take it.
    """
    self._file.close()
    try:
      self._spool.flush()
    except Exception as error:
      copy = pathlib.Path(tempfile.mkdtemp(prefix='rolegen_answers_')) / self._path.name
      shutil.copy(self._spool.here, copy)
      raise ConfigError(
        f'{self._path}: could not be written ({error!r}); all answers are in {copy}: put them '
        'there, and the same command goes on'
      ) from error
