"""The page of growth.json: per axis the step's time against the work alone, and its memory; on more chips the roof, memory and traffic."""

from __future__ import annotations

import os
import textwrap

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks import growth_parts

TIME, WORK, TEMPORARIES, ARGUMENTS = '#0072B2', '#8A8A8A', '#D55E00', '#009E73'  # Okabe & Ito
PHASES = dict(rollout='#56B4E9', execution='#009E73', reflection='#0072B2', other='#E69F00')
MIB, GIB = 2**20, 2**30
ACROSS = 4  # axes in a row


def draw(found: dict, figure: str | os.PathLike) -> None:
  """Writes `figure` (its suffix is the format); a part that is not there leaves its panels out."""
  measured, chips = found.get('measured'), found.get('chips')
  axes = [axis for axis in measured['axes'].values() if axis['points']] if measured else []
  bands = -(-len(axes) // ACROSS)
  rows = 2 * bands + bool(chips)
  canvas = Figure(figsize=(3.4 * ACROSS, 2.5 * rows), layout='constrained')
  grid = canvas.subplots(rows, ACROSS, squeeze=False)
  for panel in grid.flat:
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(color='#e9ecef')
    panel.set_axisbelow(True)
  used = set()
  for i, axis in enumerate(axes):
    band, column = divmod(i, ACROSS)
    above, below = grid[2 * band, column], grid[2 * band + 1, column]
    _measured(above, below, axis, measured)
    used |= {above, below}
  if len(axes) % ACROSS:  # a place is free
    panel = grid[2 * bands - 2, -1]
    panel.set_axis_off()
    text = '\n'.join(textwrap.fill(f'{axis["label"]}: {axis["why"]}', 52, subsequent_indent='   ') for axis in axes)
    panel.text(0, 1, 'What grows\n' + text, transform=panel.transAxes, va='top', fontsize=7)
    used.add(panel)
  if chips:
    for panel, of in zip(grid[-1], (_roof, _memory, _traffic)):
      of(panel, sorted(chips['points'].values(), key=lambda p: np.prod(list(p['mesh'].values()))), chips['users_per_chip'])
      used.add(panel)
  for panel in set(grid.flat) - used:
    panel.set_visible(False)
  canvas.savefig(figure, dpi=75)


def _measured(above, below, axis: dict, measured: dict) -> None:
  """Time over work, and memory, against one axis; the base is the open circle."""
  base = measured['base']
  curves, slopes = growth_parts.growth(axis, base), axis['slopes']
  x, at = curves['value'], int(np.flatnonzero(curves['value'] == axis['base'])[0])
  one = 1e3 * float(np.median([p['base_step']['median_s'] for a in measured['axes'].values() for p in a['points'].values()]))
  spread = [axis['points'][str(v)]['ratio']['quartiles'] if v != axis['base'] else (1.0, 1.0) for v in x]
  low, high = np.abs(np.array(spread).T - curves['time'])
  above.plot(x, one * curves['flops'], color=WORK, linestyle='--', linewidth=1.2, label=f'work alone, slope {slopes["flops"]["all"]:.2f}')
  above.errorbar(x, one * curves['time'], yerr=one * np.stack([low, high]), color=TIME, marker='o', markersize=4, capsize=2, linewidth=1.4,
                 label=f'time, slope {slopes["time"]["all"]:.2f}')
  above.plot(x[at], one, 'o', color='white', markeredgecolor=TIME, markersize=5, zorder=4)
  above.set_title(axis['label'], loc='left', fontsize=10)
  for name, colour in (('temporaries', TEMPORARIES), ('arguments', ARGUMENTS)):
    below.plot(x, base['memory'][name] / MIB * curves[name], color=colour, marker='o', markersize=4, linewidth=1.4, label=f'{name}, slope {slopes[name]["all"]:.2f}')
  for panel, unit in ((above, 'ms a step'), (below, 'MiB')):
    panel.set_xscale('log')
    panel.set_yscale('log')
    panel.set_xticks(x, [f'{v:,}' if v < 10_000 else f'{v:.0e}'.replace('e+0', 'e') for v in x], fontsize=8)
    panel.minorticks_off()
    _plain(panel)
    panel.set_ylabel(unit, fontsize=8)
    panel.legend(frameon=False, fontsize=7.5, loc='upper left')
    bottom, top = panel.get_ylim()
    panel.set_ylim(bottom, top * (top / bottom) ** 0.35)  # place for the legend
  below.set_xlabel(axis['label'], fontsize=8)


def _plain(panel) -> None:
  """Ticks of the y axis at 1, 2, 5 times powers of ten, written out."""
  low, high = panel.get_ylim()
  if high / low < 3:
    low, high = low / 1.8, high * 1.8
    panel.set_ylim(low, high)
  ticks = [m * 10.0**e for e in range(-3, 9) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
  panel.set_yticks(ticks, [f'{t:g}' for t in ticks], fontsize=8)


def _stack(panel, points: list[dict], parts: dict, read, unit: str, title: str) -> None:
  """Stacked bars, one a chip count. parts: name -> colour; read(point, name) -> height."""
  at = np.arange(len(points))
  bottom = np.zeros(len(points))
  for name, colour in parts.items():
    height = np.array([read(p, name) for p in points])
    panel.bar(at, height, 0.65, bottom=bottom, color=colour, label=name)
    bottom += height
  for x, y in zip(at, bottom):
    panel.text(x, y, f'{y:.3g}', ha='center', va='bottom', fontsize=8)
  panel.set_xticks(at, [f'{np.prod(list(p["mesh"].values()))}\n{"x".join(str(n) for n in p["mesh"].values())}' for p in points], fontsize=7.5)
  panel.set_ylim(0, 1.45 * bottom.max())
  panel.set_ylabel(unit, fontsize=8)
  panel.set_title(title, loc='left', fontsize=9)
  panel.legend(frameon=False, fontsize=7.5, ncols=2, loc='upper left')


def _roof(panel, points: list[dict], users: int) -> None:
  _stack(panel, points, PHASES, lambda p, name: 1e3 * p['roof'][name], 'ms a step at the roof', f'v5p chips, {users} users each; data x fsdp x tensor')


def _memory(panel, points: list[dict], users: int) -> None:
  parts = dict(arguments=ARGUMENTS, temporaries=TEMPORARIES, code=WORK)
  _stack(panel, points, parts, lambda p, name: p['memory'][name] / GIB, 'GiB a chip', f'memory, compiled, of {points[0]["memory"]["hbm"] / GIB:.0f} GiB')


def _traffic(panel, points: list[dict], users: int) -> None:
  _stack(panel, points, PHASES, lambda p, name: p['sent'].get(name, 0.0) / 1e9, 'GB a step and chip', 'sent in collectives, compiled')
