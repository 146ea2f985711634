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
  """Return when (UTC), device_kind, commit and versions.

  Versions are those of Python, PACKAGES and `packages`; None: not installed.
  """
  versions: dict[str, str | None] = {'python': platform.python_version()}
  versions |= {name: _version(name) for name in PACKAGES + packages}
  return dict(
    when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
    device_kind=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    commit=_commit(),
    versions=versions,
  )


def _version(package: str) -> str | None:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None


def _commit() -> str:
  """Return twelve digits of the commit, with +changes where tracked files differ from it."""
  head = _git('rev-parse', '--short=12', 'HEAD')
  if head is None:
    return 'unknown (no git checkout)'
  return head + ('+changes' if _git('status', '--porcelain', '--untracked-files=no') else '')


def _git(*args: str) -> str | None:
  """Return what a git command prints; None when it fails."""
  here = pathlib.Path(__file__).parent
  result = subprocess.run(['git', *args], cwd=here, capture_output=True, text=True, check=False)
  return None if result.returncode else result.stdout.strip()
