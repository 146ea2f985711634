"""Sweeps through rolegen_jax.train, at the smallest size: what it says when it fails or is stopped, and what it reports."""

import csv
import faulthandler
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import overview, points

ROOT = pathlib.Path(__file__).parents[2]
SIZES = ('layers=1', 'width=16', 'heads=2', 'kv_heads=2', 'head_dim=8', 'mlp=16')
SMALL = [f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in SIZES] + [
    'world.users=120', 'world.items=48', 'world.categories=8', 'semantic_ids.codes=8', 'semantic_ids.levels=2', 'semantic_ids.iterations=2',
    'backbone.context=16', 'backbone.beam=10', 'reasoner.events=6', 'reasoner.role_events=4', 'reasoner.candidates=2', 'loop.worlds=2',
    'warmup.steps=2', 'align.steps=1', 'reason.steps=1', 'loop_stage.steps=2', 'warmup.batch=8', 'align.batch=8', 'reason.batch=8',
    'loop_stage.batch=8', 'evaluation.ks=(1,10)', 'evaluation.sasrec_steps=1', 'evaluation.bootstrap=20', 'evaluation.ablations=()',
]

# rolegen_jax.train compiled as conftest.py has it: much is compiled here and little is run.
TRAIN = '''
import runpy
from rolegen_jax import compile
compile.OPTIONS['cpu'] = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
runpy.run_module('rolegen_jax.train', run_name='__main__', alter_sys=True)
'''


def test_a_run_that_fails_says_why_and_one_that_is_stopped_may_continue(tmp_path):
  found = dict(good=SMALL, bad=['data.format=contract', f'data.path={tmp_path / "nowhere"}'])
  wanted = [points.local('demo', name, found[name], tmp_path) for name in found]
  over = threading.Event()

  def stop():
    log, ledger = tmp_path / 'points' / 'good' / 'log.txt', tmp_path / 'ledger.json'
    end = time.monotonic() + 120
    while time.monotonic() < end and not over.is_set() and not ('semantic_ids: running' in log.read_text() and '"failed"' in ledger.read_text() if log.exists() else False):
      time.sleep(0.1)
    if not over.is_set():
      os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=stop).start()
  try:
    assert points.run('demo', found, wanted, tmp_path, [], parallel=2) == 42
  finally:
    over.set()
  ledger = json.loads((tmp_path / 'ledger.json').read_text())['points']
  assert ledger['bad']['state'] == 'failed' and ledger['bad']['exit_code'] == 2
  assert ledger['bad']['why'].startswith('exit code 2 (bad setting or data)\n') and 'nowhere' in ledger['bad']['why']
  assert ledger['good']['state'] in ('stopped', 'done') and ledger['good']['exit_code'] in (42, -signal.SIGTERM, 0)


# launch.sweep itself, its points compiled as above.
SWEEP = f'''
import dataclasses, runpy
from launch import points
local = points.local
def quickly(*args):
  point = local(*args)
  return dataclasses.replace(point, command=[point.command[0], '-c', {TRAIN!r}, *point.command[3:]])
points.local = quickly
runpy.run_module('launch.sweep', run_name='__main__', alter_sys=True)
'''
STAGES = ['data', 'semantic_ids', 'backbone', 'roles', 'align', 'reason', 'loop']


