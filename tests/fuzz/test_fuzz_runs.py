"""Damaged run folders: a command reads what was written or refuses; it loses nothing."""

import dataclasses
import json
import pathlib
import random
import shutil

import jax
import mutate
import numpy as np
import pytest

from rolegen_jax import overrides, sharding
from rolegen_jax.cli import entry
from rolegen_jax.models import functional
from rolegen_jax.pipeline import stages
from rolegen_jax.pipeline.artifacts import RUN_LOCK, saved_config
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.inputs import prepare_inputs
from rolegen_jax.pipeline.run import train_models
from rolegen_jax.training import checkpoint, fit
from tests.launch import small

# It trains a run of its own; tests/pipeline/test_finished_run.py has single cases that are fast.
pytestmark = pytest.mark.slow

TRAINED = ('warmup', 'align', 'reason', 'loop')
STAGES = ('data', 'semantic_ids', 'roles', *TRAINED, 'loop/calibration')
SETTINGS = small.settings(
  'simulator.users=80',
  'simulator.items=64',
  *(f'{section}.batch=8' for section in small.STAGE_SECTIONS),
  *(
    f'{section}.{name}' for section in small.STAGE_SECTIONS for name in ('steps=2', 'save_every=1')
  ),
  'evaluation.batch=16',
  'evaluation.ablations=()',
)


class Training(AssertionError):
  """A training program would have started."""


def stand_in(task, site, state, *_):
  """Steps that learn nothing: what a stage leaves is all that these tests look at."""
  for number in range(int(state.step), task.config.steps):
    moved = {name: jax.tree.map(lambda x: x + 0.01, p) for name, p in state.params.items()}
    state = state._replace(step=state.step + 1, params=moved)
    yield number, (state, dict(loss=np.float32(1)))


def no_training(*_):
  raise Training


@dataclasses.dataclass(frozen=True)
class Finished:
  """A run folder with all its stages, and what is in it."""

  folder: pathlib.Path
  content: dict


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  make_mesh = sharding.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      sharding, 'make_mesh', lambda config, d=None: make_mesh(config, d or jax.devices()[:1])
    )
    patch.setattr(fit, '_steps', stand_in)
    patch.setattr(stages, 'fit_weights', weights_as_they_are)
    folder = tmp_path_factory.mktemp('run')
    config = entry.experiment('demo', SETTINGS)
    content = found(open_run(config, folder))
    patch.setattr(fit, '_steps', no_training)
    patch.setattr(stages, 'fit_weights', no_training)
    yield Finished(folder, content)


def weights_as_they_are(rolegen, params, *_):
  leaves = functional.flatten(params['backbone'])
  fitted = {name: np.asarray(x) + 1 for name, x in leaves.items() if name.startswith('experts.')}
  return fitted, np.array([2.0, 1.0])


def found(run, loaded: str = '') -> dict:
  """What a command reads of a run; of the trained parameters those of stage `loaded`, '' = all."""
  run, inputs = prepare_inputs(run)
  models = train_models(run, inputs)
  of_stages = dict(
    zip(
      (*TRAINED, 'loop/calibration'),
      (models.warm, models.aligned, models.reasoned, models.looped, models.calibrated),
    )
  )
  read = dict(inputs.hashes, roles=models.labeled.table.roles.tolist())
  for name, trained in of_stages.items():
    if loaded in ('', name):
      read[name] = checkpoint.fingerprint(trained.load())
  return read


def files(folder) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file() and path.name != RUN_LOCK and 'compilation_cache' not in path.parts
  }


def damage(rng, folder) -> tuple[str, str]:
  """Do something to one file of one stage; return the stage and the file."""
  stage = rng.choice(STAGES)
  inner = [path for path in sorted((folder / stage).rglob('*')) if path.is_file()]
  inner = [path for path in inner if stage != 'loop' or 'calibration' not in path.parts]
  top = [path for path in inner if path.parent == folder / stage and path.suffix != '.jsonl']
  path = rng.choice(inner if rng.random() < 0.6 else top)
  name, content = str(path.relative_to(folder)), path.read_bytes()
  kind = rng.choice(('bytes', 'bytes', 'bytes', 'gone', 'empty', 'swapped', 'folder', 'json'))
  if kind == 'bytes':
    path.write_bytes(mutate.mutated(rng, content))
  elif kind == 'gone':
    path.unlink()
  elif kind == 'empty':
    path.write_bytes(b'')
  elif kind == 'swapped':  # with the file of that name of another stage, or another file
    others = [other for other in sorted(folder.rglob(path.name)) if other != path]
    path.write_bytes(rng.choice(others or inner).read_bytes())
  elif kind == 'folder':
    path.unlink()
    path.mkdir()
  elif path.suffix == '.json':
    path.write_text(json.dumps(altered(rng, json.loads(content))), encoding='utf-8')
  else:
    path.write_bytes(content[::-1])
  return stage, name


