"""What every system lists on the test occasions, under the history filter; models are random."""

import dataclasses
import json

import jax
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from rolegen_jax import overrides, sharding
from rolegen_jax.cli import entry
from rolegen_jax.config import ServingConfig
from rolegen_jax.data.files import read_parquet
from rolegen_jax.pipeline import evaluation
from rolegen_jax.pipeline.artifacts import RunFolder
from rolegen_jax.pipeline.stages import Models, Trained
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.serving import recommend
from rolegen_jax.serving.history_filter import held_items
from rolegen_jax.serving.recommend import Recommender
from tests import tiny
from tests.cli.test_commands import SMALL
from tests.runs import open_inputs


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """(run, inputs, models) with the filter on: a log, its semantic IDs, and random parameters."""
  config = entry.experiment('demo', [*SMALL, 'serving.filter_history=bar'])
  # One device compiles faster; tests/reasoning/test_predict.py recommends on eight.
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'make_mesh', lambda *_: mesh)
    run, inputs = open_inputs(config, tmp_path_factory.mktemp('filtered'))
  params = {name: tiny.random_params(fn) for name, fn in run.rolegen.model_fns.items()}
  return run, inputs, Trained('random', lambda: params)


def test_no_system_lists_what_the_history_holds(opened):
  run, inputs, trained = opened
  models = Models(trained, None, trained, trained, trained, trained)
  baselines = evaluation.rank_baselines(run, inputs)
  results = evaluation.evaluate(run, inputs, models, {}, baselines)
  occasions, rows = inputs.occasions, results.rows
  held = held_items(inputs.log, occasions.user[rows], occasions.context_end[rows]).toarray()
  assert set(results.rankings) == {
    *('RoleGen', 'RoleGen_exposure_penalty'),
    *('popularity', 'trending', 'recency', 'item_knn', 'item_transitions', 'counting', 'u2i'),
    'SASRec',
  }
  for name, (_, items, _) in results.rankings.items():
    is_item = items >= 0
    touched = held[np.arange(len(rows))[:, None], np.maximum(items, 0)] & is_item
    assert is_item.any() and not touched.any(), name
    assert (is_item[:, :-1] >= is_item[:, 1:]).all(), f'{name}: a gap within a list'
  # The baselines' lists are full where the catalogue allows; models have what is left of the beam.
  left = 64 - held.sum(1)
  for name in ('popularity', 'recency', 'SASRec'):
    items = results.rankings[name][1]
    assert ((items >= 0).sum(1) == np.minimum(left, items.shape[1])).all(), name


def test_the_baselines_stage_depends_on_the_filter(opened, tmp_path):
  run, inputs, _ = opened
  evaluation.rank_baselines(run, inputs)
  config = dataclasses.replace(run.config, serving=ServingConfig(filter_history='allow'))
  plain = dataclasses.replace(run, config=config, folder=RunFolder(tmp_path))
  allowing = dataclasses.replace(inputs, bars_history=False)
  lists = evaluation.rank_baselines(plain, allowing)['popularity'].items
  assert (lists == lists[0]).all()  # the same list for everybody, whoever knows what of it
  keys = [json.loads((r.workdir / 'baselines' / 'KEY.json').read_text()) for r in (run, plain)]
  assert keys[0] != keys[1]


def test_a_stopped_stage_keeps_the_baselines_that_were_ranked(opened, tmp_path, monkeypatch):
  run, inputs, _ = opened
  run, ranked = dataclasses.replace(run, folder=RunFolder(tmp_path)), []

  def first(inputs, rows, k):
    ranked.append('first')
    return evaluation.Ranking(np.tile(np.arange(k, dtype=np.int32), (len(rows), 1)), dict(tau=1.5))

  def second(inputs, rows, k):
    if ranked.count('second') == 0:
      ranked.append('second')
      raise KeyboardInterrupt
    return evaluation.Ranking(np.zeros((len(rows), k), np.int32), {})

  monkeypatch.setattr(evaluation, 'ALL_BASELINES', dict(first=first, second=second))
  with pytest.raises(KeyboardInterrupt):
    evaluation.rank_baselines(run, inputs)
  rankings = evaluation.rank_baselines(run, inputs)
  assert ranked == ['first', 'second'] and list(rankings) == ['first', 'second']
  assert rankings['first'].settings == dict(tau=1.5) and (rankings['second'].items == 0).all()
  assert (rankings['first'].items[0] == np.arange(rankings['first'].items.shape[1])).all()


def recommender(opened, **settings):
  run, inputs, trained = opened
  rolegen = run.rolegen.of(overrides.apply(run.config, [f'{k}={v}' for k, v in settings.items()]))
  read = inputs.log, inputs.excitation, inputs.trie
  return Recommender(rolegen, trained.load(), trained.key, *read, run.mesh, inputs.bars_history)


def test_recommendations_hold_nothing_that_the_user_touched(opened, tmp_path):
  written = recommender(opened).write('dormant', tmp_path / 'out.parquet', top=10)
  table = read_parquet(tmp_path / 'out.parquet')
  assert table.height and not table['seen'].any()
  assert written == (table['user_id'].n_unique(), table.height)
  assert table.group_by('user_id').len()['len'].max() <= 10
  for _, lists in table.group_by('user_id', maintain_order=True):
    assert lists['rank_score'].is_sorted(descending=True) and lists['rank'].is_sorted()


