"""The watcher of one process and the supervisor of several.

Exit codes, SIGTERM, the watchdog and restarts.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import supervise

ROOT = pathlib.Path(__file__).parents[2]
CHILD = str(pathlib.Path(__file__).parent / 'child.py')
LIMITS = ('--watchdog_s=1.5', '--first_step_s=20', '--grace_s=5')


def command(folder, behavior, *args, process_id=0, flags=()):
  own = [f'--workdir={folder}', f'--process_id={process_id}', *LIMITS, *flags]
  child = [sys.executable, CHILD, str(behavior), *map(str, args)]
  return [sys.executable, '-m', 'launch.host_entry', *own, '--', *child]


def start(*args, **kwargs):
  return subprocess.Popen(
    command(*args, **kwargs),
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def terminate_when_ready(process):
  for line in process.stdout:
    if 'ready' in line:
      process.terminate()
      return


def wait_for(condition, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'timed out'
    time.sleep(0.05)


@pytest.mark.parametrize('code', [0, 2, 42])
def test_the_exit_code_is_the_childs_and_every_line_names_the_process(tmp_path, code):
  process = start(tmp_path, code, process_id=3)
  lines = process.communicate()[0].splitlines()
  assert process.returncode == code
  assert all(line.startswith('[3] ') for line in lines)
  assert f'[3] about to exit {code}' in lines
  assert (tmp_path / 'logs' / 'process_3.log').read_text().splitlines() == lines


def test_a_host_of_a_slice_counts_from_the_first_slice(tmp_path):
  """Of two slices of four hosts each: two processes of one number would share a log."""
  child = [sys.executable, CHILD, '0']
  flags = [f'--workdir={tmp_path}', '--processes=8', *LIMITS]
  slice_variables = dict(MEGASCALE_NUM_SLICES='2', MEGASCALE_SLICE_ID='1', TPU_WORKER_ID='3')
  done = subprocess.run(
    [sys.executable, '-m', 'launch.host_entry', *flags, '--', *child],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)} | slice_variables,
    check=False,
  )
  assert done.returncode == 0
  assert [path.name for path in (tmp_path / 'logs').iterdir()] == ['process_7.log']


def test_a_hung_step_ends_with_stacks_and_134(tmp_path):
  process = start(tmp_path, 'hang')
  output = process.communicate()[0]
  assert process.returncode == 134
  assert 'no heartbeat' in output and 'inside a loop' in output
  assert 'in hang_in_the_third_step' in output


def test_a_stopped_process_cannot_dump_and_ends_with_134(tmp_path):
  process = start(tmp_path, 'stop')
  output = process.communicate()[0]
  assert process.returncode == 134
  assert 'stopped (SIGSTOP) and cannot dump its stacks' in output


def test_when_the_launcher_is_killed_its_processes_save_and_exit(tmp_path):
  # A launcher that starts one host and sleeps; the host's output is in its log.
  code = 'import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)'
  host = command(tmp_path, 'save', tmp_path / 'saved', flags=['--follow_parent'])
  env = os.environ | {'PYTHONPATH': str(ROOT)}
  launcher = subprocess.Popen([sys.executable, '-c', code, *host], cwd=ROOT, env=env)
  log = tmp_path / 'logs' / 'process_0.log'
  wait_for(lambda: log.exists() and 'ready' in log.read_text())
  launcher.kill()
  launcher.wait()
  wait_for(lambda: 'exit 42' in log.read_text())
  assert 'the launcher has ended: stopping' in log.read_text()
  assert (tmp_path / 'saved').exists()


def test_before_the_first_step_the_longer_limit_holds(tmp_path):
  process = start(tmp_path, 'slow_start')
  process.communicate()
  assert process.returncode == 0


def test_sigterm_reaches_the_child_which_saves(tmp_path):
  process = start(tmp_path, 'save', tmp_path / 'saved')
  terminate_when_ready(process)
  process.communicate()
  assert process.returncode == 42 and (tmp_path / 'saved').exists()


@pytest.mark.parametrize('behavior', ['wait', 'deaf'])
def test_sigterm_with_nothing_to_save_is_a_preemption_at_once(tmp_path, behavior):
  process = start(tmp_path, behavior, flags=['--grace_s=50'])
  terminate_when_ready(process)
  started = time.monotonic()
  process.communicate()
  assert process.returncode == 42 and time.monotonic() - started < 20


def test_the_process_continues_when_nobody_reads_its_output(tmp_path):
  process = start(tmp_path, 'talk', tmp_path / 'done')
  process.stdout.close()
  assert process.wait(timeout=60) == 0 and (tmp_path / 'done').exists()
  assert (tmp_path / 'logs' / 'process_0.log').read_text().count('a line') == 20_000


def test_job_codes():
  assert supervise.job_code([0, 0]) == 0
  assert supervise.job_code([134, 137]) == 134
  assert supervise.job_code([137, 2]) == 2
  codes = (0, 1, 2, 3, 42, 134, 137, 143)
  assert [code for code in codes if supervise.retryable(code)] == [42, 134, 137, 143]


@pytest.fixture
def supervisor(monkeypatch):
  """Let children find the package; restore the signal handlers after the test."""
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
  yield lambda commands, max_restarts: supervise.run(commands, max_restarts, grace_s=5)
  for number, handler in handlers.items():
    signal.signal(number, handler)


def test_restarts_are_bounded(tmp_path, supervisor):
  starts = tmp_path / 'starts'
  commands = [command(tmp_path, 'fail_twice', starts)]
  assert supervisor(lambda: commands, max_restarts=3) == 0
  assert len(starts.read_text()) == 3
  starts.unlink()
  assert supervisor(lambda: commands, max_restarts=1) == 134
  assert len(starts.read_text()) == 2


def test_exit_code_2_is_never_retried(tmp_path, supervisor):
  attempts = []

  def commands():
    attempts.append(1)
    return [command(tmp_path, 2), command(tmp_path, 0, process_id=1)]

  assert supervisor(commands, max_restarts=3) == 2
  assert len(attempts) == 1


def test_a_lost_process_ends_the_others(tmp_path, supervisor, monkeypatch):
  monkeypatch.setattr(supervise, 'PEERS_S', 0.5)
  commands = [command(tmp_path, 134), command(tmp_path, 'wait', process_id=1)]
  started = time.monotonic()
  assert supervisor(lambda: commands, max_restarts=0) == 134
  assert time.monotonic() - started < 15
