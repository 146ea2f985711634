"""The real TPU compiler on the joint train step, no TPU needed."""

import importlib.util
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
