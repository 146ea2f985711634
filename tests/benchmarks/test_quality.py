"""The collector of quality runs: pooled figures from run folders that a small world left, and what it says of missing ones."""

import json
import pathlib

import numpy as np
import pytest

from experiments import quality
from experiments.benchmarks import quality_parts as lib
from experiments.benchmarks import quality_plot, quality_tables
from rolegen_jax.cli import entry
from rolegen_jax.config import ABLATIONS, ConfigError, EvaluationConfig
from rolegen_jax.data.files import write_json, write_npz
from rolegen_jax.data.occasions import TEST
from rolegen_jax.data.prepare import prepare
from rolegen_jax.evaluation import content
from rolegen_jax.evaluation.baselines import evaluation_rows

SMALL = ['simulator.users=200', 'simulator.items=64', 'simulator.categories=8']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two runs of `demo` whose systems list the right items for a known share of the occasions."""
  folder = tmp_path_factory.mktemp('quality')
  config = entry.experiment('quality:demo', SMALL)
  for seed in range(2):
    run = folder / 'demo' / 'points' / f'seed{seed}'
    log, occasions, _ = prepare(config, run / 'data')
    rows = evaluation_rows(log, occasions, TEST)
    target = occasions.target[occasions.target_offsets[rows]]
    lists = np.tile(np.arange(50, dtype=np.int32), (len(rows), 1))
    right = np.concatenate([target[:, None], (target[:, None] + np.arange(1, 50)) % 64], axis=1).astype(np.int32)
    rankings = {'RoleGen': right, 'no_reasoner': np.where(np.arange(len(rows))[:, None] % 2 == seed, right, right[:, ::-1]), 'popularity': lists}
    kinds = dict(RoleGen='model', no_reasoner='ablation', popularity='baseline')
    codes = np.stack([np.arange(64) % 8, np.arange(64)], axis=1)
    systems, _ = content.systems(config, log, occasions, rows, codes, {name: (kinds[name], items, {}) for name, items in rankings.items()})
    chains = {name: np.tile(found[:, None, None], (1, 2, 3)).astype(np.int32) for name, found in (('RoleGen', target), ('weighted', target * 0 - 1))}
    write_npz(dict(occasion=rows) | rankings | {f'candidates/{name}': found for name, found in chains.items()}, run / 'rankings.npz')
    plain = {name: dict(kind=s['kind'], diversity=s['diversity']) for name, s in systems.items()}
    provenance = dict(seed=seed, commit='0', when='now', config_digest='0', artifacts={}, device_kind='cpu', versions={})
    diverse = dict(jaccard=0.5, union_size=8.0)
    write_json(dict(systems=plain, worlds=diverse | dict(systems=dict.fromkeys(chains, diverse)), provenance=provenance, roles=dict(agreement=dict(macro_f1=0.6))), run / 'report.json')
    for stage, figures in (('loop', lib.STABILITY), ('backbone', ('purchase_nll',))):
      (run / stage).mkdir()
      rows = [dict(step=i) | dict.fromkeys(figures, 0.1 * i) for i in range(250)]
      (run / stage / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


def test_figures_pool_seeds_and_pair_occasions(folder, capfd):
  found = lib.collected(folder, {})
  assert 'alibaba2014: no finished run' in capfd.readouterr().err and set(found['data']) == {'demo'}
  demo = found['data']['demo']
  whole = demo['systems']['RoleGen']['ACTIVE']['HI@1']
  assert whole['mean'] > 0.8 and len(whole['by_seed']) == 2  # an occasion may have more targets than the first
  for part in demo['systems']['RoleGen']:
    for k in ('HI@1', 'HI@50'):
      ours, theirs = (demo['systems'][name][part][k]['mean'] for name in ('RoleGen', 'no_reasoner'))
      assert demo['differences']['no_reasoner'][part][k]['mean'] == pytest.approx(ours - theirs)
  assert demo['differences']['no_reasoner']['ACTIVE']['HI@1']['low'] > 0
  assert np.mean(demo['systems']['no_reasoner']['ACTIVE']['HI@1']['by_seed']) == pytest.approx(demo['systems']['no_reasoner']['ACTIVE']['HI@1']['mean'])
  assert len(demo['stability']['seed0']['step']) == 100 and demo['stability']['seed0']['step'][-1] == 248.5
  diversity = demo['diversity']
  assert {row['what']: (row['aim'], row['found']) for row in found['aims']} == {
      'demo: coverage of lists of RoleGen, times the backbone alone': (1.3, diversity['RoleGen']['coverage'] / diversity['no_reasoner']['coverage']),
      'demo: coarse_entropy of lists of RoleGen, times the backbone alone': (1.3, diversity['RoleGen']['coarse_entropy'] / diversity['no_reasoner']['coarse_entropy']),
      'demo: dormant HI@10 of RoleGen less that of the backbone alone': (0.0, demo['differences']['no_reasoner']['dormant']['HI@10']['mean']),
      'demo: Jaccard distance of worlds': (0.5, 0.5), 'demo: macro-F1 of hindsight roles': (0.8, pytest.approx(0.6)),
  }


def test_tables_take_their_places_on_a_page(folder, tmp_path):
  found = json.loads(json.dumps(lib.collected(folder, {})))
  made, page = quality_tables.tables(found), tmp_path / 'page.md'
  assert set(made) == {'aims', 'seeds', 'deletion', 'summary', 'hits demo', 'candidates demo'}
  page.write_text('Before.\n<!-- aims -->\nold\n<!-- end -->\nBetween.\n<!-- candidates demo -->\n<!-- end -->\n<!-- hits nothing -->\nstays\n<!-- end -->\n')
  quality_tables.write(made, page)
  assert page.read_text() == f'Before.\n<!-- aims -->\n{made["aims"]}\n<!-- end -->\nBetween.\n<!-- candidates demo -->\n{made["candidates demo"]}\n<!-- end -->\n<!-- hits nothing -->\nstays\n<!-- end -->\n'
  assert '| demo: macro-F1 of hindsight roles | 0.8 | 0.600 | short |' in made['aims']
  rows = dict(row[2:].split(' | ', 1) for row in made['candidates demo'].splitlines()[2:])
  assert rows['RoleGen'].startswith('8.0 | 0.50 | 100.00 [100.00, 100.00]') and rows['weighted'].split(' | ')[2] == '0.00 [0.00, 0.00]'
  assert rows['weighted'].split(' | ')[4] == '66.67 [66.67, 66.67]', 'two of three stood there before'
  width = {len(row.split('|')) for row in made['hits demo'].splitlines()}
  assert len(width) == 1 and 'no_reasoner' in made['hits demo']


def test_what_was_not_run_again_stays_as_it_was(folder):
  before = dict(data=dict(alibaba2014='before', demo='before'), ab=dict(default=dict(lifts={})), stability=dict(step=[1.0]))
  before['data']['alibaba2014'] = lib.collected(folder, {})['data']['demo']
  found = lib.collected(folder, before)
  assert found['data']['alibaba2014'] == before['data']['alibaba2014'] and found['data']['demo'] != 'before'
  assert found['ab'] == before['ab'] and found['stability'] == before['stability']
  assert any(row['what'].startswith('alibaba2014') for row in found['aims'])


def test_the_picture_is_drawn(folder, tmp_path):
  found = lib.collected(folder, {})
  quality_plot.draw(json.loads(json.dumps(found)), tmp_path / 'quality.png')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['quality.png', 'quality_warmup.png']
  kept = json.loads((pathlib.Path(quality_plot.__file__).parent / 'quality.json').read_text())
  quality_plot.draw(found | dict(stability=found['data']['demo']['stability']['seed0'], ab=kept['ab']), tmp_path / 'quality.png')
  for name in ('quality.png', 'quality_warmup.png', 'quality_stability.png', *(f'ab_{world}.png' for world in kept['ab'])):
    assert 5_000 < (tmp_path / name).stat().st_size < 200_000


def test_runs_on_other_occasions_are_refused(folder, tmp_path):
  runs = [folder / 'demo' / 'points' / f'seed{seed}' for seed in range(2)]
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'report.json').write_text((runs[1] / 'report.json').read_text())
  kept = dict(np.load(runs[1] / 'rankings.npz'))
  write_npz(kept | dict(occasion=kept['occasion'][::-1]), other / 'rankings.npz')
  with pytest.raises(ConfigError, match='evaluated other occasions than'):
    lib.of_runs([runs[0], other])


def test_an_empty_folder_is_refused(tmp_path):
  with pytest.raises(ConfigError, match='no finished run of a sweep there'):
    lib.collected(tmp_path, {})


def test_the_experiment_has_all_ablations_and_names_what_it_knows():
  for name in quality.OF:
    wanted = ('no_reasoner',) if name == 'amazon_beauty' else tuple(ABLATIONS)
    assert entry.experiment(f'quality:{name}', []).evaluation.ablations == wanted
  with pytest.raises(ConfigError, match='quality:dem: must be one of demo, alibaba2014'):
    entry.experiment('quality:dem', [])
  assert EvaluationConfig().ablations != tuple(ABLATIONS)
