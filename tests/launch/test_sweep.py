"""The sweep: what is done is never repeated, what fails says why, what is wrong is refused; and one real sweep of two points."""

import collections
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

import experiments
from launch import points as sweeps
from launch.ledger import Ledger, only_one
from launch.pool import Point
from rolegen_jax.config import ConfigError

STAND_IN = pathlib.Path(__file__).with_name('stand_in.py')
ROOT = pathlib.Path(__file__).parents[2]


def go(workdir, *points, retry=(), parallel=1):
  """A sweep of stand-ins, NAME:SECONDS:CODES each."""
  wanted, found = [], {}
  for point in points:
    name, seconds, codes = point.split(':')
    folder = workdir / 'points' / name
    wanted.append(Point(name, [sys.executable, str(STAND_IN), str(folder), seconds, codes], folder))
    found[name] = []
  return sweeps.run('demo', found, wanted, workdir, list(retry), parallel=parallel, max_restarts=2, grace_s=60)


def process(workdir, *points):
  """The same as a process of its own, to be killed."""
  code = f'import pathlib, test_sweep; test_sweep.go(pathlib.Path({str(workdir)!r}), *{points!r}, parallel=2)'
  path = os.pathsep.join([str(ROOT), str(STAND_IN.parent)])
  return subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ | {'PYTHONPATH': path})


def ledger(workdir):
  return json.loads((workdir / 'ledger.json').read_text())['points']


def starts(workdir, name):
  path = workdir / 'points' / name / 'starts.txt'
  return path.read_text().splitlines() if path.exists() else []


def until(condition, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.02)


def test_a_killed_sweep_continues_and_repeats_nothing_that_is_done(tmp_path, capsys):
  points = ('a:0:0', 'b:0:0', 'c:300:0', 'd:300:0', 'e:0:0', 'f:0:0')
  first = process(tmp_path, *points)
  until(lambda: starts(tmp_path, 'c') and starts(tmp_path, 'd'))
  first.kill()
  first.communicate()
  assert {name: entry['state'] for name, entry in ledger(tmp_path).items()} == dict(a='done', b='done', c='running', d='running', e='waiting', f='waiting')
  second = process(tmp_path, *points)
  says = lambda sweep, what: next(line for line in sweep.stderr if what in line)
  for name in 'cd':
    says(second, f'{name}: still runs as process {starts(tmp_path, name)[0]}, left behind')
  time.sleep(0.5)
  assert not starts(tmp_path, 'e')  # two at a time, whoever started them
  second.terminate()
  assert f'c: goes on as process {starts(tmp_path, "c")[0]}' in second.communicate(timeout=60)[1]
  third = process(tmp_path, *points)
  says(third, 'd: still runs')
  os.kill(int(starts(tmp_path, 'd')[0]), signal.SIGKILL)  # d is cut off, c works on though no sweep watches
  (tmp_path / 'points' / 'd' / 'go').touch()
  until(lambda: starts(tmp_path, 'f'))
  (tmp_path / 'points' / 'c' / 'go').touch()
  _, said = third.communicate(timeout=60)
  assert third.returncode == 0 and 'c: done, while no sweep watched' in said
  assert {name: len(starts(tmp_path, name)) for name in 'abcdef'} == dict(a=1, b=1, c=1, d=2, e=1, f=1)
  assert ledger(tmp_path)['c']['wall_s'] > 1
  assert go(tmp_path, *points) == 0
  assert sum(len(starts(tmp_path, name)) for name in 'abcdef') == 7
  said = capsys.readouterr().out
  assert '30.00 [28.00, 32.00]' in said and 'recency 20.00' in said


def test_sigterm_stops_the_children_and_the_same_command_continues(tmp_path):
  def terminate():
    until(lambda: starts(tmp_path, 'b') and starts(tmp_path, 'c'))
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=terminate).start()
  assert go(tmp_path, 'a:0:0', 'b:300:0', 'c:300:0', 'd:300:0', parallel=2) == 42
  found = ledger(tmp_path)
  assert {name: entry['state'] for name, entry in found.items()} == dict(a='done', b='stopped', c='stopped', d='waiting')
  assert found['b']['exit_code'] == 42 and 'SIGTERM to the sweep' in found['b']['why']
  with pytest.raises(ProcessLookupError):
    os.kill(int(starts(tmp_path, 'b')[0]), 0)
  assert go(tmp_path, 'a:0:0', 'b:0:0', 'c:0:0', 'd:0:0', parallel=2) == 0
  assert [len(starts(tmp_path, name)) for name in 'abcd'] == [1, 2, 2, 1]


def test_the_points_go_on_when_nobody_reads_what_is_said(tmp_path):
  sweep = process(tmp_path, 'a:0:0', 'b:0:42,0')
  sweep.stderr.close()
  assert sweep.wait(timeout=60) == 0
  assert {name: (entry['state'], entry['starts']) for name, entry in ledger(tmp_path).items()} == dict(a=('done', 1), b=('done', 2))


