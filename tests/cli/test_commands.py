"""A whole run at the smallest size, and what the commands say about wrong input."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import polars as pl
import pytest

from rolegen_jax import sharding
from rolegen_jax.ab_test import simulation
from rolegen_jax.cli import entry
from rolegen_jax.config import ROLE_NAMES, ConfigError
from rolegen_jax.data.adapters import log_path
from rolegen_jax.data.files import DataError, lock, read_parquet
from rolegen_jax.data.shards import build
from rolegen_jax.data.shards.convert import make_plan
from rolegen_jax.models import functional
from rolegen_jax.pipeline import stages
from rolegen_jax.pipeline.artifacts import RUN_LOCK, RunFolder, saved_config
from rolegen_jax.pipeline.context import Run, open_run
from rolegen_jax.pipeline.inputs import Inputs, prepare_inputs
from rolegen_jax.pipeline.run import train, train_models
from rolegen_jax.pipeline.stages import learn_kinds
from rolegen_jax.serving.recommend import Recommender
from rolegen_jax.simulator import world
from rolegen_jax.training.calibration import LANGUAGE
from tests import tiny
from tests.runs import open_inputs

SMALL = [
  f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in tiny.SIZES
] + [
  'simulator.users=200',
  'simulator.items=64',
  'simulator.categories=8',
  'semantic_ids.codes=16',
  'semantic_ids.levels=2',
  'backbone.context=16',
  'backbone.beam=20',
  *('reasoner.events=6', 'reasoner.role_events=4'),
  'reasoner.candidates=2',
  'reasoner.kinds=2',
  'loop.worlds=2',
  'warmup.steps=4',
  *(f'{stage}.steps=2' for stage in ('kinds', 'align', 'reason')),
  'loop_stage.steps=3',
  *(f'{stage}.batch=8' for stage in ('warmup', 'kinds', 'align', 'reason', 'loop_stage')),
  'evaluation.batch=64',
  'evaluation.ks=(1,10)',
  'evaluation.sasrec.steps=2',
  'evaluation.bootstrap=50',
]


CAPTURED = dict(capture_output=True, text=True, check=False)


@dataclasses.dataclass(frozen=True)
class Finished:
  """A run with its report."""

  run: Run
  inputs: Inputs
  params: dict

  @property
  def workdir(self):
    return self.run.workdir

  def recommend(self, users: str, output, top: int = 10) -> pl.DataFrame:
    self.recommender().write(users, output, top)
    return read_parquet(output)

  def recommender(self, bars_history: bool = False) -> Recommender:
    inputs = self.inputs
    read = inputs.log, inputs.excitation, inputs.trie
    return Recommender(self.run.rolegen, self.params, 'key', *read, self.run.mesh, bars_history)


make_mesh = sharding.make_mesh


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """Runs use a mesh of one device, which compiles faster; stages on eight have other tests."""

  def make_small_mesh(config, devices=None):
    return make_mesh(config, devices or jax.devices()[:1])

  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(sharding, 'make_mesh', make_small_mesh)
    yield


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  train(entry.experiment('demo', SMALL), folder)
  run, inputs = open_inputs(saved_config(folder), folder, may_train=False)
  return Finished(run, inputs, train_models(run, inputs).calibrated.load())


def test_the_report_compares_with_baselines_and_ablations(finished):
  report = json.loads((finished.workdir / 'report.json').read_text())
  assert set(report['systems']) == {
    'RoleGen',
    'no_language_model',
    'no_reasoner',
    'RoleGen_exposure_penalty',
    'no_reasoner_exposure_penalty',
    *('popularity', 'trending', 'recency', 'item_knn', 'item_transitions', 'counting'),
    *('u2i', 'SASRec'),
  }
  assert report['provenance']['simulated'] is True
  assert 0 <= report['roles']['agreement']['macro_f1'] <= 1
  stages = {row['stage'] for row in report['training']}
  assert stages == {'warmup', 'kinds', 'align', 'reason', 'loop'}
  assert 'SIMULATED' in (finished.workdir / 'report.html').read_text()


def test_the_report_says_how_many_targets_are_among_the_candidates(finished):
  listed, occasions = np.load(finished.workdir / 'rankings.npz'), finished.inputs.occasions
  candidates, held = listed['candidates/RoleGen'], []
  assert candidates.shape == (len(listed['occasion']), 2, 2)
  assert 'candidates/no_reasoner' not in listed.files
  for row, occasion in enumerate(listed['occasion']):
    first, last = occasions.target_offsets[occasion : occasion + 2]
    held += [target in candidates[row] for target in occasions.target[first:last]]
  found = json.loads((finished.workdir / 'report.json').read_text())['worlds']['systems']
  assert list(found) == ['RoleGen', 'no_language_model', 'counting']
  assert 0 < found['counting']['hits']['all']['mean'] < 1 and found['counting']['union_size'] == 4
  assert found['RoleGen']['hits']['all']['mean'] == pytest.approx(np.mean(held))
  assert 0 < np.mean(held) < 1 and found['RoleGen']['difference']['all']['high'] == 0


def test_what_calibration_chose_is_what_recommends(finished):
  run, inputs = prepare_inputs(open_run(saved_config(finished.workdir), finished.workdir))
  models = train_models(run, inputs)
  chosen = np.load(finished.workdir / 'loop/calibration/weights.npz')
  name = 'reasoner.intent.language'
  assert chosen[name][0] in np.float32(LANGUAGE)
  looped, calibrated = (functional.flatten(m.load()) for m in (models.looped, models.calibrated))
  moved = {path for path in looped if (looped[path] != calibrated[path]).any()}
  assert moved <= set(chosen.files) and looped[name] == calibrated['reference.intent.language'] == 1
  for path in set(chosen.files) - {'nll'}:
    np.testing.assert_array_equal(calibrated[path], chosen[path])
  assert 'reasoner.intent.pooled' in chosen.files  # what is pooled with what is counted:
  for path, learned in functional.flatten(learn_kinds(run, inputs).load()['kinds']).items():
    np.testing.assert_array_equal(calibrated[f'reasoner.intent.kinds.{path}'], learned)


@pytest.mark.slow
def test_a_second_start_trains_nothing(finished, capfd):
  train(saved_config(finished.workdir), finished.workdir)
  lines = capfd.readouterr().err.splitlines()
  before_training = ('data', 'semantic_ids', 'choices', 'warmup', 'roles')
  training = ('align', 'reason', 'loop', 'loop/calibration')
  after = ('ablations/no_reasoner/calibration', 'baselines')
  for stage in before_training + training + after:
    assert f'{stage}: up to date' in lines


@pytest.mark.slow
@pytest.mark.parametrize('command', ['recommend', 'evaluate'])
def test_a_decoding_setting_trains_nothing(finished, tmp_path, command):
  folder = copy(finished, tmp_path / 'run')
  arguments = [command, f'--workdir={folder}', '--set=backbone.beam=30']
  arguments += [f'--output={tmp_path}/out', '--top=25'] if command == 'recommend' else []
  done = subprocess.run([sys.executable, '-m', 'rolegen_jax', *arguments], **CAPTURED)
  assert done.returncode == 0, done.stderr
  assert 'running' not in done.stderr and 'continuing' not in done.stderr


def test_a_second_run_in_a_folder_at_work_is_refused(tmp_path):
  config = entry.experiment('demo', SMALL)
  with (
    lock(tmp_path / RUN_LOCK),
    pytest.raises(ConfigError, match=f'another run is at work there .process {os.getpid()} on '),
  ):
    prepare_inputs(open_run(config, tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == [RUN_LOCK]


def test_users_with_short_lists_are_said(finished, tmp_path, capfd):
  inputs, beam = finished.inputs, finished.run.config.backbone.beam
  finished.recommender(bars_history=True).write('all', str(tmp_path / 'out.parquet'), beam)
  table = read_parquet(tmp_path / 'out.parquet')
  lengths = table.group_by('user_id').len()['len']
  n_short = (lengths < beam).sum() + len(inputs.log.users) - len(lengths)
  assert n_short > 0
  assert f'{n_short} users got fewer than {beam} items' in capfd.readouterr().err


def test_recommendations_carry_their_reasons(finished, tmp_path):
  output = tmp_path / 'out.parquet'
  finished.recommend('dormant', output, top=5)
  table = pl.read_parquet(output)
  log = finished.inputs.log
  assert set(table['item_id']) <= set(log.items['item_id'])
  assert table.group_by('user_id').len()['len'].to_list() == [5] * table['user_id'].n_unique()
  opened = ((table['rank_score'] - table['log_prob']) / 2.0).exp()  # the weight by default
  scale = table.select('user_id', scale=opened - table['opens']).group_by('user_id')
  assert scale.agg(pl.col('scale').max() - pl.col('scale').min())['scale'].max() < 1e-4
  by_user = table.group_by('user_id', maintain_order=True)
  assert by_user.agg(pl.col('rank_score').is_sorted(descending=True))['rank_score'].all()
  assert by_user.agg(pl.col('rank').is_sorted())['rank'].all() and table['opens'].max() > 0
  events = [event for events in table['carried_by'] for event in events]
  assert events and {event['role'] for event in events} <= set(ROLE_NAMES)
  bought_last = log.user[log.timestamp == log.timestamp.max()]
  assert set(table['user_id']).isdisjoint(
    log.users.gather(bought_last[log.event[log.timestamp == log.timestamp.max()] == tiny.PURCHASE])
  )


def test_users_of_a_file_and_an_unknown_one(finished, tmp_path):
  users, output = tmp_path / 'users.txt', tmp_path / 'out.parquet'
  known = finished.inputs.log.users[3]
  users.write_text(f'{known}\n')
  assert set(finished.recommend(str(users), output, top=3)['user_id']) == {known}
  output.unlink()
  users.write_text(f'{known}\n\n999999\n')
  with pytest.raises(DataError, match=r"users.txt: line 3: user_id '999999' is not in the log"):
    finished.recommend(str(users), output)
  assert not output.exists()


@pytest.fixture
def same_rows(tmp_path, monkeypatch):
  """Two runs of one shop by name: one reads the log, the other shards of it."""
  monkeypatch.setenv('ROLEGEN_DATA', str(tmp_path))
  simulated = world.simulate(entry.experiment('demo', SMALL).simulator)
  (tmp_path / 'shop').mkdir()
  simulated.events.write_parquet(tmp_path / 'shop' / 'events.parquet')
  simulated.items.write_parquet(tmp_path / 'shop' / 'items.parquet')
  settings = [s for s in SMALL if not s.startswith('simulator.')] + ['data.path=shop']
  config = entry.experiment('contract', settings)
  build.build(make_plan(config, log_path(config.data), 1), tmp_path / 'shards', 1)
  of_shards = entry.experiment('contract', [*settings, f'data.shards={tmp_path / "shards"}'])
  return {'log': config, 'shards': of_shards}


def test_the_warmup_reads_shards_as_it_reads_the_log(same_rows, tmp_path, monkeypatch):
  read = []

  def read_batches(task, site, trie):
    batches = task.batches()
    read.append([next(batches) for _ in range(task.config.steps)])
    return {}

  monkeypatch.setattr(stages, 'fit', read_batches)
  for name, config in same_rows.items():
    stages.warm_up(*open_inputs(config, tmp_path / name))
  of_log, of_shards = read
  jax.tree.map(np.testing.assert_array_equal, of_log, of_shards)


@pytest.mark.slow
def test_the_warmup_learns_from_shards_as_from_the_log(same_rows, tmp_path, monkeypatch):
  monkeypatch.setattr(sharding, 'make_mesh', make_mesh)  # on eight devices

  def curve(name):
    stages.warm_up(*open_inputs(same_rows[name], tmp_path / name))
    metrics = (tmp_path / name / 'warmup' / 'metrics.jsonl').read_text()
    return [json.loads(line)['loss'] for line in metrics.splitlines()]

  assert curve('shards') == curve('log')


def copy(finished, to):
  """The run's folder as its training left it."""
  shutil.copytree(
    finished.workdir, to, ignore=shutil.ignore_patterns(RUN_LOCK, 'ab', 'compilation_cache')
  )
  return to


