"""A whole run in two processes, killed at random moments of every stage, equals the run that nobody disturbed.

Minutes long: ROLEGEN_SLOW=1 runs it. The real commands, at the smallest size.
"""

import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SIZES = ('layers=1', 'width=16', 'heads=2', 'kv_heads=2', 'head_dim=8', 'mlp=16')
SMALL = [f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in SIZES] + [
    'world.users=1500', 'world.items=64', 'world.categories=8', 'semantic_ids.codes=8', 'semantic_ids.levels=2', 'semantic_ids.iterations=2',
    'backbone.context=16', 'backbone.beam=10', 'reasoner.events=6', 'reasoner.role_events=4', 'reasoner.candidates=2', 'loop.worlds=2',
    'warmup.batch=64', 'align.batch=256', 'reason.batch=128', 'loop_stage.batch=64', 'evaluation.ks=(1,10)', 'evaluation.sasrec_steps=10',
    'evaluation.bootstrap=20', 'mesh.fsdp=2',
] + [f'{stage}.{setting}' for stage in ('warmup', 'align', 'reason', 'loop_stage') for setting in ('steps=24', 'save_every=5')]
TRAINED = ('backbone', 'align', 'reason', 'loop', 'ablations/no_reasoner')
STAGES = ('data', 'semantic_ids', 'backbone', 'roles', 'align', 'reason', 'loop', 'ablations/no_reasoner', 'evaluation')
KILLS = 20
START_S = 300  # no stage takes that long here

pytestmark = pytest.mark.skipif('ROLEGEN_SLOW' not in os.environ, reason='minutes long: ROLEGEN_SLOW=1 runs it')


@dataclasses.dataclass
class Job:
  """`launch.run --target=local` on four devices, and what it says."""

  workdir: pathlib.Path
  processes: int
  restarts: int = 0
  watchdog_s: int = 600

  def __enter__(self):
    sets = [part for setting in SMALL for part in ('--set', setting)]
    flags = dict(
        target='local', experiment='demo', workdir=self.workdir, processes=self.processes, devices_per_process=4 // self.processes,
        max_restarts=self.restarts, watchdog_s=self.watchdog_s)
    command = [sys.executable, '-m', 'launch.run', *(f'--{name}={value}' for name, value in flags.items()), *sets]
    self.said = self.workdir.with_suffix(f'.{self.processes}.txt')
    self.running = subprocess.Popen(command, cwd=ROOT, stdout=self.said.open('w'), stderr=subprocess.STDOUT)
    return self

  def __exit__(self, *_):
    if self.running.poll() is None:
      self.running.terminate()
    self.running.wait()

  def lines(self) -> list[str]:
    return self.said.read_text().splitlines()

  def pids(self, what: str) -> list[int]:
    """Of this job's processes that run `what`, one of each; none when the job is over."""
    found = until(lambda: self.running.poll() is not None or self._pids(what), 60)
    return found if isinstance(found, list) else []

  def _pids(self, what: str) -> list[int]:
    found = subprocess.run(['ps', '-ww', '-eo', 'pid=,args='], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=1) for line in found.splitlines()]
    of = [int(pid) for pid, args in rows if re.match(rf'\S+ -m {re.escape(what)} ', args) and f'--workdir={self.workdir} ' in args]
    return of if len(of) == self.processes else []  # one that just starts shows another command


