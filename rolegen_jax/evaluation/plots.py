"""The plots of the report, each a function of plain data that returns inline SVG.

The colors are those of Okabe & Ito (2008), which people with common forms of color blindness can
tell apart. No plot relies on color alone.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rolegen_jax.evaluation.metrics import Interval

BLUE, SKY, GREEN, VERMILION, PURPLE = '#0072B2', '#56B4E9', '#009E73', '#D55E00', '#CC79A7'
GRAY = '#8A8A8A'
KIND_COLORS = {'model': BLUE, 'ablation': SKY, 'baseline': GRAY}
KIND_MARKERS = {'model': 'o', 'ablation': 'D', 'baseline': 's'}
ROLE_COLORS = {
  'TRIGGER': VERMILION,
  'ANCHOR': BLUE,
  'COMPARE': SKY,
  'REINFORCE': GREEN,
  'COMPLEMENT': PURPLE,
  'EXPLORE': '#B8B8B8',
  'DISTRACT': '#4A4A4A',
  'CONVERT': '#E69F00',
}
ROLE_SHORT = {'COMPARE': 'CMPR', 'COMPLEMENT': 'CMPL'}  # others: their first four letters
_INK, _SOFT, _ZERO_LINE = '#1d2733', '#6b7683', '#c4cad1'
# Settings of matplotlib; its stubs accept only literal dicts of them.
_STYLE: Any = {
  'svg.fonttype': 'none',
  'font.family': 'sans-serif',
  'font.size': 10,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': '#aab2bb',
  'axes.labelcolor': _SOFT,
  'text.color': _INK,
  'xtick.color': _SOFT,
  'ytick.color': _INK,
  'axes.titlesize': 10,
  'axes.titlelocation': 'left',
  'axes.grid': True,
  'grid.color': '#e9ecef',
  'axes.axisbelow': True,
}


def system_intervals(values: dict[str, tuple[str, Interval]], metric: str) -> str:
  """Draw a dot and a 95 % whisker per system, the best on top.

  `values` holds (kind, interval of shares) by the system's name.
  """
  by_mean = sorted(values.items(), key=lambda entry: entry[1][1].mean)
  best = max(interval.mean for _, interval in values.values())
  with matplotlib.rc_context(_STYLE):
    figure, axis = _figure(7.6, _rows_height(len(values)))
    for y, (_, (kind, interval)) in enumerate(by_mean):
      _whisker(axis, interval, y, KIND_COLORS[kind], KIND_MARKERS[kind])
      axis.annotate(
        f'{100 * interval.mean:.1f}',
        (100 * interval.high, y),
        (6, 0),
        textcoords='offset points',
        va='center',
        fontsize=9,
        bbox=dict(fc='white', ec='none', pad=1),
      )
    axis.axvline(100 * best, color=_SOFT, lw=0.8, ls=(0, (3, 3)), zorder=0)
    axis.set_yticks(range(len(by_mean)), [f'{name} ({kind})' for name, (kind, _) in by_mean])
    axis.set_xlim(left=0)
    axis.margins(x=0.08)
    axis.set_xlabel(f'{metric}, % of targets')
    axis.grid(axis='y', visible=False)
    return _svg(figure, f'{metric} by system')


def differences(values: dict[str, Interval], system: str, metric: str) -> str:
  """Draw the paired difference of `system` minus each other one, in percentage points."""
  with matplotlib.rc_context(_STYLE):
    figure, axis = _figure(7.6, _rows_height(len(values)))
    for y, interval in enumerate(reversed(values.values())):
      is_decided = interval.low > 0 or interval.high < 0
      _whisker(axis, interval, y, _difference_color(interval), 'o' if is_decided else 'D')
    axis.axvline(0, color=_INK, lw=1)
    axis.set_yticks(range(len(values)), [f'minus {name}' for name in reversed(values)])
    axis.set_xlabel(f'{system} minus the other system, percentage points of {metric}')
    axis.grid(axis='y', visible=False)
    return _svg(figure, f'Paired differences of {metric}')


def _difference_color(interval: Interval) -> str:
  if interval.low > 0:
    return GREEN
  return VERMILION if interval.high < 0 else _SOFT


def _whisker(axis: Axes, interval: Interval, y: float, color: str, marker: str) -> None:
  """Draw a horizontal interval of shares, in per cent, with a marker at its mean."""
  ends = [100 * interval.low, 100 * interval.high]
  axis.plot(ends, [y, y], color=color, lw=2.2, solid_capstyle='round')
  axis.plot(100 * interval.mean, y, marker, color=color, ms=7.5, mec='white', mew=1)


def curves(series: dict[str, tuple[list, list]], stage: str) -> str:
  """Draw one small panel per metric of a stage, from (steps, values) by metric.

  The thin line is the metric as logged, the thick one its running mean.
  """
  columns = min(4, len(series))
  rows = math.ceil(len(series) / columns)
  with matplotlib.rc_context(_STYLE | {'font.size': 8.5, 'axes.titlesize': 9}):
    figure, axes = _panels(2.35 * columns + 0.3, 1.75 * rows, rows, columns)
    for axis in axes[len(series) :]:
      axis.set_visible(False)
    for axis, (name, (steps, logged)) in zip(axes, series.items()):
      values = np.asarray(logged, float)
      axis.plot(steps, values, color=SKY, lw=0.8, alpha=0.7)
      axis.plot(steps, _running_mean(values), color=BLUE, lw=1.7)
      axis.set_title(name)
      axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
      axis.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
    return _svg(figure, f'Training curves of {stage}')


def _running_mean(values: np.ndarray) -> np.ndarray:
  """Return the mean of the latest twentieth of the values at each of them."""
  width = max(1, len(values) // 20)
  end = np.arange(len(values)) + 1
  start = np.maximum(end - width, 0)
  sums = np.cumsum(np.insert(values, 0, 0.0))
  return (sums[1:] - sums[start]) / (end - start)


def role_shares(shares: dict[str, dict[str, float]]) -> str:
  """Draw grouped bars of the share of events by role, from source (hindsight ...) -> role."""
  roles = [role for role in ROLE_COLORS if any(role in share for share in shares.values())]
  hatches = ('', '///', '...')
  with matplotlib.rc_context(_STYLE | {'hatch.linewidth': 0.7}):
    figure, axis = _figure(7.6, 0.7 + 0.2 * len(shares) * len(roles))
    height = 0.8 / len(shares)
    for i, (source, share) in enumerate(shares.items()):
      offset = (i - (len(shares) - 1) / 2) * height
      percent = [100 * share.get(role, 0.0) for role in roles]
      bars = axis.barh(
        np.arange(len(roles)) + offset,
        percent,
        height * 0.92,
        color=[ROLE_COLORS[role] for role in roles],
        hatch=hatches[i % len(hatches)],
        edgecolor='white',
        lw=0,
      )
      labels = [f'{value:.0f} % {source}' for value in percent]
      axis.bar_label(bars, labels, padding=4, fontsize=8, color=_SOFT)
    axis.set_yticks(range(len(roles)), roles)
    axis.invert_yaxis()
    axis.margins(x=0.16)
    axis.set_xlabel('% of events')
    axis.grid(axis='y', visible=False)
    return _svg(figure, 'Role shares')


def confusion(matrix: list[list[int]], names: list[str]) -> str:
  """Draw how planted roles (rows) were inferred (columns), each row as shares of its sum."""
  counts = np.asarray(matrix, float)
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  labels = [[f'{share:.2f}' if share >= 0.005 else '' for share in row] for row in shares]
  with matplotlib.rc_context(_STYLE):
    figure, axis = _figure(5.6, 4.1)
    _heatmap(axis, shares, names, labels)
    axis.set_xlabel('inferred role')
    axis.set_ylabel('planted role')
    return _svg(figure, 'Confusion of roles')


def reliability(bins: dict[str, list[dict]]) -> str:
  """Draw the share that holds against the chance that was given, from source -> bins."""
  with matplotlib.rc_context(_STYLE):
    figure, axis = _figure(4.4, 3.4)
    axis.plot([0, 1], [0, 1], color=_SOFT, ls='--', lw=1)
    for marker, (source, rows) in zip('osD^', bins.items()):
      chance, share = ([row[name] for row in rows] for name in ('chance', 'share'))
      axis.plot(chance, share, marker=marker, ms=4, lw=1.4, label=source)
    axis.set_xlabel('chance of a role, by RoleGen')
    axis.set_ylabel('share that holds')
    axis.legend(frameon=False)
    return _svg(figure, 'Reliability of roles')


def effects(estimated: list[float], true: list[float]) -> str:
  """Draw estimated against true removal effects, in nats; on the dashed line they agree."""
  with matplotlib.rc_context(_STYLE):
    figure, axis = _figure(4.9, 4.1)
    axis.axhline(0, color=_ZERO_LINE, lw=0.8)
    axis.axvline(0, color=_ZERO_LINE, lw=0.8)
    axis.axline((0, 0), slope=1, color=_SOFT, lw=1, ls=(0, (4, 3)))
    axis.plot(true, estimated, 'o', color=BLUE, ms=4, alpha=0.45, mew=0)
    axis.set_xlim(_central_range(true))
    axis.set_ylim(_central_range(estimated))
    axis.set_xlabel('true effect of removing the event, nats')
    axis.set_ylabel('estimated effect, nats')
    return _svg(figure, 'Removal effects')


def _central_range(values: list[float]) -> tuple[float, float]:
  """Return axis limits that hold 99 % of the values: a few extremes would squeeze the others."""
  low, high = np.percentile(values, (0.5, 99.5))
  pad = 0.08 * (high - low) or 1.0
  return low - pad, high + pad


def deletion(curves: dict[str, dict[int, Interval]], done: str, effect: str) -> str:
  """Draw nats of log p(target) against the number of events, with 95 % whiskers.

  `curves` holds the intervals by number of events, by who chose the events; `done` to them and
  `effect` on log p name the axes.
  """
  looks = ((BLUE, 'o'), (PURPLE, 'D'), (_SOFT, '^'), (GRAY, 's'))
  with matplotlib.rc_context(_STYLE):
    figure, axis = _figure(5.6, 3.4)
    axis.axhline(0, color=_ZERO_LINE, lw=0.8)
    for i, ((name, by_number), (color, marker)) in enumerate(zip(curves.items(), looks)):
      mean, low, high = (
        np.array([getattr(interval, part) for interval in by_number.values()])
        for part in ('mean', 'low', 'high')
      )
      axis.errorbar(
        # Side by side, so that whiskers do not hide one another.
        np.array([*by_number], float) + 0.05 * (i - 1),
        mean,
        (mean - low, high - mean),
        color=color,
        marker=marker,
        lw=1.7,
        ms=6,
        mec='white',
        capsize=2,
        label=name,
      )
    axis.set_xticks([*next(iter(curves.values()))])
    axis.set_xlabel(f'events {done}')
    axis.set_ylabel(f'log p(target) {effect}, nats')
    axis.legend(frameon=False, fontsize=9)
    return _svg(figure, f'Events {done}')


def world_distances(jaccard_WxW: list[list[float]]) -> str:
  """Draw the mean Jaccard distance between the candidate sets of every two worlds."""
  matrix = np.asarray(jaccard_WxW, float)
  worlds = ['factual', *(f'world {world}' for world in range(1, len(matrix)))]
  labels = [[f'{distance:.2f}' for distance in row] for row in matrix]
  with matplotlib.rc_context(_STYLE):
    figure, axis = _figure(1.6 + 0.7 * len(matrix), 1.0 + 0.55 * len(matrix))
    _heatmap(axis, matrix, worlds, labels)
    return _svg(figure, 'Distance between worlds')


def _heatmap(axis: Axes, shares: np.ndarray, names: list[str], labels: list[list[str]]) -> None:
  """Draw a square matrix of shares in 0..1; `names` are of its rows and columns."""
  axis.imshow(shares, cmap='Blues', vmin=0, vmax=1.0, aspect='auto')
  axis.grid(visible=False)
  for (row, column), share in np.ndenumerate(shares):
    color = 'white' if share > 0.6 else _INK
    label = labels[row][column]
    axis.text(column, row, label, ha='center', va='center', fontsize=8.5, color=color)
  axis.set_xticks(range(len(names)), names, rotation=35, ha='right', rotation_mode='anchor')
  axis.set_yticks(range(len(names)), names)
  axis.spines[:].set_visible(False)


def _rows_height(rows: int) -> float:
  """Return the height in inches of a figure with a line per system."""
  return 0.8 + 0.34 * rows


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
  figure, axes = _panels(width, height, 1, 1)
  return figure, axes[0]


def _panels(width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
  """Return a figure of so many inches and its panels, row by row."""
  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, [*figure.subplots(rows, columns, squeeze=False).flat]


def _svg(figure: Figure, name: str) -> str:
  """Return the figure as SVG to be put inline in a page of several figures.

  There is no XML prologue, no metadata and no namespace address (HTML needs none), and no id
  occurs in two plots.
  """
  buffer = io.StringIO()
  with matplotlib.rc_context({'svg.hashsalt': name, 'svg.fonttype': 'none'}):
    figure.savefig(buffer, format='svg', bbox_inches='tight', transparent=True)
  text = buffer.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.S)
  # figure_1, axes_1 ... are the same in every plot, and nothing refers to them.
  text = re.sub(r' id="[\w.]+_\d+"', '', text)
  text = re.sub(r' xmlns(:\w+)?="[^"]*"', '', text)
  text = text.replace('<svg ', f'<svg role="img" aria-label="{name}" ', 1)
  fixed_size = r'width="([\d.]+)pt" height="[\d.]+pt"'
  fluid_size = r'style="width:\1pt;max-width:100%;height:auto"'
  return re.sub(fixed_size, fluid_size, text, count=1)
