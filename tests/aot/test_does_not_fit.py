"""A program that the real TPU compiler refuses: exit code 2, its sizes, and what to change."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_too_many_users_exit_2_with_the_compilers_sizes():
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('libtpu, the TPU compiler, is not installed (requirements-test.txt)')
  command = [sys.executable, '-m', 'rolegen_jax.compile_check', '--experiment=demo', '--topology=tpu:v5e:2x2', '--programs=recommend',
             '--items=1000', '--optimization_level=O0', '--set', 'evaluation.batch=131072']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 2, done.stderr[-3000:]
  first, sizes, heading, *advice = done.stderr.strip().splitlines()[-6:]
  assert first.startswith('recommend of demo does not fit on tpu:v5e:2x2')
  assert 'exceeds available HBM (15.75G)' in sizes
  assert heading == 'What to change:'
  assert 'a smaller --set evaluation.batch, a multiple of 4' in advice[-1]