@pytest.mark.parametrize(
  'names',
  [
    ('popularity', 'recency'),
    pytest.param(('popularity', 'recency', 'no_reasoner'), marks=pytest.mark.slow),
  ],
)
def test_a_cut_off_ab_test_continues_to_the_same_numbers(finished, tmp_path, capfd, names):
  *others, last = names
  arms = dict(days=2, seeds=2, arms=list(names), slate=5)
  folder = copy(finished, tmp_path / 'whole')
  whole = simulation.simulate_ab(folder, **arms)
  assert set(whole['lifts']) == set() and (folder / 'ab.png').stat().st_size > 1000
  (kept,), text = (folder / 'ab').iterdir(), (folder / 'ab.json').read_text()
  path = kept / f'{last}_1.npz'
  path.write_bytes(path.read_bytes()[:100])  # cut off
  capfd.readouterr()
  again = simulation.simulate_ab(folder, **arms)
  said = capfd.readouterr().err
  assert f'{last}, seed 1' in said and f'{last}, seed 0' not in said
  assert not any(name in said for name in others)
  assert again['arms'] == whole['arms'] == json.loads(text)['arms']
  longer = simulation.simulate_ab(folder, **arms | dict(days=3))
  assert (
    longer['key'] != whole['key']
    and longer['arms']['popularity']['by_day']['orders'][:2]
    == whole['arms']['popularity']['by_day']['orders']
  )
  assert len(list(kept.iterdir())) == 2 * len(names)


