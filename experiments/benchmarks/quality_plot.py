"""The pictures of quality.json. A column an experiment: hit rates of all systems, what RoleGen is ahead by, hits against coverage.

Beside it quality_warmup.png, how the backbones were trained, and, where they were run, quality_stability.png, a long loop, and
ab_WORLD.png, the A/B tests.
"""

from __future__ import annotations

import os
import pathlib

from matplotlib.figure import Figure

from rolegen_jax.evaluation import ab_plot

COLOURS = dict(model='#0072B2', ablation='#56B4E9', floor='#8A8A8A')
METRIC = 'HI@10'
SPREADING = dict(  # systems -> marker
    RoleGen='o', RoleGen_spread='D', no_reasoner='o', no_reasoner_spread='D', popularity='s', recency='^', item_knn='v', successors='P', SASRec='X',
)
STABLE = dict(  # figure of the step -> title
    reward='reward', kl='KL to the reference, nats', entropy='entropy of a token, nats',
    advantage_spread='spread of rewards over worlds', clipped_share='share of clipped ratios',
    logp_difference='|log p(train) - log p(rollout)|, nats', reward_malformed='share of repeated candidates',
    counterfactual_best='share of users whose best world is counterfactual', world_distance='Jaccard distance of worlds',
)


def draw(found: dict, figure: str | os.PathLike) -> None:
  """Writes `figure` (its suffix is the format)."""
  data = found['data']
  canvas = Figure(figsize=(4.6 * len(data), 10), layout='constrained')
  panels = canvas.subplots(3, len(data), squeeze=False, height_ratios=(3, 3, 3))
  for (top, middle, bottom), (name, of) in zip(panels.T, data.items()):
    for panel in (top, middle, bottom):
      panel.spines[['top', 'right']].set_visible(False)
      panel.grid(axis='x', color='#e9ecef')
      panel.set_axisbelow(True)
      panel.tick_params(labelsize=8)
    part = 'dormant' if 'dormant' in of['systems']['RoleGen'] else 'ACTIVE'
    simulated = ' (SIMULATED)' if name == 'demo' else ''
    top.set_title(f'{name}{simulated}', loc='left', fontsize=10)
    systems = sorted(of['systems'], key=lambda s: of['systems'][s][part][METRIC]['mean'])
    _whiskers(top, {s: of['systems'][s][part][METRIC] for s in systems}, [COLOURS[of['kinds'][s]] for s in systems])
    for y, s in enumerate(systems):
      top.plot([100 * v for v in of['systems'][s][part][METRIC]['by_seed']], [y] * len(of['seeds']), '|', color='#1d2733', ms=6)
    top.set_xlabel(f'{METRIC}, % of {part} targets; ticks: single seeds', fontsize=8)
    others = [s for s in systems if s in of['differences']]
    minus = {s: of['differences'][s][part][METRIC] for s in others}
    colour = lambda v: '#009E73' if v['low'] > 0 else '#D55E00' if v['high'] < 0 else '#8A8A8A'
    _whiskers(middle, minus, [colour(v) for v in minus.values()])
    middle.axvline(0, color='#1d2733', lw=1)
    middle.set_xlabel(f'RoleGen minus it, points of {METRIC}, 95 %', fontsize=8)
    for name in (n for n in SPREADING if n in of['diversity']):
      value = of['systems'][name][part][METRIC]
      at, colour = of['diversity'][name]['coverage'], COLOURS[of['kinds'][name]]
      bottom.plot([at, at], [100 * value['low'], 100 * value['high']], color=colour, lw=1)
      bottom.plot(at, 100 * value['mean'], SPREADING[name], color=colour, ms=6, mec='white', mew=0.5, label=name)
    bottom.legend(frameon=False, fontsize=7, loc='lower center', bbox_to_anchor=(0.5, 1.0), ncols=3)
    bottom.grid(axis='y', color='#e9ecef')
    bottom.set_xlim(0, 1)
    bottom.set_xlabel('coverage: share of the catalogue in some first ten', fontsize=8)
    bottom.set_ylabel(f'{METRIC}, %', fontsize=8)
  canvas.savefig(figure, dpi=72)
  for world, test in found.get('ab', {}).items():
    ab_plot.draw(test, pathlib.Path(figure).with_name(f'ab_{world}.png'))
  _warmup({name: of['warmup'] for name, of in data.items() if 'warmup' in of}, pathlib.Path(figure).with_name('quality_warmup.png'))
  if found['stability']:
    _stability(found['stability'], pathlib.Path(figure).with_name('quality_stability.png'))


def _warmup(curves: dict[str, dict], figure: pathlib.Path) -> None:
  """NLL of purchases in training rows, a line a seed."""
  canvas = Figure(figsize=(3.2 * max(len(curves), 1), 2.6), layout='constrained')
  for panel, (name, of) in zip(canvas.subplots(1, max(len(curves), 1), squeeze=False)[0], curves.items()):
    for curve in of.values():
      panel.plot(curve['step'], curve['purchase_nll'], color='#0072B2', lw=1)
    panel.set_title(f'{name}{" (SIMULATED)" if name == "demo" else ""}', loc='left', fontsize=9)
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(color='#e9ecef')
    panel.tick_params(labelsize=8)
  canvas.supxlabel('step of the warm-up of the backbone', fontsize=8)
  canvas.supylabel('NLL of a purchase, nats', fontsize=8)
  canvas.savefig(figure, dpi=80)


def _stability(curve: dict, figure: pathlib.Path) -> None:
  """Every figure that tells whether the loop collapses or games its reward, over a long run's steps."""
  canvas = Figure(figsize=(11, 6.2), layout='constrained')
  for panel, (name, title) in zip(canvas.subplots(3, 3, sharex=True).flat, STABLE.items()):
    panel.plot(curve['step'], curve[name], color='#0072B2', lw=1.2)
    panel.set_title(title, loc='left', fontsize=9)
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(color='#e9ecef')
    panel.tick_params(labelsize=8)
  canvas.supxlabel('step of the closed loop, demo (SIMULATED); means of twenty steps', fontsize=8)
  canvas.savefig(figure, dpi=80)


def _whiskers(panel, values: dict[str, dict], colours: list[str]) -> None:
  for y, (v, colour) in enumerate(zip(values.values(), colours)):
    panel.plot([100 * v['low'], 100 * v['high']], [y, y], color=colour, lw=2)
    panel.plot(100 * v['mean'], y, 'o', color=colour, ms=5)
  panel.set_yticks(range(len(values)), [*values])
