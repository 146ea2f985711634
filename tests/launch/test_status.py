"""Goodput and status from the clocks of several hosts: restarts, stragglers, tables, readers."""

import json
import os
import signal
import subprocess
import sys

import pytest

from launch import goodput, overview
from rolegen_jax import config as configs
from rolegen_jax.config import ConfigError

T = 1_000_000.0  # unix time that the clocks of these tests count from


def write_clock(workdir, stage, process, rows):
  """Append rows to the clock of a process, with `at` counted from T."""
  folder = workdir / stage
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / f'time.{process}.jsonl').open('a') as file:
    for row in rows:
      file.write(json.dumps(row | {'at': T + row['at']}) + '\n')


def entry(at, step, pid=7, host='vm'):
  return dict(at=at, start=step, host=host, pid=pid, processes=1, restore_s=1.0)


def steps(first, count, at, step_s=1.0, data_s=0.0):
  rows = []
  for i in range(count):
    rows.append(dict(at=at + (step_s + data_s) * (i + 1), step=first + i))
    rows[-1] |= dict(step_s=step_s, data_s=data_s)
  return rows


def exit_row(at, **seconds):
  return dict(at=at, end=True, **seconds)


@pytest.fixture
def workdir(tmp_path):
  config = configs.to_dict(configs.Config())
  (tmp_path / 'config.json').write_text(json.dumps(config))
  return tmp_path


def test_time_is_split_by_kind_and_repeated_steps_are_lost(workdir):
  # Killed at 25, with its newest checkpoint at step 6.
  first_step = dict(at=16.0, step=0, compile_s=5.0, data_s=0.5, step_s=0.5)
  later_steps = steps(1, 9, 16, step_s=0.9, data_s=0.1)
  write_clock(workdir, 'warmup', 0, [entry(10, 0), first_step, *later_steps])
  # The next process repeats steps 6 to 9, then trains the loop.
  resumed = [entry(40, 6, pid=8), *steps(6, 4, 40), exit_row(46, checkpoint_s=2.0)]
  write_clock(workdir, 'warmup', 0, resumed)
  write_clock(workdir, 'loop', 0, [entry(57, 0, pid=8), *steps(0, 3, 57), exit_row(60)])
  seconds = goodput.account(goodput.read(workdir), report=(T + 90, 50.0))[0]
  assert seconds == pytest.approx(
    dict(
      step=0.5 + 5 * 0.9 + 4 + 3,
      data=0.5 + 5 * 0.1,
      compile=5,
      restore=3,
      checkpoint=2,
      lost=4,
      preparation=56 - 46,
      evaluation=30,
      down=39 - 25,
    )
  )
  assert sum(seconds.values()) == pytest.approx(90 - 9)  # no second is missing or counted twice


def test_a_report_written_again_later_does_not_count(workdir):
  write_clock(workdir, 'loop', 0, [entry(10, 0), *steps(0, 3, 10), exit_row(13)])
  seconds = goodput.account(goodput.read(workdir), report=(T + 86_400, 12.0))[0]
  assert seconds['evaluation'] == 12


def test_a_torn_line_is_skipped(workdir):
  write_clock(workdir, 'loop', 0, [entry(10, 0), *steps(0, 3, 10)])
  with (workdir / 'loop' / 'time.0.jsonl').open('a') as file:
    file.write('{"at": 10000')
  assert goodput.read(workdir)[0].n_steps == 3


def test_stages_hosts_and_steps_are_listed(workdir):
  write_clock(workdir, 'warmup', 0, [entry(10, 0), *steps(0, 300, 10), exit_row(311)])
  (workdir / 'warmup' / 'DONE.json').write_text('{}')
  for process in (0, 1):
    rows = [entry(400, 0, host=f'vm{process}'), *steps(0, 40, 400, step_s=0.5)]
    write_clock(workdir, 'ablations/no_reasoner', process, rows)
  status = overview.run_status(workdir, T + 425)
  keys = ('stage', 'process', 'step', 'steps', 'state')
  assert [tuple(row[key] for key in keys) for row in status['stages']] == [
    ('warmup', 0, 300, 300, 'done'),
    ('ablations/no_reasoner', 0, 40, 150, 'running'),
    ('ablations/no_reasoner', 1, 40, 150, 'running'),
  ]
  assert status['stages'][1]['step_s'] == 0.5 and status['stages'][1]['age_s'] == 5
  assert status['stragglers'] == []
  text = overview.run_text(status)
  assert '40/150' in text and 'no stragglers' in text


def test_stragglers_are_named_with_their_oddity(workdir):
  for process in (0, 1):
    rows = [entry(0, 0), *steps(0, 40, 0, step_s=0.9, data_s=0.1)]
    write_clock(workdir, 'loop', process, rows)
  slow = [entry(0, 0, host='slow'), *steps(0, 40, 0, step_s=0.5, data_s=0.5)]
  write_clock(workdir, 'loop', 2, slow)
  write_clock(workdir, 'loop', 3, [entry(0, 0, host='stuck'), *steps(0, 10, 0)])
  assert overview.run_status(workdir, T + 45)['stragglers'] == [
    'loop: process 2 (slow) waits 0.500 s per step for data, the others 0.100 s',
    'loop: process 3 (stuck) is at step 10, others are at 40',
  ]
  first = overview.run_status(workdir, T + 500)['stragglers'][0]
  assert 'process 0 (vm) is silent for 460 s' in first


def test_a_sweep_lists_its_points(workdir):
  common = dict(set=[], exit_code=None, starts=1, started=None, ended=None, wall_s=3.0)
  points = dict(
    a=common | dict(state='done', why=''),
    b=common | dict(state='running', why=''),
    c=common | dict(state='failed', why='exit code 2\nthe data is wrong'),
  )
  (workdir / 'ledger.json').write_text(json.dumps(dict(experiment='demo', points=points)))
  write_clock(workdir, 'points/b/loop', 0, [entry(0, 0), *steps(0, 7, 0)])
  (workdir / 'config.json').rename(workdir / 'points' / 'b' / 'config.json')
  text = overview.describe(workdir, as_json=False)
  assert '7/150' in text and 'the data is wrong' in text
  status = json.loads(overview.describe(workdir, as_json=True))
  assert status['points']['b']['run']['stages'][0]['step'] == 7


def test_any_other_folder_is_an_error(tmp_path):
  with pytest.raises(ConfigError, match='must be the folder of a run or of a sweep'):
    overview.describe(tmp_path, as_json=False)
  command = [sys.executable, '-m', 'launch.status', f'--workdir={tmp_path}']
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  assert result.returncode == 2 and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize('command', ['status --watch', 'sweep --list', 'sweep --help'])
def test_a_closed_pipe_ends_a_command_quietly(workdir, command):
  reader, writer = os.pipe()
  os.close(reader)
  module, *flags = command.split()
  with os.fdopen(writer, 'w') as pipe:
    result = subprocess.run(
      [sys.executable, '-m', f'launch.{module}', *flags, f'--workdir={workdir}'],
      stdout=pipe,
      stderr=subprocess.PIPE,
      text=True,
      timeout=60,
      check=False,
    )
  assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, '')