@pytest.mark.slow
def test_an_ab_test_exits_with_42_on_sigterm(finished, tmp_path):
  folder = copy(finished, tmp_path / 'run')
  command = [
    sys.executable,
    '-m',
    'rolegen_jax',
    'simulate_ab',
    f'--workdir={folder}',
    '--days=2000',
    '--seeds=1',
    '--arms=popularity',
    '--slate=5',
  ]
  child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  for line in child.stderr:
    if line.startswith('popularity, seed 0'):
      break
  child.send_signal(signal.SIGTERM)
  assert child.wait(60) == entry.PREEMPTED and not (folder / 'ab.json').exists()
  assert 'the same command continues' in child.stderr.read()


def test_what_an_ab_test_refuses(finished, tmp_path):
  with pytest.raises(ConfigError, match='no config.json there'):
    simulation.simulate_ab(tmp_path)
  real, untrained = tmp_path / 'real', tmp_path / 'untrained'
  for folder, settings in ((real, dict(format='contract', path='shop')), (untrained, {})):
    folder.mkdir()
    config = json.loads((finished.workdir / 'config.json').read_text())
    config['data'] |= settings
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
  with pytest.raises(ConfigError, match='its log is contract; must be simulated'):
    simulation.simulate_ab(real)
  with pytest.raises(ConfigError, match='its stage data is not complete'):
    simulation.simulate_ab(untrained)
  assert not (untrained / 'data').exists()
  config = json.loads((finished.workdir / 'config.json').read_text())
  config['simulator']['kind'] = 'context'
  (untrained / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ConfigError, match='--simulator=held_back: holds back item traits'):
    simulation.simulate_ab(untrained, 'held_back')
  with pytest.raises(ConfigError, match='--arms=oracle,best: must be different ones of popularity'):
    simulation.simulate_ab(finished.workdir, arms=['oracle', 'best'])
  with pytest.raises(ConfigError, match='--slate=21: must be 1 to backbone.beam=20'):
    simulation.simulate_ab(finished.workdir, slate=21)
  with lock(untrained / RUN_LOCK), pytest.raises(ConfigError, match='another run is at work'):
    RunFolder(untrained).lock()


@pytest.mark.parametrize('trained', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_held_back_simulator_is_trained_and_played_in_a_folder_of_its_own(
  finished, tmp_path, monkeypatch, trained
):
  if not trained:  # the arms need no model
    monkeypatch.setattr(simulation.Test, 'models', {})
  folder = copy(finished, tmp_path / 'run')
  result = simulation.simulate_ab(
    folder, 'held_back', days=1, seeds=1, arms=['popularity', 'oracle'], slate=5
  )
  assert result['simulator'] == 'simulator held_back, seed 1'
  assert (folder / 'held_back' / 'ab.json').exists()
  assert not (folder / 'ab.json').exists()
  assert (folder / 'held_back' / 'loop').exists() == trained
  other = entry.experiment('demo', SMALL + ['simulator.preset=held_back', 'simulator.seed=1'])
  _, inputs = open_inputs(other, folder / 'held_back', may_train=False)
  assert inputs.log.digest != finished.inputs.log.digest
