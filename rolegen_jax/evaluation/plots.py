"""The plots of the report, each a function of plain data that returns inline SVG. Colours are Okabe & Ito's (2008), told
apart by every common kind of colour vision; nothing is told by colour alone."""

from __future__ import annotations

import io
import math
import re

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from rolegen_jax.evaluation.metrics import Interval

KIND_COLOURS = {'model': '#0072B2', 'ablation': '#56B4E9', 'baseline': '#8A8A8A'}
KIND_MARKERS = {'model': 'o', 'ablation': 'D', 'baseline': 's'}
ROLE_COLOURS = {
  'TRIGGER': '#D55E00',
  'ANCHOR': '#0072B2',
  'COMPARE': '#56B4E9',
  'REINFORCE': '#009E73',
  'COMPLEMENT': '#CC79A7',
  'EXPLORE': '#B8B8B8',
  'DISTRACT': '#4A4A4A',
  'CONVERT': '#E69F00',
}
ROLE_SHORT = {'COMPARE': 'CMPR', 'COMPLEMENT': 'CMPL'}  # others: their first four letters
_INK, _SOFT = '#1d2733', '#6b7683'
_STYLE = {
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


def _svg(figure: Figure, name: str) -> str:
  """Inline SVG text: no XML prologue, no metadata, no namespace addresses (HTML needs none), ids that differ per plot."""
  out = io.StringIO()
  with matplotlib.rc_context({'svg.hashsalt': name, 'svg.fonttype': 'none'}):
    figure.savefig(out, format='svg', bbox_inches='tight', transparent=True)
  text = out.getvalue()
  text = re.sub(r'<metadata>.*?</metadata>', '', text[text.index('<svg') :], flags=re.S)
  text = re.sub(
    r' id="[\w.]+_\d+"', '', text
  )  # figure_1, axes_1 ...: the same in every plot, and nothing refers to them
  text = re.sub(r' xmlns(:\w+)?="[^"]*"', '', text).replace(
    '<svg ', f'<svg role="img" aria-label="{name}" ', 1
  )
  return re.sub(
    r'width="([\d.]+)pt" height="[\d.]+pt"',
    r'style="width:\1pt;max-width:100%;height:auto"',
    text,
    count=1,
  )


def _figure(width: float, height: float, rows: int = 1, columns: int = 1):
  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, figure.subplots(rows, columns, squeeze=False)


def system_intervals(values: dict[str, tuple[str, Interval]], metric: str) -> str:
  """Dot and 95 % whisker per system, best on top. `values`: name -> (kind, interval as shares)."""
  with matplotlib.rc_context(_STYLE):
    figure, axes = _figure(7.6, 0.8 + 0.34 * len(values))
    axis, best = axes[0, 0], max(v.mean for _, v in values.values())
    for y, (name, (kind, v)) in enumerate(sorted(values.items(), key=lambda x: x[1][1].mean)):
      colour = KIND_COLOURS[kind]
      axis.plot([100 * v.low, 100 * v.high], [y, y], color=colour, lw=2.2, solid_capstyle='round')
      axis.plot(100 * v.mean, y, KIND_MARKERS[kind], color=colour, ms=7.5, mec='white', mew=1)
      axis.annotate(
        f'{100 * v.mean:.1f}',
        (100 * v.high, y),
        (6, 0),
        textcoords='offset points',
        va='center',
        fontsize=9,
        bbox=dict(fc='white', ec='none', pad=1),
      )
    axis.axvline(100 * best, color=_SOFT, lw=0.8, ls=(0, (3, 3)), zorder=0)
    order = sorted(values, key=lambda n: values[n][1].mean)
    axis.set_yticks(range(len(order)), [f'{n} ({values[n][0]})' for n in order])
    axis.set_xlim(left=0)
    axis.margins(x=0.08)
    axis.set_xlabel(f'{metric}, % of targets')
    axis.grid(axis='y', visible=False)
    return _svg(figure, f'{metric} by system')


def differences(values: dict[str, Interval], system: str, metric: str) -> str:
  """Paired difference of `system` minus each other, in points, around a zero line."""
  with matplotlib.rc_context(_STYLE):
    figure, axes = _figure(7.6, 0.8 + 0.34 * len(values))
    axis = axes[0, 0]
    for y, (name, v) in enumerate(reversed(values.items())):
      colour = '#009E73' if v.low > 0 else '#D55E00' if v.high < 0 else _SOFT
      axis.plot([100 * v.low, 100 * v.high], [y, y], color=colour, lw=2.2, solid_capstyle='round')
      axis.plot(
        100 * v.mean,
        y,
        'o' if v.low > 0 or v.high < 0 else 'D',
        color=colour,
        ms=7.5,
        mec='white',
        mew=1,
      )
    axis.axvline(0, color=_INK, lw=1)
    axis.set_yticks(range(len(values)), [f'minus {n}' for n in reversed(values)])
    axis.set_xlabel(f'{system} minus the other, points of {metric}')
    axis.grid(axis='y', visible=False)
    return _svg(figure, f'Paired differences of {metric}')


def curves(series: dict[str, tuple[list, list]], stage: str) -> str:
  """Small multiples of one stage: metric name -> (steps, values); a thin line as logged, a thick one its running mean."""
  columns = min(4, len(series))
  rows = math.ceil(len(series) / columns)
  with matplotlib.rc_context(_STYLE | {'font.size': 8.5, 'axes.titlesize': 9}):
    figure, axes = _figure(2.35 * columns + 0.3, 1.75 * rows, rows, columns)
    for axis in axes.flat[len(series) :]:
      axis.set_visible(False)
    for axis, (name, (steps, values)) in zip(axes.flat, series.items()):
      values = np.asarray(values, float)
      width = max(1, len(values) // 20)
      sums = np.cumsum(np.insert(values, 0, 0.0))
      first = np.maximum(np.arange(len(values)) + 1 - width, 0)
      mean = (sums[1:] - sums[first]) / (np.arange(len(values)) + 1 - first)
      axis.plot(steps, values, color='#56B4E9', lw=0.8, alpha=0.7)
      axis.plot(steps, mean, color='#0072B2', lw=1.7)
      axis.set_title(name)
      axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
      axis.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
    return _svg(figure, f'Training curves of {stage}')


def role_shares(shares: dict[str, dict[str, float]]) -> str:
  """Grouped bars: source (hindsight, predicted ...) -> role -> share of events."""
  roles = [r for r in ROLE_COLOURS if any(r in s for s in shares.values())]
  hatches = ('', '///', '...')
  with matplotlib.rc_context(_STYLE | {'hatch.linewidth': 0.7}):
    figure, axes = _figure(7.6, 0.7 + 0.4 * len(roles))
    axis, height = axes[0, 0], 0.8 / len(shares)
    for i, (source, share) in enumerate(shares.items()):
      y = np.arange(len(roles)) + (i - (len(shares) - 1) / 2) * height
      widths = [100 * share.get(r, 0.0) for r in roles]
      look = dict(
        color=[ROLE_COLOURS[r] for r in roles], hatch=hatches[i % 3], edgecolor='white', lw=0
      )
      bars = axis.barh(y, widths, height * 0.92, **look)
      axis.bar_label(
        bars, [f'{w:.0f} % {source}' for w in widths], padding=4, fontsize=8, color=_SOFT
      )
    axis.set_yticks(range(len(roles)), roles)
    axis.invert_yaxis()
    axis.margins(x=0.16)
    axis.set_xlabel('% of events')
    axis.grid(axis='y', visible=False)
    return _svg(figure, 'Role shares')


def _heatmap(axis, shown, labels, text, top=1.0):
  axis.imshow(shown, cmap='Blues', vmin=0, vmax=top, aspect='auto')
  axis.grid(visible=False)
  for (i, j), value in np.ndenumerate(shown):
    axis.text(
      j,
      i,
      text[i][j],
      ha='center',
      va='center',
      fontsize=8.5,
      color='white' if value > 0.6 * top else _INK,
    )
  axis.set_xticks(range(len(labels)), labels, rotation=35, ha='right', rotation_mode='anchor')
  axis.set_yticks(range(len(labels)), labels)
  axis.spines[:].set_visible(False)


def confusion(matrix: list[list[int]], names: list[str]) -> str:
  """Rows are the true role, columns the inferred one; each row as shares of itself."""
  counts = np.asarray(matrix, float)
  shown = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  with matplotlib.rc_context(_STYLE):
    figure, axes = _figure(5.6, 4.1)
    _heatmap(
      axes[0, 0], shown, names, [[f'{v:.2f}' if v >= 0.005 else '' for v in row] for row in shown]
    )
    axes[0, 0].set_xlabel('inferred role')
    axes[0, 0].set_ylabel('true role')
    return _svg(figure, 'Confusion of roles')


def effects(estimated: list[float], true: list[float]) -> str:
  """Estimated against true removal effect, in nats; the dashed line is agreement."""
  with matplotlib.rc_context(_STYLE):
    figure, axes = _figure(4.9, 4.1)
    axis = axes[0, 0]
    axis.axhline(0, color='#c4cad1', lw=0.8)
    axis.axvline(0, color='#c4cad1', lw=0.8)
    axis.axline((0, 0), slope=1, color=_SOFT, lw=1, ls=(0, (4, 3)))
    axis.plot(true, estimated, 'o', color='#0072B2', ms=4, alpha=0.45, mew=0)
    for limits, values in ((axis.set_xlim, true), (axis.set_ylim, estimated)):
      low, high = np.percentile(values, (0.5, 99.5))  # a few extremes would squeeze all else
      pad = 0.08 * (high - low) or 1.0
      limits(low - pad, high + pad)
    axis.set_xlabel('true effect of removing the event, nats')
    axis.set_ylabel('estimated effect, nats')
    return _svg(figure, 'Removal effects')


def deletion(curves: dict[str, dict[int, Interval]]) -> str:
  """Nats of log p(y) lost against how many events were taken out, by who chose them, with 95 % whiskers."""
  with matplotlib.rc_context(_STYLE):
    figure, axes = _figure(6.6, 3.4)
    axis = axes[0, 0]
    axis.axhline(0, color='#c4cad1', lw=0.8)
    looks = [('#0072B2', 'o'), ('#CC79A7', 'D'), ('#8A8A8A', 's')]
    for i, ((name, by_k), (colour, marker)) in enumerate(zip(curves.items(), looks)):
      k = np.array([*by_k], float) + 0.05 * (i - 1)
      mean, low, high = (
        np.array([getattr(v, part) for v in by_k.values()]) for part in ('mean', 'low', 'high')
      )
      axis.errorbar(
        k,
        mean,
        (mean - low, high - mean),
        color=colour,
        marker=marker,
        lw=1.7,
        ms=6,
        mec='white',
        capsize=2,
        label=name,
      )
    axis.set_xticks([*next(iter(curves.values()))])
    axis.set_xlabel('events taken out')
    axis.set_ylabel('log p(y) lost, nats')
    axis.legend(frameon=False, fontsize=9)
    return _svg(figure, 'Deletion curves')


def world_distances(jaccard_WxW: list[list[float]]) -> str:
  """Mean Jaccard distance between the candidate sets of every two worlds."""
  matrix = np.asarray(jaccard_WxW, float)
  labels = ['factual', *(f'world {w}' for w in range(1, len(matrix)))]
  with matplotlib.rc_context(_STYLE):
    figure, axes = _figure(1.6 + 0.7 * len(matrix), 1.0 + 0.55 * len(matrix))
    _heatmap(axes[0, 0], matrix, labels, [[f'{v:.2f}' for v in row] for row in matrix])
    return _svg(figure, 'Distance between worlds')
