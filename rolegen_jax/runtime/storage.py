"""Where files are: on this machine, or in a bucket (gs://, s3://), behind one kind of path.

A local path is a pathlib.Path. A URL is an etils.epath.Path, which has the methods of one that
this project calls and is what Orbax and jax take. Object stores have no rename, no append and no
locks: a file is put whole under its name (`put`), one that grows is spooled on this machine
(`Spool`), and who writes to a folder holds a lease (`lease.py`).

Endpoints and credentials are those of the stores' own variables and files: AWS_* for s3://, the
application default credentials or STORAGE_EMULATOR_HOST for gs://.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import logging
import os
import pathlib
import shutil
import tempfile
import time
import typing
from typing import Any

from rolegen_jax.fields import BUCKET, ConfigError

# Of each scheme: the package that fsspec reads it with, and what has to be right.
_PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}
_CREDENTIALS = {
  'gs': '`gcloud auth application-default login` or GOOGLE_APPLICATION_CREDENTIALS',
  's3': 'AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role, and AWS_ENDPOINT_URL '
  'where the store is not that of AWS',
}


def is_remote(path: str | os.PathLike) -> bool:
  """Return whether a path is a URL of a bucket."""
  return BUCKET.match(os.fspath(path)) is not None


def path(name: str | os.PathLike) -> pathlib.Path:
  """Return a local path or a URL as an object with the methods of pathlib.Path.

  Raises ConfigError where a URL's package is missing or its bucket cannot be listed; a process
  asks each bucket once.
  """
  text = os.fspath(name)
  matched = BUCKET.match(text)
  if not matched:
    return pathlib.Path(name)
  _open(matched['scheme'], matched['bucket'])
  from etils import epath

  return typing.cast(pathlib.Path, epath.Path(text))


def absolute(name: str | os.PathLike) -> pathlib.Path:
  """Return a path as `path` does, a local one from the root on."""
  found = path(name)
  return found if is_remote(found) else found.absolute()


def local(path: pathlib.Path) -> pathlib.Path:
  """Return a file of this machine with the content of the file `path`: itself, or a copy.

  For libraries that read files by name. A copy is kept until the process ends, and taken again
  once the object has changed. Raises FileNotFoundError.
  """
  if not is_remote(path):
    return path
  files = file_system(path)
  try:
    version = files.ukey(os.fspath(path))
  except FileNotFoundError as error:
    raise FileNotFoundError(2, 'no such object', os.fspath(path)) from error
  name = hashlib.sha256(f'{path} {version}'.encode()).hexdigest()[:24]
  copy = _scratch() / f'{name}-{path.name}'
  if not copy.exists():
    partial = copy.with_suffix('.part')
    files.get_file(os.fspath(path), os.fspath(partial))
    os.replace(partial, copy)
  return copy


def changed_at(path: pathlib.Path) -> float:
  """Return the unix time at which a file was written."""
  if is_remote(path):
    return file_system(path).modified(os.fspath(path)).timestamp()
  return path.stat().st_mtime


def put(file: pathlib.Path, path: pathlib.Path) -> None:
  """Put a file of this machine under the URL `path`, which shows all of it or the one before."""
  file_system(path).put_file(os.fspath(file), os.fspath(path))


def remove(folder: pathlib.Path, last: str) -> None:
  """Remove all objects of a URL's folder, of which `last` goes last; there may be none."""
  files = file_system(folder)
  root = os.fspath(folder)
  found = files.find(root) if files.exists(root) else []
  kept = f'{root}/{last}'.partition('://')[2]
  others = [name for name in found if name != kept]
  if others:
    files.rm(others)
  if kept in found:
    files.rm([kept])


