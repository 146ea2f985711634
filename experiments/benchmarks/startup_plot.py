"""The picture of startup.json: what an import consists of, `--help` of every command, and the first and the second start."""

from __future__ import annotations

import os

from matplotlib.figure import Figure

COLOUR, TARGET, GREY = '#0072B2', '#D55E00', '#8A8A8A'
PARTS = dict(  # of a start, in order
    before_s=('#8A8A8A', 'imports, data, stages before'), restore_s=('#56B4E9', 'state made or restored'), data_s=('#009E73', 'first batch'),
    compile_s=('#0072B2', 'compile, or read from the cache'), step_s=('#E69F00', 'first step'))


def draw(found: dict, figure: str | os.PathLike) -> None:
  """Writes `figure` (its suffix is the format); a part that is not there leaves its panel out."""
  parts = [part for part in ('imports', 'help', 'starts') if part in found]
  canvas = Figure(figsize=(4.2 * len(parts), 3.6), layout='constrained')
  for panel, part in zip(canvas.subplots(1, len(parts), squeeze=False)[0], parts):
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(axis='x', color='#e9ecef')
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8)
    dict(imports=_imports, help=_helps, starts=_starts)[part](panel, found[part], found['targets'])
  canvas.savefig(figure, dpi=100)


def _imports(panel, found: dict, targets: dict) -> None:
  whole = found['run']['wall_s']
  bars = {name: part['median_s'] for name, part in found['parts'].items()}
  panel.barh(range(len(bars)), list(bars.values()), color=GREY)
  panel.barh(len(bars), whole['median_s'], color=COLOUR, xerr=_error(whole))
  panel.axvline(targets['import_s'], color=TARGET, linestyle='--', linewidth=1)
  panel.set_yticks(range(len(bars) + 1), [*(f'+ {name}' for name in bars), 'a whole import'])
  panel.set_xlabel('seconds; grey: processor time that each adds', fontsize=8)
  panel.set_title('Importing what a run needs', loc='left', fontsize=10)


def _helps(panel, found: dict, targets: dict) -> None:
  rows = sorted(found.items(), key=lambda item: item[1]['wall_s']['median_s'])
  for i, (_, times) in enumerate(rows):
    panel.barh(i, times['wall_s']['median_s'], color=COLOUR, xerr=_error(times['wall_s']))
  panel.axvline(targets['help_s'], color=TARGET, linestyle='--', linewidth=1)
  panel.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
  panel.set_xlabel('seconds', fontsize=8)
  panel.set_title('--help', loc='left', fontsize=10)


def _starts(panel, found: dict, targets: dict) -> None:
  """Medians of the parts need not sum to the median of the whole; the whole is written."""
  for i, side in enumerate(('second', 'first')):
    left = 0.0
    for kind, (colour, label) in PARTS.items():
      panel.barh(i, found[side][kind], 0.55, left=left, color=colour, label=label if side == 'first' else None)
      left += found[side][kind]
    panel.text(left, i, f' {found[side]["total_s"]:.1f} s', va='center', fontsize=8)
  panel.axvline(targets['second_start_share'] * found['first']['total_s'], color=TARGET, linestyle='--', linewidth=1)
  panel.set_yticks([0, 1], ['second start', 'first start'])
  panel.set_xlim(right=1.2 * found['first']['total_s'])
  panel.set_ylim(-0.5, 2.9)
  panel.set_xlabel('seconds to the end of step 1; dashed: target', fontsize=8)
  panel.set_title(f'Closed loop of the demo, {len(found["rounds"])} rounds', loc='left', fontsize=10)
  panel.legend(frameon=False, fontsize=7.5, loc='upper left')


def _error(summary: dict) -> list[list[float]]:
  low, high = summary['quartiles_s']
  return [[summary['median_s'] - low], [high - summary['median_s']]]
