"""Sweeps of stand-ins: done points never run again, failures say why, bad sweeps are rejected."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import stand_in_sweep

from launch import points as sweep_points
from launch.ledger import Ledger, exclusive
from rolegen_jax import config as configs
from rolegen_jax.cli import entry as cli
from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import write_json

ROOT = pathlib.Path(__file__).parents[2]


def start_sweep(workdir, *specs):
  """Start a sweep as a process of its own, to be killed."""
  return subprocess.Popen(
    [sys.executable, stand_in_sweep.__file__, str(workdir), *specs],
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )


def ledger(workdir):
  return json.loads((workdir / 'ledger.json').read_text())['points']


def field(workdir, key):
  """Return one field of every point's ledger entry."""
  return {name: entry[key] for name, entry in ledger(workdir).items()}


def pids(workdir, name):
  """Return the process number of every start of a point."""
  path = workdir / 'points' / name / 'starts.txt'
  return path.read_text().split() if path.exists() else []


def n_starts(workdir, names):
  return [len(pids(workdir, name)) for name in names]


def let_go(workdir, name):
  """Let a point that works finish."""
  (workdir / 'points' / name / 'go').touch()


def wait_for(condition, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'timed out'
    time.sleep(0.02)


def wait_for_line(sweep, text):
  assert any(text in line for line in sweep.stderr), text


def test_a_killed_sweep_continues_and_repeats_nothing_that_is_done(tmp_path, capsys):
  specs = ('a:0:0', 'b:0:0', 'c:300:0', 'd:300:0', 'e:0:0', 'f:0:0')
  first = start_sweep(tmp_path, *specs)
  wait_for(lambda: pids(tmp_path, 'c') and pids(tmp_path, 'd'))
  first.kill()
  first.communicate()
  expected = dict(a='done', b='done', c='running', d='running', e='waiting', f='waiting')
  assert field(tmp_path, 'state') == expected

  # c and d fill both places, although another sweep started them.
  second = start_sweep(tmp_path, *specs)
  for name in 'cd':
    wait_for_line(second, f'{name}: still runs as process {pids(tmp_path, name)[0]}, left')
  time.sleep(0.5)
  assert not pids(tmp_path, 'e')
  second.terminate()
  message = f'c: keeps running as process {pids(tmp_path, "c")[0]}'
  assert message in second.communicate(timeout=60)[1]

  # d is killed and runs again; c completes although no sweep watches it.
  third = start_sweep(tmp_path, *specs)
  wait_for_line(third, 'd: still runs')
  os.kill(int(pids(tmp_path, 'd')[0]), signal.SIGKILL)
  let_go(tmp_path, 'd')
  wait_for(lambda: pids(tmp_path, 'f'))
  let_go(tmp_path, 'c')
  messages = third.communicate(timeout=60)[1]
  assert third.returncode == 0 and 'c: done, while no sweep watched' in messages
  assert n_starts(tmp_path, 'abcdef') == [1, 1, 1, 2, 1, 1]
  assert ledger(tmp_path)['c']['wall_s'] > 1

  assert stand_in_sweep.run(tmp_path, *specs) == 0
  assert sum(n_starts(tmp_path, 'abcdef')) == 7
  table = capsys.readouterr().out
  assert '30.00 [28.00, 32.00]' in table and 'recency 20.00' in table


def test_sigterm_stops_the_children_and_the_same_command_continues(tmp_path):
  def terminate():
    wait_for(lambda: pids(tmp_path, 'b') and pids(tmp_path, 'c'))
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=terminate).start()
  specs = ('a:0:0', 'b:300:0', 'c:300:0', 'd:300:0')
  assert stand_in_sweep.run(tmp_path, *specs, parallel=2) == 42
  assert field(tmp_path, 'state') == dict(a='done', b='stopped', c='stopped', d='waiting')
  stopped = ledger(tmp_path)['b']
  assert stopped['exit_code'] == 42 and 'SIGTERM to the sweep' in stopped['why']
  with pytest.raises(ProcessLookupError):
    os.kill(int(pids(tmp_path, 'b')[0]), 0)
  specs = ('a:0:0', 'b:0:0', 'c:0:0', 'd:0:0')
  assert stand_in_sweep.run(tmp_path, *specs, parallel=2) == 0
  assert n_starts(tmp_path, 'abcd') == [1, 2, 2, 1]


def test_the_points_continue_when_nobody_reads_the_messages(tmp_path):
  sweep = start_sweep(tmp_path, 'a:0:0', 'b:0:42,0')
  sweep.stderr.close()
  assert sweep.wait(timeout=60) == 0
  assert field(tmp_path, 'state') == dict(a='done', b='done')
  assert field(tmp_path, 'starts') == dict(a=1, b=2)


def test_exit_codes_decide_which_points_run_again(tmp_path):
  specs = ('bad:0:2', 'diverged:0:3', 'preempted:0:42,0', 'lost:0:134,-9,0', 'hopeless:0:-9')
  assert stand_in_sweep.run(tmp_path, *specs, 'crash:0:1', parallel=3) == 1
  expected = dict(bad=1, diverged=1, preempted=2, lost=3, hopeless=3, crash=1)
  assert field(tmp_path, 'starts') == expected
  states = field(tmp_path, 'state')
  assert {name for name in states if states[name] == 'done'} == {'preempted', 'lost'}
  why = field(tmp_path, 'why')
  assert why['bad'] == 'exit code 2 (bad setting or data)\nthe data is wrong: row 7'
  assert why['hopeless'].startswith('killed by SIGKILL, after 2 restarts')
  assert ledger(tmp_path)['bad']['exit_code'] == 2


