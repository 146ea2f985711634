"""What a sweep found: one row per point from its report.json and the ledger, as a table, summary.csv, summary.json and summary.png."""

from __future__ import annotations

import csv
import json
import os
import pathlib

from launch.text import aligned
from rolegen_jax.data.files import write_json

METRICS = ('HI@1', 'HI@10', 'HI@50', 'NDCG@10', 'MRR')
MAIN = 'HI@10'  # with its interval, and the best floor's beside it


def rows(ledger_points: dict[str, dict], folders: dict[str, pathlib.Path]) -> list[dict]:
  """One flat dict per point in the order of `folders`; a point without a report has its state and no figures."""
  made = []
  for name, folder in folders.items():
    entry = ledger_points[name]
    row = dict(point=name, state=entry['state'], set=' '.join(entry['set']))
    if entry['state'] == 'done':
      row |= figures(json.loads((folder / 'report.json').read_text(encoding='utf-8')))
    made.append(row | dict(wall_s=entry['wall_s'], starts=entry['starts'], why=entry['why']))
  return made


def figures(report: dict) -> dict:
  """The metrics of the system under test on dormant test targets (all targets where there is no dormant one), in 0..1."""
  systems = report.get('systems') or {}
  tested = next((s for s in systems.values() if s['kind'] == 'model'), None)
  if tested is None:
    return {}
  part = 'dormant' if 'dormant' in tested['metrics'] else 'all'
  metrics = tested['metrics'][part]
  out = dict(slice=part) | {name: metrics[name]['mean'] for name in METRICS if name in metrics}
  if MAIN in metrics:
    out |= {f'{MAIN} low': metrics[MAIN]['low'], f'{MAIN} high': metrics[MAIN]['high'], 'occasions': metrics[MAIN]['occasions']}
    floors = {name: s['metrics'][part][MAIN]['mean'] for name, s in systems.items() if s['kind'] == 'floor' and MAIN in s['metrics'].get(part, {})}
    if floors:
      best = max(floors, key=floors.get)
      out |= {'best floor': best, f'best floor {MAIN}': floors[best]}
  return out


def table(made: list[dict]) -> str:
  """Aligned columns for the terminal, rates in per cent; then, for each failed point, why."""
  present = [name for name in METRICS if any(name in row for row in made)]
  header = ['point', 'state', *(f'{name} [95 %]' if name == MAIN else name for name in present), f'best floor {MAIN}', 'minutes', 'starts']
  lines = [header]
  for row in made:
    cells = [_rate(row, name) + (f' [{_rate(row, f"{MAIN} low")}, {_rate(row, f"{MAIN} high")}]' if name == MAIN and name in row else '') for name in present]
    floor = f'{row["best floor"]} {_rate(row, f"best floor {MAIN}")}' if 'best floor' in row else '-'
    lines.append([row['point'], row['state'], *cells, floor, f'{row["wall_s"] / 60:.1f}', str(row['starts'])])
  parts = {row['slice'] for row in made if 'slice' in row}
  title = [f'{" and ".join(sorted(parts))} test targets, per cent'] if parts else []
  return '\n'.join([*title, aligned(lines), *(f'{row["point"]}: {row["why"]}' for row in made if row['state'] == 'failed')])


def write(made: list[dict], folder: pathlib.Path, title: str) -> list[pathlib.Path]:
  """summary.json, summary.csv and, when a point has figures, summary.png; the paths written."""
  paths = [folder / 'summary.json', folder / 'summary.csv']
  write_json(made, paths[0])
  columns = list(dict.fromkeys(key for row in made for key in row))
  temporary = folder / '.summary.csv.tmp'
  with temporary.open('w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(made)
  os.replace(temporary, paths[1])
  if any(MAIN in row for row in made):
    paths.append(folder / 'summary.png')
    temporary = folder / '.summary.tmp.png'
    plot(made, title).savefig(temporary, dpi=150)
    os.replace(temporary, paths[2])
  return paths


def plot(made: list[dict], title: str):
  """Points from top to bottom: the main metric with its interval beside the best floor, and what the point cost. A matplotlib figure."""
  import matplotlib.figure  # takes seconds; only the end of a sweep needs it

  shown = [row for row in made if MAIN in row]
  figure = matplotlib.figure.Figure(figsize=(9, 1.6 + 0.38 * len(shown)), layout='constrained')
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
  for y, row in enumerate(shown):
    left.plot([100 * row[f'{MAIN} low'], 100 * row[f'{MAIN} high']], [y, y], color='#1f5a96', linewidth=2)
    left.plot(100 * row[MAIN], y, 'o', color='#1f5a96', label='point, 95 % interval' if y == 0 else None)
    if 'best floor' in row:
      left.plot(100 * row[f'best floor {MAIN}'], y, '|', color='#b3541e', markersize=14, markeredgewidth=2, label='its best floor' if y == 0 else None)
  right.barh(range(len(shown)), [row['wall_s'] / 60 for row in shown], color='#9db8d2', height=0.55)
  left.set_yticks(range(len(shown)), [row['point'] for row in shown])
  left.invert_yaxis()
  left.set_xlabel(f'{MAIN}, {" / ".join(sorted({row["slice"] for row in shown}))} test targets, per cent')
  right.set_xlabel('wall time, minutes')
  for axes in (left, right):
    axes.grid(axis='x', color='#dddddd')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
  figure.legend(*left.get_legend_handles_labels(), loc='outside lower left', ncols=2, frameon=False, fontsize='small')
  figure.suptitle(title, fontsize='medium', x=0.01, ha='left')
  return figure


def _rate(row: dict, name: str) -> str:
  return '-' if row.get(name) is None else f'{100 * row[name]:.2f}'
