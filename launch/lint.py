"""Checks a rendered text with real parsers: bash, shellcheck and sbatch where they are installed, YAML and a schema for a JobSet."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import yaml

from rolegen_jax.config import ConfigError

SCHEMA = pathlib.Path(__file__).parent / 'schemas' / 'jobset.json'


def check(target: str, text: str) -> Iterator[str]:
  """Yields what was checked. Raises ConfigError with the parser's own words."""
  if target == 'gke_jobset':
    yield from _jobset(text)
    return
  yield _parse(['bash', '-n'], text)
  # pip's shellcheck lies beside the interpreter, which is not always on PATH.
  shellcheck = shutil.which('shellcheck') or shutil.which('shellcheck', path=str(pathlib.Path(sys.executable).parent))
  if shellcheck:
    yield _parse([shellcheck, '--shell=bash', '-'], text)
  if target == 'slurm' and shutil.which('sbatch'):
    yield _parse(['sbatch', '--test-only'], text)


def _parse(command: list[str], text: str) -> str:
  done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
  name = ' '.join([pathlib.Path(command[0]).name, *command[1:]])
  if done.returncode:
    raise ConfigError(f'--validate: {name}: {(done.stdout + done.stderr).strip()}')
  return name


def _jobset(text: str) -> Iterator[str]:
  manifest = yaml.safe_load(text)
  yield 'YAML'
  import jsonschema  # a test requirement: launching does without

  try:
    jsonschema.validate(manifest, json.loads(SCHEMA.read_text(encoding='utf-8')))
  except jsonschema.ValidationError as error:
    raise ConfigError(f'--validate: {error.json_path}: {error.message}') from error
  yield SCHEMA.name
