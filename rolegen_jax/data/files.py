"""Read and write tables, JSON and arrays.

Every failure to read is a DataError, and a file appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import polars as pl

from rolegen_jax.fields import Refusal
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.lease import Lease

# What holds a lock, until it is closed: a file, or a lease on an object.
Lock = IO[str] | Lease


class DataError(Refusal):
  """Data is wrong. The message names the file, the row or field, what was found, what is right."""


@contextlib.contextmanager
def as_data_error(path: object, expected: str) -> Iterator[None]:
  """Turn whatever a library raises about `path` into a DataError that says what was expected.

  path: anything whose `str` names the source of the data.
  """
  try:
    yield
  except Refusal:
    raise
  except FileNotFoundError as error:
    raise DataError(f'{path}: no such file; must be {expected}') from error
  # A panic inside polars derives from BaseException, which `except Exception` would let through.
  except (Exception, pl.exceptions.PanicException) as error:
    lines = str(error).splitlines() or ['']
    raise DataError(
      f'{path}: cannot be read ({type(error).__name__}: {lines[0]}); must be {expected}'
    ) from error


def read_parquet(path: str | os.PathLike) -> pl.DataFrame:
  """Return the table at `path`, every column.

  Raises DataError when the file is missing, damaged or not a parquet file.
  """
  with as_data_error(path, 'a readable parquet file'):
    return pl.read_parquet(storage.local(storage.path(path)), glob=False, hive_partitioning=False)


def count_rows(path: str | os.PathLike) -> int:
  """Return how many rows the parquet file at `path` has. Raises DataError."""
  with as_data_error(path, 'a readable parquet file'):
    table = pl.scan_parquet(storage.local(storage.path(path)), glob=False, hive_partitioning=False)
    return table.select(pl.len()).collect().item()


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
  """Return the key-value metadata of the parquet file at `path`. Raises DataError."""
  with as_data_error(path, 'a readable parquet file'):
    return pl.read_parquet_metadata(storage.local(storage.path(path)))


def write_parquet(
  frame: pl.DataFrame,
  path: str | os.PathLike,
  metadata: dict[str, str] | None = None,
  **options: Any,
) -> None:
  """Write `frame` to `path` through a temporary name, so that a crash leaves no partial file.

  options: those of `polars.DataFrame.write_parquet`, e.g. compression.
  """
  with renamed(path) as temporary:
    frame.write_parquet(temporary, metadata=metadata, **options)


def write_json(value: Any, path: str | os.PathLike) -> None:
  """Write `value` as indented JSON to `path` through a temporary name."""
  with renamed(path) as temporary:
    temporary.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


def write_npz(arrays: dict[str, np.ndarray], path: str | os.PathLike) -> None:
  """Write the named arrays to `path` through a temporary name."""
  with renamed(path) as temporary, temporary.open('wb') as file:
    # numpy's stubs give the keywords the type of `allow_pickle`, whichever name they have.
    named: dict[str, Any] = arrays
    np.savez(file, **named)


def write_npy(array: np.ndarray, path: str | os.PathLike) -> None:
  """Write one array to `path` through a temporary name."""
  with renamed(path) as temporary, temporary.open('wb') as file:
    np.save(file, array)


def map_npy(path: str | os.PathLike) -> np.ndarray:
  """Return the array at `path`, mapped: its pages are read when they are used. Raises DataError."""
  with as_data_error(path, 'an array in a .npy file'):
    return np.load(storage.local(storage.path(path)), mmap_mode='r', allow_pickle=False).view(
      np.ndarray
    )


def lock(path: pathlib.Path) -> Lock:
  """Lock the file `path` for this process until what is returned is closed.

  The lock of a process that was killed is free again, in a bucket once its lease has run out.
  Raises BlockingIOError naming the process and host that hold the lock. On a file system without
  locks nothing is locked.
  """
  if storage.is_remote(path):
    return Lease(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  file = path.open('a+', encoding='utf-8')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    holder = file.read().strip()
    file.close()
    raise BlockingIOError(holder or 'another process') from None
  except OSError:
    return file
  file.truncate(0)
  file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
  file.flush()
  return file


@contextlib.contextmanager
def renamed(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yield a temporary name beside `path`, renamed to `path` when the block raises nothing.

  In a bucket it is a name on this machine, whose content is put under `path` at once. Raises
  DataError where `path` is anything but a file or a name that is free.
  """
  path = storage.path(path)
  if storage.is_remote(path):
    temporary = storage.scratch(path.name)
    try:
      yield temporary
      storage.put(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
    return
  require_writable(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    yield temporary
    with temporary.open('rb') as file:  # a crash must not leave the name without its content
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def require_writable(path: str | os.PathLike) -> None:
  """Make the folder of an output file. Raises DataError where no file can be put there.

  A bucket has no folders; ConfigError where it cannot be reached.
  """
  path = storage.path(path)
  if storage.is_remote(path):
    return
  if path.exists() and not path.is_file():
    raise DataError(f'{path}: is a folder or a device; must be a file, or a name that is free')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    writable = os.access(path.parent, os.W_OK)
  except OSError as error:
    raise DataError(
      f'{path}: cannot be written ({error.strerror}: {error.filename}); must be in a folder that '
      'is there or can be made'
    ) from error
  if not writable:
    raise DataError(f'{path.parent}: may not be written to; must be a folder of yours')
