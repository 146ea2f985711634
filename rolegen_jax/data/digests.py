"""Digests of the content of files, taken once: until a file is written again, nobody reads it.

Whether it was is told by its version (`mirror.version`): on this machine size, both times and
inode, of which no program can set the second time; in a bucket generation or ETag.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import time

from rolegen_jax.data.files import DataError, write_json
from rolegen_jax.runtime import heartbeat, mirror, storage

FILE = '.files.json'  # of the folder of stage `data`
# A file that changed this recently may change again and look the same.
_SETTLED_S = 2.0
_known: dict[str, str] = {}  # version -> digest
_taken: set[str] = set()  # versions that were asked for
_recalled: set[str] = set()  # those that a file has


def content_digest(path: pathlib.Path) -> str:
  """Return 16 hex digits over the content of a file. Raises OSError."""
  version = mirror.version(path)
  if version not in _known:
    heartbeat.beat(heartbeat.START)  # it may be large
    with mirror.fetch(path).open('rb') as file:
      stat = os.fstat(file.fileno())
      settled = time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_S
      digest = hashlib.file_digest(file, 'sha256').hexdigest()[:16]
    if not mirror.is_mirrored(path) and (not settled or mirror.version(path) != version):
      return digest
    _known[version] = digest
  _taken.add(version)
  return _known[version]


def recall(path: str | os.PathLike) -> None:
  """Know the digests that `keep` wrote to a file, if there is one and it is whole."""
  try:
    kept = json.loads(storage.path(path).read_text(encoding='utf-8'))
    found = {version: digest for version, digest in kept.items() if type(digest) is str}
  except (OSError, ValueError, AttributeError):
    return
  _known.update(found)
  _recalled.update(found)


def keep(path: str | os.PathLike) -> None:
  """Write the digests that were asked for to a file, for other processes, here or elsewhere.

  Nothing is written where `recall` found all of them, or where nothing may be.
  """
  if not _taken <= _recalled:
    with contextlib.suppress(DataError, OSError):
      write_json({version: _known[version] for version in sorted(_taken)}, path)
