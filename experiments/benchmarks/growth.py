"""How time and memory of the joint train step grow: one base config, one axis varied at a time.

  python -m experiments.benchmarks.growth

A point is compiled, then timed in turn with the base step, so that a slow moment of the machine
meets both; its figure is the median over rounds of their ratio. A slope is an exponent: 1 means
proportional, 0 no growth. Time is held against the analytic work, the FLOPs of
`rolegen_jax.perf.flops`.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import demo
from experiments.benchmarks import harness
from rolegen_jax import overrides
from rolegen_jax.config import Config
from rolegen_jax.perf.flops import Flops
from rolegen_jax.perf.throughput import Bench, Program
from rolegen_jax.runtime.progress import progress
from rolegen_jax.semantic_ids.trie import default_capacity

# The demo's models and batch; codes with place for two million items, and no more roles than the
# shortest prompt has events.
BASE = ('semantic_ids.codes=128', 'reasoner.role_events=8')
MIB = 2**20
COLUMNS = 4  # of panels


@dataclasses.dataclass(frozen=True)
class Axis:
  label: str
  fields: tuple[str, ...] = ()  # config fields that it scales; none: the number of items
  factors: tuple[float, ...] = (0.5, 2, 4)  # of the base's value


# The width of both models; heads keep theirs.
WIDTH_FIELDS = tuple(
  f'{model}.{size}'
  for model in ('reasoner.transformer', 'backbone.temporal')
  for size in ('width', 'heads', 'kv_heads', 'mlp')
)
AXES = {
  'batch': Axis('users in a batch', ('loop_stage.batch',)),
  'context': Axis('events of history', ('backbone.context',)),
  'events': Axis('events of the prompt', ('reasoner.events',)),
  'worlds': Axis('worlds', ('loop.worlds',)),
  'candidates': Axis('candidates of a world', ('reasoner.candidates',)),
  'width': Axis('model width', WIDTH_FIELDS),
  'catalogue': Axis('items of the catalogue', factors=(0.1, 10, 100)),
}


def measure(
  store: harness.Store,
  *,
  axes: tuple[str, ...] = tuple(AXES),
  items: int = 10_000,
  repeats: int = 7,
  assignments: tuple[str, ...] = (),
) -> dict:
  """Measure the base and every point of the axes.

  axes: Some of batch, context, events, worlds, candidates, width, catalogue.
  items: Items of the base's catalogue.
  repeats: Timed rounds of a point.
  assignments: Fields of the base config to replace, section.field=value.
  """
  harness.require_known('axes', axes, list(AXES))
  base = overrides.apply(demo.get_config(), [*BASE, *assignments])
  base_step = functools.cache(functools.partial(compile_step, base, items))
  store.point('base', (base, items), lambda: sizes(base, items, base_step()))
  # The axes take turns, so that a run that is cut short has some points of each.
  rounds = max(len(AXES[name].factors) for name in axes)
  turns = [(name, f) for i in range(rounds) for name in axes for f in AXES[name].factors[i : i + 1]]
  for name, factor in progress(turns, 'growth', len(turns)):
    config, n_items = scale(AXES[name], factor, base, items)
    store.point(
      f'{name} {position(AXES[name], config, n_items)}',
      (base, items, config, n_items, repeats),
      functools.partial(measure_point, config, n_items, base_step, repeats),
    )
  base_values = {name: position(axis, base, items) for name, axis in AXES.items()}
  return dict(base_values=base_values, points=store.points)


def position(axis: Axis, config: Config, items: int) -> int:
  """Return where a config and its number of items stand on the axis."""
  return _read_field(config, axis.fields[0]) if axis.fields else items


def scale(axis: Axis, factor: float, base: Config, items: int) -> tuple[Config, int]:
  """Return the config and number of items at `factor` times the base's value."""
  if not axis.fields:
    return base, round(items * factor)
  assignments = [f'{field}={round(_read_field(base, field) * factor)}' for field in axis.fields]
  return overrides.apply(base, assignments), items


def _read_field(config: Config, field: str) -> int:
  return functools.reduce(getattr, field.split('.'), config)


def compile_step(config: Config, items: int) -> Program:
  return Bench(config, None, items).program('step')


def sizes(config: Config, items: int, step: Program) -> dict:
  """Return compile_s, memory (bytes a device by kind) and flops by phase."""
  counts = Flops(config, default_capacity(items)).phases()
  flops = {name: work.hardware for name, work in counts.items()}
  return dict(compile_s=step.compile_s, memory=step.memory, flops=flops)


def measure_point(
  config: Config, items: int, base_step: Callable[[], Program], repeats: int
) -> dict:
  """Compile a step and time it in turn with the base step."""
  step = compile_step(config, items)
  seconds = harness.alternate(dict(step=step.call, base_step=base_step().call), repeats)
  return sizes(config, items, step) | dict(
    step=harness.summary(seconds['step']),
    base_step=harness.summary(seconds['base_step']),
    ratio=harness.ratio_summary(seconds['step'], seconds['base_step']),
  )


# What the numbers say


