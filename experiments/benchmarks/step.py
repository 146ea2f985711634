"""THE step before and after: one prompt for all worlds of a user, losses that keep no logits, attention by the platform's kernel.

  python -m experiments.benchmarks.step --parts=compiled    # needs libtpu (requirements-test.txt), no TPU
  python -m experiments.benchmarks.step --parts=measured

Compiled: temporaries, bytes sent and roof for 128 chips of v5p. Measured: steps of experiments on this machine, both sides in turn.
`before` is a commit of this repository, taken from its history. Each finished piece is kept in experiments/benchmarks/step.json:
the same command continues. `python -m experiments.benchmarks.draw` makes the picture.
"""

import json
import pathlib

from absl import flags

from rolegen_jax import commands
from rolegen_jax.config import ConfigError

PARTS = ('compiled', 'measured')

_PARTS = flags.DEFINE_list('parts', list(PARTS), 'Some of compiled, measured.')
_EXPERIMENT = flags.DEFINE_string('experiment', 'pod:v5p_128', 'What is compiled.')
_TOPOLOGY = flags.DEFINE_string('topology', 'tpu:v5p:4x4x8', 'Where it would run, as compile_check takes it.')
_MEASURE = flags.DEFINE_list('measure', ['demo', 'alibaba2014'], 'Experiments whose step is run, on random cases.')
_ITEMS = flags.DEFINE_integer('items', 1200, 'Items of the catalogue of what is run.')
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Timed rounds.', lower_bound=3)
_FOLDER = flags.DEFINE_string('folder', str(pathlib.Path(__file__).parent), 'Where step.json is kept.')


def main() -> None:
  if unknown := sorted(set(_PARTS.value) - set(PARTS)):
    raise ConfigError(f'--parts={unknown[0]}: must be some of {", ".join(PARTS)}')
  from experiments.benchmarks import measure, step_parts

  path = pathlib.Path(_FOLDER.value) / 'step.json'
  found = json.loads(path.read_text()) if path.exists() else {}

  def keep(part: str, result: dict) -> None:
    found[part] = result
    measure.keep('step', {name: found[name] for name in PARTS if name in found}, 'libtpu', folder=path.parent)

  if 'compiled' in _PARTS.value:
    what = [f'--experiment={_EXPERIMENT.value}', f'--topology={_TOPOLOGY.value}', '--optimization_level=O0']
    keep('compiled', step_parts.compiled(what, found.get('compiled', {}), lambda result: keep('compiled', result)))
  if 'measured' in _PARTS.value:
    for name in _MEASURE.value:
      keep('measured', found.get('measured', {}) | {name: step_parts.measured(name, _ITEMS.value, _REPEATS.value)})
  print(step_parts.table(found))
  print(f'-> {path}')


if __name__ == '__main__':
  commands.run(main)
