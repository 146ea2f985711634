"""What a number must carry to be believed: when, on which devices, with which versions, from which commit."""

from __future__ import annotations

import datetime
import pathlib
import platform
import subprocess
from importlib import metadata

import jax

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def machine(*packages: str) -> dict:
  """when (UTC), device_kind, commit, versions of Python, PACKAGES and `packages` (null: not installed)."""
  return dict(
    when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
    device_kind=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    commit=_commit(),
    versions={'python': platform.python_version()}
    | {name: _version(name) for name in PACKAGES + packages},
  )


def _version(package: str) -> str | None:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None


def _commit() -> str:
  """Twelve digits, with +changes where tracked files differ from it."""
  here = pathlib.Path(__file__).parent
  ask = lambda *args: subprocess.run(
    ['git', *args], cwd=here, capture_output=True, text=True, check=False
  )
  found = ask('rev-parse', '--short=12', 'HEAD')
  if found.returncode:
    return 'unknown (no git checkout)'
  return found.stdout.strip() + (
    '+changes' if ask('status', '--porcelain', '--untracked-files=no').stdout.strip() else ''
  )
