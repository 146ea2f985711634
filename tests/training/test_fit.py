"""The host loop: a resumed run equals an unbroken one, and what stops or refuses a run."""

import functools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig, OptimizerConfig, StageConfig
from rolegen_jax.data.files import DataError
from rolegen_jax.data.loader import Batches
from rolegen_jax.training import losses, metrics, state, steps
from rolegen_jax.training.checkpoint import ArtifactMismatch
from rolegen_jax.training.fit import Observers, Preempted, Site, Start, Task, fit
from rolegen_jax.training.metrics import Diverged
from tests import tiny

STAGE = StageConfig(
  steps=6, batch=8, optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1), save_every=2
)
POOL = tiny.examples(seed=3, users=32)


def run(
  folder,
  disturb=lambda position: None,
  stage=STAGE,
  hashes=None,
  mesh=MeshConfig(data=2, fsdp=2, tensor=2),
  may_train=True,
  observers=Observers(),
):
  """Train the reasoner; `disturb(batch number)` is called before each batch is handed out."""
  rolegen = tiny.rolegen()
  tx = state.optimizer(stage.optimizer, stage.steps)
  handed = iter(range(10**6))

  class Disturbed(Batches):
    def __next__(self):
      disturb(next(handed))
      return super().__next__()

  devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]
  task = Task(
    name='align',
    step=functools.partial(steps.supervised_step, rolegen, 'reasoner', losses.align_loss, tx),
    model_fns={'reasoner': rolegen.model_fns['reasoner']},
    optimizers={'reasoner': tx},
    start=Start(),
    batches=lambda: Disturbed(32, 8, 0, lambda rows: jax.tree.map(lambda x: x[rows], POOL)),
    config=stage,
  )
  site = Site(
    mesh=sharding.make_mesh(mesh, devices),
    seed=0,
    folder=folder,
    tensorboard=folder / 'tensorboard',
    hashes=hashes or {'settings': 'a'},
    may_train=may_train,
    observers=observers,
  )
  return fit(task, site, tiny.trie())


def curve(folder):
  rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [row['step'] for row in rows], [row['loss'] for row in rows]


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  folder = tmp_path_factory.mktemp('unbroken')
  return run(folder), folder


def test_the_loss_falls_and_every_step_is_logged(unbroken):
  steps, losses = curve(unbroken[1])
  assert steps == list(range(6))
  assert losses[-1] < losses[0]


def test_a_crash_between_saves_resumes_to_the_same_curve(unbroken, tmp_path):
  def crash(number):
    if number == 5:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, crash)
  params = run(tmp_path)
  assert curve(tmp_path) == curve(unbroken[1])
  jax.tree.map(np.testing.assert_array_equal, params, unbroken[0])
  # The host's clock keeps what the curve does not show: step 4 was trained, lost, trained again.
  rows = [json.loads(line) for line in (tmp_path / 'time.0.jsonl').read_text().splitlines()]
  assert [row['start'] for row in rows if 'start' in row] == [0, 4]
  assert [row['step'] for row in rows if 'step' in row] == [0, 1, 2, 3, 4, 4, 5]
  assert ['compile_s' in row for row in rows if 'step' in row] == [
    True,
    False,
    False,
    False,
    False,
    True,
    False,
  ]
  assert [row['step'] for row in rows if 'checkpoint_s' in row and 'step' in row] == [1, 3, 5]
  assert rows[-1]['end'] and all(
    row['data_s'] >= 0 and row['step_s'] >= 0 for row in rows if 'step' in row
  )


def test_sigterm_saves_and_the_same_call_continues(unbroken, tmp_path):
  def terminate(number):
    if number == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Preempted, match='saved at step 3'):
    run(tmp_path, terminate)
  run(tmp_path)
  assert curve(tmp_path) == curve(unbroken[1])


def test_resumes_on_another_mesh(unbroken, tmp_path):
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, lambda number: (_ for _ in ()).throw(KeyboardInterrupt) if number == 4 else None)
  run(tmp_path, mesh=MeshConfig(data=1, fsdp=1, tensor=1))
  steps, losses = curve(tmp_path)
  assert steps == list(range(6))
  np.testing.assert_allclose(losses, curve(unbroken[1])[1], rtol=1e-4)


def test_a_finished_stage_gives_its_parameters_without_training(unbroken):
  def never(number):
    raise AssertionError('a finished stage reads no data')

  again = run(unbroken[1], never)
  jax.tree.map(np.testing.assert_array_equal, again, unbroken[0])


def test_what_is_left_to_train_is_refused_where_nothing_is_trained(unbroken, tmp_path):
  shutil.copytree(unbroken[1], tmp_path / 'align')
  jax.tree.map(np.testing.assert_array_equal, run(tmp_path / 'align', may_train=False), unbroken[0])
  shutil.rmtree(tmp_path / 'align/checkpoints/6')
  with pytest.raises(DataError, match='align: has no checkpoint of its last step, 6; --retrain'):
    run(tmp_path / 'align', may_train=False)


def test_a_damaged_curve_is_named(unbroken, tmp_path):
  shutil.copytree(unbroken[1], tmp_path / 'align')
  shutil.rmtree(tmp_path / 'align/checkpoints/6')
  path = tmp_path / 'align/metrics.jsonl'
  path.write_text(path.read_text().replace('"step"', '"step', 1))
  with pytest.raises(DataError, match='metrics.jsonl: cannot be read .* a JSON object per line'):
    run(tmp_path / 'align')


def test_a_loss_that_is_not_finite_stops(tmp_path):
  wild = StageConfig(
    steps=6,
    batch=8,
    optimizer=OptimizerConfig(learning_rate=1e38, warmup_steps=1, clip_norm=1e38),
    save_every=100,
  )
  with pytest.raises(Diverged, match='not finite: .*loss'):
    run(tmp_path, stage=wild)


def test_other_artifacts_are_refused_with_both_hashes(unbroken):
  with pytest.raises(ArtifactMismatch, match='settings is a, this run has b'):
    run(unbroken[1], hashes={'settings': 'b'})


@pytest.mark.parametrize('damaged', [['6'], ['4', '6']], ids=['the newest', 'both'])
def test_damaged_checkpoints_are_set_aside_and_the_rest_is_trained_again(
  damaged, unbroken, tmp_path, capfd
):
  folder = tmp_path / 'copy'
  shutil.copytree(unbroken[1], folder)
  for step in damaged:
    shutil.rmtree(folder / 'checkpoints' / step / 'state' / 'ocdbt.process_0')
  params = run(folder)
  said = capfd.readouterr().err
  for step in damaged:
    assert f'checkpoint {step} is damaged' in said
  assert sorted(path.name for path in (folder / 'checkpoints_damaged').iterdir()) == [
    f'{step}.0' for step in damaged
  ]
  assert curve(folder) == curve(unbroken[1])
  jax.tree.map(np.testing.assert_array_equal, params, unbroken[0])


def test_where_the_time_went(tmp_path, monkeypatch):
  """Shares of the whole, and tokens a second of the steps; none where no step ended."""
  now = iter([0.0, 0.0, 2.0, 10.0])
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: next(now))
  clock = metrics.Clock(tmp_path)
  clock.lap('restore')
  clock.lap('compile')
  assert clock.summary(tokens=5.0) == '2 s: compile 100 %, restore 0 %'
  clock.lap('step')
  assert clock.summary(400.0) == '10 s: step 80 %, compile 20 %, restore 0 %; 50 tokens/s'
