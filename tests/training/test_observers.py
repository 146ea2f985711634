"""What looks on while a stage trains: traces, and metrics at W&B and MLflow, without a network."""

import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest

from rolegen_jax import overrides
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.training import profiling, trackers
from rolegen_jax.training.fit import Observers
from rolegen_jax.training.metrics import MetricsLog
from tests.training.test_fit import run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('MLFLOW_DISABLE_TELEMETRY', 'true')
  for name in ('WANDB_API_KEY', 'WANDB_PROJECT', 'MLFLOW_TRACKING_URI', 'MLFLOW_EXPERIMENT_NAME'):
    monkeypatch.delenv(name, raising=False)


def wandb_records(path):
  """Yield the records of W&B's file: a header, then LevelDB's log format in blocks of 32 KiB."""
  from wandb.proto import wandb_internal_pb2

  content, position, joined = path.read_bytes(), 7, b''
  while position + 7 <= len(content):
    room = 32768 - position % 32768
    if room < 7:
      position += room
      continue
    length, kind = (
      int.from_bytes(content[position + 4 : position + 6], 'little'),
      content[position + 6],
    )
    joined += content[position + 7 : position + 7 + length]
    position += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield wandb_internal_pb2.Record.FromString(joined)
      joined = b''


def wandb_history(folder):
  """Return {step: {name: value}} of all runs, and the ids of the runs, of a run folder."""
  steps, ids = {}, set()
  for path in sorted(folder.glob('wandb/offline-run-*/*.wandb')):
    records, deadline = [], time.monotonic() + 60
    # W&B's own process writes the end a moment after `finish` has returned.
    while not any(record.HasField('exit') for record in records):
      assert time.monotonic() < deadline, f'{path} has no end'
      time.sleep(0.05)
      records = list(wandb_records(path))
    for record in records:
      if record.HasField('run'):
        ids.add((record.run.run_id, record.run.display_name, record.run.run_group))
      if record.HasField('history'):
        row = {
          (i.key or '.'.join(i.nested_key)): json.loads(i.value_json) for i in record.history.item
        }
        assert row['_step'] not in steps
        steps[row['_step']] = {k: v for k, v in row.items() if not k.startswith('_')}
  return steps, ids


def mlflow_history(folder):
  from mlflow import MlflowClient

  client = MlflowClient(tracking_uri=f'sqlite:///{folder}/mlflow.db')
  (experiment,) = [e for e in client.search_experiments() if e.name == 'rolegen']
  runs = client.search_runs([experiment.experiment_id])
  steps: dict = {}
  for found in runs:
    for name in found.data.metrics:
      for metric in client.get_metric_history(found.info.run_id, name):
        row = steps.setdefault(metric.step, {})
        assert name not in row
        row[name] = metric.value
  return steps, runs


def logged(folder):
  rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return {r['step']: {k: v for k, v in r.items() if k not in ('step', 'time_s')} for r in rows}


def same(theirs, ours):
  assert theirs.keys() == ours.keys()
  for step, row in ours.items():
    assert theirs[step].keys() == row.keys()
    assert all(math.isclose(theirs[step][name], row[name], rel_tol=1e-6) for name in row)


def metrics(step):
  return dict(loss=jax.numpy.float32(1 / (1 + step)), **{'reward/gain': jax.numpy.float32(step)})


def log(folder, steps, start=0, tracking=None):
  """Log steps from `start` on as a stage does that is cut off after them."""
  report = functools.partial(trackers.Reporting, tracking, 'loop', folder) if tracking else None
  log = MetricsLog(folder, folder / 'tensorboard', start, report)
  for step in steps:
    log.add(step, metrics(step))
  log.close()


@pytest.mark.parametrize('kind', ['wandb', 'mlflow'])
def test_a_stage_that_was_cut_off_is_one_run_with_each_step_once(kind, tmp_path):
  """Its first start is not tracked; the others go back to a checkpoint, as a lost host does."""
  tracking = trackers.Tracking(kind, Config(), tmp_path)
  log(tmp_path, range(3))
  log(tmp_path, range(2, 5), 2, tracking)
  log(tmp_path, range(4, 7), 4, tracking)
  if kind == 'wandb':
    steps, ids = wandb_history(tmp_path)
    assert len(ids) == 1 and ids.pop()[1:] == ('loop', tmp_path.name)
  else:
    steps, (one,) = mlflow_history(tmp_path)
    assert (one.info.run_name, one.info.status) == ('loop', 'FINISHED')
    assert one.data.params['warmup.batch'] == str(Config().warmup.batch)
  assert sorted(steps) == list(range(7))
  same(steps, logged(tmp_path))


