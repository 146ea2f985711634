"""Sweeps through rolegen_jax.train, at the smallest size: what it says when it fails or is stopped, and what it reports."""

import csv
import dataclasses
import json
import os
import signal
import threading
import time

import pytest

from launch import overview, points

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

  def stop():
    log, ledger = tmp_path / 'points' / 'good' / 'log.txt', tmp_path / 'ledger.json'
    end = time.monotonic() + 120
    while time.monotonic() < end and not ('semantic_ids: running' in log.read_text() and '"failed"' in ledger.read_text() if log.exists() else False):
      time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=stop).start()
  assert points.run('demo', found, wanted, tmp_path, [], parallel=2) == 42
  ledger = json.loads((tmp_path / 'ledger.json').read_text())['points']
  assert ledger['bad']['state'] == 'failed' and ledger['bad']['exit_code'] == 2
  assert ledger['bad']['why'].startswith('exit code 2 (bad setting or data)\n') and 'nowhere' in ledger['bad']['why']
  assert ledger['good']['state'] in ('stopped', 'done') and ledger['good']['exit_code'] in (42, -signal.SIGTERM, 0)


@pytest.mark.skipif('ROLEGEN_SLOW' not in os.environ, reason='compiles every program of two runs, minutes: ROLEGEN_SLOW=1 runs it')
def test_two_points_are_trained_summarised_and_not_trained_again(tmp_path, capfd):
  found = {f'seed{seed}': [*SMALL, f'seed={seed}'] for seed in (0, 1)}
  wanted = [points.local('demo', name, found[name], tmp_path) for name in found]
  wanted = [dataclasses.replace(point, command=[point.command[0], '-c', TRAIN, *point.command[3:]]) for point in wanted]
  assert points.run('demo', found, wanted, tmp_path, []) == 0
  rows = list(csv.DictReader((tmp_path / 'summary.csv').open()))
  for row in rows:
    report = json.loads((tmp_path / 'points' / row['point'] / 'report.json').read_text())
    interval = report['systems']['RoleGen']['metrics'][row['slice']]['HI@10']
    assert (float(row['HI@10']), float(row['HI@10 low'])) == (interval['mean'], interval['low'])
    assert float(row['wall_s']) > 0 and row['state'] == 'done' and row['best floor'] in report['systems']
  seconds = overview.run_status(tmp_path / 'points' / 'seed0', 0.0)['seconds'][0]
  assert seconds['compile'] > seconds['step'] > 0 and seconds['evaluation'] > 0 and seconds['lost'] == seconds['down'] == 0
  assert sum(seconds.values()) < float(rows[0]['wall_s'])
  capfd.readouterr()
  assert points.run('demo', found, wanted, tmp_path, []) == 0
  assert 'seed0: done\nseed1: done\nsummary' in capfd.readouterr().err
