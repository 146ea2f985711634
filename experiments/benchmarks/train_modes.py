"""Memory of THE step where all of the reasoner trains, adapters (LoRA), or the rows of our tokens alone, compiled for a pod.

  python -m experiments.benchmarks.train_modes    # needs libtpu (requirements-test.txt), no TPU

Each finished mode is kept in experiments/benchmarks/train_modes.json: the same command continues. `python -m experiments.benchmarks.draw`
makes the picture.
"""

from __future__ import annotations

import json
import pathlib

from absl import flags

from rolegen_jax import commands

_EXPERIMENT = flags.DEFINE_string('experiment', 'pod:v5e_16', 'What is compiled.')
_TOPOLOGY = flags.DEFINE_string('topology', 'tpu:v5e:4x4', 'Where it would run, as compile_check takes it.')
_SET = flags.DEFINE_multi_string('set', [], 'Replace one field of the config. May be repeated.')
_ITEMS = flags.DEFINE_integer('items', 1_000_000, 'Catalogue size.')
_FOLDER = flags.DEFINE_string('folder', str(pathlib.Path(__file__).parent), 'Where train_modes.json is kept.')


def main() -> None:
  from experiments.benchmarks import measure, train_modes_parts as parts

  path = pathlib.Path(_FOLDER.value) / 'train_modes.json'
  kept = json.loads(path.read_text()) if path.exists() else {}
  what = [f'--experiment={_EXPERIMENT.value}', f'--topology={_TOPOLOGY.value}', f'--items={_ITEMS.value}', '--optimization_level=O0']
  config = lambda assignment: commands.experiment(_EXPERIMENT.value, [*_SET.value, assignment])
  save = lambda found: measure.keep('train_modes', found, 'libtpu', folder=path.parent)
  print(parts.table(parts.compiled(config, what + [f'--set={a}' for a in _SET.value], kept, save)))
  print(f'-> {path}')


if __name__ == '__main__':
  commands.run(main)
