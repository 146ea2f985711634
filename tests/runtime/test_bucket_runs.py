"""Whole jobs whose run folder is a bucket: killed, continued, by several processes, served."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rolegen_jax.config import SimulatorConfig
from rolegen_jax.data.files import read_parquet
from rolegen_jax.pipeline import artifacts
from rolegen_jax.runtime import storage
from tests import days
from tests.launch import small, test_processes

ROOT = pathlib.Path(__file__).parents[2]
STEPS, SAVE_EVERY = 6, 2
SETTINGS = small.settings(
  'simulator.users=1500',
  'simulator.items=64',
  'warmup.batch=64',
  'align.batch=256',
  'reason.batch=128',
  'loop_stage.batch=64',
  'evaluation.sasrec.steps=10',
  'evaluation.ablations=()',
  *(f'{section}.steps={STEPS}' for section in small.STAGE_SECTIONS),
  *(f'{section}.save_every={SAVE_EVERY}' for section in small.STAGE_SECTIONS),
)
SAVE = '--set=warmup.save_every=1'
MAX_S = 1500

pytestmark = pytest.mark.slow


def rows(url, stage):
  text = (storage.path(url) / stage / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope='module')
def local_losses(tmp_path_factory):
  folder = tmp_path_factory.mktemp('local')
  codes, output = test_processes.run_job(folder, 1)
  assert codes == [0], output
  return test_processes.read_losses(folder)


@pytest.mark.parametrize('url', ['gs'], indirect=True)
def test_a_process_that_is_killed_on_gs_gives_the_curve_of_a_local_one(url, local_losses):
  codes, output = test_processes.run_job(url, 1, SAVE, '--signal=SIGKILL')
  assert codes == [128 + 9], output
  codes, output = test_processes.run_job(url, 1, SAVE)
  assert codes == [0], output
  assert 'warmup: continuing' in output
  losses = [row['loss'] for row in rows(url, 'warmup')]
  np.testing.assert_allclose(losses, local_losses, rtol=1e-4)


def test_two_processes_that_are_killed_give_the_curve_of_one_local_one(s3_url, local_losses):
  codes, output = test_processes.run_job(s3_url, 2, SAVE, '--signal=SIGKILL')
  assert codes == [134, 128 + 9], output
  codes, output = test_processes.run_job(s3_url, 2, SAVE)
  assert codes == [0, 0], output
  assert 'warmup: continuing' in output
  losses = [row['loss'] for row in rows(s3_url, 'warmup')]
  np.testing.assert_allclose(losses, local_losses, rtol=1e-4)
  log = (storage.path(s3_url) / 'logs' / 'process_1.log').read_text()
  assert log.count('exit ') == 2
  status = subprocess.run(
    [sys.executable, '-m', 'launch.status', f'--workdir={s3_url}', '--json'],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  stages = json.loads(status.stdout)['stages']
  assert {(row['stage'], row['process'], row['step']) for row in stages} == {
    ('warmup', 0, 16),
    ('warmup', 1, 16),
  }


def test_a_whole_run_that_was_killed_goes_on_and_serves(s3_url, tmp_path):
  command = [sys.executable, '-m', 'rolegen_jax', 'train', '--experiment=demo']
  command += [f'--workdir={s3_url}', *small.set_flags(SETTINGS)]
  with (tmp_path / 'out.txt').open('w+') as out:
    train = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + MAX_S
    # The loop has a checkpoint, and more to do.
    while not (storage.path(s3_url) / f'loop/checkpoints/{SAVE_EVERY}/commit_success.txt').exists():
      assert train.poll() is None and time.monotonic() < deadline, pathlib.Path(
        out.name
      ).read_text()
      time.sleep(0.5)
    train.send_signal(signal.SIGKILL)
    train.wait()
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MAX_S)
  assert done.returncode == 0, done.stderr
  assert 'reason: up to date' in done.stderr
  begun = re.findall(r'^([\w/]+): (?:continuing|running)', done.stderr, re.M)
  assert begun[0] in ('loop', 'loop/calibration')  # where the kill came a moment late
  for stage in ('warmup', 'align', 'reason', 'loop'):
    assert [row['step'] for row in rows(s3_url, stage)] == list(range(STEPS))
    assert any((storage.path(s3_url) / 'tensorboard' / stage).iterdir())
  assert 'RoleGen' in (storage.path(s3_url) / 'report.html').read_text()
  command = [sys.executable, '-m', 'rolegen_jax', 'recommend', f'--workdir={s3_url}']
  command += [f'--output={s3_url}/lists.parquet', '--top=5']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MAX_S)
  assert done.returncode == 0, done.stderr
  assert read_parquet(f'{s3_url}/lists.parquet')['user_id'].n_unique() > 10
  for command, file in (
    (['annotate', f'--prompts={s3_url}/prompts.jsonl', '--examples=3'], 'prompts.jsonl'),
    (['export', '--what=decoder', f'--output={s3_url}/decoder'], 'decoder/manifest.json'),
    (['simulate_ab', '--days=1', '--seeds=1', '--arms=popularity', '--retrain'], 'ab.png'),
    (
      [
        'bench',
        '--phases=input',
        '--repeats=3',
        f'--json={s3_url}/b.json',
        *small.set_flags(SETTINGS),
      ],
      'b.json',
    ),
  ):
    command = [sys.executable, '-m', 'rolegen_jax', *command, f'--workdir={s3_url}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MAX_S)
    assert done.returncode == 0, done.stderr
    assert (storage.path(s3_url) / file).exists()
  assert not os.path.lexists(ROOT / 's3:')


def test_a_run_in_a_bucket_is_updated_killed_in_between_and_goes_back(s3_url, tmp_path):
  logs = days.cut(tmp_path, SimulatorConfig(users=400, items=64, categories=8), 60, [70])
  new_days = f'{s3_url}-days'
  for name in ('events.parquet', 'items.parquet'):
    storage.put(logs[1] / name, storage.path(f'{new_days}/{name}'))

  def rolegen(command, *flags):
    command = [sys.executable, '-m', 'rolegen_jax', command, f'--workdir={s3_url}', *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MAX_S)
    assert done.returncode == 0, done.stderr
    return done.stderr

  of_log = ['data.format=contract', f'data.path={logs[0]}', 'roles.max_conversions=64']
  # Without the simulator's, which is not what the log is from.
  settings = [each for each in SETTINGS if not each.startswith('simulator.')]
  rolegen('train', '--experiment=demo', *small.set_flags([*settings, *of_log]))
  update = [sys.executable, '-m', 'rolegen_jax', 'update', f'--workdir={s3_url}']
  update += [f'--data={new_days}']
  with (tmp_path / 'out.txt').open('w+') as out:
    killed = subprocess.Popen(update, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    while 'loop: running' not in (text := pathlib.Path(out.name).read_text()):
      assert killed.poll() is None, text
      time.sleep(0.1)
    killed.kill()
    killed.wait()
  assert artifacts.current(s3_url) == storage.path(s3_url)  # the one before stays whole
  said = rolegen('update', f'--data={new_days}')
  assert 'warmup: up to date' in said
  version = artifacts.current(s3_url)
  assert version.parent == storage.path(s3_url) / 'versions'
  assert 'has these days already' in rolegen('update', f'--data={new_days}')
  rolegen('recommend', f'--output={s3_url}/lists.parquet', '--top=5')
  assert read_parquet(f'{s3_url}/lists.parquet')['user_id'].n_unique() > 10
  rolegen('update', '--go_back=first')
  assert artifacts.current(s3_url) == storage.path(s3_url)
  rolegen('update', f'--go_back={version.name}')
  assert artifacts.current(s3_url) == version
  assert not os.path.lexists(ROOT / 's3:')
