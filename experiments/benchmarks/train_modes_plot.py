"""The figure of train_modes.json: memory of a chip by mode, what trains, and the size of a checkpoint."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure

PARTS = dict(arguments='#0072B2', temporaries='#E69F00', code='#8A8A8A')  # Okabe & Ito
GIB = 2**30


def draw(found: dict, figure: str | os.PathLike) -> None:
  """Writes `figure` (its suffix is the format)."""
  modes = {name: m for name, m in found['modes'].items() if 'memory' in m}
  canvas = Figure(figsize=(7.5, 2.9), layout='constrained')
  memory, sizes = canvas.subplots(1, 2)
  bottom = np.zeros(len(modes))
  for kind, colour in PARTS.items():
    height = np.array([m['memory'][kind] / GIB for m in modes.values()])
    memory.bar(list(modes), height, 0.6, bottom=bottom, color=colour, label=kind)
    bottom += height
  where = next(iter(modes.values()))
  memory.set_title(f'GiB a chip, {where["topology"]}, {where["users"]} users', loc='left', fontsize=9)
  memory.legend(fontsize=7, frameon=False)
  bottom = [m['checkpoint_bytes'] / GIB for m in modes.values()]
  sizes.bar(list(modes), bottom, 0.6, color='#009E73')
  sizes.set_title('Checkpoint of the loop, both models, GiB', loc='left', fontsize=9)
  for panel, heights in ((memory, [sum(m['memory'][k] for k in PARTS) / GIB for m in modes.values()]), (sizes, bottom)):
    panel.spines[['top', 'right']].set_visible(False)
    panel.margins(y=0.15)
    for x, y in enumerate(heights):
      panel.annotate(f'{y:.2f}', (x, y), ha='center', va='bottom', fontsize=8)
  canvas.savefig(figure, dpi=100)
