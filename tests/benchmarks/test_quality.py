"""The quality summary: figures from tiny run folders, tables, and what earlier ones keep."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from experiments import quality as experiment
from experiments.benchmarks import harness, quality, quality_figures, quality_report
from rolegen_jax.cli import entry
from rolegen_jax.config import ABLATIONS, AT_RUN_TIME, WITHOUT, ConfigError
from rolegen_jax.data.files import write_json, write_npz
from rolegen_jax.data.occasions import TEST
from rolegen_jax.data.prepare import load_prepared, prepare
from rolegen_jax.evaluation import content
from rolegen_jax.evaluation.baselines import evaluation_rows
from rolegen_jax.pipeline.evaluation import ALL_BASELINES
from rolegen_jax.pipeline.inputs import raw_tables

SMALL = ['simulator.users=200', 'simulator.items=64', 'simulator.categories=8']
KINDS = dict(RoleGen='model', no_reasoner='ablation', counting='baseline')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """Two runs of demo whose systems rank the right items first for a known share of occasions."""
  folder = tmp_path_factory.mktemp('quality')
  config = entry.experiment('quality:demo', SMALL)
  for seed in range(2):
    write_run(config, folder / 'demo' / 'points' / f'seed{seed}', seed)
  return folder


def write_run(config, run: pathlib.Path, seed: int) -> None:
  log, occasions, _ = prepare(config.data, raw_tables(config), run / 'data')
  rows = evaluation_rows(log, occasions, TEST)
  target = occasions.target[occasions.target_offsets[rows]]
  others = (target[:, None] + np.arange(1, 50)) % 64
  right = np.concatenate([target[:, None], others], axis=1).astype(np.int32)
  is_right = np.arange(len(rows))[:, None] % 2 == seed
  rankings = dict(
    RoleGen=right,
    no_reasoner=np.where(is_right, right, right[:, ::-1]),
    counting=np.tile(np.arange(50, dtype=np.int32), (len(rows), 1)),
  )
  codes = np.stack([np.arange(64) % 8, np.arange(64)], axis=1)
  lists = {name: (KINDS[name], items, {}) for name, items in rankings.items()}
  systems, _ = content.systems(config, log, occasions, rows, codes, lists)
  candidates = dict(RoleGen=target, weighted=np.full_like(target, -1))
  for name, item in candidates.items():
    rankings[f'candidates/{name}'] = np.tile(item[:, None, None], (1, 2, 3)).astype(np.int32)
  write_npz(dict(occasion=rows) | rankings, run / 'rankings.npz')
  worlds = dict(systems=dict.fromkeys(candidates, dict(jaccard=0.5)))
  about = dict.fromkeys(('commit', 'when', 'config_digest', 'device_kind'), '2026-01-01')
  about |= dict(seed=seed, artifacts={}, versions={})
  report = dict(
    systems={n: dict(kind=s['kind'], diversity=s['diversity']) for n, s in systems.items()},
    worlds=worlds,
    provenance=about,
    roles=dict(agreement=dict(macro_f1=0.6)),
  )
  write_json(report, run / 'report.json')
  (run / 'warmup').mkdir()
  lines = [json.dumps(dict(step=i, purchase_nll=0.1 * i)) for i in range(250)]
  (run / 'warmup' / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')


def committed() -> dict:
  return json.loads((harness.FOLDER / 'quality.json').read_text())


def test_figures_pool_seeds_and_pair_occasions(folder, capfd):
  results = quality.measure(folder, {})
  assert 'alibaba2014: no finished run' in capfd.readouterr().err
  assert set(results['experiments']) == {'demo'}
  demo = results['experiments']['demo']
  ours, theirs = (demo['systems'][name] for name in ('RoleGen', 'no_reasoner'))
  assert ours['metrics']['dormant']['HI@1']['mean'] > 0.8  # an occasion may have several targets
  for metric, minus in theirs['tested_minus_it'].items():
    means = [system['metrics']['dormant'][metric]['mean'] for system in (ours, theirs)]
    assert minus['mean'] == pytest.approx(means[0] - means[1])
  assert theirs['tested_minus_it']['HI@1']['low'] > 0
  hits = theirs['metrics']['dormant']['HI@1']
  assert len(hits['by_seed']) == 2 and np.mean(hits['by_seed']) == pytest.approx(hits['mean'])
  assert len(demo['warmup'][0]['step']) == 100 and demo['warmup'][0]['step'][-1] == 248.5
  aims = {what: (aim, value) for what, aim, value in quality_report.aims(results)}
  ratios = (ours['diversity'][x] / theirs['diversity'][x] for x in quality_report.DIVERSITY)
  row = ' | '.join(('| simulated', *(f'{ratio:.2f}' for ratio in ratios)))
  assert quality_report.tables(results)['collapse'].splitlines()[-1].startswith(row)
  assert aims['demo: macro-F1 of hindsight roles'] == (0.8, pytest.approx(0.6))
  assert aims['demo: dormant HI@1 of RoleGen'] == (0.11, ours['metrics']['dormant']['HI@1']['mean'])
  assert len(aims) == 5


def test_a_lead_is_over_all_baselines():
  results = committed()
  lead = 'amazon_beauty: ACTIVE HI@10 of RoleGen minus any baseline, at least'
  systems = results['experiments']['amazon_beauty']['systems']
  low = [
    systems[name]['tested_minus_it']['HI@10']['low'] for name in ALL_BASELINES if name in systems
  ]
  aims = {what: value for what, _, value in quality_report.aims(results)}
  assert aims[lead] == min(low) > 0
  del systems['SASRec']
  assert lead not in {what for what, _, _ in quality_report.aims(results)}


def test_what_was_not_run_again_stays_as_it_was(folder):
  previous = committed()
  results = quality.measure(folder, previous)
  assert results['experiments']['alibaba2014'] == previous['experiments']['alibaba2014']
  assert results['experiments']['demo'] != previous['experiments']['demo']
  for name in ('ab_tests', 'stability'):
    assert results[name] == previous[name]


def test_measured_and_committed_results_plot_and_fill_a_page(folder, tmp_path):
  for results in (json.loads(quality.to_json(quality.measure(folder, {}))), committed()):
    blocks, page = quality_report.tables(results), tmp_path / 'page.md'
    page.write_text(
      '<!-- aims -->\nold\n<!-- end -->\nText.\n<!-- other -->\nstays\n<!-- end -->\n'
    )
    quality_report.write_blocks(blocks, page)
    expected = f'<!-- aims -->\n{blocks["aims"]}\n<!-- end -->\nText.\n<!-- other -->\nstays\n'
    assert page.read_text() == expected + '<!-- end -->\n'
    for table in blocks.values():
      assert len({line.count('|') for line in table.splitlines()}) == 1
    quality_figures.plot(results, tmp_path / 'quality.png')
  drawn = {path.stem: path.stat().st_size for path in tmp_path.glob('*.png')}
  assert set(drawn) == {
    'quality',
    'quality_warmup',
    'quality_stability',
    'ab_context',
    'ab_default',
    'ab_held_back',
  }
  assert all(5_000 < size < harness.MAX_FIGURE_BYTES for size in drawn.values())


def test_candidates_are_tabulated(folder):
  table = quality_report.tables(quality.measure(folder, {}))['candidates demo']
  rows = dict(row[2:].split(' | ', 1) for row in table.splitlines()[2:])
  assert rows['RoleGen'].startswith('1.0 | 0.50 | 100.00 [100.00, 100.00]')
  assert rows['counting'].startswith('6.0 |  | ')
  _, _, held, _, repeated, _ = rows['weighted'].split(' | ')
  assert held == '0.00 [0.00, 0.00]'
  assert repeated == '66.67 [66.67, 66.67]'  # two of three were on the path before


def test_cold_targets_have_a_column_where_there_are_some(folder):
  runs = quality.Runs.load([folder / 'demo' / 'points' / f'seed{seed}' for seed in range(2)])
  log, occasions = load_prepared(runs.folders[0] / 'data')
  trained = set(log.item[log.timestamp <= occasions.train_cut].tolist())
  assert runs.pairs.cold.tolist() == [item not in trained for item in runs.pairs.item.tolist()]
  dormant, some = runs.pairs.slice('dormant'), np.arange(len(runs.pairs.item)) % 3 == 0
  for cold in (np.zeros_like(some), some):
    pairs = dataclasses.replace(runs.pairs, cold=cold)
    summary = quality.summarize(dataclasses.replace(runs, pairs=pairs))
    table = quality_report.tables(dict(experiments=dict(demo=summary), ab_tests={}))['hits demo']
    head = table.splitlines()[0]
    assert ('cold' in head) == cold.any()
  of_ours = summary['systems']['RoleGen']['metrics']['dormant cold']['HI@50']
  assert of_ours['pairs'] == (some & dormant).sum()
  assert f'| new, HI@50 | {of_ours["pairs"]:,} cold, HI@50 | coverage |' in head
  cell = next(row for row in table.splitlines() if row.startswith('| RoleGen |')).split(' | ')[7]
  assert cell == f'{100 * of_ours["mean"]:.1f}'


def test_runs_on_other_occasions_are_refused(folder, tmp_path):
  runs = [folder / 'demo' / 'points' / f'seed{seed}' for seed in range(2)]
  (tmp_path / 'report.json').write_text((runs[1] / 'report.json').read_text())
  rankings = dict(np.load(runs[1] / 'rankings.npz'))
  write_npz(rankings | dict(occasion=rankings['occasion'][::-1]), tmp_path / 'rankings.npz')
  with pytest.raises(ConfigError, match='evaluated other occasions than'):
    quality.Runs.load([runs[0], tmp_path])


def test_an_empty_folder_is_refused(tmp_path):
  with pytest.raises(ConfigError, match='no finished run'):
    quality.measure(tmp_path, {})


def test_json_keeps_values_and_puts_small_ones_on_a_line():
  value = dict(
    small=dict(mean=0.1, by_seed=[1, 2]), curve=list(range(300)), more=[dict(a='x' * 800)]
  )
  text = quality.to_json(value)
  assert json.loads(text) == value
  assert len(text.splitlines()) == 9


def test_numbers_have_six_digits():
  assert quality.rounded({'a': [1.23456789, 7, 'x'], 'b': {'c': 1e-9 / 3}}) == {
    'a': [1.23457, 7, 'x'],
    'b': {'c': 3.33333e-10},
  }


def test_each_experiment_has_its_ablations():
  for name in experiment.EXPERIMENTS:
    expected = {'no_reasoner', *AT_RUN_TIME}
    if name in ('demo', 'amazon_beauty'):
      expected |= {*WITHOUT, 'tiger'}
    if name == 'demo':
      expected = {*ABLATIONS}
    if name == 'context':
      expected |= {'no_roles', 'no_interventions', 'no_reflection'}
    assert {*entry.experiment(f'quality:{name}', []).evaluation.ablations} == expected
  with pytest.raises(ConfigError, match='quality:dem: must be one of demo, context, alibaba2014'):
    entry.experiment('quality:dem', [])
