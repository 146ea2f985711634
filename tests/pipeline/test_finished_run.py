"""A finished run under changed settings, files and folders: what is kept, what is named.

The run is complete but for what it would have learned: a stage leaves one file in place of
checkpoints, which nothing here reads.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from rolegen_jax.ab_test import simulation
from rolegen_jax.cli import entry
from rolegen_jax.config import ConfigError
from rolegen_jax.data import digests
from rolegen_jax.data.files import DataError
from rolegen_jax.models import functional
from rolegen_jax.overrides import apply
from rolegen_jax.pipeline import ablations, evaluation, run, stages
from rolegen_jax.pipeline.artifacts import saved_config
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.inputs import prepare_inputs
from rolegen_jax.reasoning.likelihood import IntentWeights
from rolegen_jax.simulator import world
from tests import runs
from tests.pipeline.test_artifacts import content

SMALL = [
  *runs.SMALL,
  'backbone.beam=20',
  'roles.max_conversions=64',
  'evaluation.ks=(1,10)',
]


@pytest.fixture(scope='module', autouse=True)
def nothing_is_learned():
  def leave_a_file(task, site, trie):
    site.folder.joinpath('checkpoints').mkdir(exist_ok=True)
    site.folder.joinpath('checkpoints', '1').write_text('hours of work')
    return {}

  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(stages, 'fit', leave_a_file)
    patched.setattr(stages, 'fit_weights', lambda *_: ({}, np.zeros(2)))
    patched.setattr(stages, 'intent_weights', lambda *_: (IntentWeights(1, 1, 0), np.zeros(2)))
    patched.setattr(functional, 'with_leaves', lambda params, leaves: params)
    patched.setattr(ablations, 'without', lambda _: lambda params, mesh: params)
    nothing = {'popularity': lambda *_: evaluation.Ranking(np.zeros((1, 1)), {})}
    patched.setattr(evaluation, 'ALL_BASELINES', nothing)
    for name in ('evaluate', 'report'):
      patched.setattr(evaluation, name, lambda *_: None)
    yield


@pytest.fixture(scope='module')
def template(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  run.train(entry.experiment('demo', SMALL), folder)
  return folder


@pytest.fixture
def finished(template):
  """A finished run. What a test leaves of it must be what it was."""
  before = content(template)
  yield template
  assert content(template) == before


def read_only(config, folder, retrain=False):
  """As `recommend`, `export`, `annotate` and `simulate_ab` open a run."""
  opened = open_run(config, folder, may_train=retrain, retrain=retrain)
  return run.train_models(*prepare_inputs(opened))


UNREAD = [
  'backbone.beam=30',
  'evaluation.ks=(1,5)',
  'serving.exploration_weight=1',
  'loop_stage.save_every=7',
  'name=x',
]


@pytest.mark.parametrize('assignment', UNREAD)
def test_a_setting_that_no_stage_reads_trains_nothing(finished, capfd, assignment):
  config = saved_config(finished)
  before, changed = content(finished), apply(config, [assignment])
  read_only(changed, finished)
  assert content(finished) == before  # to the nanosecond
  run.train(changed, finished, print_tables=True)  # as `evaluate` does
  lines = [line for line in capfd.readouterr().err.splitlines() if ': ' in line]
  assert lines and all(line.endswith(': up to date') for line in lines)
  path = str(finished / 'config.json')
  after = content(finished)
  assert saved_config(finished) == changed
  assert {name for name in before | after if before.get(name) != after.get(name)} == {path}
  restore(finished, before)


def restore(folder, before):
  """Put config.json back, for the tests that follow."""
  path = folder / 'config.json'
  content, when = before[str(path)]
  path.write_bytes(content)
  os.utime(path, ns=(when, when))


READ = {
  'simulator.users=151': 'stage data was trained with simulator.users=150, now 151; ',
  'semantic_ids.seed=3': 'stage semantic_ids was trained with semantic_ids.seed=0, now 3; ',
  'backbone.context=12': 'stage warmup was trained with backbone.context=16, now 12; ',
  'warmup.steps=7': 'stage warmup was trained with warmup.steps=400, now 7; ',
  'loop.kl=0.5': 'stage loop was trained with loop.kl=0.02, now 0.5; ',
  'evaluation.ks=(1,20)': r'stage baselines was trained with max\(evaluation.ks\)=10, now 20; ',
  'calibration.steps=7': 'stage loop/calibration was trained with calibration.steps=30, now 7; ',
}


@pytest.mark.parametrize('assignment', READ)
def test_a_setting_that_a_stage_reads_is_named_and_nothing_is_touched(finished, assignment):
  changed = apply(saved_config(finished), ['evaluation.bootstrap=60', assignment])
  for command in (run.train, read_only):
    if command is read_only and 'baselines' in READ[assignment]:
      continue  # it reads none
    with pytest.raises(ConfigError, match=READ[assignment]) as refused:
      command(changed, finished)
    assert str(refused.value).endswith('or --retrain to train it again')


def test_commands_that_train_nothing_say_so(tmp_path):
  prepare_inputs(open_run(entry.experiment('demo', SMALL), tmp_path))
  before = content(tmp_path)
  with pytest.raises(ConfigError, match='its stage warmup is not complete.*first run `rolegen tra'):
    read_only(saved_config(tmp_path), tmp_path)
  assert content(tmp_path) == before


def test_a_damaged_result_is_named(template, tmp_path):
  folder = shutil.copytree(template, tmp_path / 'run')
  (folder / 'roles' / 'roles.npz').write_bytes(b'')
  with pytest.raises(
    DataError, match='roles.npz: cannot be read .*remove the DONE.json of the stage'
  ):
    read_only(saved_config(folder), folder)
  (folder / 'roles' / 'DONE.json').unlink()
  run.train(saved_config(folder), folder)
  read_only(saved_config(folder), folder)


def test_a_complete_stage_whose_checkpoint_is_lost_trains_again_only_if_told(
  template, tmp_path, monkeypatch
):
  allowed = []
  monkeypatch.setattr(stages, 'fit', lambda task, site, _: allowed.append(site.may_train) or {})
  folder = shutil.copytree(template, tmp_path / 'run')
  for retrain in (False, True):
    opened = open_run(saved_config(folder), folder, retrain=retrain)
    run.train_models(*prepare_inputs(opened)).looped.load()
  assert allowed == [False, True]


# evaluate and train are one function behind their flags.
@pytest.mark.parametrize(
  'command', ['recommend', pytest.param('evaluate', marks=pytest.mark.slow), 'train']
)
def test_a_refusal_is_one_line_and_exit_code_2(finished, tmp_path, command):
  flags = ['--set=backbone.context=12']
  if command == 'recommend':
    flags += [f'--output={tmp_path / "out.parquet"}']
  if command == 'train':
    flags = ['--experiment=demo', *(f'--set={each}' for each in SMALL), *flags]
  arguments = ['-m', 'rolegen_jax', command, f'--workdir={finished}', *flags]
  done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
  assert done.returncode == entry.BAD_INPUT
  *_, last = done.stderr.splitlines()
  assert last.startswith(f'--workdir={finished}: stage warmup was trained with backbone.context=16')
  assert 'Traceback' not in done.stderr and not list(tmp_path.iterdir())


def test_retrain_takes_what_differs_and_what_depends_on_it(tmp_path, capfd):
  config = entry.experiment('demo', SMALL)
  run.train(config, tmp_path)
  capfd.readouterr()
  changed = apply(config, ['backbone.context=12'])
  for command in (run.train, read_only):
    command(changed, tmp_path, retrain=True)
    lines = capfd.readouterr().err.splitlines()
    if command is run.train:
      assert 'warmup: was trained with backbone.context=16, now 12; starting afresh' in lines
      assert 'loop: was trained on another warmup, reason; starting afresh' in lines
      assert 'data: up to date' in lines and 'semantic_ids: up to date' in lines
      trained = [line.split(':')[0] for line in lines if line.endswith(': running')]
      assert set(trained) == {
        *('warmup', 'roles', 'align', 'reason', 'loop', 'loop/calibration'),
        'ablations/no_reasoner/calibration',
      }
    else:
      assert all(line.endswith(': up to date') for line in lines)
  assert saved_config(tmp_path) == changed
  read_only(changed, tmp_path)


def test_evaluate_trains_the_ablations_that_are_missing(tmp_path, capfd):
  config = entry.experiment('demo', SMALL)
  run.train(config, tmp_path)
  capfd.readouterr()
  names = ('no_reasoner', 'counts_only', 'no_reflection', 'without_dense', 'tiger')
  run.train(apply(config, [f'evaluation.ablations={names}']), tmp_path)
  lines = capfd.readouterr().err.splitlines()
  assert [line for line in lines if line.endswith(': running')] == [
    'ablations/no_reflection: running',
    'ablations/no_reflection/calibration: running',
    'ablations/without_dense/calibration: running',
    'ablations/tiger: running',
  ]
  inputs = json.loads((tmp_path / 'ablations/without_dense/calibration/KEY.json').read_text())
  assert sorted(inputs['inputs']) == ['lists', 'loop']
  with pytest.raises(ConfigError, match=r'must be free of without_dense, as backbone\.experts'):
    apply(config, [f'evaluation.ablations={names}', "backbone.experts=('generative',)"])


def test_without_roles_the_reasoner_is_trained_apart(tmp_path, capfd):
  config = apply(entry.experiment('demo', SMALL), ["evaluation.ablations=('no_roles',)"])
  run.train(config, tmp_path)
  lines = capfd.readouterr().err.splitlines()
  name = 'ablations/no_roles'
  of_ablation = [line for line in lines if 'no_roles' in line and line.endswith(': running')]
  expected = ['reason/no_roles', name, f'{name}/calibration']
  assert of_ablation == [f'{stage}: running' for stage in expected]
  inputs = json.loads((tmp_path / name / 'KEY.json').read_text())['inputs']
  whole = json.loads((tmp_path / 'loop' / 'KEY.json').read_text())['inputs']
  assert inputs['reason'] != whole['reason'] and inputs['warmup'] == whole['warmup']
  run.train(config, tmp_path)
  assert not any(': running' in line for line in capfd.readouterr().err.splitlines())


def test_the_held_back_simulator_is_not_trained_again_unasked(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(simulation, 'played', lambda tests, *_: tests[0].models and {})
  monkeypatch.setattr('rolegen_jax.ab_test.plot.draw', lambda _, path: path.write_text('drawn'))
  config = entry.experiment('demo', SMALL)
  prepare_inputs(open_run(config, tmp_path))
  with pytest.raises(ConfigError, match='its stage warmup is not complete'):
    simulation.simulate_ab(tmp_path)
  simulation.simulate_ab(tmp_path, 'held_back')
  before = content(tmp_path / 'held_back')
  open_run(apply(config, ['warmup.steps=7']), tmp_path)  # which was not trained yet
  with pytest.raises(
    ConfigError, match='held_back: stage warmup was trained with warmup.steps=400'
  ):
    simulation.simulate_ab(tmp_path, 'held_back')
  assert content(tmp_path / 'held_back') == before
  capfd.readouterr()
  simulation.simulate_ab(tmp_path, 'held_back', retrain=True)
  assert 'warmup: was trained with warmup.steps=400, now 7; starting' in capfd.readouterr().err


def test_a_log_that_changed_is_named(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(digests, '_taken', set())  # later tests' runs keep none of these files'
  monkeypatch.setenv('ROLEGEN_DATA', str(tmp_path))
  simulated = world.simulate(entry.experiment('demo', SMALL).simulator)
  shop, folder = tmp_path / 'shop', tmp_path / 'run'
  (shop / 'events').mkdir(parents=True)
  simulated.events.write_parquet(shop / 'events' / 'part-0.parquet')
  simulated.items.write_parquet(shop / 'items.parquet')
  settings = [s for s in SMALL if not s.startswith('simulator.')] + ['data.path=shop']
  config = entry.experiment('contract', settings)
  prepare_inputs(open_run(config, folder))
  before = content(folder)
  simulated.items.with_columns(price=1.0).write_parquet(shop / 'items.parquet')
  with pytest.raises(ConfigError, match='data was made from other files: items.parquet has change'):
    open_run(config, folder)
  with pytest.raises(
    ConfigError, match='items.parquet has changed; put them back, use another --w'
  ):
    prepare_inputs(open_run(config, folder, may_train=False))
  assert content(folder) == before
  capfd.readouterr()
  prepare_inputs(open_run(config, folder, retrain=True))
  said = capfd.readouterr().err
  assert 'data: was made from other files: items.parquet has changed; starting afresh' in said


def test_measuring_leaves_the_settings_of_a_run_alone(finished):
  other = apply(saved_config(finished), ['loop.kl=0.5'])
  prepare_inputs(open_run(other, finished, keep_config=False))
  with pytest.raises(ConfigError, match='stage data was trained with simulator.users=150'):
    prepare_inputs(open_run(apply(other, ['simulator.users=9']), finished, keep_config=False))


def test_stages_of_an_ablation_know_their_own_loop(finished):
  config = saved_config(finished)
  weighted = dataclasses.replace(config.loop, objective='weighted')
  with pytest.raises(ConfigError, match="loop.objective='reinforce', now 'weighted'"):
    run.train(dataclasses.replace(config, loop=weighted), finished)