def curves(results: dict, name: str) -> dict[str, np.ndarray] | None:
  """Return an axis's values, ascending and with the base's, and over the base's cost: time with its
  quartiles, flops, temporaries and arguments. None where the axis has no points."""
  base = results['points']['base'] | dict(ratio=dict(median=1.0, quartiles=[1.0, 1.0]))
  rows = {results['base_values'][name]: base}
  for point_name, point in results['points'].items():
    axis, _, value = point_name.partition(' ')
    if axis == name:
      rows[int(value)] = point
  if len(rows) == 1:
    return None
  points = [rows[value] for value in sorted(rows)]
  memory = {kind: np.array([p['memory'][kind] for p in points]) for kind in base['memory']}
  flops = np.array([sum(p['flops'].values()) for p in points])
  return dict(
    value=np.array(sorted(rows)),
    time=np.array([p['ratio']['median'] for p in points]),
    quartiles=np.array([p['ratio']['quartiles'] for p in points]).T,
    flops=flops / sum(base['flops'].values()),
    temporaries=memory['temporaries'] / base['memory']['temporaries'],
    arguments=memory['arguments'] / base['memory']['arguments'],
  )


def slope(x: np.ndarray, y: np.ndarray) -> float:
  """Return the exponent of y ~ x ** slope, by least squares over logarithms."""
  return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def table(results: dict) -> str:
  """Return the slopes of whole curves, and those of the last step of time and work."""
  lines = [
    f'{"axis":<12} {"values":<28} {"time":>6} {"work":>6} {"temporaries":>12} {"arguments":>10}'
    '   (slopes; in brackets time and work between the last two points)'
  ]
  for name in AXES:
    if (curve := curves(results, name)) is None:
      continue
    x = curve['value']
    time, work, temporaries, arguments = (
      slope(x, curve[kind]) for kind in ('time', 'flops', 'temporaries', 'arguments')
    )
    last_time, last_work = (slope(x[-2:], curve[kind][-2:]) for kind in ('time', 'flops'))
    lines.append(
      f'{name:<12} {", ".join(map(str, x)):<28} {time:6.2f} {work:6.2f} {temporaries:12.2f}'
      f' {arguments:10.2f}   [{last_time:.2f}, {last_work:.2f}]'
    )
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw per axis the step's time against the work alone, and its memory below."""
  drawn = {name: curve for name in AXES if (curve := curves(results, name)) is not None}
  bands = -(-len(drawn) // COLUMNS)
  size = (3.4 * COLUMNS, 5.0 * bands)
  figure, grid = harness.panels(2 * bands, COLUMNS, size)
  for panel in grid.flat:
    panel.set_visible(False)
  for i, (name, curve) in enumerate(drawn.items()):
    band, column = divmod(i, COLUMNS)
    _plot_time(grid[2 * band, column], results, name, curve)
    _plot_memory(grid[2 * band + 1, column], results, name, curve)
  figure.savefig(figure_path, dpi=75)


def _plot_time(panel: Any, results: dict, name: str, curve: dict) -> None:
  """Draw time and work; the base is the open circle."""
  points = results['points'].values()
  base_ms = 1e3 * float(np.median([p['base_step']['median_s'] for p in points if 'step' in p]))
  x, time, work = curve['value'], base_ms * curve['time'], base_ms * curve['flops']
  error = np.abs(base_ms * curve['quartiles'] - time)
  work_label = f'work alone, slope {slope(x, curve["flops"]):.2f}'
  panel.plot(x, work, color=harness.GRAY, linestyle='--', linewidth=1.2, label=work_label)
  style = dict(color=harness.BLUE, marker='o', markersize=4, capsize=2, linewidth=1.4)
  panel.errorbar(x, time, yerr=error, label=f'time, slope {slope(x, curve["time"]):.2f}', **style)
  base_value = results['base_values'][name]
  marker = dict(color='white', markeredgecolor=harness.BLUE, markersize=5, zorder=4)
  panel.plot(base_value, base_ms, 'o', **marker)
  panel.set_title(AXES[name].label, loc='left', fontsize=10)
  _finish(panel, x, 'ms a step')


def _plot_memory(panel: Any, results: dict, name: str, curve: dict) -> None:
  x, base_memory = curve['value'], results['points']['base']['memory']
  for kind, color in (('temporaries', harness.VERMILION), ('arguments', harness.GREEN)):
    y = base_memory[kind] / MIB * curve[kind]
    style = dict(color=color, marker='o', markersize=4, linewidth=1.4)
    panel.plot(x, y, label=f'{kind}, slope {slope(x, curve[kind]):.2f}', **style)
  panel.set_xlabel(AXES[name].label, fontsize=8)
  _finish(panel, x, 'MiB')


def _finish(panel: Any, x: np.ndarray, unit: str) -> None:
  """Set logarithmic axes with plain ticks, at 1, 2, 5 times powers of ten, and a legend on top."""
  panel.set_visible(True)
  panel.set_xscale('log')
  panel.set_yscale('log')
  labels = [f'{v:,}' if v < 10_000 else f'{v:.0e}'.replace('e+0', 'e') for v in x]
  panel.set_xticks(x, labels, fontsize=8)
  panel.minorticks_off()
  low, high = panel.get_ylim()
  if high / low < 3:
    low, high = low / 1.8, high * 1.8
  ticks = [m * 10.0**e for e in range(-3, 9) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
  panel.set_yticks(ticks, [f'{tick:g}' for tick in ticks], fontsize=8)
  panel.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
  panel.set_ylabel(unit, fontsize=8)
  panel.legend(frameon=False, fontsize=7.5, loc='upper left')


if __name__ == '__main__':
  harness.main(measure, plot, table)
