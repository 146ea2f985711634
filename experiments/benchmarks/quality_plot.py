"""The picture of quality.json: hit rates of all systems, what RoleGen is ahead by, and the loop's stability. A column an experiment."""

from __future__ import annotations

import os

from matplotlib.figure import Figure

COLOURS = dict(model='#0072B2', ablation='#56B4E9', floor='#8A8A8A')
METRIC = 'HI@10'


def draw(found: dict, figure: str | os.PathLike) -> None:
  """Writes `figure` (its suffix is the format)."""
  data = found['data']
  canvas = Figure(figsize=(4.6 * len(data), 8.4), layout='constrained')
  panels = canvas.subplots(3, len(data), squeeze=False, height_ratios=(3, 3, 2))
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
    for curve in of['stability'].values():
      bottom.plot(curve['step'], curve['reward'], color='#0072B2', lw=1.2, label='reward')
      bottom.plot(curve['step'], curve['kl'], color='#D55E00', lw=1.2, label='KL to the reference')
      bottom.plot(curve['step'], curve['world_distance'], color='#009E73', lw=1.2, label='distance between worlds')
    bottom.legend(*zip(*[(handle, label) for handle, label in zip(*bottom.get_legend_handles_labels())][:3]), frameon=False, fontsize=7, loc='lower center', bbox_to_anchor=(0.5, 1.0), ncols=3)
    bottom.set_xlabel('step of the closed loop; a line a seed', fontsize=8)
  canvas.savefig(figure, dpi=100)


def _whiskers(panel, values: dict[str, dict], colours: list[str]) -> None:
  for y, (v, colour) in enumerate(zip(values.values(), colours)):
    panel.plot([100 * v['low'], 100 * v['high']], [y, y], color=colour, lw=2)
    panel.plot(100 * v['mean'], y, 'o', color=colour, ms=5)
  panel.set_yticks(range(len(values)), [*values])
