"""Which files a log consists of. Every file of its folder is read or named in an error.

What tools leave beside data is ignored, by name alone: `IGNORED`.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import pathlib
import re
import urllib.parse
from typing import Any, NamedTuple

from rolegen_jax.data.digests import content_digest
from rolegen_jax.data.files import DataError
from rolegen_jax.runtime import mirror
from rolegen_jax.runtime.progress import say

# Of files and folders: markers and hidden files, checksums, descriptions.
IGNORED = ('_*', '.*', '*.crc', 'README*', '*.md')
# What these formats keep beside parquet files says which rows count: without it, rows that were
# deleted or replaced would be read.
_TABLE_FORMATS = {'_delta_log': 'Delta Lake', '.hoodie': 'Apache Hudi'}
# What ends the name of a table that is no parquet file, before the end of an archive.
TEXT_SUFFIXES = ('.csv', '.jsonl', '.ndjson')
ARCHIVES = ('.gz', '.zst')
_PARTS = (
  'items.parquet and either events.parquet or a folder events/ of such files, or the same as *.csv '
  f'or *.jsonl, also *.gz and *.zst; only {", ".join(IGNORED)} are ignored'
)


class LogFiles(NamedTuple):
  """The files of a log of the contract, in order of their relative paths."""

  root: pathlib.Path  # a folder above all of them
  items: list[pathlib.Path]
  events: list[pathlib.Path]

  @property
  def paths(self) -> list[pathlib.Path]:
    """All files, those of the items first."""
    return [*self.items, *self.events]


def text_suffix(path: pathlib.Path) -> str:
  """Return which of TEXT_SUFFIXES the file's name has; '' where it has none and is parquet."""
  name = path.name.lower()
  for archive in ARCHIVES:
    name = name.removesuffix(archive)
  return next((suffix for suffix in TEXT_SUFFIXES if name.endswith(suffix)), '')


def log_files(path: str | os.PathLike) -> LogFiles:
  """Return the files of the log in a folder, or those whose events a glob matches.

  The items of a glob's events are in the nearest folder above that has items. Raises DataError when
  a part is missing, and naming any other file of the folder, which may hold half of the log.
  """
  path = pathlib.Path(path)
  if is_glob(path):
    root, events = listed(path)
    while not _parts(root, 'items') and root != root.parent:
      root = root.parent
    items = _parts(root, 'items')
    if not items:
      raise DataError(f'{path}: no folder above has items.parquet; must be in one')
    return LogFiles(root, items, events)
  if not path.is_dir():
    raise DataError(f'{path}: is no folder; must be one that holds {_PARTS}')
  found, items, events = files_under(path), _parts(path, 'items'), _parts(path, 'events')
  stray = [file for file in found if file not in (*items, *events)]
  if stray:
    raise DataError(f'{_first_of(stray)}: would not be read; a log folder must hold {_PARTS}')
  for table, files in (('events', events), ('items', items)):
    if (path / table).is_dir() and not files:
      raise DataError(f'{path / table}: has no file; must have one at least')
    if not files:
      right = f'a readable parquet file, or {table}.csv or {table}.jsonl instead'
      raise DataError(f'{path / table}.parquet: no such file; must be {right}')
  return LogFiles(path, items, events)


def _parts(folder: pathlib.Path, table: str) -> list[pathlib.Path]:
  """Return the files of a table: one of its name, or all of a folder of its name."""
  names = [f'{table}.parquet']
  names += [f'{table}{text}{end}' for text in TEXT_SUFFIXES for end in ('', *ARCHIVES)]
  single = [folder / name for name in names if os.path.isfile(folder / name)]
  if (folder / table).is_dir():
    if single:
      raise DataError(
        f'{folder}: has both {single[0].name} and a folder {table}/; must have one of them'
      )
    return files_under(folder / table)
  if len(single) > 1:
    raise DataError(f'{folder}: has {single[0].name} and {single[1].name}; must have one of them')
  return single


def is_glob(path: str | os.PathLike) -> bool:
  """Return whether a path is a pattern of others. What is there under that very name is not."""
  return not os.path.lexists(path) and any(sign in str(path) for sign in '*?[')


