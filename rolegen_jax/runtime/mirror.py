"""Folders of a bucket as folders of this machine, for what lists, globs and maps files.

A mirror has all names below a URL at once, as empty files. Their content comes when it is asked
for, so that whoever lists files or compares versions downloads none. What messages say of a file
of a mirror, they say of its URL.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import pathlib
from collections.abc import Iterable

from rolegen_jax.fields import COPIES, ConfigError
from rolegen_jax.runtime import heartbeat, storage
from rolegen_jax.runtime.progress import say

_absent: dict[pathlib.Path, str] = {}  # files of mirrors whose content has not come -> their URLs
_versions: dict[pathlib.Path, str] = {}  # files of mirrors -> what tells their content from another


def opened(name: str | os.PathLike) -> pathlib.Path:
  """Return a local path as it is, and for a URL its mirror: a folder, a file, or nothing there.

  A process lists each URL once. Raises ConfigError as `storage.path` does, and where an object has
  a name that no file can have.
  """
  return _mirrored(os.fspath(name)) if storage.is_remote(name) else pathlib.Path(name)


@functools.cache
def _mirrored(url: str) -> pathlib.Path:
  storage.path(url)  # raises ConfigError
  files, base = storage.file_system(url), url.rstrip('/').partition('://')[2]
  root = storage.scratch(base.rpartition('/')[2])
  COPIES[str(root)] = url.rstrip('/')
  for name, details in sorted(files.find(base, detail=True).items()):
    if name.endswith('/'):
      continue  # what consoles leave where somebody made an empty folder
    relative = name.removeprefix(base).lstrip('/')
    path = root / relative if relative else root
    try:
      if set(relative.split('/')) & {'..', '.'} or '//' in relative:
        raise ValueError
      path.parent.mkdir(parents=True, exist_ok=True)
      path.touch(exist_ok=False)
    except (OSError, ValueError) as error:
      scheme = url.partition('://')[0]
      raise ConfigError(
        f'{scheme}://{name}: its name is none that a file beside the others can have; '
        'must be moved elsewhere'
      ) from error
    _absent[path] = f'{url.partition("://")[0]}://{name}'
    _versions[path] = _version(_absent[path], details)
  return root


def _version(url: str, details: dict[str, object]) -> str:
  """Return what changes with an object: its ETag or, on Google's store, its generation.

  The latter is a time, so that of another object may be the same.
  """
  if 'generation' in details:
    return f'{details["size"]} generation {details["generation"]} of {url}'
  return f'{details["size"]} ETag {details["ETag"]}'


def fetch(*paths: pathlib.Path, but: Iterable[str] = ()) -> pathlib.Path:
  """Return the first path, all with their content: of a mirror, that of all files at or below.

  but: patterns of names that are not needed. Raises ConfigError for a file that cannot be copied or
  was written again since it was listed.
  """
  asked = set(paths)
  wanted = [
    file
    for file in _absent
    if asked.intersection((file, *file.parents))
    and not any(fnmatch.fnmatchcase(file.name, pattern) for pattern in but)
  ]
  if wanted:
    size_mb = sum(map(size, wanted)) / 1e6
    say(f'{paths[0]}: fetching {len(wanted)} file(s), {size_mb:,.1f} MB')
  for file in wanted:
    heartbeat.beat(heartbeat.START)
    _copy(_absent[file], file)
    del _absent[file]
  return paths[0]


def _copy(url: str, file: pathlib.Path) -> None:
  partial, files = file.with_name(f'.{file.name}.part'), storage.file_system(url)
  try:
    files.get_file(url, os.fspath(partial))
    version = _version(url, files.info(url))
  except Exception as error:  # whatever their clients raise, or a full disk
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    raise ConfigError(
      f'{url}: cannot be copied ({reason}); must be readable, and $TMPDIR have room for it'
    ) from error
  if version != _versions[file]:
    raise ConfigError(f'{url}: has changed since it was listed; must stay as it is meanwhile')
  os.replace(partial, file)


def version(path: pathlib.Path) -> str:
  """Return what is another text once a file was written again. Raises OSError.

  Of a file of this machine it is what the file system says of it: a copy is another version.
  """
  if path in _versions:
    return _versions[path]
  stat = path.stat()
  return f'{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}'


def is_mirrored(path: pathlib.Path) -> bool:
  """Return whether a path is of a mirror."""
  return str(path).startswith(tuple(COPIES))


def size(path: pathlib.Path) -> int:
  """Return the size of a file in bytes, whether or not its content has come. Raises OSError."""
  return int(_versions[path].partition(' ')[0]) if path in _versions else path.stat().st_size
