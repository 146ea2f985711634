"""What a number must carry to be believed: when, on which devices, which versions, which commit."""

from __future__ import annotations

import datetime
import pathlib
import platform
import subprocess
from importlib import metadata

import jax

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def machine(*packages: str) -> dict:
  """Return when (UTC), device_kind, commit, dirty and versions.

  dirty: whether tracked files differ from the commit; None where there is no git checkout. Versions
  are those of Python, PACKAGES and `packages`; None: not installed.
  """
  versions: dict[str, str | None] = {'python': platform.python_version()}
  versions |= {name: _version(name) for name in PACKAGES + packages}
  commit, dirty = _commit()
  return dict(
    when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
    device_kind=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    commit=commit,
    dirty=dirty,
    versions=versions,
  )


def _version(package: str) -> str | None:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None


def _commit() -> tuple[str, bool | None]:
  """Return twelve digits of the commit, with +changes where tracked files differ, and if they do.

  None: there is no git checkout.
  """
  head = _git('rev-parse', '--short=12', 'HEAD')
  if head is None:
    return 'unknown (no git checkout)', None
  dirty = _git('status', '--porcelain', '--untracked-files=no') != ''
  return head + ('+changes' if dirty else ''), dirty


def _git(*args: str) -> str | None:
  """Return what a git command prints; None when it fails."""
  here = pathlib.Path(__file__).parent
  result = subprocess.run(['git', *args], cwd=here, capture_output=True, text=True, check=False)
  return None if result.returncode else result.stdout.strip()
