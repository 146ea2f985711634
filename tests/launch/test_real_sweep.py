"""Sweeps of real training runs at the smallest size: failures, stops, kills and the summary."""

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
import small

from launch import overview, points
from launch.pool import Limits

ROOT = pathlib.Path(__file__).parents[2]
FAST_SWEEP = str(pathlib.Path(__file__).with_name('fast_sweep.py'))
SETTINGS = small.settings(
  'simulator.users=120',
  'simulator.items=48',
  'warmup.steps=2',
  'align.steps=1',
  'reason.steps=1',
  'loop_stage.steps=2',
  *(f'{section}.batch=8' for section in small.STAGE_SECTIONS),
  'evaluation.sasrec.steps=1',
  'evaluation.ablations=()',
)
STAGES = ['data', 'semantic_ids', 'choices', 'warmup', 'roles', 'align', 'reason', 'loop']
STAGES += ['baselines']


def test_a_run_that_fails_says_why_and_a_stopped_one_may_continue(tmp_path):
  missing_data = ['data.format=contract', f'data.path={tmp_path / "nowhere"}']
  assignments = dict(good=SETTINGS, bad=missing_data)
  selected = [points.local_point('demo', name, assignments[name], tmp_path) for name in assignments]
  log, ledger = tmp_path / 'points' / 'good' / 'log.txt', tmp_path / 'ledger.json'
  finished = threading.Event()

  def both_happened() -> bool:
    return (
      log.exists()
      and 'semantic_ids: running' in log.read_text()
      and '"failed"' in ledger.read_text()
    )

  def stop_sweep() -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and not finished.is_set() and not both_happened():
      time.sleep(0.1)
    if not finished.is_set():
      os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=stop_sweep).start()
  try:
    assert points.run('demo', assignments, selected, tmp_path, [], Limits(parallel=2)) == 42
  finally:
    finished.set()
  entries = json.loads(ledger.read_text())['points']
  good, bad = entries['good'], entries['bad']
  assert bad['state'] == 'failed' and bad['exit_code'] == 2
  assert bad['why'].startswith('exit code 2 (bad setting or data)\n') and 'nowhere' in bad['why']
  assert good['state'] in ('stopped', 'done')
  assert good['exit_code'] in (42, -signal.SIGTERM, 0)


class Sweep:
  """The six points of the demo's sweep in one folder, and what can be observed there."""

  def __init__(self, workdir):
    self.workdir = workdir
    flags = ['--experiment=demo', f'--workdir={workdir}', '--parallel=2']
    self._command = [sys.executable, FAST_SWEEP, *flags, *small.set_flags(SETTINGS)]

  def start(self):
    with (self.workdir / 'output.txt').open('w') as file:
      return subprocess.Popen(
        self._command,
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=file,
        stderr=subprocess.STDOUT,
      )

  def output(self):
    """Return what the latest start printed."""
    return (self.workdir / 'output.txt').read_text()

  def ledger(self):
    path = self.workdir / 'ledger.json'
    return json.loads(path.read_text())['points'] if path.exists() else {}

  def names(self, state):
    return [name for name, entry in self.ledger().items() if entry['state'] == state]

  def log(self, name):
    return (self.workdir / 'points' / name / 'log.txt').read_text()

  def report(self, name):
    return json.loads((self.workdir / 'points' / name / 'report.json').read_text())

  def mid_training(self):
    """Return the points that run, and have done some training stages but not all."""
    return [
      name
      for name in self.names('running')
      if 'warmup: done' in self.log(name) and 'loop: done' not in self.log(name)
    ]

  def done_points(self):
    """Return what must never change again of the points that are done now."""
    state = {}
    for name in self.names('done'):
      report = self.workdir / 'points' / name / 'report.json'
      state[name] = (self.ledger()[name], report.stat().st_mtime_ns, self.log(name))
    return state

  def preserves(self, earlier):
    now = self.done_points()
    return {name: now[name] for name in earlier} == earlier

  def wait_for(self, condition):
    """Wait until the condition holds, and then for a random moment."""
    end = time.monotonic() + 1800
    while not condition():
      assert time.monotonic() < end, self.output()
      time.sleep(0.2)
    time.sleep(random.uniform(0, 3))


@pytest.mark.slow
def test_six_points_are_trained_once_through_two_kills_and_summarized(tmp_path):
  # This takes longer than pytest's faulthandler_timeout and is no hang.
  faulthandler.cancel_dump_traceback_later()
  sweep = Sweep(tmp_path)

  # Kill the sweep and one of its two running points; the other keeps running unwatched.
  process = sweep.start()
  sweep.wait_for(lambda: len(sweep.names('done')) >= 2 and len(sweep.mid_training()) == 2)
  process.kill()
  process.wait()
  done, (killed, orphan) = sweep.done_points(), sweep.names('running')
  lock = tmp_path / 'points' / killed / '.lock'
  os.kill(int(lock.read_text()), signal.SIGKILL)

  # Stop the second sweep once the orphan is done and another point is in the middle.
  process = sweep.start()
  sweep.wait_for(lambda: orphan in sweep.names('done') and sweep.mid_training())
  process.terminate()
  assert process.wait() == 42, sweep.output()
  assert f'{orphan}: still runs as process' in sweep.output()
  assert f'{orphan}: done, while no sweep watched' in sweep.output()
  stopped = sweep.names('stopped')
  advanced = {name for name in stopped if 'warmup: done' in sweep.log(name)}
  assert stopped and advanced and sweep.preserves(done)
  done = sweep.done_points()

  assert sweep.start().wait() == 0, sweep.output()
  assert sweep.preserves(done)
  assert all(f'{name}: done\n' in sweep.output() for name in done)
  for name, entry in sweep.ledger().items():
    log = sweep.log(name)
    assert re.findall(r'^(\w+): done', log, re.MULTILINE) == STAGES, log  # each of them once
    restarts = (name == killed) + (name in stopped)
    assert entry['starts'] == log.count('== start') == 1 + restarts
    assert 'warmup: up to date' in log or name not in {killed, *advanced}
  check_summary(sweep)

  final = sweep.done_points()
  assert sweep.start().wait() == 0 and sweep.done_points() == final


def check_summary(sweep: Sweep) -> None:
  """Check the summary against the reports, and the account of time of an undisturbed point."""
  with (sweep.workdir / 'summary.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(json.loads((sweep.workdir / 'summary.json').read_text())) == 6
  assert (sweep.workdir / 'summary.png').stat().st_size > 1000
  for row in rows:
    systems = sweep.report(row['point'])['systems']
    interval = systems['RoleGen']['metrics'][row['slice']]['HI@10']
    assert float(row['HI@10']) == interval['mean']
    assert float(row['HI@10 low']) == interval['low']
    assert float(row['wall_s']) > 0 and row['state'] == 'done'
    assert row['best baseline'] in systems
    assert re.search(rf'^{row["point"]} +done ', sweep.output(), re.MULTILINE)
  undisturbed = next(row for row in rows if int(row['starts']) == 1)
  folder = sweep.workdir / 'points' / undisturbed['point']
  seconds = overview.run_status(folder, 0.0)['seconds'][0]
  assert seconds['compile'] > seconds['step'] > 0 and seconds['evaluation'] > 0
  assert seconds['lost'] == seconds['down'] == 0
  assert sum(seconds.values()) < float(undisturbed['wall_s'])
