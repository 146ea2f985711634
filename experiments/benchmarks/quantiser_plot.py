"""The picture of quantiser.json: seconds of every side, with its reconstruction error beside it."""

from __future__ import annotations

import os

from matplotlib.figure import Figure

NAMES = dict(
    rolegen='RoleGen', rolegen_default='RoleGen, default iterations', faiss='faiss (beam 5)', faiss_beam1='faiss, beam 1',
    faiss_plain_beam1='faiss, beam 1, plain k-means', all='RoleGen, 8 devices', one='RoleGen, 1 of 8 devices',
)
COLOURS = dict(
    rolegen='#0072B2', rolegen_default='#56B4E9', faiss='#D55E00', faiss_beam1='#E69F00', faiss_plain_beam1='#F0C808',
    all='#999999', one='#CCCCCC',
)


def draw(found: dict, figure: str | os.PathLike) -> None:
  """Writes `figure` (its suffix is the format) from what `quantiser` found."""
  examples = found['examples']
  canvas = Figure(figsize=(6.0 * len(examples), 2.9), layout='constrained')
  for axes, (name, case) in zip(canvas.subplots(1, len(examples), squeeze=False)[0], examples.items()):
    sides = case['sides'] | case.get('sharded', dict(sides={}))['sides']
    for row, (side, times) in enumerate(sides.items()):
      low, high = times['quartiles_s']
      axes.barh(row, times['median_s'], 0.7, color=COLOURS[side], xerr=[[times['median_s'] - low], [high - times['median_s']]])
      axes.text(1.1 * high, row, f'{times["median_s"]:.3g} s, error {times["error"][-1]:.4f}', va='center', fontsize=8)
    axes.set_yticks(range(len(sides)), [NAMES[side] for side in sides], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale('log')
    axes.set_xlim(right=12 * max(times['quartiles_s'][1] for times in sides.values()))
    axes.set_xlabel('seconds from vectors to codes')
    axes.set_title(f'{case["rows"]:,} x {case["width"]} simulated, {case["levels"]} levels of {case["codes"]} codes', loc='left', fontsize=10)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='x', color='#e9ecef')
    axes.set_axisbelow(True)
  canvas.savefig(figure, dpi=110)