def move(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Give a folder another name. In a bucket, cut off in between, it is there twice."""
  if not is_remote(folder):
    os.replace(folder, target)
    return
  files, root = file_system(folder), os.fspath(folder).partition('://')[2]
  for name in files.find(root):
    files.cp_file(name, os.fspath(target) + name.removeprefix(root))
  files.rm(root, recursive=True)


def scratch(name: str) -> pathlib.Path:
  """Return a free name on this machine for what goes to a bucket; it is gone with the process."""
  return pathlib.Path(tempfile.mkdtemp(dir=_scratch())) / name


class Spool:
  """A file or folder that grows, written at `here` on this machine.

  Of a local path `here` is that path. What belongs into a bucket is there after `flush`, whole
  files at a time.
  """

  def __init__(self, path: pathlib.Path):
    """Fetch the file that is there, if it is one."""
    self._path = path
    self.here = scratch(path.name) if is_remote(path) else path
    self._sent: dict[pathlib.Path, tuple[int, int]] = {}
    if is_remote(path) and path.is_file():
      self.here.write_bytes(path.read_bytes())
      self._sent[self.here] = _version(self.here)

  def flush(self) -> None:
    """Put what has changed since the last time into the bucket."""
    if not is_remote(self._path):
      return
    for file in self.here.rglob('*') if self.here.is_dir() else [self.here]:
      version = _version(file)
      if file.is_file() and self._sent.get(file) != version:
        put(file, self._path / file.relative_to(self.here))
        self._sent[file] = version


def _version(file: pathlib.Path) -> tuple[int, int]:
  stat = file.stat()
  return stat.st_size, stat.st_mtime_ns


def file_system(path: str | os.PathLike) -> Any:
  """Return the fsspec file system of a URL."""
  import fsspec

  return fsspec.filesystem(os.fspath(path).partition('://')[0])


def kvstore(url: str) -> dict[str, Any]:
  """Return the TensorStore spec of the folder, or object, of a URL.

  Its s3 driver knows nothing of AWS_ENDPOINT_URL, wants a region beside an endpoint, and checks
  conditions on the server only where it is told to or the server is that of AWS.
  """
  scheme, _, rest = url.partition('://')
  bucket, _, name = rest.partition('/')
  if scheme == 'gs':
    return dict(driver='gcs', bucket=bucket, path=name)
  spec: dict[str, Any] = dict(driver='s3', bucket=bucket, path=name, use_conditional_write=True)
  endpoint = os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL')
  if endpoint:
    region = os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION') or 'us-east-1'
    spec |= dict(endpoint=endpoint, aws_region=region)
  if 'AWS_ACCESS_KEY_ID' in os.environ:  # else it looks for files first, and says what it misses
    spec |= dict(aws_credentials=dict(type='environment'))
  return spec


@functools.cache
def _open(scheme: str, bucket: str) -> None:
  """Make a bucket ready. Raises ConfigError saying what is missing."""
  url = f'{scheme}://{bucket}'
  missing = [name for name in ('fsspec', _PACKAGES[scheme]) if not importlib.util.find_spec(name)]
  if missing:
    raise ConfigError(f'{url}: needs {missing[-1]}: pip install -r requirements-cloud.txt')
  import fsspec

  # What another process wrote a moment ago has to be seen.
  for protocol in ('gs', 'gcs', 's3'):
    fsspec.config.conf.setdefault(protocol, {})['use_listings_cache'] = False
  # epath would prefer TensorFlow, where that is installed, to what was just set.
  os.environ['EPATH_USE_TF'] = 'false'
  for client in ('gcsfs', 'google.auth'):  # they warn of every request to an emulator
    logging.getLogger(client).setLevel(logging.ERROR)
  try:
    fsspec.filesystem(scheme).ls(bucket)
  except Exception as error:  # whatever their clients raise
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    raise ConfigError(
      f'{url}: cannot be listed ({reason}); must be a bucket that exists, with credentials that '
      f'may read and write it: {_CREDENTIALS[scheme]}'
    ) from error


@functools.cache
def _scratch() -> pathlib.Path:
  """Return this process's temporary folder; those of processes that were killed are removed.

  Whoever is alive holds the lock of its folder.
  """
  for left in pathlib.Path(tempfile.gettempdir()).glob(f'{_PREFIX}*'):
    with contextlib.suppress(OSError):  # alive, another user's, or just removed by another process
      if time.time() - left.stat().st_mtime > _NEW_S:
        os.close(_locked(left))
        shutil.rmtree(left)
  folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
  _kept.append((folder, _locked(folder.name)))
  return pathlib.Path(folder.name)


def _locked(folder: str | os.PathLike) -> int:
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    os.close(descriptor)
    raise
  return descriptor


_PREFIX = 'rolegen_bucket_copies_'  # a name that nobody else gives: what is left there goes
_NEW_S = 60.0  # younger folders may not have been locked yet
_kept: list[tuple[tempfile.TemporaryDirectory, int]] = []  # until the process ends