def test_a_summary_lists_metrics_and_failures(tmp_path, capsys):
  assert stand_in_sweep.run(tmp_path, 'good:0:0', 'bad:0:2') == 1
  assert 'the data is wrong: row 7' in capsys.readouterr().out
  with (tmp_path / 'summary.csv').open() as file:
    rows = {row['point']: row for row in csv.DictReader(file)}
  assert rows['good']['HI@10'] == '0.3' and rows['good']['best baseline'] == 'recency'
  assert rows['bad']['HI@10'] == '' and rows['bad']['state'] == 'failed'
  assert (tmp_path / 'summary.png').stat().st_size > 1000


def test_a_failed_point_runs_again_only_when_it_is_named(tmp_path, capsys):
  assert stand_in_sweep.run(tmp_path, 'bad:0:2') == 1
  assert stand_in_sweep.run(tmp_path, 'bad:0:2') == 1
  assert ledger(tmp_path)['bad']['starts'] == 1
  assert 'bad: failed before; --only=bad runs it again' in capsys.readouterr().err
  assert stand_in_sweep.run(tmp_path, 'bad:0:2,0', retry=['bad']) == 0
  assert ledger(tmp_path)['bad']['state'] == 'done'


def test_a_second_sweep_in_the_same_folder_is_rejected(tmp_path):
  with exclusive(tmp_path), pytest.raises(ConfigError, match='a sweep is running there'):
    stand_in_sweep.run(tmp_path, 'a:0:0')


def test_a_done_point_with_other_assignments_runs_again(tmp_path):
  book = Ledger(tmp_path, 'demo')
  book.enter('a', ['seed=0'])
  book.update('a', state='done')
  assert Ledger(tmp_path, 'demo').enter('a', ['seed=0']).state == 'done'
  assert Ledger(tmp_path, 'demo').enter('a', ['seed=1']).state == 'waiting'


def test_a_ledger_of_another_experiment_or_a_damaged_one_is_rejected(tmp_path):
  book = Ledger(tmp_path, 'demo')
  book.enter('a', ['seed=0'])
  book.update('a', state='done')
  with pytest.raises(ConfigError, match='holds the sweep of --experiment=demo, not contract'):
    Ledger(tmp_path, 'contract')
  for damaged in ('{"points"', '[]', '{"experiment": "demo", "points": {"a": {"state": "done"}}}'):
    book.path.write_text(damaged)
    with pytest.raises(ConfigError, match='not the ledger of a sweep'):
      Ledger(tmp_path, 'demo')


EXPERIMENT = """
from rolegen_jax.config import Config

def get_config(arg):
  return Config()

def sweep(add, arg):
  {body}
"""


@pytest.mark.parametrize(
  ('body', 'message'),
  [
    ("add('a'); add('a', 'seed=1')", "two points are named 'a'; names must differ"),
    ("add('a/b')", "point 'a/b': must be letters, digits"),
    ("add('a', 'loop.wrlds=3')", 'no such field; the nearest is loop.worlds'),
    ("add('a', 'loop.worlds=1')", 'loop.worlds=1: must be 2 to 16'),
    ('int(arg)', '--arg=: rejected by the sweep of .*: invalid literal'),
    ('pass', 'has no points'),
  ],
)
def test_bad_sweeps_are_rejected_before_anything_runs(tmp_path, body, message):
  path = tmp_path / 'swept.py'
  path.write_text(EXPERIMENT.format(body=body))
  with pytest.raises(ConfigError, match=message):
    sweep_points.enumerate_points(str(path), '', [])


def test_points_of_the_demo_and_unknown_names():
  points = sweep_points.enumerate_points('demo', '', ['warmup.steps=5'])
  assert len(points) == 6
  assert points['worlds2_seed1'] == ['warmup.steps=5', 'loop.worlds=2', 'seed=1']
  names = sweep_points.select(points, ['worlds8_seed0', 'worlds2_seed1'])
  assert names == ['worlds2_seed1', 'worlds8_seed0']
  with pytest.raises(ConfigError, match='--only=worlds3: no such point; must be among worlds2_'):
    sweep_points.select(points, ['worlds3'])
  with pytest.raises(ConfigError, match=r'experiments/contract.py has no sweep'):
    sweep_points.enumerate_points('contract', '', ['data.path=x'])


def test_a_report_of_other_settings_is_not_that_of_the_point(tmp_path):
  point = sweep_points.local_point('demo', 'a', [], tmp_path)
  assert not sweep_points.has_report(point, ['loop.worlds=8'])
  point.folder.mkdir(parents=True)
  point.product_path.write_text('{}')
  config = cli.experiment('demo', ['loop.worlds=8'])
  write_json(configs.to_dict(config), point.folder / 'config.json')
  assert sweep_points.has_report(point, ['loop.worlds=8'])
  assert not sweep_points.has_report(point, ['loop.worlds=8', 'warmup.steps=5'])


def test_other_targets_get_the_commands_of_launch_run(tmp_path):
  points = {'Wide_2': ['backbone.temporal.width=128'], 'wide_4': []}
  first, _ = sweep_points.remote_points('demo', points, tmp_path, 'slurm', ['--nodes=2'])
  assert first.command[1:] == [
    '-m',
    'launch.run',
    '--target=slurm',
    '--name=demo-wide-2',
    '--nodes=2',
    '--experiment=demo',
    f'--workdir={tmp_path}/points/Wide_2',
    '--set',
    'backbone.temporal.width=128',
  ]
  with pytest.raises(ConfigError, match="points 'a.b' and 'a_b' would both be job 'demo-a-b'"):
    sweep_points.remote_points('demo', {'a.b': [], 'a_b': []}, tmp_path, 'slurm', [])
