"""A run that is updated: versions, what they start from, what a kill leaves, the way back.

The runs are real but for what costs minutes: stages save the state that they start from, the
weights of experts stay, and what is asked gets lists of popular items.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import polars as pl
import pytest

from rolegen_jax import overrides
from rolegen_jax.cli import entry
from rolegen_jax.config import ConfigError, SimulatorConfig
from rolegen_jax.data.files import DataError, write_json
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.models import functional
from rolegen_jax.pipeline import evaluation, records, run, stages, versions
from rolegen_jax.pipeline.ablations import train_ablation
from rolegen_jax.pipeline.artifacts import current, saved_config
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.inputs import prepare_inputs
from rolegen_jax.pipeline.parent import Parent
from rolegen_jax.reasoning.likelihood import IntentWeights
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.semantic_ids.catalogue import Catalogue
from rolegen_jax.training import state as states
from rolegen_jax.training.checkpoint import Checkpoints
from tests import days, runs

SMALL = [
  *(each for each in runs.SMALL if not each.startswith('simulator')),
  'data.format=contract',
  'data.test_fraction=0.1',
  'data.valid_fraction=0.1',
  'roles.max_conversions=64',
  'semantic_ids.text=hashed_ngrams',
  'semantic_ids.text_dim=8',
  'backbone.beam=10',
  'evaluation.ks=(1,10)',
  "evaluation.ablations=('no_reasoner',)",
]
SIMULATOR = SimulatorConfig(users=80, items=48, categories=8)


class Killed(BaseException):
  """What nothing handles."""


def leave_what_it_starts_from(task, site, trie):
  """In place of training: a checkpoint of the last step with the state of the first."""
  del trie
  with jax.set_mesh(site.mesh):
    checkpoints = Checkpoints(site.folder / 'checkpoints', site.hashes)
    abstract = states.abstract(task.model_fns, task.optimizers, site.mesh)
    restored = checkpoints.restore(abstract)
    if restored:
      return restored[0].params
    key = jax.random.key(site.seed)
    start = task.start.params(), task.start.opt()
    state = states.create(task.model_fns, task.optimizers, site.mesh, key, *start)
    state = state._replace(step=state.step + task.config.steps)
    if 'backbone' in state.opt:  # moments that can be told from fresh ones
      moments = jax.tree.map(lambda x: x + 1 if x.ndim == 2 else x, state.opt['backbone'])
      state.opt['backbone'] = moments
    checkpoints.save(state, {})
    checkpoints.close()
  return state.params


def popular(rolegen, params, table, trie, mesh, beams, **_):
  del rolegen, params, mesh
  best = np.argsort(-trie.item_count[: table.log.items.height], kind='stable')[:beams]
  lists = np.tile(best.astype(np.int32), (len(table), 1))
  return Predictions(lists, np.zeros(lists.shape, np.float32), None)


pytestmark = pytest.mark.slow  # a run and its updates, a minute on a core


@pytest.fixture(scope='module', autouse=True)
def nothing_is_learned():
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(stages, 'fit', leave_what_it_starts_from)
    patched.setattr(stages, 'fit_weights', lambda *_: ({}, np.zeros(2)))
    patched.setattr(stages, 'intent_weights', lambda *_: (IntentWeights(1, 1, 0), np.zeros(2)))
    patched.setattr(evaluation.predict, 'predict', popular)
    yield


@pytest.fixture(scope='module')
def logs(tmp_path_factory):
  return days.cut(tmp_path_factory.mktemp('days'), SIMULATOR, 40, [70, 80, 90])


@pytest.fixture(scope='module')
def template(tmp_path_factory, logs):
  folder = tmp_path_factory.mktemp('run') / 'run'
  config = entry.experiment('demo', [*SMALL, f'data.path={logs[0]}'])
  opened, inputs = prepare_inputs(open_run(config, folder))
  models = run.train_models(opened, inputs)
  train_ablation(opened, inputs, models, 'no_reasoner')
  return folder


@pytest.fixture
def trained(template, tmp_path):
  return shutil.copytree(template, tmp_path / 'run')


@pytest.fixture(scope='module')
def updated(template, tmp_path_factory, logs):
  """After two updates."""
  folder = shutil.copytree(template, tmp_path_factory.mktemp('updated') / 'run')
  for log in logs[1:3]:
    versions.update(str(folder), str(log), [])
  return folder


def names(folder):
  return sorted(path.name for path in (folder / 'versions').iterdir())


def opened(folder):
  """What recommend and serve open."""
  folder = current(folder)
  run_now, inputs = prepare_inputs(open_run(saved_config(folder), folder, may_train=False))
  params = run.train_models(run_now, inputs).calibrated.load()
  return run_now, inputs, params


def test_ids_stay_and_new_items_have_some(updated, template):
  first = Catalogue.load(template / 'semantic_ids')
  previous = first
  for name in names(updated):
    catalogue = Catalogue.load(updated / 'versions' / name / 'semantic_ids')
    items = pl.read_parquet(updated / 'versions' / name / 'data' / 'log_items.parquet')['item_id']
    np.testing.assert_array_equal(catalogue.codes_of(previous.item_ids), previous.codes)
    assert len(np.unique(catalogue.codes_of(items), axis=0)) == len(items)
    if len(catalogue.item_ids) > len(previous.item_ids):
      assert catalogue.parent == previous.digest
    previous = catalogue
  assert len(previous.item_ids) > len(first.item_ids)


def test_a_version_is_a_run_folder_that_needs_no_parent(updated, tmp_path):
  alone = shutil.copytree(current(updated), tmp_path / 'alone')
  _, inputs, _ = opened(alone)
  assert inputs.log.digest == opened(updated)[1].log.digest
  assert inputs.trie.item_count.sum() == inputs.log.count.sum()  # all of the log is counted


def test_rows_of_items_and_moments_follow_their_items(updated, template):
  """Indices change as items come; a new item starts at zero."""
  run_now, inputs, params = opened(updated / 'versions' / names(updated)[0])
  parent = Parent.of(run_now, inputs.log.items['item_id'])
  before = prepare_inputs(open_run(parent.config, parent.folder, may_train=False))
  rows = run.train_models(*before).looped.load()['backbone']['rows']
  earlier, now = before[1].log.items['item_id'].to_list(), inputs.log.items['item_id'].to_list()
  assert now[: len(earlier)] != earlier  # new ids lie between those that were there
  moved = np.asarray(parent.params()['backbone']['rows'])
  moments = parent.warmup.opt['backbone']
  adam = next(x for x in jax.tree.leaves(moments, is_leaf=is_adam) if is_adam(x))
  mu = np.asarray(adam.mu['rows'])
  for place, item in enumerate(now):
    row = np.asarray(rows)[earlier.index(item)] if item in earlier else 0
    np.testing.assert_array_equal(moved[place], row)
    assert (mu[place] == (0 if item not in earlier else mu[0])).all()
  np.testing.assert_array_equal(np.asarray(params['backbone']['rows']), moved)


def is_adam(x):
  return hasattr(x, 'mu')


def test_the_parent_is_asked_with_what_was_known_before(updated, template):
  told = json.loads((current(updated) / 'next_day' / 'next_day.json').read_text())
  assert 0 <= told['all']['HI@10']['mean'] <= 1
  inputs = opened(updated)[1]
  before = inputs.before()
  log = InteractionLog.load(updated / 'versions' / names(updated)[0] / 'data')
  assert before.occasions.train_cut == log.timestamp.max()
  assert before.trie.item_count.sum() == log.count.sum()


def test_a_kill_leaves_the_version_before_and_the_same_command_continues(
  trained, logs, monkeypatch, capfd
):
  day = str(logs[1])
  for stage in ('warmup', 'loop'):

    def dies(task, site, trie, stage=stage):
      if task.name == stage and site.may_train:
        raise Killed
      return leave_what_it_starts_from(task, site, trie)

    monkeypatch.setattr(stages, 'fit', dies)
    with pytest.raises(Killed):
      versions.update(str(trained), day, [])
    assert current(trained) == trained and len(names(trained)) == 1
    opened(trained)
  monkeypatch.setattr(stages, 'fit', leave_what_it_starts_from)
  capfd.readouterr()
  made = versions.update(str(trained), day, [])
  lines = capfd.readouterr().err
  assert 'warmup: up to date' in lines and 'loop: continuing' not in lines
  assert current(trained) == made and len(names(trained)) == 1
  versions.update(str(trained), day, [])  # a job that is started once more
  assert 'has these days already' in capfd.readouterr().err and len(names(trained)) == 1


def test_going_back_and_on_with_other_days(updated, logs, tmp_path):
  folder = shutil.copytree(updated, tmp_path / 'run')
  first, second = names(folder)
  versions.go_back(str(folder), first)
  assert current(folder).name == first
  opened(folder)
  other = days.write(
    tmp_path / 'other',
    *(pl.read_parquet(logs[2] / f'{name}.parquet').unique() for name in ('events', 'items')),
  )
  with pytest.raises(ConfigError, match='was trained with data.path=.*--retrain to train it again'):
    versions.update(str(folder), str(other), [])
  versions.update(str(folder), str(other), [], retrain=True)
  assert current(folder).name == second
  versions.go_back(str(folder), versions.FIRST)
  assert current(folder) == folder.absolute()
  with pytest.raises(ConfigError, match=rf'--go_back=2020-01-01: must be one of first, {first}, '):
    versions.go_back(str(folder), '2020-01-01')


def test_wrong_days_or_runs_are_refused_before_anything_is_written(trained, logs, tmp_path):
  with pytest.raises(DataError, match=r"column 'timestamp', row 1: .*must be after the last event"):
    versions.update(str(trained), str(logs[0]), [])
  with pytest.raises(DataError, match='no such file or folder'):
    versions.update(str(trained), str(tmp_path / 'nowhere'), [])
  with pytest.raises(ConfigError, match='no config.json there'):
    versions.update(str(tmp_path), str(logs[1]), [])
  with pytest.raises(ConfigError, match='--set data.path: is what --data says'):
    versions.update(str(trained), str(logs[1]), ['data.path=elsewhere'])
  assert not (trained / 'versions').exists()
  (trained / 'loop' / 'DONE.json').unlink()
  (trained / 'loop' / 'calibration' / 'DONE.json').unlink()
  with pytest.raises(ConfigError, match='is no complete run'):
    versions.update(str(trained), str(logs[1]), [])


def test_a_parent_that_was_trained_again_is_refused(trained, logs, monkeypatch):
  monkeypatch.setattr(stages, 'label_roles', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    versions.update(str(trained), str(logs[1]), [])
  done = trained / 'loop' / 'calibration' / 'DONE.json'
  calibrated = records.read(done)
  write_json(dataclasses.replace(calibrated, settings={}).to_json(), done)
  version = trained / 'versions' / names(trained)[0]
  config = saved_config(version)
  run_now, inputs = prepare_inputs(open_run(config, version))
  with pytest.raises(ConfigError, match='has been trained again since this run began'):
    inputs.parent()


def test_warm_start_takes_the_models_and_refuses_what_was_seen(trained, logs, tmp_path):
  config = entry.experiment('demo', [*SMALL, f'data.path={logs[0]}'])
  warm = versions.warm_started(config, str(trained))
  run_now, inputs = prepare_inputs(open_run(warm, tmp_path / 'warm'))
  models = run.train_models(run_now, inputs)
  theirs = inputs.parent().params()['backbone']
  for ours, other in zip(
    *(functional.flatten(p).values() for p in (models.looped.load()['backbone'], theirs))
  ):
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(other))
  earlier = overrides.apply(warm, ['data.test_fraction=0.5'])
  with pytest.raises(ConfigError, match='has learned from events until .* past the end of what'):
    prepare_inputs(open_run(earlier, tmp_path / 'earlier'))
  with pytest.raises(
    ConfigError, match='backbone.context=12: the run in .* has 16; must be the same'
  ):
    versions.warm_started(overrides.apply(config, ['backbone.context=12']), str(trained))
