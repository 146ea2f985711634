"""Two real processes of two devices as one job: curves, preemption, a lost process, agreement."""

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
DEVICES = 4


def run_job(workdir: pathlib.Path, processes: int, *flags: str) -> tuple[list[int], str]:
  """Return (exit codes, all output) of one attempt."""
  job = [f'--workdir={workdir}', f'--processes={processes}', '--grace_s=60']
  job.append(f'--devices_per_process={DEVICES // processes}')
  if processes > 1:
    job.append(f'--coordinator=localhost:{local.free_port()}')
  train = [sys.executable, TRAIN, f'--workdir={workdir}', *flags]
  running = []
  for i in range(processes):
    process = subprocess.Popen(
      [sys.executable, '-m', 'launch.host_entry', *job, f'--process_id={i}', '--', *train],
      cwd=ROOT,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    running.append(process)
  output = ''.join(process.communicate()[0] for process in running)
  return [process.returncode for process in running], output


def read_losses(workdir: pathlib.Path) -> list[float]:
  lines = (workdir / 'warmup' / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row['step'] for row in rows] == list(range(16))
  return [row['loss'] for row in rows]


@pytest.fixture(scope='module')
def one_process(tmp_path_factory):
  folder = tmp_path_factory.mktemp('one')
  codes, output = run_job(folder, 1)
  assert codes == [0], output
  return folder


@pytest.fixture
def workdir(one_process, tmp_path):
  """A run folder with the data and semantic IDs of the run in one process."""
  for stage in ('data', 'semantic_ids'):
    shutil.copytree(one_process / stage, tmp_path / stage)
  return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize('kill', [False, True], ids=['preempted', 'then killed'])
def test_two_processes_resume(one_process, workdir, kill):
  codes, output = run_job(workdir, 2, '--signal=SIGTERM')
  assert codes == [42, 42], output
  assert output.count('saved at step') == 2
  if kill:
    codes, output = run_job(workdir, 2, '--signal=SIGKILL')
    assert codes == [134, 128 + 9], output
  codes, output = run_job(workdir, 2)
  assert codes == [0, 0], output
  assert 'warmup: continuing' in output
  np.testing.assert_allclose(read_losses(workdir), read_losses(one_process), rtol=1e-4)


@pytest.mark.slow
def test_processes_that_share_a_tensor_axis_give_the_curve_of_one(one_process, workdir):
  codes, output = run_job(workdir, 2, '--set=mesh.fsdp=1', '--set=mesh.tensor=4')
  assert codes == [0, 0], output
  np.testing.assert_allclose(read_losses(workdir), read_losses(one_process), rtol=1e-3)


@pytest.mark.slow
def test_the_chosen_process_traces_and_the_first_reports(workdir, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  codes, output = run_job(workdir, 2, '--observe')
  assert codes == [0, 0], output
  traces = list((workdir / 'profiles').rglob('*.xplane.pb'))
  assert [path.relative_to(workdir).parts[:3] for path in traces] == [
    ('profiles', 'warmup', 'process_1')
  ]
  assert len(list((workdir / 'wandb').glob('offline-run-*'))) == 1
  assert (workdir / 'warmup' / 'tracker.json').exists()


def test_hosts_that_differ_are_named(tmp_path):
  codes, output = run_job(tmp_path, 2, '--differ')
  assert codes == [2, 2], output
  assert output.count('config: process 1 (') == 2
  assert 'has b, process 0' in output and 'must be the same on all hosts' in output
