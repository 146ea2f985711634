"""Which files a log consists of. Every file of its folder is read or named in an error.

What tools leave beside data is ignored, by name alone: `IGNORED`.
"""

from __future__ import annotations

import fnmatch
import os
import pathlib
import re
import urllib.parse

from rolegen_jax.data.files import DataError
from rolegen_jax.runtime.progress import say

# Of files and folders: markers and hidden files, checksums, descriptions.
IGNORED = ('_*', '.*', '*.crc', 'README*', '*.md')
# What these formats keep beside parquet files says which rows count: without it, rows that were
# deleted or replaced would be read.
_TABLE_FORMATS = {'_delta_log': 'Delta Lake', '.hoodie': 'Apache Hudi'}
_PARTS = (
  'items.parquet and either events.parquet or a folder events/ of parquet files; '
  f'only {", ".join(IGNORED)} are ignored'
)


def log_files(folder: str | os.PathLike) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """Return items.parquet and the event files of a log, these in order of their relative paths.

  Raises DataError when one of them is missing, and naming any other file, which may hold half of
  the log.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise DataError(f'{folder}: is no folder; must be one that holds {_PARTS}')
  items, single, parts = (folder / name for name in ('items.parquet', 'events.parquet', 'events'))
  found = files_under(folder)
  events = [path for path in found if parts in path.parents]
  stray = [path for path in found if path not in (items, single, *events)]
  if stray:
    raise DataError(f'{_first_of(stray)}: would not be read; a log folder must hold {_PARTS}')
  if single in found and parts.is_dir():
    raise DataError(
      f'{folder}: has both events.parquet and a folder events/; must have one of them'
    )
  if parts.is_dir() and not events:
    raise DataError(f'{parts}: has no file; must have at least one parquet file')
  events = events or [single]
  for path in (*events, items):
    if path not in found:
      raise DataError(f'{path}: no such file; must be a readable parquet file')
  return items, events


def say_ignored(folder: str | os.PathLike) -> None:
  """Say it where a file is ignored by name although its suffix is that of a table."""
  folder = pathlib.Path(folder)
  hidden = sorted(
    path
    for path in folder.rglob('*')
    if path.suffix.lower() in ('.parquet', '.pq', '.csv', '.gz')
    and any(map(_is_ignored, path.relative_to(folder).parts))
  )
  if hidden:
    say(f'{_first_of(hidden)}: ignored, as are all {", ".join(IGNORED)}')


def csv_files(path: str | os.PathLike) -> list[pathlib.Path]:
  """Return the file `path`, or all *.csv and *.csv.gz of the folder in order of their paths.

  Raises DataError naming a file of the folder that is neither.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    return [path]
  found = files_under(path)
  stray = [file for file in found if not file.name.lower().endswith(('.csv', '.csv.gz'))]
  if stray:
    raise DataError(
      f'{_first_of(stray)}: would not be read; must be text *.csv or *.csv.gz, or lie elsewhere '
      f'(only {", ".join(IGNORED)} are ignored)'
    )
  if not found:
    raise DataError(f'{path}: has no file; must be a file *.csv or a folder of them')
  return found


def files_under(folder: pathlib.Path) -> list[pathlib.Path]:
  """Return the files of `folder` at any depth that are not ignored, in order of relative paths.

  Links are followed. Raises DataError for what is neither file nor folder, a file that is there
  twice, and a folder that cannot be listed.
  """
  found: list[pathlib.Path] = []
  first = {name: folder for name in _names(folder)}
  folders = [folder]
  while folders:
    for path in _entries(folders.pop()):
      is_folder = os.path.isdir(path)
      if not is_folder and not os.path.isfile(path):
        raise DataError(f'{path}: is neither a file nor a folder, or a link to none; must be one')
      for name in _names(path):
        if name in first:
          raise DataError(f'{path}: is {first[name]} once more; its rows must be there once')
        first[name] = path
      (folders if is_folder else found).append(path)
  return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _names(path: pathlib.Path) -> list[object]:
  """Return what two paths of the same rows have in common: links, and a file and its archive."""
  stat = os.stat(path)
  return [(stat.st_dev, stat.st_ino), re.sub(r'\.gz$', '', os.path.realpath(path), flags=re.I)]


def fingerprint(root: str | os.PathLike, paths: list[pathlib.Path]) -> dict[str, list[int]]:
  """Return {path relative to `root`: [size in bytes, time of change in ns]} of files.

  root: the folder that holds the files, or the only file. JSON-able; a log of another fingerprint
  is prepared again. Raises DataError for a file that is gone.
  """
  root = pathlib.Path(root)
  base = root if root.is_dir() else root.parent
  try:
    stats = {path.relative_to(base).as_posix(): path.stat() for path in paths}
  except OSError as error:
    raise DataError(f'{error.filename}: {error.strerror}; must be a readable file') from error
  return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def partition(path: str | os.PathLike, folder: str | os.PathLike) -> dict[str, str]:
  """Return the {column: value} that the folders from `folder` to the file are named after."""
  names = pathlib.Path(path).relative_to(folder).parts[:-1]
  pairs = (name.partition('=') for name in names)
  return {column: urllib.parse.unquote(value) for column, equals, value in pairs if equals}


def differing(now: dict[str, int], then: dict[str, int]) -> str | None:
  """Return the first difference between two {path: size} in words; None where there is none."""
  for name in sorted(now.keys() | then.keys()):
    if name not in then:
      return f'{name} is new'
    if name not in now:
      return f'{name} is gone'
    if now[name] != then[name]:
      return f'{name} has another size'
  return None


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
  """Return what of `folder` is not ignored. Raises DataError."""
  try:
    names = sorted(os.listdir(folder))
  except OSError as error:
    raise DataError(f'{folder}: {error.strerror}; must be a readable folder') from error
  for name in names:
    if name in _TABLE_FORMATS:
      raise DataError(
        f'{folder}: is a table of {_TABLE_FORMATS[name]} ({name}), whose files may hold rows that '
        'no longer count; must be plain parquet files: write the table out'
      )
  return [folder / name for name in names if not _is_ignored(name)]


def _is_ignored(name: str) -> bool:
  if name.startswith('_') and '=' in name:
    return False  # a partition, as Spark sees it
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED)


def _first_of(paths: list[pathlib.Path]) -> str:
  others = f' (and {len(paths) - 1} more)' if len(paths) > 1 else ''
  return f'{paths[0]}{others}'
