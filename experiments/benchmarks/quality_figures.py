"""The figures of quality.json."""

from __future__ import annotations

import os
import pathlib

from matplotlib.figure import Figure
from PIL import Image

from experiments.benchmarks.quality_report import TESTED
from experiments.quality import SIMULATED
from rolegen_jax.ab_test import plot as ab_plot

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
  # Few colors: a third of the size.
  Image.open(figure_path).convert('RGB').quantize(64).save(figure_path, optimize=True)
  _plot_warmup(experiments, folder / 'quality_warmup.png')
  if results['stability']:
    _plot_stability(results['stability'], folder / 'quality_stability.png')
  for simulator, test in results['ab_tests'].items():
    ab_plot.draw(test, folder / f'ab_{simulator}.png')


def _title(log: str) -> str:
  return f'{log} (SIMULATED)' if log in SIMULATED else log


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
