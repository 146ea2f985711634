"""The results of a sweep: one row per point as a table, summary.csv, summary.json, summary.png."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launch.ledger import Entry
from launch.text import align_columns
from rolegen_jax.data.files import renamed, write_json

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Row = dict[str, Any]

METRICS = ('HI@1', 'HI@10', 'HI@50', 'NDCG@10', 'MRR')  # HI@k: hit rate among the first k
MAIN = 'HI@10'  # shown with its interval and beside the best baseline's
MODEL_COLOR, BASELINE_COLOR, TIME_COLOR, GRID_COLOR = '#1f5a96', '#b3541e', '#9db8d2', '#dddddd'


def rows(entries: Mapping[str, Entry], folders: Mapping[str, pathlib.Path]) -> list[Row]:
  """Return one flat row per point in the order of `folders`.

  The row of a point without a report has its state and no metrics.
  """
  result = []
  for name, folder in folders.items():
    entry = entries[name]
    row: Row = dict(point=name, state=entry.state, set=' '.join(entry.set))
    if entry.state == 'done':
      row |= metrics(json.loads((folder / 'report.json').read_text(encoding='utf-8')))
    result.append(row | dict(wall_s=entry.wall_s, starts=entry.starts, why=entry.why))
  return result


def metrics(report: Mapping[str, Any]) -> Row:
  """Return the metrics of the trained system as shares in 0..1.

  They are over dormant test targets, or over all targets where there are no dormant ones.
  """
  systems = report.get('systems') or {}
  model = next((system for system in systems.values() if system['kind'] == 'model'), None)
  if model is None:
    return {}
  part = 'dormant' if 'dormant' in model['metrics'] else 'all'
  values = model['metrics'][part]
  row: Row = dict(slice=part)
  row |= {name: values[name]['mean'] for name in METRICS if name in values}
  if MAIN in values:
    interval = values[MAIN]
    row[f'{MAIN} low'], row[f'{MAIN} high'] = interval['low'], interval['high']
    row['users'] = interval['users']
    row |= _best_baseline(systems, part)
  return row


def _best_baseline(systems: Mapping[str, Any], part: str) -> Row:
  means: dict[str, float] = {}
  for name, system in systems.items():
    values = system['metrics'].get(part, {})
    if system['kind'] == 'baseline' and MAIN in values:
      means[name] = values[MAIN]['mean']
  if not means:
    return {}
  best = max(means, key=lambda name: means[name])
  return {'best baseline': best, f'best baseline {MAIN}': means[best]}


def table(rows: list[Row]) -> str:
  """Return aligned columns with rates in percent, then the reason of each failed point."""
  shown = [name for name in METRICS if any(name in row for row in rows)]
  titles = [f'{name} [95%]' if name == MAIN else name for name in shown]
  cells = [['point', 'state', *titles, f'best baseline {MAIN}', 'minutes', 'starts']]
  for row in rows:
    baseline = '-'
    if 'best baseline' in row:
      baseline = f'{row["best baseline"]} {_percent(row, f"best baseline {MAIN}")}'
    values = [_metric_cell(row, name) for name in shown]
    minutes = f'{row["wall_s"] / 60:.1f}'
    cells.append([row['point'], row['state'], *values, baseline, minutes, str(row['starts'])])
  slices = sorted({row['slice'] for row in rows if 'slice' in row})
  title = [f'{" and ".join(slices)} test targets, percent'] if slices else []
  failures = [f'{row["point"]}: {row["why"]}' for row in rows if row['state'] == 'failed']
  return '\n'.join([*title, align_columns(cells), *failures])


def _metric_cell(row: Row, name: str) -> str:
  if name != MAIN or name not in row:
    return _percent(row, name)
  low, high = _percent(row, f'{MAIN} low'), _percent(row, f'{MAIN} high')
  return f'{_percent(row, name)} [{low}, {high}]'


def _percent(row: Row, name: str) -> str:
  return '-' if row.get(name) is None else f'{100 * row[name]:.2f}'


def write(rows: list[Row], folder: pathlib.Path, title: str) -> list[pathlib.Path]:
  """Write summary.json, summary.csv and, if a point has metrics, summary.png; return the paths."""
  json_path, csv_path = folder / 'summary.json', folder / 'summary.csv'
  write_json(rows, json_path)
  _write_csv(rows, csv_path)
  if not any(MAIN in row for row in rows):
    return [json_path, csv_path]
  png_path = folder / 'summary.png'
  with renamed(png_path) as temporary:
    plot(rows, title).savefig(temporary, dpi=150, format='png')
  return [json_path, csv_path, png_path]


def _write_csv(rows: list[Row], path: pathlib.Path) -> None:
  columns = list(dict.fromkeys(key for row in rows for key in row))
  with renamed(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)


def plot(rows: list[Row], title: str) -> Figure:
  """Draw each point from top to bottom: its main metric, the best baseline's, its wall time."""
  import matplotlib.figure  # takes seconds to import; only the end of a sweep needs it

  shown = [row for row in rows if MAIN in row]
  size = (9, 1.6 + 0.38 * len(shown))
  figure = matplotlib.figure.Figure(figsize=size, layout='constrained')
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
  _draw_metric(left, shown)
  minutes = [row['wall_s'] / 60 for row in shown]
  right.barh(range(len(shown)), minutes, color=TIME_COLOR, height=0.55)
  right.set_xlabel('wall time, minutes')
  for axes in (left, right):
    axes.grid(axis='x', color=GRID_COLOR)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
  legend = dict(loc='outside lower left', ncols=2, frameon=False, fontsize='small')
  figure.legend(*left.get_legend_handles_labels(), **legend)
  figure.suptitle(title, fontsize='medium', x=0.01, ha='left')
  return figure


def _draw_metric(axes: Axes, rows: list[Row]) -> None:
  for y, row in enumerate(rows):
    interval = [100 * row[f'{MAIN} low'], 100 * row[f'{MAIN} high']]
    axes.plot(interval, [y, y], color=MODEL_COLOR, linewidth=2)
    label = 'point, 95% interval' if y == 0 else None
    axes.plot(100 * row[MAIN], y, 'o', color=MODEL_COLOR, label=label)
    if 'best baseline' in row:
      value, label = 100 * row[f'best baseline {MAIN}'], 'its best baseline' if y == 0 else None
      style: dict[str, Any] = dict(color=BASELINE_COLOR, markersize=14, markeredgewidth=2)
      axes.plot(value, y, '|', label=label, **style)
  axes.set_yticks(range(len(rows)), [row['point'] for row in rows])
  axes.invert_yaxis()
  slices = ' / '.join(sorted({row['slice'] for row in rows}))
  axes.set_xlabel(f'{MAIN}, {slices} test targets, percent')
