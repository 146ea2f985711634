"""Kill a two-process run at random moments of every stage; it must equal an undisturbed run.

These tests run the real commands at the smallest size. ROLEGEN_SEED repeats a sequence of kills.
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
import small

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 4
STEPS = 24
SETTINGS = small.settings(
  'simulator.users=1500',
  'simulator.items=64',
  'warmup.batch=64',
  'align.batch=256',
  'reason.batch=128',
  'loop_stage.batch=64',
  'evaluation.sasrec.steps=10',
  'mesh.fsdp=2',
  *(f'{section}.steps={STEPS}' for section in small.STAGE_SECTIONS),
  *(f'{section}.save_every=5' for section in small.STAGE_SECTIONS),
)
TRAINED = ('warmup', 'align', 'reason', 'loop')
STAGES = (
  'data',
  'semantic_ids',
  'choices',
  'warmup',
  'roles',
  'align',
  'reason',
  'loop',
  'ablations/no_reasoner/calibration',
  'baselines',
  'evaluation',
)
HOST, TRAIN = 'launch.host_entry', 'rolegen_jax train'  # the commands of a job's processes
KILLS = 20
MAX_STAGE_S = 300

pytestmark = pytest.mark.slow


@dataclasses.dataclass
class Job:
  """`launch.run --target=local` on four devices, and its output."""

  workdir: pathlib.Path
  processes: int
  restarts: int = 0
  watchdog_s: int = 600

  def __enter__(self):
    flags = dict(
      target='local',
      experiment='demo',
      workdir=self.workdir,
      processes=self.processes,
      devices_per_process=DEVICES // self.processes,
      max_restarts=self.restarts,
      watchdog_s=self.watchdog_s,
    )
    command = [sys.executable, '-m', 'launch.run']
    command += [f'--{name}={value}' for name, value in flags.items()]
    self.output_path = self.workdir.with_suffix(f'.{self.processes}.txt')
    with self.output_path.open('w') as file:
      self.launcher = subprocess.Popen(
        command + small.set_flags(SETTINGS), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
      )
    return self

  def __exit__(self, *_):
    if self.launcher.poll() is None:
      self.launcher.terminate()
    self.launcher.wait()

  def lines(self) -> list[str]:
    return self.output_path.read_text().splitlines()

  def tail(self) -> str:
    return '\n'.join(self.lines()[-30:])

  def restarts_so_far(self) -> int:
    return sum(line.startswith('launch: exit') for line in self.lines())

  def stage(self) -> str:
    return current_stage(self.lines())

  def pids(self, module: str) -> list[int]:
    """Return one process number per process that runs `module`; none when the job is over."""
    wait_for(lambda: self.launcher.poll() is not None or self._pids(module), 60)
    return self._pids(module)

  def _pids(self, module: str) -> list[int]:
    command = ['ps', '-ww', '-eo', 'pid=,args=']
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pattern = re.compile(rf' *(\d+) \S+ -m {re.escape(module)} .*--workdir={self.workdir} ')
    matches = [pattern.match(line) for line in listing.splitlines()]
    pids = [int(match[1]) for match in matches if match]
    return pids if len(pids) == self.processes else []  # one of them may just be starting


def wait_for(condition, seconds: float = MAX_STAGE_S) -> bool:
  """Return whether the condition held before the time was over."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if condition():
      return True
    time.sleep(0.05)
  return False


def current_stage(lines: list[str]) -> str:
  """Return the stage that process 0 is in, by its output since its latest start."""
  stage = 'start'
  for line in lines:
    match = re.match(r'\[0\] (\S+): (running|continuing|up to date|done)', line)
    if match:
      name, state = match.groups()
      if state in ('running', 'continuing'):
        stage = name
      else:
        stage = 'evaluation' if name == 'baselines' else 'between'
    elif line.startswith('launch: exit'):
      stage = 'start'
  return stage


def read_losses(workdir: pathlib.Path, stage: str) -> list[float]:
  lines = (workdir / stage / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row['step'] for row in rows] == list(range(STEPS)), stage
  return [row['loss'] for row in rows]


def assert_same_losses(workdir: pathlib.Path, expected_workdir: pathlib.Path) -> None:
  """Compare the losses of all stages and print the largest relative difference."""
  largest = 0.0
  for stage in TRAINED:
    losses = np.array(read_losses(workdir, stage))
    expected = np.array(read_losses(expected_workdir, stage))
    np.testing.assert_allclose(losses, expected, rtol=1e-4, err_msg=stage)
    largest = max(largest, float(np.max(np.abs(losses / expected - 1))))
  print(f'{workdir.name}: loss differs by at most', largest)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """Return the folder of an undisturbed run in two processes, and the seconds of each stage."""
  folder = tmp_path_factory.mktemp('kills') / 'undisturbed'
  seconds, stage, since = {}, 'start', time.monotonic()
  with Job(folder, 2) as job:
    while job.launcher.poll() is None:
      time.sleep(0.05)
      now = job.stage()
      if now != stage:
        seconds[stage] = time.monotonic() - since
        stage, since = now, time.monotonic()
    seconds[stage] = time.monotonic() - since
    assert job.launcher.returncode == 0, job.tail()
  return folder, seconds


