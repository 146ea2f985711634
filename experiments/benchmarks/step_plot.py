"""The figure of step.json: memory, traffic and roof of THE step before and after, and its time on the machine at hand."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure

COLOURS = ('#8A8A8A', '#56B4E9', '#0072B2', '#009E73')  # Okabe & Ito
PHASES = dict(rollout='#56B4E9', execution='#009E73', reflection='#0072B2', other='#E69F00')
GIB = 2**30


def draw(found: dict, figure: str | os.PathLike) -> None:
  """Writes `figure` (its suffix is the format); a part that is not there leaves its panels out."""
  made, runs = found.get('compiled'), found.get('measured', {})
  panels = 3 * bool(made) + bool(runs)
  canvas = Figure(figsize=(3.3 * panels, 2.9), layout='constrained')
  axes = list(canvas.subplots(1, panels, squeeze=False)[0])
  for panel in axes:
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(color='#e9ecef', axis='y')
    panel.set_axisbelow(True)
  if made:
    sides = made['sides']
    where = next(iter(sides.values()))
    _bars(axes[0], sides, {'temporaries': lambda s: s['memory']['temporaries'] / GIB}, f'Temporaries, GiB a chip\n{where["topology"]}')
    _bars(axes[1], sides, {p: lambda s, p=p: s['sent'][p] / 1e9 for p in PHASES}, 'Sent by a chip, GB a step')
    _bars(axes[2], sides, {p: lambda s, p=p: 1e3 * s['roof'][p] for p in PHASES}, 'Step at the roof, ms')
    axes[2].legend(fontsize=7, frameon=False)
  if runs:
    _measured(axes[-1], runs)
  canvas.savefig(figure, dpi=100)


def _bars(panel, sides: dict, parts: dict, title: str) -> None:
  bottom = np.zeros(len(sides))
  for name, of in parts.items():
    height = np.array([of(s) for s in sides.values()])
    panel.bar(range(len(sides)), height, bottom=bottom, color=PHASES.get(name, list(COLOURS)[: len(sides)]), label=name)
    bottom += height
  for at, total in enumerate(bottom):
    panel.annotate(f'{total:.3g}', (at, total), ha='center', va='bottom', fontsize=8)
  panel.set_xticks(range(len(sides)), [s.replace(', ', ',\n') for s in sides], fontsize=7)
  panel.set_title(title, loc='left', fontsize=9)


def _measured(panel, runs: dict) -> None:
  for i, name in enumerate(('before', 'after')):
    middle = np.array([1e3 * run['sides'][name]['median_s'] for run in runs.values()])
    quartiles = np.array([[1e3 * q for q in run['sides'][name]['quartiles_s']] for run in runs.values()]).T
    at = np.arange(len(runs)) + 0.4 * i - 0.2
    panel.bar(at, middle, 0.38, yerr=np.abs(quartiles - middle), color=COLOURS[2 * i], capsize=2, label=name)
    for x, y in zip(at, middle):
      panel.annotate(f'{y:.0f}', (x, y), ha='center', va='bottom', fontsize=8)
  panel.set_xticks(range(len(runs)), list(runs), fontsize=8)
  panel.set_title('Step on this machine, ms', loc='left', fontsize=9)
  panel.legend(fontsize=7, frameon=False)
