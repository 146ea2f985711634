"""Goodput and status from the clocks of two hosts: a restart that lost steps, a stage left, stragglers, and what a reader is told."""

import json
import os
import signal
import subprocess
import sys

import pytest

from launch import goodput, overview
from rolegen_jax import config as configs
from rolegen_jax.config import ConfigError

T = 1_000_000.0


def clock(workdir, stage, process, rows):
  """Appends `rows` to a host's clock; `at` counts from T."""
  folder = workdir / stage
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / f'time.{process}.jsonl').open('a') as file:
    file.write(''.join(json.dumps(row | {'at': T + row['at']}) + '\n' for row in rows))


def enter(at, step, pid=7, host='vm'):
  return dict(at=at, start=step, host=host, pid=pid, processes=1, restore_s=1.0)


def steps(first, count, at, step_s=1.0, data_s=0.0):
  return [dict(at=at + (step_s + data_s) * (i + 1), step=first + i, step_s=step_s, data_s=data_s) for i in range(count)]


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(configs.to_dict(configs.Config())))
  return tmp_path


def test_time_is_split_by_kind_and_repeated_steps_are_lost(workdir):
  first = dict(at=16.0, step=0, compile_s=5.0, data_s=0.5, step_s=0.5)
  clock(workdir, 'backbone', 0, [enter(10, 0), first, *steps(1, 9, 16, step_s=0.9, data_s=0.1)])  # killed at 25, its newest checkpoint at step 6
  clock(workdir, 'backbone', 0, [enter(40, 6, pid=8), *steps(6, 4, 40), dict(at=46, end=True, checkpoint_s=2.0)])
  clock(workdir, 'loop', 0, [enter(57, 0, pid=8), *steps(0, 3, 57), dict(at=60, end=True)])
  seconds = goodput.account(goodput.read(workdir), reported=(T + 90, 50.0))[0]
  expected = dict(
      step=0.5 + 5 * 0.9 + 4 + 3, data=0.5 + 5 * 0.1, compile=5, restore=3, checkpoint=2, lost=4, down=39 - 25, preparation=56 - 46, evaluation=30,
  )
  assert seconds == pytest.approx(expected)
  assert sum(seconds.values()) == pytest.approx(90 - 9)  # nothing is left over, nothing is counted twice


def test_a_report_that_was_written_again_later_is_no_time_of_the_run(workdir):
  clock(workdir, 'loop', 0, [enter(10, 0), *steps(0, 3, 10), dict(at=13, end=True)])
  assert goodput.account(goodput.read(workdir), reported=(T + 86_400, 12.0))[0]['evaluation'] == 12


def test_a_torn_line_is_left_out(workdir):
  clock(workdir, 'loop', 0, [enter(10, 0), *steps(0, 3, 10)])
  with (workdir / 'loop' / 'time.0.jsonl').open('a') as file:
    file.write('{"at": 10000')
  assert goodput.read(workdir)[0].last_step == 3


def test_stages_hosts_and_steps_are_listed(workdir):
  clock(workdir, 'backbone', 0, [enter(10, 0), *steps(0, 300, 10), dict(at=311, end=True)])
  (workdir / 'backbone' / 'DONE.json').write_text('{}')
  for process in (0, 1):
    clock(workdir, 'ablations/no_reasoner', process, [enter(400, 0, host=f'vm{process}'), *steps(0, 40, 400, step_s=0.5)])
  found = overview.run_status(workdir, T + 425)
  assert [(r['stage'], r['process'], r['step'], r['steps'], r['state']) for r in found['stages']] == [
      ('backbone', 0, 300, 300, 'done'), ('ablations/no_reasoner', 0, 40, 150, 'running'), ('ablations/no_reasoner', 1, 40, 150, 'running')]
  assert found['stages'][1]['step_s'] == 0.5 and found['stages'][1]['age_s'] == 5 and found['stragglers'] == []
  text = overview.run_text(found)
  assert '40/150' in text and 'no stragglers' in text


def test_stragglers_are_named_with_what_is_odd(workdir):
  clock(workdir, 'loop', 0, [enter(0, 0), *steps(0, 40, 0, step_s=0.9, data_s=0.1)])
  clock(workdir, 'loop', 1, [enter(0, 0), *steps(0, 40, 0, step_s=0.9, data_s=0.1)])
  clock(workdir, 'loop', 2, [enter(0, 0, host='slow'), *steps(0, 40, 0, step_s=0.5, data_s=0.5)])
  clock(workdir, 'loop', 3, [enter(0, 0, host='stuck'), *steps(0, 10, 0)])
  said = overview.run_status(workdir, T + 45)['stragglers']
  assert said == ['loop: process 2 (slow) waits 0.500 s a step for data, the others 0.100 s', 'loop: process 3 (stuck) is at step 10, others are at 40']
  assert 'process 0 (vm) is silent for 460 s' in overview.run_status(workdir, T + 500)['stragglers'][0]


def test_a_sweep_lists_its_points(workdir):
  point = dict(set=[], why='', exit_code=None, starts=1, started=None, ended=None, wall_s=3.0)
  points = dict(a=point | dict(state='done'), b=point | dict(state='running'), c=point | dict(state='failed', why='exit code 2\nthe data is wrong'))
  (workdir / 'ledger.json').write_text(json.dumps(dict(experiment='demo', points=points)))
  clock(workdir, 'points/b/loop', 0, [enter(0, 0), *steps(0, 7, 0)])
  (workdir / 'config.json').rename(workdir / 'points' / 'b' / 'config.json')
  text = overview.look(workdir, as_json=False)
  assert '7/150' in text and 'the data is wrong' in text
  assert json.loads(overview.look(workdir, as_json=True))['points']['b']['run']['stages'][0]['step'] == 7


def test_a_folder_of_something_else_is_refused(tmp_path):
  with pytest.raises(ConfigError, match='must be the folder of a run or of a sweep'):
    overview.look(tmp_path, as_json=False)
  command = [sys.executable, '-m', 'launch.status', f'--workdir={tmp_path}']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize('command', ['status --watch', 'sweep --list', 'sweep --help'])
def test_a_reader_that_has_gone_ends_it_quietly(workdir, command):
  reader, writer = os.pipe()
  os.close(reader)
  with os.fdopen(writer, 'w') as pipe:
    done = subprocess.run([sys.executable, '-m', *f'launch.{command}'.split(), f'--workdir={workdir}'], stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
  assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, '')
