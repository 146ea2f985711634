"""How THE step's time and memory grow: one base config, one axis varied at a time.

A point is compiled, then timed in turn with the base step, so that a machine's bad moments meet both; its figure is the median
over rounds of their ratio. A slope is an exponent: 1 = proportional, 0 = no growth. A point's `flops` are the analytic ones of
`rolegen_jax.flops`, so that time can be held against the work.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import numpy as np

from experiments import demo
from experiments.benchmarks import measure
from rolegen_jax import config as c
from rolegen_jax import distributed, overrides
from rolegen_jax.flops import Flops
from rolegen_jax.progress import progress
from rolegen_jax.provenance import machine
from rolegen_jax.throughput import Bench, Program

# The demo's models and batch; codes with place for two million items, and no more roles than the shortest prompt has events.
BASE = ('semantic_ids.codes=128', 'reasoner.role_events=8')
ITEMS = 10_000
FACTORS = (0.5, 2, 4)


@dataclasses.dataclass(frozen=True)
class Axis:
  label: str
  of: Callable[[c.Config, int], int]  # (config, items) -> where it stands on this axis
  sets: Callable[[c.Config, float], list[str]]  # (base, factor) -> assignments that move it
  why: str  # what grows with it
  factors: tuple[float, ...] = FACTORS  # of the base's value


def _field(path: str) -> tuple[Callable, Callable]:
  read = lambda config: functools.reduce(getattr, path.split('.'), config)
  return lambda config, items: read(config), lambda config, factor: [f'{path}={round(read(config) * factor)}']


def _wider(config: c.Config, factor: float) -> list[str]:
  """Both models; heads keep their width."""
  models = {'backbone.temporal': config.backbone.temporal, 'reasoner.transformer': config.reasoner.transformer}
  return [f'{path}.{size}={round(getattr(t, size) * factor)}' for path, t in models.items() for size in ('width', 'heads', 'kv_heads', 'mlp')]


AXES = {
    'batch': Axis('users in a batch', *_field('loop_stage.batch'), 'all work is per user, but for the optimizers, which are per parameter'),
    'context': Axis('events of history', *_field('backbone.context'), 'the backbone alone: per event, and attention per pair of events'),
    'events': Axis('events of the prompt', *_field('reasoner.events'), 'the reasoner alone: per token, attention per pair, the cache that each new token reads'),
    'worlds': Axis('worlds', *_field('loop.worlds'), 'rollout and reflection are per world; one trajectory and one demonstration are not'),
    'candidates': Axis('candidates of a world', *_field('reasoner.candidates'), 'tokens of a completion, beside its roles and intents; slots of memory'),
    'width': Axis('model width', lambda config, items: config.reasoner.transformer.width, _wider, 'projections by its square, attention and elementwise work by itself'),
    'catalogue': Axis(
        'items of the catalogue', lambda config, items: items, lambda config, factor: [],
        'no work: tables grow, and a step reads a row of them for each code that it writes', (0.1, 10, 100)),
}


def base(assignments: Iterable[str] = ()) -> c.Config:
  return overrides.apply(demo.get_config(), [*BASE, *assignments])


def points(config: c.Config, items: int, factors: tuple[float, ...] = ()) -> dict[str, dict[str, tuple[c.Config, int]]]:
  """Axis -> {its value: (config, items)}, without the base; `factors` replace those of every axis."""

  def of(name: str, axis: Axis):
    for factor in factors or axis.factors:
      made, count = overrides.apply(config, axis.sets(config, factor)), round(items * factor) if name == 'catalogue' else items
      yield str(axis.of(made, count)), (made, count)

  return {name: dict(of(name, axis)) for name, axis in AXES.items()}


def measured(
    config: c.Config, items: int, axes: list[str], repeats: int, kept: dict, save: Callable[[dict], None], factors: tuple[float, ...] = ()
) -> dict:
  """`kept`, an earlier result, with times and sizes of all points of `axes`; `save` gets the whole after each new one.

  What was measured with other code, settings, versions or on another machine is dropped. The axes take turns, so that a run that
  is cut short has some of each. Raises ConfigError on an unknown axis.
  """
  if unknown := sorted(set(axes) - set(AXES)):
    raise c.ConfigError(f'--axes={unknown[0]}: must be some of {", ".join(AXES)}')
  found, middle = points(config, items, factors), (config, items)
  known = machine()
  where = [distributed.code_digest(), known['versions'], known['device_kind'], measure.processor(), repeats]
  key = lambda point: c.digest(where, *point)
  made = lambda point: dict(key=key(point), commit=known['commit'], when=known['when'])
  old_base = kept.get('base')
  result = dict(base=old_base if old_base and old_base['key'] == key(middle) else None, axes={})
  for name, axis in AXES.items():
    old = kept.get('axes', {}).get(name, {}).get('points', {})
    current = {value: old[value] for value, point in found[name].items() if value in old and old[value]['key'] == key(point)}
    result['axes'][name] = dict(label=axis.label, why=axis.why, base=axis.of(*middle), points=current)
  turns = sorted((i, axes.index(name), name, value) for name in axes for i, value in enumerate(found[name]))
  missing = [(name, value) for _, _, name, value in turns if value not in result['axes'][name]['points']]
  if missing:
    reference = compiled(*middle)
    result['base'] = sizes(config, reference) | made(middle)
  for name, value in progress(missing, 'growth', len(missing)):
    point = found[name][value]
    program = compiled(*point)
    times = measure.alternate(dict(step=program.call, base_step=reference.call), repeats)
    ratio = np.divide(times['step']['seconds'], times['base_step']['seconds'])
    times['ratio'] = dict(median=float(np.median(ratio)), quartiles=np.quantile(ratio, (0.25, 0.75)).tolist())
    result['axes'][name]['points'][value] = sizes(point[0], program) | times | made(point)
    save(with_slopes(result))
  return with_slopes(result)


def compiled(config: c.Config, items: int) -> Program:
  return Bench(config, None, items).program('step')


def sizes(config: c.Config, program: Program) -> dict:
  """compile_s, memory (bytes a device by kind), flops by phase."""
  flops = {name: work.hardware for name, work in Flops(config).phases().items()}
  return dict(compile_s=program.compile_s, memory=program.memory, flops=flops)


def with_slopes(result: dict) -> dict:
  """`result` with the slopes of every axis that has a point: of the whole curve, and of its end, the two largest values."""
  for axis in result['axes'].values():
    if axis['points']:
      curves = growth(axis, result['base'])
      at = curves.pop('value')
      axis['slopes'] = {name: dict(all=slope(at, y), end=slope(at[-2:], y[-2:])) for name, y in curves.items()}
  return result


def growth(axis: dict, base_point: dict) -> dict[str, np.ndarray]:
  """value, ascending and with the base's; and over what the base has: time, flops, temporaries, arguments."""
  one = base_point | dict(ratio=dict(median=1.0))
  rows = sorted(({int(value): p for value, p in axis['points'].items()} | {axis['base']: one}).items())
  over = lambda read: np.array([read(p) / read(one) for _, p in rows])
  return dict(
      value=np.array([value for value, _ in rows]), time=over(lambda p: p['ratio']['median']), flops=over(lambda p: sum(p['flops'].values())),
      temporaries=over(lambda p: p['memory']['temporaries']), arguments=over(lambda p: p['memory']['arguments']),
  )


def slope(x: np.ndarray, y: np.ndarray) -> float:
  """The exponent of y ~ x ** slope, by least squares over logarithms."""
  return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def table(result: dict) -> str:
  """Slopes as text."""
  lines = [f'{"axis":<12} {"values":<28} {"time":>6} {"work":>6} {"temporaries":>12} {"arguments":>10}   (slopes; of the end in brackets)']
  for name, axis in result['axes'].items():
    if axis['points']:
      values = ', '.join(map(str, sorted([axis['base'], *map(int, axis['points'])])))
      s = axis['slopes']
      lines.append(f'{name:<12} {values:<28} {s["time"]["all"]:6.2f} {s["flops"]["all"]:6.2f} {s["temporaries"]["all"]:12.2f} {s["arguments"]["all"]:10.2f}'
                   f'   [{s["time"]["end"]:.2f}, {s["flops"]["end"]:.2f}]')
  return '\n'.join(lines)
