"""The figure of shared_prefix.json: how many times as fast rollouts are that share their prompt, and the memory of both sides."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure

COLOURS = ('#56B4E9', '#0072B2', '#D55E00', '#009E73')  # Okabe & Ito
MIB = 2**20


def draw(found: dict, figure: str | os.PathLike) -> None:
  """Writes `figure` (its suffix is the format)."""
  points = list(found['points'].values())
  dtypes = list(dict.fromkeys(p['dtype'] for p in points))
  canvas = Figure(figsize=(8.5, 2.7 * len(dtypes)), layout='constrained')
  grid = canvas.subplots(len(dtypes), 2, squeeze=False)
  for (speed, memory), dtype in zip(grid, dtypes):
    mine = [p for p in points if p['dtype'] == dtype]
    for colour, events in zip(COLOURS, sorted({p['events'] for p in mine})):
      row = sorted((p for p in mine if p['events'] == events), key=lambda p: p['worlds'])
      x, ratio = [p['worlds'] for p in row], np.array([p['ratio']['median'] for p in row])
      spread = np.abs(np.array([p['ratio']['quartiles'] for p in row]).T - ratio)
      label = f'prompt of {row[0]["prompt"]}'
      speed.errorbar(x, ratio, yerr=spread, color=colour, marker='o', markersize=4, capsize=2, label=label)
      for side, style in (('naive', '--'), ('shared', '-')):
        memory.plot(x, [p['sides'][side]['temporaries'] / MIB for p in row], style, color=colour, marker='o', markersize=3, label=f'{label}, {side}')
    speed.set_title(f'{dtype}: times as fast as worlds on their own', loc='left', fontsize=9)
    memory.set_title(f'{dtype}: temporaries, MiB, {mine[0]["users"]} users', loc='left', fontsize=9)
    speed.axhline(1, color='#8A8A8A', linewidth=0.8)
    speed.set_ylim(bottom=0)
    memory.set_yscale('log')
    for panel in (speed, memory):
      panel.spines[['top', 'right']].set_visible(False)
      panel.grid(color='#e9ecef')
      panel.set_xscale('log', base=2)
      panel.set_xticks(sorted({p['worlds'] for p in mine}), [str(w) for w in sorted({p['worlds'] for p in mine})])
      panel.set_xlabel('worlds', fontsize=8)
      panel.legend(fontsize=6.5, frameon=False)
  canvas.savefig(figure, dpi=90)