def altered(rng, value):
  """Replace one value of a JSON document."""
  if isinstance(value, dict) and value:
    name = rng.choice(sorted(value))
    if rng.random() < 0.2:
      return {other: inner for other, inner in value.items() if other != name}
    return value | {name: altered(rng, value[name])}
  return rng.choice((None, 0, 'x', [], {}, [value], 1e999))


def copied(finished, to):
  return pathlib.Path(shutil.copytree(finished.folder, to))


@mutate.seeds(140)
def test_a_damaged_folder_is_read_as_it_was_or_refused(finished, tmp_path, attempt, seed):
  rng = random.Random(seed)
  folder = copied(finished, tmp_path / 'run')
  stage, name = damage(rng, folder)
  print(f'damaged: {name}')
  before = files(folder)

  def read():
    run = open_run(saved_config(folder), folder, may_train=False)
    return found(run, stage if stage in finished.content else 'loop/calibration')

  done = attempt(read)
  assert files(folder) == before
  if done.refusal:
    return
  assert all(finished.content[name] == value for name, value in done.value.items())


SAFE = ('backbone.beam=20', 'serving.exposure_penalty=1', 'evaluation.bootstrap=30', 'name=x')
READ = dict(
  data=('data.test_fraction=0.2', 'simulator.seed=1', 'data.reactivation_min_views=4'),
  semantic_ids=('semantic_ids.seed=1', 'semantic_ids.iterations=3', 'semantic_ids.codes=10'),
  warmup=('warmup.steps=3', 'backbone.dropout=0.2', 'seed=1', 'warmup.optimizer.b2=0.9'),
  roles=('roles.intent_days=3', 'roles.trigger_z=5'),
  align=('align.steps=1', 'reasoner.events=7', 'align.batch=16'),
  reason=('reason.steps=1', 'reasoner.candidates=3', 'reason.optimizer.clip_norm=2'),
  loop=('loop.kl=0.5', 'loop_stage.batch=16', 'reasoner.temperature=0.5'),
)


@mutate.seeds(60)
def test_other_settings_cost_no_stage(finished, tmp_path, attempt, seed):
  rng = random.Random(seed)
  folder = copied(finished, tmp_path / 'run')
  asked = rng.sample(SAFE, rng.randint(0, 2))
  if is_read := rng.random() < 0.6:
    asked.append(rng.choice(READ[rng.choice(sorted(READ))]))
  left = lost = rng.choice((*STAGES, '', '', ''))
  if lost:  # incomplete: what is left of it continues
    (folder / lost / 'DONE.json').unlink()
  before = files(folder)
  if rng.random() < 0.5:
    shutil.rmtree(folder / 'tensorboard')
    before = files(folder)
  is_command = rng.random() < 0.5

  def start():
    run = open_run(overrides.apply(saved_config(folder), asked), folder, may_train=not is_command)
    return found(run, 'warmup')

  try:
    done = attempt(start)
  except Training:
    assert left in (*TRAINED, 'loop/calibration') and not is_command and not is_read
    done = mutate.Outcome(None)
  after = files(folder)
  assert bool(done.refusal) == (is_read or (is_command and lost != ''))
  changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
  if done.refusal:
    assert not changed
    if not lost:
      assert all(word in done.refusal for word in (asked[-1].split('=')[0], '--retrain'))
  assert all(is_of(path, lost) or path == 'config.json' for path in changed)


def is_of(path: str, stage: str) -> bool:
  """Whether a file of a run folder is of this stage."""
  return stage != '' and path.startswith((f'{stage}/', f'tensorboard/{stage}'))
