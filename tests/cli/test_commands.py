"""A whole run at the smallest size, and what the commands say about wrong input."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from rolegen_jax.ab_test import simulation
from rolegen_jax.cli import entry
from rolegen_jax.config import ROLE_NAMES, ConfigError
from rolegen_jax.data.adapters import log_path
from rolegen_jax.data.files import DataError, lock
from rolegen_jax.data.shards import build
from rolegen_jax.data.shards.convert import make_plan
from rolegen_jax.pipeline.run import RUN_LOCK, Run, saved_config
from rolegen_jax.serving.recommend import recommend
from rolegen_jax.simulator import world
from tests import tiny

SMALL = [
  f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in tiny.SIZES
] + [
  'simulator.users=200',
  'simulator.items=64',
  'simulator.categories=8',
  'semantic_ids.codes=8',
  'backbone.context=16',
  'backbone.beam=20',
  'reasoner.events=6',
  'reasoner.role_events=4',
  'warmup.steps=4',
  'align.steps=2',
  'reason.steps=2',
  'loop_stage.steps=3',
  'warmup.batch=8',
  'align.batch=8',
  'reason.batch=8',
  'loop_stage.batch=8',
  'evaluation.batch=64',
  'evaluation.ks=(1,10)',
  'evaluation.sasrec_steps=2',
  'evaluation.bootstrap=50',
]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run with its report."""
  made = Run(entry.experiment('demo', SMALL), tmp_path_factory.mktemp('run'))
  made.report()
  return made


def test_the_report_compares_with_floors_and_ablations(run):
  report = json.loads((run.workdir / 'report.json').read_text())
  assert set(report['systems']) == {
    'RoleGen',
    'no_reasoner',
    'RoleGen_exposure_penalty',
    'no_reasoner_exposure_penalty',
    'popularity',
    'recency',
    'item_knn',
    'item_transitions',
    'SASRec',
  }
  assert report['provenance']['simulated'] is True
  assert 0 <= report['roles']['agreement']['macro_f1'] <= 1
  assert {row['stage'] for row in report['training']} == {
    'backbone',
    'align',
    'reason',
    'loop',
    'ablations/no_reasoner',
  }
  assert 'SIMULATED' in (run.workdir / 'report.html').read_text()


def test_the_report_says_how_many_targets_are_among_the_candidates(run):
  listed, (_, occasions) = np.load(run.workdir / 'rankings.npz'), run.data
  candidates, held = listed['candidates/RoleGen'], []
  assert (
    candidates.shape == (len(listed['occasion']), 4, 4)
    and 'candidates/no_reasoner' not in listed.files
  )
  for row, occasion in enumerate(listed['occasion']):
    first, last = occasions.target_offsets[occasion : occasion + 2]
    held += [target in candidates[row] for target in occasions.target[first:last]]
  found = json.loads((run.workdir / 'report.json').read_text())['worlds']['systems']
  assert set(found) == {'RoleGen'} and found['RoleGen']['hits']['all']['mean'] == pytest.approx(
    np.mean(held)
  )
  assert 0 < np.mean(held) < 1 and found['RoleGen']['difference']['all']['high'] == 0


def test_a_second_start_trains_nothing(run, capfd):
  again = Run(saved_config(run.workdir), run.workdir)
  again.trained
  said = capfd.readouterr().err
  assert all(
    f'{stage}: up to date' in said
    for stage in ('data', 'semantic_ids', 'backbone', 'roles', 'align', 'reason', 'loop')
  )


def test_a_second_run_in_a_folder_at_work_is_refused(tmp_path):
  config = entry.experiment('demo', SMALL)
  with (
    lock(tmp_path / RUN_LOCK),
    pytest.raises(ConfigError, match=f'another run is at work there .process {os.getpid()} on '),
  ):
    Run(config, tmp_path).data
  assert [path.name for path in tmp_path.iterdir()] == [RUN_LOCK]


def test_recommendations_carry_their_reasons(run, tmp_path):
  output = tmp_path / 'out.parquet'
  recommend(
    run.rolegen,
    run.trained,
    run.data[0],
    run.excitation,
    run.trie,
    run.mesh,
    'dormant',
    output,
    top=5,
  )
  table = pl.read_parquet(output)
  log = run.data[0]
  assert set(table['item_id']) <= set(log.items['item_id'])
  assert table.group_by('user_id').len()['len'].to_list() == [5] * table['user_id'].n_unique()
  worth = np.log(table['opens'] + np.median(run.excitation.opens))
  value = table.with_columns(value=pl.col('score') + run.config.serving.exploration_weight * worth)
  assert (
    value.group_by('user_id').agg(pl.col('value').is_sorted(descending=True))['value'].all()
    and table['opens'].max() > 0
  )
  assert {pivot['role'] for pivots in table['pivots'] for pivot in pivots} <= set(ROLE_NAMES)
  bought_last = log.user[log.timestamp == log.timestamp.max()]
  assert set(table['user_id']).isdisjoint(
    log.users.gather(bought_last[log.event[log.timestamp == log.timestamp.max()] == tiny.PURCHASE])
  )


def test_users_of_a_file_and_an_unknown_one(run, tmp_path):
  users, output = tmp_path / 'users.txt', tmp_path / 'out.parquet'
  known = run.data[0].users[3]
  users.write_text(f'{known}\n')
  assert set(
    recommend(
      run.rolegen,
      run.trained,
      run.data[0],
      run.excitation,
      run.trie,
      run.mesh,
      str(users),
      output,
      top=3,
    )['user_id']
  ) == {known}
  output.unlink()
  users.write_text(f'{known}\n\n999999\n')
  with pytest.raises(DataError, match=r"users.txt: line 3: user_id '999999' is not in the log"):
    recommend(
      run.rolegen, run.trained, run.data[0], run.excitation, run.trie, run.mesh, str(users), output
    )
  assert not output.exists()


