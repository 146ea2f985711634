"""The real TPU compiler on the joint train step, no TPU needed."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from tests.perf.aot import hlo

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.slow
def test_the_decoding_loop_of_16_chips_has_no_collectives(tmp_path):
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('libtpu, the TPU compiler, is not installed (requirements-test.txt)')
  file = tmp_path / 'step.hlo'
  done = subprocess.run(
    [sys.executable, '-m', 'tests.perf.aot.compile_step', str(file)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=580,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  hlo.assert_rollout_loops_are_local(file.read_text())


@pytest.mark.slow
def test_slices_lie_along_data_and_what_they_exchange_goes_over_the_network():
  """64 x 128 floats a device: four parts of a sum and of a gather, two parts in each slice."""
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('libtpu, the TPU compiler, is not installed (requirements-test.txt)')
  done = subprocess.run(
    [sys.executable, '-m', 'tests.perf.aot.compile_slices'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout)
  assert found['slices'] == [[0], [0], [1], [1]]
  assert 'data must be a multiple of 2, the slices of the job' in found['refused']
  part, total, gathered = 64 * 128 * 4, found['sent']['sum'], found['sent']['gather']
  # Inside a slice the two parts are summed in halves, the halves between slices, then gathered.
  assert total['network'] == part / 2 and total['link'] == part
  assert total['kinds'] == {'reduce-scatter': 1, 'all-reduce': 1, 'all-gather': 1}
  # A device gets the other slice's part of its own, then both of its neighbor.
  assert gathered['network'] == part and gathered['link'] == 2 * part
