"""The tables and figures of quality.json; with the reading of runs it would be one long file.

Tables are Markdown blocks of docs/quality.md, each between `<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
from matplotlib.figure import Figure

from experiments.quality import EXPERIMENTS
from rolegen_jax.ab_test import plot as ab_plot
from rolegen_jax.pipeline.evaluation import ALL_BASELINES

TESTED = 'RoleGen'
BACKBONE = 'no_reasoner'  # the ablation that leaves the backbone alone
LOGS = {name: name for name in EXPERIMENTS} | dict(
  demo='simulated', context='simulated, context', taobao_userbehavior_1k='taobao 1k'
)
ARMS = dict(
  RoleGen='RoleGen, by log p',
  RoleGen_slates='RoleGen, slates',
  no_reasoner='backbone alone, by log p',
  no_reasoner_slates='backbone alone, slates',
  counting='counting, by log p',
  counting_slates='counting, slates',
  SASRec_slates='SASRec, slates',
  popular_opens='ten items for everybody: popular, and opening much',
  oracle='oracle: true probabilities, short-sighted',
  oracle_slates='oracle, slates',
  oracle_ahead='oracle that knows the effect of looks',
)

# What the project set out to reach: experiment -> (system, slice, metric, aim). Those of baselines
# on amazon_beauty are what they are published with; one target an occasion, so HI@10 is R@10.
HIT_AIMS = dict(
  demo=[
    (TESTED, 'dormant', 'HI@1', 0.11),
    (TESTED, 'dormant', 'HI@10', 0.38),
    (TESTED, 'dormant', 'HI@50', 0.65),
  ],
  alibaba2014=[
    (TESTED, 'dormant', 'HI@1', 0.17),
    (TESTED, 'dormant', 'HI@10', 0.34),
    (TESTED, 'dormant', 'HI@50', 0.42),
  ],
  taobao_userbehavior_1k=[(TESTED, 'D1', 'HI@1', 0.20), (TESTED, 'D1', 'HI@10', 0.56)],
  amazon_beauty=[
    (TESTED, 'ACTIVE', 'HI@10', 0.100),
    (TESTED, 'ACTIVE', 'NDCG@10', 0.060),
    ('SASRec', 'ACTIVE', 'HI@10', 0.088),
    ('SASRec', 'ACTIVE', 'NDCG@10', 0.050),
    ('item_transitions', 'ACTIVE', 'HI@10', 0.076),
    ('tiger', 'ACTIVE', 'HI@10', 0.0648),
  ],
)
NEW_ITEM_AIM = dict(alibaba2014=2.0)  # HI@50 on new items, as a multiple of the best baseline's
DIVERSITY_AIM = 1.3  # multiple of the backbone alone
LEAD_AIM = 1e-4  # lower end of the interval; 0 is no lead
ROLE_AIMS = dict(
  agreement=('macro-F1 of hindsight roles', 0.8), spearman=('Spearman of removal effects', 0.7)
)
ORDERS_AIM = 0.073
KS = (1, 10, 50)

COLORS = dict(model='#0072B2', ablation='#56B4E9', baseline='#8A8A8A')
GRID = '#e9ecef'
COVERAGE_MARKERS = dict(
  RoleGen='o',
  RoleGen_exposure_penalty='D',
  no_reasoner='o',
  no_reasoner_exposure_penalty='D',
  popularity='s',
  recency='^',
  item_knn='v',
  item_transitions='P',
  counting='*',
  u2i='d',
  SASRec='X',
)
LOOP_TITLES = dict(
  reward='reward',
  kl='KL to the reference, nats',
  entropy='entropy of a token, nats',
  advantage_std='spread of rewards over worlds',
  logp_difference='|log p(train) - log p(rollout)|, nats',
  reward_malformed='share of repeated candidates',
  world_distance='Jaccard distance of worlds',
)


def tables(results: dict) -> dict[str, str]:
  """Return block name -> Markdown table, for every block that `results` can fill."""
  experiments = {log: results['experiments'][log] for log in LOGS if log in results['experiments']}
  blocks = dict(
    aims=_aims_table(results),
    seeds=_seeds_table(experiments),
    deletion=_deletion_table(experiments),
  )
  for log, summary in experiments.items():
    blocks[f'hits {log}'] = _hits_table(summary)
    if summary['candidates']:
      blocks[f'candidates {log}'] = _candidates_table(summary)
  if results['ab_tests']:
    blocks['ab'] = _ab_table(results['ab_tests'])
  return blocks


def write_blocks(blocks: dict[str, str], page: pathlib.Path) -> None:
  """Replace the blocks of `page` that have a name in `blocks`."""
  text = page.read_text(encoding='utf-8')
  for name, table in blocks.items():
    pattern = re.compile(rf'(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)', re.DOTALL)
    text = pattern.sub(lambda match, table=table: f'{match[1]}{table}\n{match[2]}', text)
  page.write_text(text, encoding='utf-8')


def aims(results: dict) -> Iterator[tuple[str, float, float]]:
  """Yield (what, aim, value reached), means over seeds, for every aim whose runs are there."""
  for log, summary in results['experiments'].items():
    systems = summary['systems']

    def mean(name: str, part: str, metric: str) -> float:
      return systems[name]['metrics'][part][metric]['mean']

    def is_baseline(name: str) -> bool:
      return systems[name]['kind'] == 'baseline'

    for name, part, metric, aim in HIT_AIMS.get(log, ()):
      if name in systems:
        yield f'{log}: {part} {metric} of {name}', aim, mean(name, part, metric)
    if log in NEW_ITEM_AIM:
      new = {name: mean(name, 'dormant new', 'HI@50') for name in systems}
      best = max(new[name] for name in systems if is_baseline(name))
      what = f'{log}: HI@50 on new items, ratio to the best baseline'
      yield what, NEW_ITEM_AIM[log], new[TESTED] / best
    part = HIT_AIMS[log][0][1] if log in HIT_AIMS else summary['slice']
    if set(ALL_BASELINES) <= set(systems):  # a lead over fewer is none
      ahead = min(
        system['tested_minus_it']['HI@10']['low']
        for name, system in systems.items()
        if is_baseline(name)
      )
      what = f'{log}: {summary["slice"]} HI@10 of {TESTED} minus any baseline, at least'
      yield what, LEAD_AIM, ahead
    for name in (TESTED, f'{TESTED}_exposure_penalty'):
      if not {name, BACKBONE} <= set(systems):
        continue
      for figure in ('coverage', 'coarse_entropy'):
        ratio = systems[name]['diversity'][figure] / systems[BACKBONE]['diversity'][figure]
        yield f'{log}: {figure} of {name}, ratio to the backbone alone', DIVERSITY_AIM, ratio
      difference = mean(name, part, 'HI@10') - mean(BACKBONE, part, 'HI@10')
      yield f'{log}: {part} HI@10 of {name} minus the backbone alone', 0.0, difference
    for figure, (what, aim) in ROLE_AIMS.items():
      if all(figure in roles for roles in summary['roles']):
        yield f'{log}: {what}', aim, float(np.mean([roles[figure] for roles in summary['roles']]))
  for simulator, test in results['ab_tests'].items():
    for arm, shown in ((BACKBONE, 'by log p'), (f'{BACKBONE}_slates', 'slates')):
      if arm in test['lifts']:
        what = (
          f'A/B test, {simulator} simulator: orders, lift over the backbone alone, both {shown}'
        )
        yield what, ORDERS_AIM, test['lifts'][arm]['orders']['mean']


def _markdown(head: list[str], rows: Iterable[Iterable[str]]) -> str:
  header, *body = ['| ' + ' | '.join(cells) + ' |' for cells in (head, *rows)]
  return '\n'.join([header, '|' + '---|' * len(head), *body])


def _percent(estimate: dict, sign: str = '', digits: int = 2) -> str:
  mean, low, high = (f'{100 * estimate[key]:{sign}.{digits}f}' for key in ('mean', 'low', 'high'))
  return f'{mean} [{low}, {high}]'


def _aims_table(results: dict) -> str:
  rows = [
    [what, f'{aim:.4g}', f'{value:.3f}', 'reached' if value >= aim else 'short']
    for what, aim, value in aims(results)
  ]
  return _markdown(['', 'aim', 'measured', ''], rows)


def _seeds_table(experiments: dict) -> str:
  rows = []
  for log, summary in experiments.items():
    hits = summary['systems'][TESTED]['metrics'][summary['slice']]
    by_seed = [', '.join(f'{100 * x:.2f}' for x in hits[f'HI@{k}']['by_seed']) for k in KS]
    runs = summary['provenance']
    minutes = ', '.join(f'{run["wall_s"] / 60:.0f}' if run['wall_s'] else '?' for run in runs)
    commits = ', '.join(sorted({run['commit'][:7] for run in runs}))
    rows.append([LOGS[log], ', '.join(map(str, summary['seeds'])), *by_seed, minutes, commits])
  head = ['log', 'seeds', 'HI@1 by seed', 'HI@10', 'HI@50', 'minutes per seed', 'commits']
  return _markdown(head, rows)


def _hits_table(summary: dict) -> str:
  part, rows = summary['slice'], []
  tested = summary['systems'][TESTED]['metrics']
  cold = next((name for name in ('dormant cold', 'all cold') if name in tested), '')
  for name, system in summary['systems'].items():
    hits, diversity = system['metrics'][part], system['diversity']
    mean = {metric: f'{100 * estimate["mean"]:.2f}' for metric, estimate in hits.items()}
    kinds = [system['metrics'].get(kind) for kind in ('dormant new', *filter(None, [cold]))]
    rows.append(
      [
        name,
        mean['HI@1'],
        _percent(hits['HI@10']),
        mean['HI@50'],
        mean['NDCG@10'],
        '' if name == TESTED else _percent(system['tested_minus_it']['HI@10'], '+'),
        *(f'{100 * kind["HI@50"]["mean"]:.1f}' if kind else '' for kind in kinds),
        f'{diversity["coverage"]:.3f}',
        f'{diversity["long_tail_share"]:.3f}',
      ]
    )
  pairs = tested[part]['HI@10']['pairs']
  head = [f'{part}, {pairs:,} targets', 'HI@1', 'HI@10', 'HI@50', 'NDCG@10']
  head += ['RoleGen minus it, HI@10', 'new, HI@50']
  head += [f'{tested[cold]["HI@50"]["pairs"]:,} cold, HI@50'] if cold else []
  return _markdown([*head, 'coverage', 'long tail'], rows)


def _candidates_table(summary: dict) -> str:
  rows = []
  for name, candidates in summary['candidates'].items():
    minus = {key: _percent(candidates[f'tested_minus_{key}'], '+') for key in ('held', 'repeated')}
    if name == TESTED:
      minus = dict.fromkeys(minus, '')
    rows.append(
      [
        name,
        f'{candidates["union_size"]:.1f}',
        f'{candidates["jaccard"]:.2f}',
        _percent(candidates['held']),
        minus['held'],
        _percent(candidates['repeated']),
        minus['repeated'],
      ]
    )
  head = ['candidates of', 'distinct per user', 'distance of worlds', 'contain the target, %']
  head += ['RoleGen minus it', 'repeated on a path, %', 'RoleGen minus it']
  return _markdown(head, rows)


def _deletion_table(experiments: dict) -> str:
  by_log = {log: x['deletion'] for log, x in experiments.items() if x['deletion']}
  show = '{mean:+.3f} [{low:.3f}, {high:.3f}]'.format
  choosers = dict.fromkeys(
    name for curves in by_log.values() for name in curves if name.startswith('the ')
  )  # others are of earlier versions
  rows = [
    [f'{k}, by {name}', *(show(**c[name][k]) if name in c else '' for c in by_log.values())]
    for name in choosers
    for k in ('1', '2', '4')
  ]
  return _markdown(['events removed', *(LOGS[log] for log in by_log)], rows)


def _ab_table(tests: dict) -> str:
  head = ['arm']
  for simulator in tests:
    head += [f'{simulator.replace("_", "-")} simulator, orders', 'RoleGen shown alike over it, %']
  rows = []
  for arm in dict.fromkeys(arm for test in tests.values() for arm in test['arms']):
    row = [ARMS.get(arm, arm)]
    for test in tests.values():
      orders, lift = test['arms'].get(arm), test['lifts'].get(arm)
      row.append(f'{orders["orders"]["mean"]:,.0f}' if orders else '')
      row.append(_percent(lift['orders'], '+', 1) if lift else '')
    rows.append(row)
  return _markdown(head, rows)


def plot(results: dict, figure_path: str | os.PathLike) -> None:
  """Write the figure of hit rates and, beside it, those of the warmup, the loop and the A/B tests.

  Their names are quality_warmup, quality_stability and ab_SIMULATOR, as far as there are results.
  """
  experiments, folder = results['experiments'], pathlib.Path(figure_path).parent
  figure = Figure(figsize=(4.6 * len(experiments), 10), layout='constrained')
  panels = figure.subplots(3, len(experiments), squeeze=False)
  for (top, middle, bottom), (log, summary) in zip(panels.T, experiments.items()):
    top.set_title(_title(log), loc='left', fontsize=10)
    _plot_hits(top, summary)
    _plot_differences(middle, summary)
    _plot_coverage(bottom, summary)
    for panel in (top, middle, bottom):
      _tidy(panel, axis='both' if panel is bottom else 'x')
  handles, labels = panels[-1, 0].get_legend_handles_labels()
  style = dict(frameon=False, fontsize=8, ncols=len(labels))
  figure.legend(handles, labels, loc='outside lower center', **style)
  figure.savefig(figure_path, dpi=66)
  _plot_warmup(experiments, folder / 'quality_warmup.png')
  if results['stability']:
    _plot_stability(results['stability'], folder / 'quality_stability.png')
  for simulator, test in results['ab_tests'].items():
    ab_plot.draw(test, folder / f'ab_{simulator}.png')


def _title(log: str) -> str:
  return f'{log} (SIMULATED)' if log == 'demo' else log


def _label(name: str) -> str:
  return name.replace('_exposure_penalty', ' + penalty')


def _tidy(panel, axis: str = 'both') -> None:
  panel.spines[['top', 'right']].set_visible(False)
  panel.grid(axis=axis, color=GRID)
  panel.set_axisbelow(True)
  panel.tick_params(labelsize=8)


def _by_hit_rate(summary: dict) -> dict[str, dict]:
  """Return name -> HI@10 on the main slice, ascending."""
  hits = {name: s['metrics'][summary['slice']]['HI@10'] for name, s in summary['systems'].items()}
  return dict(sorted(hits.items(), key=lambda pair: pair[1]['mean']))


def _plot_hits(panel, summary: dict) -> None:
  hits = _by_hit_rate(summary)
  _whiskers(panel, hits, [COLORS[summary['systems'][name]['kind']] for name in hits])
  for y, estimate in enumerate(hits.values()):
    rates = [100 * rate for rate in estimate['by_seed']]
    panel.plot(rates, [y] * len(rates), '|', color='#1d2733', ms=6)
  label = f'HI@10, % of {summary["slice"]} targets; ticks: single seeds'
  panel.set_xlabel(label, fontsize=8)


def _plot_differences(panel, summary: dict) -> None:
  systems = summary['systems']
  minus = {
    name: systems[name]['tested_minus_it']['HI@10']
    for name in _by_hit_rate(summary)
    if name != TESTED
  }
  colors = [
    '#009E73' if d['low'] > 0 else '#D55E00' if d['high'] < 0 else '#8A8A8A' for d in minus.values()
  ]
  _whiskers(panel, minus, colors)
  panel.axvline(0, color='#1d2733', lw=1)
  panel.set_xlabel('RoleGen minus it, points of HI@10, 95 %', fontsize=8)


def _plot_coverage(panel, summary: dict) -> None:
  for name, marker in COVERAGE_MARKERS.items():
    if name not in summary['systems']:
      continue
    system = summary['systems'][name]
    hits, color = system['metrics'][summary['slice']]['HI@10'], COLORS[system['kind']]
    coverage = system['diversity']['coverage']
    panel.plot([coverage, coverage], [100 * hits['low'], 100 * hits['high']], color=color, lw=1)
    style = dict(color=color, ms=6, mec='white', mew=0.5, label=_label(name))
    panel.plot(coverage, 100 * hits['mean'], marker, **style)
  panel.set_xlim(0, 1)
  panel.set_xlabel('coverage: share of the catalogue in some first ten', fontsize=8)
  panel.set_ylabel('HI@10, %', fontsize=8)


def _whiskers(panel, estimates: dict[str, dict], colors: list[str]) -> None:
  for y, (estimate, color) in enumerate(zip(estimates.values(), colors)):
    panel.plot([100 * estimate['low'], 100 * estimate['high']], [y, y], color=color, lw=2)
    panel.plot(100 * estimate['mean'], y, 'o', color=color, ms=5)
  panel.set_yticks(range(len(estimates)), [_label(name) for name in estimates])


def _plot_warmup(experiments: dict, path: pathlib.Path) -> None:
  """Draw the NLL of purchases in training rows, a line per seed."""
  figure = Figure(figsize=(3.2 * len(experiments), 2.6), layout='constrained')
  panels = figure.subplots(1, len(experiments), squeeze=False)[0]
  for panel, (log, summary) in zip(panels, experiments.items()):
    for curve in summary['warmup']:
      panel.plot(curve['step'], curve['purchase_nll'], color='#0072B2', lw=1)
    panel.set_title(_title(log), loc='left', fontsize=9)
    _tidy(panel)
  figure.supxlabel('warmup step of the backbone', fontsize=8)
  figure.supylabel('NLL of a purchase, nats', fontsize=8)
  figure.savefig(path, dpi=80)


def _plot_stability(curve: dict, path: pathlib.Path) -> None:
  """Draw what tells whether a long loop collapses or games its reward."""
  figure = Figure(figsize=(13, 4.4), layout='constrained')
  panels = figure.subplots(2, 4, sharex=True).ravel()
  for panel in panels[len(LOOP_TITLES) :]:
    panel.set_axis_off()
  for panel, (name, title) in zip(panels, LOOP_TITLES.items()):
    panel.plot(curve['step'], curve[name], color='#0072B2', lw=1.2)
    panel.set_title(title, loc='left', fontsize=9)
    _tidy(panel)
  figure.supxlabel('step of the closed loop, demo (SIMULATED); means of twenty steps', fontsize=8)
  figure.savefig(path, dpi=80)
