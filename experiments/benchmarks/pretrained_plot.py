"""The picture of pretrained.json: peak memory of both ways to load a checkpoint, what of it the arrays are, and the bound."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure

ARRAYS, BESIDE, BOUND = '#8A8A8A', '#0072B2', '#D55E00'
SIDES = dict(streamed='streamed into shards', at_once='read whole, then spread')
GIB = 1 << 30


def draw(found: dict, figure: str | os.PathLike) -> None:
  """Writes `figure` (its suffix is the format)."""
  canvas = Figure(figsize=(6.4, 2.4), layout='constrained')
  panel = canvas.subplots()
  for place, (side, label) in enumerate(reversed(SIDES.items())):
    rounds = found['rounds'][side]
    of = lambda name: float(np.median([r[name] for r in rounds])) / GIB
    panel.barh(place, of('arrays_bytes'), 0.5, color=ARRAYS, label='the loaded arrays' if place else None)
    panel.barh(place, of('beside_arrays_bytes'), 0.5, left=of('arrays_bytes'), color=BESIDE, label='beside them' if place else None)
    bound = of('arrays_bytes') + of('bound_bytes')
    panel.plot([bound, bound], [place - 0.35, place + 0.35], color=BOUND, linestyle='--', label='bound: largest file + 1 GiB' if place else None)
    panel.text(0.05, place + 0.3, f'{label}: {of("beside_arrays_bytes"):.2f} GiB beside, {np.median([r["seconds"] for r in rounds]):.0f} s', fontsize=8)
  panel.spines[['top', 'right']].set_visible(False)
  panel.set_yticks([])
  panel.set_ylim(-0.4, 2.1)
  panel.set_xlabel(f'peak memory of the process, GiB; checkpoint of {sum(found["rounds"]["streamed"][0]["files_bytes"]) / GIB:.2f} GiB', fontsize=8)
  panel.legend(frameon=False, fontsize=8, loc='upper right', ncols=3)
  canvas.savefig(figure, dpi=100)
