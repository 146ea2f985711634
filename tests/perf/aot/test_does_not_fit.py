"""What the real TPU compiler and JAX refuse: exit code 2, the sizes, and what to change."""

import functools
import importlib.util
import pathlib
import subprocess
import sys

import pytest

from experiments import pod
from rolegen_jax.perf.aot import search, topology

ROOT = pathlib.Path(__file__).parents[3]


pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu, the TPU compiler, is not installed (requirements-test.txt)',
)


def refused(*flags: str) -> list[str]:
  """The lines of the command's error; it must exit with 2."""
  command = [
    sys.executable,
    '-m',
    'rolegen_jax',
    'compile_check',
    '--items=1000',
    '--optimization_level=O0',
    *flags,
  ]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 2, done.stderr[-3000:]
  return done.stderr.strip().splitlines()


@pytest.mark.slow
def test_too_many_users_exit_2_with_the_compilers_sizes():
  lines = refused(
    '--experiment=demo',
    '--topology=tpu:v5e:2x2',
    '--programs=recommend',
    '--set=evaluation.batch=131072',
  )
  first = next(
    number
    for number, line in enumerate(lines)
    if line.startswith('recommend of demo does not fit on tpu:v5e:2x2')
  )
  heading = lines.index('What to change:')
  assert 'exceeds available HBM (15.75G)' in '\n'.join(
    lines[first:heading]
  )  # how many lines the compiler says is its own affair
  assert (
    'a smaller --set evaluation.batch, a multiple of 4' in lines[-1] and len(lines) == heading + 4
  )


def test_a_mesh_that_the_torus_cannot_hold_says_which_can():
  text = refused(
    '--experiment=pod:v5p_2048',
    '--topology=tpu:v5p:8x16x16',
    '--set=mesh.data=8',
    '--set=mesh.fsdp=64',
    '--set=mesh.tensor=4',
  )[-1]
  assert "mesh={'data': 8, 'fsdp': 64, 'tensor': 4}" in text and 'on a torus of 8 x 16 x 16' in text


def test_every_pod_config_lies_on_its_chips(monkeypatch):
  for name, value in topology.ENVIRONMENT.items():
    monkeypatch.setenv(name, value)
  for size, where in dict(
    v5e_16='tpu:v5e:4x4', v5p_128='tpu:v5p:4x4x8', v5p_2048='tpu:v5p:8x16x16'
  ).items():
    place = topology.parse(where)
    devices = topology.devices(place)
    assert topology.lies(devices, pod.get_config(size).mesh)
    assert any(
      search.candidates(
        pod.get_config(size), place, 1 << 21, functools.partial(topology.lies, devices)
      )
    )