class Sweep:
  """The six points of the demo's sweep in one folder, and what is to be seen there."""

  def __init__(self, workdir):
    self.workdir = workdir
    sets = [part for assignment in SMALL for part in ('--set', assignment)]
    self._command = [sys.executable, '-c', SWEEP, '--experiment=demo', f'--workdir={workdir}', '--parallel=2', *sets]

  def start(self):
    with (self.workdir / 'said.txt').open('w') as file:
      return subprocess.Popen(self._command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)

  def said(self):
    return (self.workdir / 'said.txt').read_text()

  def ledger(self):
    path = self.workdir / 'ledger.json'
    return json.loads(path.read_text())['points'] if path.exists() else {}

  def names(self, state):
    return [name for name, entry in self.ledger().items() if entry['state'] == state]

  def log(self, name):
    return (self.workdir / 'points' / name / 'log.txt').read_text()

  def between(self):
    """Points that run and have some training stages behind and some before them."""
    return [name for name in self.names('running') if 'backbone: done' in self.log(name) and 'loop: done' not in self.log(name)]

  def kept(self):
    """What must never change again of the points that are done now."""
    written = lambda name: (self.workdir / 'points' / name / 'report.json').stat().st_mtime_ns
    return {name: (self.ledger()[name], written(name), self.log(name)) for name in self.names('done')}

  def keeps(self, before):
    now = self.kept()
    return {name: now[name] for name in before} == before

  def wait(self, condition):
    end = time.monotonic() + 1800
    while not condition():
      assert time.monotonic() < end, self.said()
      time.sleep(0.2)
    time.sleep(random.uniform(0, 3))  # then at any moment


@pytest.mark.skipif('ROLEGEN_SLOW' not in os.environ, reason='compiles every program of six runs, a quarter of an hour: ROLEGEN_SLOW=1 runs it')
def test_six_points_are_trained_once_through_two_kills_and_summarised(tmp_path):
  faulthandler.cancel_dump_traceback_later()  # pytest.ini's, after ten minutes: this takes longer and is no hang
  sweep = Sweep(tmp_path)
  process = sweep.start()
  sweep.wait(lambda: len(sweep.names('done')) >= 2 and len(sweep.between()) == 2)
  process.kill()
  process.wait()
  done, (cut, left) = sweep.kept(), sweep.names('running')
  os.kill(int((tmp_path / 'points' / cut / '.lock').read_text()), signal.SIGKILL)  # the other one works on, though no sweep watches

  process = sweep.start()
  sweep.wait(lambda: left in sweep.names('done') and sweep.between())
  process.terminate()
  assert process.wait() == 42, sweep.said()
  assert f'{left}: still runs as process' in sweep.said() and f'{left}: done, while no sweep watched' in sweep.said()
  stopped, advanced = sweep.names('stopped'), {name for name in sweep.names('stopped') if 'backbone: done' in sweep.log(name)}
  assert stopped and advanced and sweep.keeps(done)
  done = sweep.kept()

  assert sweep.start().wait() == 0, sweep.said()
  assert sweep.keeps(done) and all(f'{name}: done\n' in sweep.said() for name in done)
  for name, entry in sweep.ledger().items():
    log = sweep.log(name)
    assert re.findall('^(\\w+): done', log, re.MULTILINE) == STAGES, log  # each of them once
    assert entry['starts'] == log.count('== start') == 1 + (name == cut) + (name in stopped)
    assert 'backbone: up to date' in log or name not in {cut, *advanced}
  rows = list(csv.DictReader((tmp_path / 'summary.csv').open()))
  whole = next(name for name, entry in sweep.ledger().items() if entry['starts'] == 1)
  assert len(rows) == len(json.loads((tmp_path / 'summary.json').read_text())) == 6 and (tmp_path / 'summary.png').stat().st_size > 1000
  for row in rows:
    report = json.loads((tmp_path / 'points' / row['point'] / 'report.json').read_text())
    interval = report['systems']['RoleGen']['metrics'][row['slice']]['HI@10']
    assert (float(row['HI@10']), float(row['HI@10 low'])) == (interval['mean'], interval['low'])
    assert float(row['wall_s']) > 0 and row['state'] == 'done' and row['best floor'] in report['systems']
    assert re.search(rf'^{row["point"]} +done ', sweep.said(), re.MULTILINE)
    if row['point'] == whole:
      seconds = overview.run_status(tmp_path / 'points' / whole, 0.0)['seconds'][0]
      assert seconds['compile'] > seconds['step'] > 0 and seconds['evaluation'] > 0 and seconds['lost'] == seconds['down'] == 0
      assert sum(seconds.values()) < float(row['wall_s'])

  everything = sweep.kept()
  assert sweep.start().wait() == 0 and sweep.kept() == everything