def until(met, seconds: float = START_S):
  """What `met()` returns when it is true, or None when the time is over."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if found := met():
      return found
    time.sleep(0.05)
  return None


def stage_now(lines: list[str]) -> str:
  """The stage that process 0 is in, by what it said since its last start."""
  now = 'start'
  for line in lines:
    if found := re.match(r'\[0\] (\S+): (running|continuing|up to date|done)', line):
      name, state = found.groups()
      now = name if state in ('running', 'continuing') else 'evaluation' if name == STAGES[-2] else 'between'
    elif line.startswith('launch: exit'):
      now = 'start'
  return now


def curves(workdir: pathlib.Path) -> dict[str, list[dict]]:
  """Every metric of every step of every stage."""
  found = {}
  for stage in TRAINED:
    rows = [json.loads(line) for line in (workdir / stage / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == list(range(24)), stage
    found[stage] = [{name: value for name, value in row.items() if name != 'time_s'} for row in rows]
  return found


def assert_close(found: pathlib.Path, wanted: pathlib.Path) -> float:
  """The greatest relative difference between the curves of the loss."""
  worst = 0.0
  for stage, rows in curves(found).items():
    ours, theirs = ([row['loss'] for row in part] for part in (rows, curves(wanted)[stage]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, err_msg=stage)
    worst = max(worst, float(np.max(np.abs(np.divide(ours, theirs) - 1))))
  return worst


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  """The run of two processes that nobody disturbs, and how long each stage took."""
  folder = tmp_path_factory.mktemp('kills') / 'unbroken'
  seconds, now, since = {}, 'start', time.monotonic()
  with Job(folder, 2) as job:
    while job.running.poll() is None:
      time.sleep(0.05)
      if (stage := stage_now(job.lines())) != now:
        seconds[now], now, since = time.monotonic() - since, stage, time.monotonic()
    seconds[now] = time.monotonic() - since
    assert job.running.returncode == 0, '\n'.join(job.lines()[-30:])
  return folder, seconds


def test_two_processes_give_the_curves_of_one(unbroken, tmp_path):
  with Job(tmp_path / 'one', 1) as job:
    assert job.running.wait() == 0, '\n'.join(job.lines()[-30:])
  print('one process against two: loss differs by at most', assert_close(tmp_path / 'one', unbroken[0]))


def test_killed_at_random_moments_of_every_stage(unbroken, tmp_path):
  folder, seconds = unbroken
  seed = int(os.environ.get('ROLEGEN_SEED', time.time_ns() % 10**6))
  rng = random.Random(seed)
  done = []
  with Job(tmp_path / 'killed', 2, restarts=KILLS + 5) as job:
    for number in range(KILLS):
      # As many moments in each stage as go; what a stage was spared goes to those after it, and evaluation begins anew each time.
      stage = STAGES[number * len(STAGES) // KILLS]
      reached = STAGES.index(stage)
      starts = sum(line.startswith('launch: exit') for line in job.lines())
      assert starts == number, '\n'.join(job.lines()[-30:])
      assert until(lambda: stage_now(job.lines()) in STAGES[reached:]), '\n'.join(job.lines()[-30:])
      time.sleep(rng.uniform(0, 0.5 * seconds[stage_now(job.lines())]))
      how = (signal.SIGTERM, signal.SIGKILL)[number % 2]
      whom = 'launch.host_entry' if how == signal.SIGTERM else rng.choice(['launch.host_entry', 'rolegen_jax.train'])
      victims = job.pids(whom)
      if len(victims) != 2:  # the run was over before the moment came
        break
      done.append((stage_now(job.lines()), how.name, whom, rng.randrange(2)))
      os.kill(victims[done[-1][-1]], how)
      assert until(lambda: sum(line.startswith('launch: exit') for line in job.lines()) > number), f'{done}\n' + '\n'.join(job.lines()[-30:])
    assert job.running.wait() == 0, f'seed {seed}, {done}\n' + '\n'.join(job.lines()[-30:])
  print(f'seed {seed}')
  for moment in done:
    print(*moment)
  assert len(done) == KILLS
  print('killed against unbroken: loss differs by at most', assert_close(tmp_path / 'killed', folder))
  systems = lambda at: json.loads((at / 'report.json').read_text())['systems']
  assert systems(tmp_path / 'killed') == systems(folder)


def without_loop(unbroken: pathlib.Path, folder: pathlib.Path):
  """Copies a run as it was before its stage `loop`. Returns a function that counts the steps that this stage has logged."""
  shutil.copytree(unbroken, folder, ignore=shutil.ignore_patterns('loop', 'ablations', 'report.*'))
  metrics = folder / 'loop' / 'metrics.jsonl'
  return lambda: len(metrics.read_text().splitlines()) if metrics.exists() else 0


def test_a_process_that_hangs_ends_the_job_with_134_and_the_launcher_finishes_it(unbroken, tmp_path):
  folder = tmp_path / 'hung'
  rows = without_loop(unbroken[0], folder)
  with Job(folder, 2, restarts=3, watchdog_s=60) as job:
    assert until(lambda: rows() > 7), '\n'.join(job.lines()[-30:])
    os.kill(job.pids('rolegen_jax.train')[1], signal.SIGSTOP)
    assert until(lambda: any('launch: exit 134, restart 1 of 3' in line for line in job.lines())), '\n'.join(job.lines()[-30:])
    assert job.running.wait() == 0, '\n'.join(job.lines()[-30:])
  assert any('watchdog: no sign of life' in line for line in job.lines())
  print('hung against unbroken: loss differs by at most', assert_close(folder, unbroken[0]))


def test_resumes_on_four_processes_and_then_on_one(unbroken, tmp_path):
  folder = tmp_path / 'moved'
  rows = without_loop(unbroken[0], folder)
  with Job(folder, 2) as job:
    assert until(lambda: rows() > 7), '\n'.join(job.lines()[-30:])
    os.kill(job.pids('rolegen_jax.train')[1], signal.SIGKILL)
    job.running.wait()
  with Job(folder, 4) as job:
    assert until(lambda: stage_now(job.lines()) == 'loop' and rows() > 12), '\n'.join(job.lines()[-30:])
    job.running.terminate()
    assert job.running.wait() == 42, '\n'.join(job.lines()[-30:])
    assert any('saved at step' in line for line in job.lines())
  with Job(folder, 1) as job:
    assert job.running.wait() == 0, '\n'.join(job.lines()[-30:])
  print('2, 4, 1 processes against 2: loss differs by at most', assert_close(folder, unbroken[0]))