def test_a_tracker_that_fails_does_not_stop_the_training(tmp_path, monkeypatch, capsys):
  tracking = trackers.Tracking('mlflow', Config(), tmp_path)
  (tmp_path / 'file').touch()
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/file/mlflow.db')
  log(tmp_path, range(3), 0, tracking)
  assert sorted(logged(tmp_path)) == [0, 1, 2]
  assert 'loop: no longer tracked' in capsys.readouterr().err


def test_a_stage_is_tracked_and_its_chosen_steps_are_traced(tmp_path, capsys):
  tracking = trackers.Tracking('wandb', Config(), tmp_path)
  profile = profiling.Profile({'align': (2, 3), 'loop': (0, 1)}, tmp_path / 'profiles')
  run(tmp_path, observers=Observers(profile, tracking))
  same(wandb_history(tmp_path)[0], logged(tmp_path))
  (path,) = tmp_path.glob('profiles/align/process_0/plugins/profile/*/*.xplane.pb')
  events = [
    event
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    for line in plane.lines
    for event in line.events
    if event.name == 'step'
  ]
  numbers = {dict(event.stats)['step_num'] for event in events}
  assert {int(number) for number in numbers} == {2, 3}
  profile.report()
  told = capsys.readouterr().err
  assert 'align: traced -> ' in told and '--profile=loop:0-1: not traced' in told


@pytest.mark.parametrize(
  ('window', 'processes', 'message'),
  [
    ('10-14', '0', '--profile=10-14: must be STAGE:FIRST-LAST, with a stage of warmup, kinds'),
    ('ab:1-2', '0', '--profile=ab:1-2: must be STAGE:FIRST-LAST'),
    ('loop:3-1', '0', '--profile=loop:3-1: must be steps in order from 0 to 59'),
    ('loop:0-60', '0', '--profile=loop:0-60: must be steps in order from 0 to 59'),
    ('loop:1', '1', '--profile_processes=1: must be "all", or numbers of processes from 0 to 0'),
  ],
)
def test_a_wrong_window_says_what_is_right(window, processes, message, tmp_path):
  config = overrides.apply(Config(), ['loop_stage.steps=60'])
  with pytest.raises(ConfigError) as error:
    profiling.parse([window], [processes], config, str(tmp_path))
  assert message in str(error.value)


def test_processes_that_were_not_chosen_trace_nothing(tmp_path):
  assert profiling.parse(['loop:1-2'], [], Config(), str(tmp_path)) is profiling.NOTHING
  assert profiling.parse([], ['all'], Config(), str(tmp_path)) is profiling.NOTHING
  assert profiling.parse(['loop:1'], ['all'], Config(), str(tmp_path)) is not profiling.NOTHING


ABSENT = (
  'import importlib.util as u, runpy, sys; find = u.find_spec; u.find_spec = '
  'lambda name, *a: None if name in ("wandb", "mlflow", "alembic") else find(name, *a); '
)


@pytest.mark.parametrize(
  ('kind', 'code', 'message'),
  [
    ('mlflow', ABSENT, '--tracker=mlflow: needs mlflow, alembic: pip install -r requirements-trac'),
    pytest.param(
      *('wandb', 'import runpy, sys; ', '--tracker=wandb: No API key configured'),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_missing_extra_or_login_is_one_line_before_anything_is_written(
  kind, code, message, tmp_path
):
  code += 'sys.argv[0] = "rolegen"; runpy.run_module("rolegen_jax", run_name="__main__")'
  command = ['train', '--experiment=demo', f'--workdir={tmp_path}/run', f'--tracker={kind}']
  done = subprocess.run(
    [sys.executable, '-c', code, *command],
    cwd=ROOT,
    env=os.environ | {'WANDB_MODE': 'online', 'HOME': str(tmp_path)},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith(message) and done.stderr.count('\n') == 1, done.stderr
  assert not (tmp_path / 'run').exists()


def test_a_server_that_does_not_answer_is_one_error(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/file/mlflow.db')
  with pytest.raises(ConfigError, match='--tracker=mlflow: .*MLFLOW_TRACKING_URI must name'):
    trackers.Tracking('mlflow', Config(), tmp_path)