def test_exit_codes_decide_who_is_tried_again(tmp_path, capsys):
  assert go(tmp_path, 'bad:0:2', 'diverged:0:3', 'preempted:0:42,0', 'lost:0:134,-9,0', 'hopeless:0:-9', 'crash:0:1', parallel=3) == 1
  found, tries = ledger(tmp_path), collections.Counter({name: entry['starts'] for name, entry in ledger(tmp_path).items()})
  assert tries == dict(bad=1, diverged=1, preempted=2, lost=3, hopeless=3, crash=1)
  assert {name for name, entry in found.items() if entry['state'] == 'done'} == {'preempted', 'lost'}
  assert found['bad']['why'] == 'exit code 2 (bad setting or data)\nthe data is wrong: row 7' and found['bad']['exit_code'] == 2
  assert found['hopeless']['why'].startswith('killed by SIGKILL, after 2 restarts')
  assert 'the data is wrong: row 7' in capsys.readouterr().out
  rows = {row['point']: row for row in csv.DictReader((tmp_path / 'summary.csv').open())}
  assert rows['lost']['HI@10'] == '0.3' and rows['lost']['best floor'] == 'recency' and rows['bad']['HI@10'] == '' and rows['bad']['state'] == 'failed'
  assert (tmp_path / 'summary.png').stat().st_size > 1000
  assert go(tmp_path, 'bad:0:2') == 1 and ledger(tmp_path)['bad']['starts'] == 1
  assert 'bad: failed before; --only=bad tries it again' in capsys.readouterr().err
  assert go(tmp_path, 'bad:0:2,0', retry=['bad']) == 0 and ledger(tmp_path)['bad']['state'] == 'done'


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path):
  with only_one(tmp_path), pytest.raises(ConfigError, match='a sweep is running there'):
    go(tmp_path, 'a:0:0')


def test_other_assignments_run_a_done_point_again_and_another_experiment_is_refused(tmp_path):
  book = Ledger(tmp_path, 'demo')
  book.enter('a', ['seed=0'])
  book.update('a', state='done')
  assert Ledger(tmp_path, 'demo').enter('a', ['seed=0'])['state'] == 'done'
  assert Ledger(tmp_path, 'demo').enter('a', ['seed=1'])['state'] == 'waiting'
  with pytest.raises(ConfigError, match='holds the sweep of --experiment=demo, not contract'):
    Ledger(tmp_path, 'contract')
  (tmp_path / 'ledger.json').write_text('{"points"')
  with pytest.raises(ConfigError, match='not the ledger of a sweep'):
    Ledger(tmp_path, 'demo')


@pytest.fixture
def experiment(tmp_path, monkeypatch):
  """Writes an experiment whose sweep has the given body."""

  def make(body):
    name = f'swept_{abs(hash(body)):x}'
    (tmp_path / f'{name}.py').write_text(f'from rolegen_jax.config import Config\n\ndef get_config(arg):\n  return Config()\n\ndef sweep(add, arg):\n  {body}\n')
    monkeypatch.setattr(experiments, '__path__', [*experiments.__path__, str(tmp_path)])
    return name

  return make


@pytest.mark.parametrize(('body', 'message'), [
    ("add('a'); add('a', 'seed=1')", "two points are named 'a'; names must differ"),
    ("add('a/b')", "point 'a/b': must be letters, digits"),
    ("add('a', 'loop.wrlds=3')", 'no such field; the nearest is loop.worlds'),
    ("add('a', 'loop.worlds=1')", 'loop.worlds=1: must be at least 2'),
    ('int(arg)', "--arg=: the sweep of .* refuses it: invalid literal"),
    ('pass', 'has no points'),
])
def test_wrong_sweeps_are_refused_before_anything_runs(experiment, body, message):
  with pytest.raises(ConfigError, match=message):
    sweeps.enumerated(experiment(body), '', [])


def test_points_of_the_demo_and_unknown_names():
  found = sweeps.enumerated('demo', '', ['warmup.steps=5'])
  assert len(found) == 6 and found['worlds2_seed1'] == ['warmup.steps=5', 'loop.worlds=2', 'seed=1']
  assert sweeps.chosen(found, ['worlds8_seed0', 'worlds2_seed1']) == ['worlds2_seed1', 'worlds8_seed0']
  with pytest.raises(ConfigError, match='--only=worlds3: no such point; must be some of worlds2_seed0, '):
    sweeps.chosen(found, ['worlds3'])
  with pytest.raises(ConfigError, match=r'experiments/contract.py has no sweep\(add, arg\)'):
    sweeps.enumerated('contract', '', ['data.path=x'])


def test_other_targets_get_the_commands_of_launch_run(tmp_path):
  found = {'Wide_2': ['backbone.temporal.width=128'], 'wide_4': []}
  made = sweeps.remote('slurm', ['--nodes=2'], 'demo', found, list(found), tmp_path)
  assert made[0].command[1:] == [
      '-m', 'launch.run', '--target=slurm', '--name=demo-wide-2', '--nodes=2', '--experiment=demo', f'--workdir={tmp_path}/points/Wide_2', '--set',
      'backbone.temporal.width=128',
  ]
  with pytest.raises(ConfigError, match="points 'a.b' and 'a_b' would both be job 'demo-a-b'"):
    sweeps.remote('slurm', [], 'demo', {'a.b': [], 'a_b': []}, ['a.b', 'a_b'], tmp_path)