@pytest.mark.slow  # three programs are compiled three times
def test_lists_in_parts_are_those_made_at_once(opened, tmp_path, monkeypatch):
  lists, path, of_users = recommender(opened), tmp_path / 'out.parquet', Recommender._of_users
  lists.write('all', tmp_path / 'whole.parquet')
  monkeypatch.setattr(recommend, 'PART', 40)
  made = []

  def cut_off(self, users, *args):
    if len(made) == 2:
      raise KeyboardInterrupt
    made.append(users)
    return of_users(self, users, *args)

  monkeypatch.setattr(Recommender, '_of_users', cut_off)
  with pytest.raises(KeyboardInterrupt):
    lists.write('all', path)
  monkeypatch.setattr(Recommender, '_of_users', of_users)
  lists.write('all', path)
  assert_frame_equal(read_parquet(path), read_parquet(tmp_path / 'whole.parquet'))


def test_lists_that_were_cut_off_go_on(opened, tmp_path, monkeypatch, capsys):
  def by_exposure(self, users, now, programs, exposure):
    """Lists of one item, beside how often it was shown before."""
    if len(made) == stop_after:
      raise KeyboardInterrupt
    made.append(len(users))
    items, shown = users % 5, []
    for item in items:
      shown.append(float(exposure.of(item[None])[0]))
      exposure.add(item[None])
    ids = self.log.users.gather(users), self.log.items['item_id'].gather(items)
    return pl.DataFrame(dict(user_id=ids[0], item_id=ids[1], shown=shown))

  made, stop_after, path = [], None, tmp_path / 'out.parquet'
  monkeypatch.setattr(Recommender, '_of_users', by_exposure)
  lists = recommender(opened, **{'serving.exposure_penalty': 1.0})
  lists.write('all', tmp_path / 'whole.parquet', top=1)
  n_users, made, stop_after = sum(made), [], 2
  monkeypatch.setattr(recommend, 'PART', 40)
  with pytest.raises(KeyboardInterrupt):
    lists.write('all', path, top=1)
  assert not path.exists()
  stop_after = None
  assert lists.write('all', path, top=1) == (n_users, n_users)
  assert 'going on after 2 parts' in capsys.readouterr().err and sum(made) == n_users
  assert_frame_equal(read_parquet(path), read_parquet(tmp_path / 'whole.parquet'))


def test_tiger_is_a_baseline_and_systems_without_an_expert_are_ablations(opened, monkeypatch):
  run, inputs, trained = opened
  asked = {}

  # Takes all that `predict.predict` does.
  def predict(rolegen, params, table, trie, mesh, beams, reasoning, intervene, label):
    asked[label] = (rolegen, reasoning, intervene)
    listed, worlds = np.zeros((len(table), 1), np.int32), np.zeros((len(table), 2, 1), np.int32)
    score, terms = np.zeros(listed.shape), np.zeros((*listed.shape, 7))
    return Predictions(listed, score, terms, candidates=worlds if reasoning else None)

  monkeypatch.setattr(evaluation.predict, 'predict', predict)
  models = Models(trained, None, trained, trained, trained, trained)
  names = ('no_reasoner', 'no_interventions', 'counts_only', 'tiger', 'without_dense')
  of_sasrec = evaluation.Ranking(np.zeros((1, 1), np.int32), {'width': 64})
  results = evaluation.evaluate(
    run, inputs, models, dict.fromkeys(names, trained), {'SASRec': of_sasrec}
  )
  kinds = {name: kind for name, (kind, _, _) in results.rankings.items()}
  assert next(iter(kinds)) == 'RoleGen' and kinds['without_dense'] == 'ablation'
  assert [name for name, kind in kinds.items() if kind == 'baseline'] == ['tiger', 'SASRec']
  assert [*kinds][-2:] == ['tiger', 'SASRec']  # after all ablations
  steps = run.config.warmup.steps
  assert results.rankings['tiger'][2] == dict(steps=steps, beam=run.config.backbone.beam)
  # What needs no other settings runs RoleGen's program.
  same = {name for name, (rolegen, *_) in asked.items() if rolegen is run.rolegen}
  assert same == {*asked} - {'tiger'}
  assert asked['tiger'][0].config.backbone.experts == ('generative',)
  assert [name for name, (_, reasoning, _) in asked.items() if not reasoning] == [
    'no_reasoner',
    'tiger',
  ]
  assert [name for name, (*_, intervene) in asked.items() if not intervene] == ['no_interventions']
  # Cut off and called again, it asks no model twice; a damaged file is no answer.
  (run.workdir / 'predictions' / 'tiger.npz').write_bytes(b'cut off')
  asked.clear()
  again = evaluation.evaluate(run, inputs, models, dict.fromkeys(names, trained), {})
  assert [*asked] == ['tiger']
  for name, predictions in results.predictions.items():
    for before, after in zip(predictions, again.predictions[name]):
      np.testing.assert_array_equal(before, after, name)
  other = dataclasses.replace(trained, key='another model')
  evaluation.evaluate(run, inputs, models, dict.fromkeys(names[:1], other), {})
  assert [*asked] == ['tiger', 'no_reasoner']
  # Worlds without an expert are those of RoleGen: the report does not show them again.
  with_worlds = {'RoleGen', 'no_interventions', 'counts_only'}
  assert {*(own := evaluation._candidates(results))} == with_worlds
  candidates = own['RoleGen']
  listed, places = np.arange(50 * len(results.rows)).reshape(-1, 50), candidates[0].size
  counted = evaluation._counted(
    dataclasses.replace(results, rankings={'counting': ('baseline', listed, {})})
  )
  np.testing.assert_array_equal(counted['counting'][:, 0], listed[:, :places])
