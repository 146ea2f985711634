"""The watcher of one process and the supervisor of several: exit codes, SIGTERM, the watchdog, restarts."""

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


def command(folder, *what, number=0, flags=()):
  return [
      sys.executable, '-m', 'launch.host_entry', f'--workdir={folder}', f'--process_id={number}', '--watchdog_s=1.5', '--first_step_s=20',
      '--grace_s=5', *flags, '--', sys.executable, CHILD, *map(str, what),
  ]


def start(*args, **kwargs):
  env = os.environ | {'PYTHONPATH': str(ROOT)}
  return subprocess.Popen(command(*args, **kwargs), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def terminate_when_ready(process):
  for line in process.stdout:
    if 'ready' in line:
      process.terminate()
      return


def wait_for(met, seconds=60):
  end = time.monotonic() + seconds
  while not met():
    assert time.monotonic() < end
    time.sleep(0.05)


@pytest.mark.parametrize('code', [0, 2, 42])
def test_the_exit_code_is_the_child_s_and_every_line_carries_the_process(tmp_path, code):
  said = start(tmp_path, code, number=3)
  output = said.communicate()[0].splitlines()
  assert said.returncode == code
  assert all(line.startswith('[3] ') for line in output) and f'[3] about to exit {code}' in output
  assert (tmp_path / 'logs' / 'process_3.log').read_text().splitlines() == output


def test_a_hung_step_ends_with_stacks_and_134(tmp_path):
  process = start(tmp_path, 'hang')
  output = process.communicate()[0]
  assert process.returncode == 134
  assert 'no sign of life' in output and 'inside a loop' in output and 'in hang_in_the_third_step' in output


def test_a_stopped_process_cannot_dump_and_ends_with_134(tmp_path):
  process = start(tmp_path, 'stop')
  output = process.communicate()[0]
  assert process.returncode == 134
  assert 'stopped (SIGSTOP) and cannot dump its stacks' in output


def test_when_the_launcher_is_killed_its_processes_save_and_leave(tmp_path):
  # A launcher that starts one and sleeps; the output of the host is in its log.
  launcher = 'import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)'
  host = command(tmp_path, 'save', tmp_path / 'saved', flags=['--follow_parent'])
  log = tmp_path / 'logs' / 'process_0.log'
  read = lambda: log.read_text() if log.exists() else ''
  process = subprocess.Popen([sys.executable, '-c', launcher, *host], cwd=ROOT, env=os.environ | {'PYTHONPATH': str(ROOT)})
  wait_for(lambda: 'ready' in read())
  process.kill()
  process.wait()
  wait_for(lambda: 'exit 42' in read())
  assert 'the launcher is gone: stopping' in read() and (tmp_path / 'saved').exists()


def test_before_the_first_step_the_longer_limit_holds(tmp_path):
  process = start(tmp_path, 'slow_start')
  process.communicate()
  assert process.returncode == 0


def test_sigterm_reaches_the_child_which_saves(tmp_path):
  process = start(tmp_path, 'save', tmp_path / 'saved')
  terminate_when_ready(process)
  process.communicate()
  assert process.returncode == 42 and (tmp_path / 'saved').exists()


@pytest.mark.parametrize('child', ['wait', 'deaf'])
def test_sigterm_where_there_is_nothing_to_save_is_a_preemption_at_once(tmp_path, child):
  process = start(tmp_path, child, flags=['--grace_s=50'])
  terminate_when_ready(process)
  began = time.monotonic()
  process.communicate()
  assert process.returncode == 42 and time.monotonic() - began < 20


def test_job_codes():
  assert supervise.job_code([0, 0]) == 0
  assert supervise.job_code([134, 137]) == 134
  assert supervise.job_code([137, 2]) == 2
  assert [code for code in (0, 1, 2, 3, 42, 134, 137, 143) if supervise.retryable(code)] == [42, 134, 137, 143]


@pytest.fixture
def root(monkeypatch):
  """Children find the package; the handlers of the supervisor do not outlive the test."""
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
  yield
  for name, handler in before.items():
    signal.signal(name, handler)


def test_restarts_are_bounded_and_never_after_2(tmp_path, root):
  tries = tmp_path / 'tries'
  assert supervise.run(lambda: [command(tmp_path, 'fails_twice', tries)], max_restarts=3, grace_s=5) == 0
  assert len(tries.read_text()) == 3
  tries.unlink()
  assert supervise.run(lambda: [command(tmp_path, 'fails_twice', tries)], max_restarts=1, grace_s=5) == 134
  assert len(tries.read_text()) == 2
  started = []
  assert supervise.run(lambda: started.append(1) or [command(tmp_path, 2), command(tmp_path, 0, number=1)], max_restarts=3, grace_s=5) == 2
  assert len(started) == 1


def test_one_process_lost_ends_the_others(tmp_path, root, monkeypatch):
  monkeypatch.setattr(supervise, 'PEERS_S', 0.5)
  began = time.monotonic()
  assert supervise.run(lambda: [command(tmp_path, 134), command(tmp_path, 'wait', number=1)], max_restarts=0, grace_s=5) == 134
  assert time.monotonic() - began < 15


def test_the_process_goes_on_when_nobody_reads_what_it_says(tmp_path):
  process = start(tmp_path, 'talks', tmp_path / 'done')
  process.stdout.close()
  assert process.wait(timeout=60) == 0 and (tmp_path / 'done').exists()
  assert (tmp_path / 'logs' / 'process_0.log').read_text().count('a line') == 20_000