def listed(path: str | os.PathLike) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """Return the files that a path names and a folder above all of them.

  path: a file, a folder (all files below it but those that are ignored) or a glob of either. Raises
  DataError where there is none.
  """
  path = pathlib.Path(path)
  if not is_glob(path):
    return (path, files_under(path)) if path.is_dir() else (path.parent, [path])
  root = path
  while is_glob(root):
    root = root.parent
  matches = sorted(map(pathlib.Path, glob.glob(str(path), recursive=True)))
  kept = [m for m in matches if not any(map(_is_ignored, m.relative_to(root).parts))]
  folders = set(kept)  # whose files are read whether or not they match too, as with **
  kept = [match for match in kept if not folders.intersection(match.parents)]
  for folder in {match.parent for match in kept}:
    _entries(folder)  # which refuses tables whose files are not all of them
  files = _files_of(kept, {})
  if not files:
    raise DataError(f'{path}: matches no file; must match at least one')
  return root, sorted(files, key=lambda file: file.relative_to(root).parts)


def say_ignored(folder: str | os.PathLike) -> None:
  """Say it where a file is ignored by name although its suffix is that of a table."""
  folder = pathlib.Path(folder)
  hidden = sorted(
    path
    for path in folder.rglob('*')
    if path.suffix.lower() in ('.parquet', '.pq', *TEXT_SUFFIXES, *ARCHIVES)
    and any(map(_is_ignored, path.relative_to(folder).parts))
  )
  if hidden:
    say(f'{_first_of(hidden)}: ignored, as are all {", ".join(IGNORED)}')


def files_under(folder: pathlib.Path) -> list[pathlib.Path]:
  """Return the files of `folder` at any depth that are not ignored, in order of relative paths.

  Links are followed. Raises DataError for what is neither file nor folder, a file that is there
  twice, and a folder that cannot be listed.
  """
  found = _files_of(_entries(folder), {name: folder for name in _names(folder)})
  return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _files_of(paths: list[pathlib.Path], first: dict[object, pathlib.Path]) -> list[pathlib.Path]:
  """Return the files that are among `paths` or below them, in no order, as `files_under` does.

  first: where rows were met before, by `_names`.
  """
  found: list[pathlib.Path] = []
  ahead = list(paths)
  while ahead:
    path = ahead.pop()
    is_folder = os.path.isdir(path)
    if not is_folder and not os.path.isfile(path):
      raise DataError(f'{path}: is neither a file nor a folder, or a link to none; must be one')
    for name in _names(path):
      if name in first:
        raise DataError(f'{path}: is {first[name]} once more; its rows must be there once')
      first[name] = path
    if is_folder:
      ahead += _entries(path)
    else:
      found.append(path)
  return found


def _names(path: pathlib.Path) -> list[object]:
  """Return what two paths of the same rows have in common: links, and a file and its archive."""
  stat = os.stat(path)
  return [
    (stat.st_dev, stat.st_ino),
    re.sub(r'\.(gz|zst)$', '', os.path.realpath(path), flags=re.I),
  ]


Fingerprint = dict[str, list[int | str]]  # {path: [size in bytes, digest of the content]}


def fingerprint(root: str | os.PathLike, paths: list[pathlib.Path]) -> Fingerprint:
  """Return what is in files, by their paths relative to `root`; copies have the same.

  root: the folder that holds the files, or the only file. JSON-able; a log of another fingerprint
  is prepared again. Raises DataError for a file that is gone.
  """
  root = pathlib.Path(root)
  base = root if root.is_dir() else root.parent
  try:
    return {
      path.relative_to(base).as_posix(): [mirror.size(path), content_digest(path)] for path in paths
    }
  except OSError as error:
    raise DataError(f'{error.filename}: {error.strerror}; must be a readable file') from error


def partition(path: str | os.PathLike, folder: str | os.PathLike) -> dict[str, str]:
  """Return the {column: value} that the folders from `folder` to the file are named after."""
  names = pathlib.Path(path).relative_to(folder).parts[:-1]
  pairs = (name.partition('=') for name in names)
  return {column: urllib.parse.unquote(value) for column, equals, value in pairs if equals}


def differing(now: Fingerprint, then: Fingerprint) -> str | None:
  """Return the first difference between two fingerprints in words; None where there is none."""
  for name in sorted(now.keys() | then.keys()):
    if name not in then:
      return f'{name} is new'
    if name not in now:
      return f'{name} is gone'
    if not is_same(now[name], then[name]):
      return f'{name} has changed'
  return None


def is_same(now: Any, then: Any) -> bool:
  """Return whether a file is what a fingerprint says of it.

  Older ones have the time of change in place of the digest, or the size alone; a copy has another
  time, so it is the size that counts.
  """
  if type(then) is int:
    then = [then, 0]
  if type(then) is list and len(then) == 2 and type(then[1]) is int:
    return type(now) is list and now[0] == then[0]
  return now == then


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
