"""Check a rendered text with real parsers.

Scripts go through bash, and through shellcheck and sbatch where these are installed; a JobSet goes
through a YAML parser and a schema.
"""

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
  """Yield the name of each check that passed; raise ConfigError with a parser's own message."""
  if target == 'gke_jobset':
    yield from _check_jobset(text)
    return
  yield _run_parser(['bash', '-n'], text)
  shellcheck = _find_shellcheck()
  if shellcheck:
    yield _run_parser([shellcheck, '--shell=bash', '-'], text)
  if target == 'slurm' and shutil.which('sbatch'):
    yield _run_parser(['sbatch', '--test-only'], text)


def _find_shellcheck() -> str | None:
  # pip puts shellcheck beside the interpreter, a folder that need not be on PATH.
  beside_python = str(pathlib.Path(sys.executable).parent)
  return shutil.which('shellcheck') or shutil.which('shellcheck', path=beside_python)


def _run_parser(command: list[str], text: str) -> str:
  result = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
  name = ' '.join([pathlib.Path(command[0]).name, *command[1:]])
  if result.returncode:
    raise ConfigError(f'--validate: {name}: {(result.stdout + result.stderr).strip()}')
  return name


def _check_jobset(text: str) -> Iterator[str]:
  manifest = yaml.safe_load(text)
  yield 'YAML'
  import jsonschema  # comes with requirements-test.txt; launching works without it

  schema = json.loads(SCHEMA.read_text(encoding='utf-8'))
  try:
    jsonschema.validate(manifest, schema)
  except jsonschema.ValidationError as error:
    raise ConfigError(f'--validate: {error.json_path}: {error.message}') from error
  yield SCHEMA.name
