"""Two real processes of two devices as one job: the same curve as one process of four, SIGTERM and resume, agreement."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from launch.targets import local

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = str(pathlib.Path(__file__).parent / 'tiny_train.py')


def job(workdir: pathlib.Path, processes: int, *own: str) -> tuple[list[int], str]:
  """(exit codes, all output) of one attempt."""
  port = local.free_port()
  started = []
  for i in range(processes):
    flags = [f'--process_id={i}', f'--devices_per_process={4 // processes}', '--grace_s=60', f'--workdir={workdir}', f'--processes={processes}']
    if processes > 1:
      flags.append(f'--coordinator=localhost:{port}')
    command = [sys.executable, '-m', 'launch.host_entry', *flags, '--', sys.executable, TRAIN, f'--workdir={workdir}', *own]
    started.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | {'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
  said = [process.communicate()[0] for process in started]
  return [process.returncode for process in started], ''.join(said)


def curve(workdir: pathlib.Path) -> list[float]:
  rows = [json.loads(line) for line in (workdir / 'backbone' / 'metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in rows] == list(range(16))
  return [row['loss'] for row in rows]


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  folder = tmp_path_factory.mktemp('one')
  codes, said = job(folder, 1)
  assert codes == [0], said
  return folder


def test_two_processes_preempted_and_resumed_give_the_curve_of_one(one, tmp_path):
  for stage in ('data', 'semantic_ids'):
    shutil.copytree(one / stage, tmp_path / stage)
  codes, said = job(tmp_path, 2, '--terminate_at=2')
  assert codes == [42, 42], said
  assert said.count('saved at step') == 2
  codes, said = job(tmp_path, 2)
  assert codes == [0, 0], said
  assert 'backbone: continuing' in said
  np.testing.assert_allclose(curve(tmp_path), curve(one), rtol=1e-4)


def test_processes_that_share_the_rows_of_a_tensor_axis_give_the_curve_of_one(one, tmp_path):
  for stage in ('data', 'semantic_ids'):
    shutil.copytree(one / stage, tmp_path / stage)
  codes, said = job(tmp_path, 2, '--set=mesh.fsdp=1', '--set=mesh.tensor=4')
  assert codes == [0, 0], said
  np.testing.assert_allclose(curve(tmp_path), curve(one), rtol=1e-3)


def test_hosts_that_differ_are_named(tmp_path):
  codes, said = job(tmp_path, 2, '--differ')
  assert codes == [2, 2], said
  assert said.count('config: process 1 (') == 2 and 'has b, process 0' in said and 'must be the same on all hosts' in said
