"""The compilation cache: one folder that all hosts share, and one of each host before it.

Hundreds of hosts that start at once would read every program from the shared storage. With a host
cache each reads it once and has it on its own disk when it starts again; jax has process 0 write
what is new, here and to the shared folder.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile

import jax

# jax has this interface and no public way to put another cache behind it; 0.10 and 0.12 are alike.
from jax._src import compilation_cache
from jax._src.compilation_cache_interface import CacheInterface
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from rolegen_jax.fields import local_path
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.distributed import HOST_CACHE

VARIABLE = 'JAX_COMPILATION_CACHE_DIR'

_shared_cache = compilation_cache.get_file_cache


class HostCache(CacheInterface):
  """Programs in a folder of this host, read from and written to `shared` where they are not."""

  def __init__(self, folder: str | os.PathLike, shared: CacheInterface):
    """Make the folder where it is absent."""
    self._path, self._shared = pathlib.Path(folder), shared
    self._path.mkdir(parents=True, exist_ok=True)

  def get(self, key: str) -> bytes | None:
    """Return a program, from the shared cache if need be, which fills the folder."""
    with contextlib.suppress(OSError):  # not here, or the disk fails: the shared one has it
      return (self._path / key).read_bytes()
    value = self._shared.get(key)
    if value is not None:
      self._keep(key, value)
    return value

  def put(self, key: str, value: bytes) -> None:
    """Keep a program in both."""
    self._keep(key, value)
    self._shared.put(key, value)

  def _keep(self, key: str, value: bytes) -> None:
    """Write a file under its name when it is complete; a full disk costs time and nothing else."""
    with contextlib.suppress(OSError):
      number, temporary = tempfile.mkstemp(dir=self._path, prefix='.')
      try:
        with os.fdopen(number, 'wb') as file:
          file.write(value)
        os.replace(temporary, self._path / key)
      except OSError:
        os.unlink(temporary)
        raise


def use(shared: str | os.PathLike) -> None:
  """Have jax keep its programs in `shared`, or where JAX_COMPILATION_CACHE_DIR says.

  Behind the folder of this host, if ROLEGEN_HOST_CACHE names one. Raises ConfigError where the
  variable names a bucket that cannot be used, or another URL.
  """
  chosen = os.environ.get(VARIABLE)
  if chosen is None:
    jax.config.update('jax_compilation_cache_dir', str(shared))
  elif chosen:
    storage.path(local_path(chosen, f'${VARIABLE}', urls=True))  # raises ConfigError
  folder = os.environ.get(HOST_CACHE)
  if folder:
    compilation_cache.get_file_cache = lambda path: _behind(folder, path)
    reset_cache()  # jax may have opened the shared one for a first program


def _behind(folder: str, path: str) -> tuple[CacheInterface, str] | None:
  opened = _shared_cache(path)
  return opened and (HostCache(folder, opened[0]), opened[1])
