"""The picture of peers_decoding.json: requests a second over the batch, a panel for every length of history."""

from __future__ import annotations

import os

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

NAMES = dict(rolegen='RoleGen', hf_t5='HF T5, prefix tree', cornac='cornac TIGER')
COLOURS = dict(rolegen='#0072B2', hf_t5='#D55E00', cornac='#009E73')  # Okabe & Ito
STYLES = [dict(linestyle=line, marker=marker) for line, marker in (('-', 'o'), ('--', 's'), (':', '^'), ('-.', 'D'))]


def draw(found: dict, figure: str | os.PathLike) -> None:
  """Writes `figure` (its suffix is the format) from what `peers_decoding` found."""
  values = lambda field: sorted({cell[field] for cell in found['cells']})
  histories, batches, beams = values('history'), values('batch'), values('beams')[::-1]
  canvas = Figure(figsize=(4.6 * len(histories), 3.8), layout='constrained')
  for axes, history in zip(canvas.subplots(1, len(histories), sharey=True, squeeze=False)[0], histories):
    for k, style in zip(beams, STYLES):
      cells = [cell for cell in found['cells'] if (cell['history'], cell['beams']) == (history, k)]
      cells.sort(key=lambda cell: cell['batch'])
      for name, colour in COLOURS.items():
        rates = [cell['sides'][name]['requests_per_s'] for cell in cells]
        axes.plot([cell['batch'] for cell in cells], rates, color=colour, markersize=4, linewidth=1.2, **style)
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xticks(batches, [str(b) for b in batches])
    axes.minorticks_off()
    axes.grid(color='#e9ecef')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xlabel('requests of a batch')
    axes.set_title(f'history of {history} items', loc='left', fontsize=10)
  canvas.axes[0].set_ylabel('requests a second')
  sides = [Line2D([], [], color=COLOURS[name], label=NAMES[name]) for name in COLOURS]
  lines = [Line2D([], [], color='#444444', markersize=4, label=f'{k} beams', **style) for k, style in zip(beams, STYLES)]
  canvas.legend(handles=sides + lines, loc='outside lower center', ncols=len(sides) + len(lines), frameon=False, fontsize=8)
  canvas.savefig(figure, dpi=110)
