"""The picture of peers_training.json: trained targets and sequences a second, and NDCG@10 over training time."""

from __future__ import annotations

import os

from matplotlib.figure import Figure

NAMES = dict(rolegen='RoleGen', hf_t5='HF T5', hf_t5_grouped='HF T5, batches of like length', cornac='cornac TIGER')
COLOURS = dict(rolegen='#0072B2', hf_t5='#D55E00', hf_t5_grouped='#E69F00', cornac='#009E73')  # Okabe & Ito
MARKERS = dict(rolegen='o', hf_t5='s', hf_t5_grouped='D', cornac='^')


def draw(found: dict, figure: str | os.PathLike) -> None:
  """Writes `figure` (its suffix is the format) from what `peers_training` found; a part that is not there leaves its panel out."""
  parts = [part for part in ('throughput', 'ndcg') if part in found]
  canvas = Figure(figsize=(5.2 * len(parts), 3.4), layout='constrained')
  for axes, part in zip(canvas.subplots(1, len(parts), squeeze=False)[0], parts):
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='x' if part == 'throughput' else 'both', color='#e9ecef')
    axes.set_axisbelow(True)
    dict(throughput=_rates, ndcg=_curves)[part](axes, found[part])
  canvas.savefig(figure, dpi=110)


def _rates(axes, part: dict) -> None:
  sides = list(part['sides'])
  for offset, unit, alpha in ((-0.2, 'targets_per_s', 1.0), (0.2, 'sequences_per_s', 0.45)):
    for i, name in enumerate(sides):
      rate = part['sides'][name][unit]
      low, high = rate['quartiles']
      axes.barh(i + offset, rate['median'], 0.38, color=COLOURS[name], alpha=alpha, xerr=[[rate['median'] - low], [high - rate['median']]])
      axes.text(1.08 * high, i + offset, f'{rate["median"]:,.0f}', va='center', fontsize=8)
  axes.set_xscale('log')
  axes.set_xlim(right=4 * max(part['sides'][name]['targets_per_s']['quartiles'][1] for name in sides))
  axes.set_yticks(range(len(sides)), [NAMES[name] for name in sides])
  axes.invert_yaxis()
  axes.set_xlabel('per second of training; full colour: targets, pale: sequences')
  axes.set_title('Full updates, 4.6 M parameters', loc='left', fontsize=10)


def _curves(axes, part: dict) -> None:
  for name, curve in part['curves'].items():
    x, y, error = ([point[field] for point in curve] for field in ('train_s', 'ndcg', 'standard_error'))
    axes.errorbar(x, y, yerr=error, color=COLOURS[name], marker=MARKERS[name], markersize=4, capsize=2, linewidth=1.2, label=NAMES[name])
  axes.axhline(part['popularity']['ndcg'], color='#8A8A8A', linestyle='--', linewidth=1, label='popularity')
  axes.set_xscale('log')
  axes.set_ylim(bottom=0)
  axes.set_xlabel('seconds of training, no compilation')
  axes.set_title(f'NDCG@10, {part["users"]} validation users, one standard error', loc='left', fontsize=10)
  axes.legend(frameon=False, fontsize=8)