def test_the_warm_up_reads_shards_as_it_reads_the_log(tmp_path, monkeypatch):
  monkeypatch.setenv('ROLEGEN_DATA', str(tmp_path))
  simulated = world.simulate(entry.experiment('demo', SMALL).simulator)
  (tmp_path / 'shop').mkdir()
  simulated.events.write_parquet(tmp_path / 'shop' / 'events.parquet')
  simulated.items.write_parquet(tmp_path / 'shop' / 'items.parquet')
  settings = [s for s in SMALL if not s.startswith('simulator.')] + ['data.path=shop']
  config = entry.experiment('contract', settings)
  build.build(make_plan(config, log_path(config.data), 1), tmp_path / 'shards', 1)

  def curve(name, *more):
    run = Run(entry.experiment('contract', [*settings, *more]), tmp_path / name)
    run.backbone
    return [
      json.loads(line)['loss']
      for line in (run.workdir / 'backbone' / 'metrics.jsonl').read_text().splitlines()
    ]

  assert curve('shards', f'data.shards={tmp_path / "shards"}') == curve('log')


def test_unknown_experiments_and_fields_name_what_is_right():
  with pytest.raises(ConfigError, match='--experiment=dmo: must be one of .*demo'):
    entry.experiment('dmo', [])
  with pytest.raises(ConfigError, match='no such field; the nearest is loop.worlds'):
    entry.experiment('demo', ['loop.wrlds=3'])
  with pytest.raises(ConfigError, match='fit_world.py is a command'):
    entry.experiment('fit_world', [])


def test_a_wrong_setting_exits_with_two_and_one_line(tmp_path):
  command = [
    sys.executable,
    '-m',
    'rolegen_jax',
    'train',
    '--experiment=demo',
    f'--workdir={tmp_path}',
    '--set',
    'warmup.stps=3',
  ]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == entry.BAD_INPUT
  assert done.stderr.strip() == '--set warmup.stps: no such field; the nearest is warmup.steps'


def copy(run, to):
  """The run's folder as its training left it."""
  shutil.copytree(
    run.workdir, to, ignore=shutil.ignore_patterns(RUN_LOCK, 'ab', 'compilation_cache')
  )
  return to


def test_a_cut_off_ab_test_continues_to_the_same_numbers(run, tmp_path, capfd):
  arms = dict(days=2, seeds=2, arms=['popularity', 'recency', 'no_reasoner'], slate=5)
  folder = copy(run, tmp_path / 'whole')
  whole = simulation.simulate_ab(folder, **arms)
  assert set(whole['lifts']) == set() and (folder / 'ab.png').stat().st_size > 1000
  path, text = folder / 'ab' / 'no_reasoner_1.npz', (folder / 'ab.json').read_text()
  path.write_bytes(path.read_bytes()[:100])  # cut off
  capfd.readouterr()
  again = simulation.simulate_ab(folder, **arms)
  said = capfd.readouterr().err
  assert (
    'no_reasoner, seed 1' in said and 'no_reasoner, seed 0' not in said and 'recency' not in said
  )
  assert again['arms'] == whole['arms'] == json.loads(text)['arms']
  longer = simulation.simulate_ab(folder, **arms | dict(days=3))
  assert (
    longer['key'] != whole['key']
    and longer['arms']['popularity']['by_day']['orders'][:2]
    == whole['arms']['popularity']['by_day']['orders']
  )


def test_an_ab_test_exits_with_42_on_sigterm(run, tmp_path):
  folder = copy(run, tmp_path / 'run')
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


def test_what_an_ab_test_refuses(run, tmp_path):
  with pytest.raises(ConfigError, match='no config.json there'):
    simulation.simulate_ab(tmp_path)
  real, untrained = tmp_path / 'real', tmp_path / 'untrained'
  for folder, settings in ((real, dict(format='contract', path='shop')), (untrained, {})):
    folder.mkdir()
    config = json.loads((run.workdir / 'config.json').read_text())
    config['data'] |= settings
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
  with pytest.raises(ConfigError, match='its log is contract; must be simulated'):
    simulation.simulate_ab(real)
  with pytest.raises(ConfigError, match='its stage data is not complete'):
    simulation.simulate_ab(untrained)
  assert not (untrained / 'data').exists()
  with pytest.raises(ConfigError, match='--arms=oracle,best: must be different ones of popularity'):
    simulation.simulate_ab(run.workdir, arms=['oracle', 'best'])
  with pytest.raises(ConfigError, match='--slate=21: must be 1 to backbone.beam=20'):
    simulation.simulate_ab(run.workdir, slate=21)
  with lock(untrained / RUN_LOCK), pytest.raises(ConfigError, match='another run is at work'):
    Run(entry.experiment('demo', SMALL), untrained).hold()


def test_the_held_back_world_is_trained_and_played_in_a_folder_of_its_own(run, tmp_path):
  folder = copy(run, tmp_path / 'run')
  found = simulation.simulate_ab(
    folder, 'held_back', days=1, seeds=1, arms=['popularity', 'oracle'], slate=5
  )
  assert (
    found['world'] == 'world held_back, seed 1'
    and (folder / 'held_back' / 'ab.json').exists()
    and not (folder / 'ab.json').exists()
  )
  log = Run(
    entry.experiment('demo', SMALL + ['simulator.preset=held_back', 'simulator.seed=1']),
    folder / 'held_back',
    may_run=False,
  ).data[0]
  assert log.digest != run.data[0].digest
