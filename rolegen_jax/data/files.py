"""Reading and writing of tables at the edge: every failure is a DataError, every file appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import IO

import numpy as np
import polars as pl


class DataError(ValueError):
  """Data is wrong. The message names the file, the row or field, what was wrong and what would be right."""


@contextlib.contextmanager
def as_data_error(path: str | os.PathLike, right: str) -> Iterator[None]:
  """Turns whatever a library raises about `path` into a DataError that says what would be right."""
  try:
    yield
  except DataError:
    raise
  except FileNotFoundError as error:
    raise DataError(f'{path}: no such file; must be {right}') from error
  # A panic inside polars derives from BaseException, which `except Exception` would let through.
  except (Exception, pl.exceptions.PanicException) as error:
    lines = str(error).splitlines() or ['']
    raise DataError(
      f'{path}: cannot be read ({type(error).__name__}: {lines[0]}); must be {right}'
    ) from error


def read_parquet(path: str | os.PathLike) -> pl.DataFrame:
  """The table at `path`, every column. Raises DataError when the file is missing, damaged or no parquet file."""
  with as_data_error(path, 'a readable parquet file'):
    return pl.read_parquet(path, glob=False, hive_partitioning=False)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
  """The key-value metadata of the parquet file at `path`. Raises DataError."""
  with as_data_error(path, 'a readable parquet file'):
    return pl.read_parquet_metadata(path)


def write_parquet(
  frame: pl.DataFrame, path: str | os.PathLike, metadata: dict[str, str] | None = None, **options
) -> None:
  """Writes `frame` to `path` through a temporary name, so that a crash leaves no half file under the real one.

  options: of polars, e.g. compression.
  """
  with renamed(path) as temporary:
    frame.write_parquet(temporary, metadata=metadata, **options)


def write_json(value, path: str | os.PathLike) -> None:
  """Writes `value` as indented JSON to `path` through a temporary name."""
  with renamed(path) as temporary:
    temporary.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


def write_npz(arrays: dict[str, np.ndarray], path: str | os.PathLike) -> None:
  """Writes the arrays by name to `path` through a temporary name."""
  with renamed(path) as temporary, temporary.open('wb') as file:
    np.savez(file, **arrays)


def lock(path: pathlib.Path) -> IO:
  """Makes what the file `path` stands for this process's until the returned file is closed. What a killed process held is free.

  Raises BlockingIOError, saying which process of which host has it. Where the file system knows no locks, nothing is locked.
  """
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
  """A temporary name beside `path`; what is written there gets the real name when the block ends without an exception."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