def test_two_processes_give_the_curves_of_one(undisturbed, tmp_path):
  with Job(tmp_path / 'one', 1) as job:
    assert job.launcher.wait() == 0, job.tail()
  assert_same_losses(tmp_path / 'one', undisturbed[0])


def kill_one(job: Job, number: int, rng: random.Random) -> tuple | None:
  """Kill one process by SIGTERM or SIGKILL in turn; return the moment and the victim.

  None: the job was over before.
  """
  sent = (signal.SIGTERM, signal.SIGKILL)[number % 2]
  module = HOST if sent == signal.SIGTERM else rng.choice([HOST, TRAIN])
  pids = job.pids(module)
  if not pids:
    return None
  process = rng.randrange(len(pids))
  moment = job.stage()
  os.kill(pids[process], sent)
  return moment, sent.name, module, process


def test_killed_at_random_moments_of_every_stage(undisturbed, tmp_path):
  folder, seconds = undisturbed
  seed = int(os.environ.get('ROLEGEN_SEED', time.time_ns() % 10**6))
  rng = random.Random(seed)
  kills = []
  with Job(tmp_path / 'killed', 2, restarts=KILLS + 5) as job:
    for number in range(KILLS):
      # Spread the kills evenly over the stages. Where a stage ends before its kills are used up,
      # they go to those after it, and the evaluation begins anew at each restart.
      remaining = STAGES[number * len(STAGES) // KILLS :]
      assert job.restarts_so_far() == number, job.tail()
      assert wait_for(lambda: job.stage() in remaining), job.tail()
      time.sleep(rng.uniform(0, 0.5 * seconds.get(job.stage(), 0.0)))
      kill = kill_one(job, number, rng)
      if kill is None:
        break
      kills.append(kill)
      restarted = wait_for(lambda: job.restarts_so_far() > number)
      assert restarted, f'{kills}\n{job.tail()}'
    assert job.launcher.wait() == 0, f'seed {seed}, {kills}\n{job.tail()}'
  print(f'seed {seed}')
  for kill in kills:
    print(*kill)
  assert len(kills) == KILLS
  assert_same_losses(tmp_path / 'killed', folder)
  systems = [
    json.loads((workdir / 'report.json').read_text())['systems']
    for workdir in (tmp_path / 'killed', folder)
  ]
  assert systems[0] == systems[1]


def copy_without_loop(run: pathlib.Path, folder: pathlib.Path):
  """Copy a run as it was before its stage `loop`.

  Returns a function that counts the steps that this stage has logged.
  """
  ignored = shutil.ignore_patterns('loop', 'ablations', 'report.*')
  shutil.copytree(run, folder, ignore=ignored)
  metrics = folder / 'loop' / 'metrics.jsonl'
  return lambda: len(metrics.read_text().splitlines()) if metrics.exists() else 0


def test_a_hung_process_ends_the_job_with_134_and_the_launcher_finishes_it(undisturbed, tmp_path):
  folder = tmp_path / 'hung'
  loop_steps = copy_without_loop(undisturbed[0], folder)
  with Job(folder, 2, restarts=3, watchdog_s=60) as job:
    assert wait_for(lambda: loop_steps() > 7), job.tail()
    os.kill(job.pids(TRAIN)[1], signal.SIGSTOP)
    restart = 'launch: exit 134, restart 1 of 3'
    assert wait_for(lambda: any(restart in line for line in job.lines())), job.tail()
    assert job.launcher.wait() == 0, job.tail()
  assert any('watchdog: no heartbeat' in line for line in job.lines())
  assert_same_losses(folder, undisturbed[0])


def test_resumes_on_four_processes_and_then_on_one(undisturbed, tmp_path):
  folder = tmp_path / 'moved'
  loop_steps = copy_without_loop(undisturbed[0], folder)
  with Job(folder, 2) as job:
    assert wait_for(lambda: loop_steps() > 7), job.tail()
    os.kill(job.pids(TRAIN)[1], signal.SIGKILL)
    job.launcher.wait()
  with Job(folder, 4) as job:
    assert wait_for(lambda: job.stage() == 'loop' and loop_steps() > 12), job.tail()
    job.launcher.terminate()
    assert job.launcher.wait() == 42, job.tail()
    assert any('saved at step' in line for line in job.lines())
  with Job(folder, 1) as job:
    assert job.launcher.wait() == 0, job.tail()
  assert_same_losses(folder, undisturbed[0])
