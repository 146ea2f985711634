"""How cost grows: THE step's time and memory against batch, history, worlds, candidates, width and catalogue, measured here; and
memory, traffic and roof against the number of chips, compiled.

  python -m experiments.benchmarks.growth --parts=measured
  python -m experiments.benchmarks.growth --parts=chips           # needs libtpu (requirements-test.txt), no TPU

Each finished point is kept in experiments/benchmarks/growth.json: the same command continues, and does nothing again that was
found with the same code and settings. `python -m experiments.benchmarks.draw` makes the picture.
"""

from __future__ import annotations

import functools
import json
import pathlib
import time

from absl import flags

from rolegen_jax import commands
from rolegen_jax.config import ConfigError

PARTS = ('measured', 'chips')

_PARTS = flags.DEFINE_list('parts', list(PARTS), 'Some of measured, chips.')
_AXES = flags.DEFINE_list('axes', ['all'], 'Axes of the measured part, some of batch, context, events, worlds, candidates, width, catalogue; or all.')
_CHIPS = flags.DEFINE_list('chips', ['all'], 'Chip counts of the compiled part, some of 16, 64, 128, 512, 2048; or all.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed rounds of a point.', lower_bound=3)
_SET = flags.DEFINE_multi_string('set', [], 'Replace one field of the base config of the measured part. May be repeated.')
_FOLDER = flags.DEFINE_string('folder', str(pathlib.Path(__file__).parent), 'Where growth.json is kept.')
_MINUTES = flags.DEFINE_float('minutes', 0.0, 'Leave with exit code 42 at the first finished point after so long; 0 = never.')


def main() -> None:
  started = time.monotonic()
  if unknown := sorted(set(_PARTS.value) - set(PARTS)):
    raise ConfigError(f'--parts={unknown[0]}: must be some of {", ".join(PARTS)}')
  from experiments.benchmarks import growth_chips, growth_parts, measure
  from rolegen_jax.training.loop import Preempted

  path = pathlib.Path(_FOLDER.value) / 'growth.json'
  found = json.loads(path.read_text()) if path.exists() else {}

  def keep(part: str, result: dict) -> None:
    found[part] = result
    measure.keep('growth', {name: found[name] for name in PARTS if name in found}, 'libtpu', folder=path.parent)

  def after_a_point(part: str, result: dict) -> None:
    keep(part, result)
    if 0 < 60 * _MINUTES.value < time.monotonic() - started:
      raise Preempted(f'--minutes={_MINUTES.value:g} are over; the same command continues -> {path}')

  for part in _PARTS.value:
    before, save = found.get(part, {}), functools.partial(after_a_point, part)
    if part == 'measured':
      axes = list(growth_parts.AXES) if _AXES.value == ['all'] else _AXES.value
      keep(part, growth_parts.measured(growth_parts.base(_SET.value), growth_parts.ITEMS, axes, _REPEATS.value, before, save))
      print(growth_parts.table(found[part]))
    else:
      keep(part, growth_chips.compiled(_counts(), before, save))
      print(growth_chips.table(found[part]))
  print(f'-> {path}')


def _counts() -> list[int]:
  from experiments.benchmarks.growth_chips import MESHES

  try:
    return list(MESHES) if _CHIPS.value == ['all'] else [int(n) for n in _CHIPS.value]
  except ValueError as error:
    raise ConfigError(f'--chips={",".join(_CHIPS.value)}: must be numbers of chips') from error


if __name__ == '__main__':
  commands.run(main)
