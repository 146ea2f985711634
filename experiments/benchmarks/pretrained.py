"""Memory of loading a pretrained checkpoint: streamed into its shards, against reading it whole. 8 CPU devices.

  python -m experiments.benchmarks.pretrained

Makes a folder of Qwen3-0.6B's sizes with random weights, 1.1 GiB of bfloat16 in two files, and loads it in a process of its own per
side and round. Target: peak host memory beside the loaded arrays at most the largest file + 1 GiB. Needs 8 GB of memory and 1.2 GB of
disk; the result is kept in experiments/benchmarks/pretrained.json.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

from absl import flags

from rolegen_jax import commands

SIDES = ('streamed', 'at_once')

_WORKDIR = flags.DEFINE_string('workdir', 'runs/pretrained', 'Where the checkpoint is made, and removed again.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Loads of each side.', lower_bound=1)
_LAYERS = flags.DEFINE_integer('layers', 28, 'Of the checkpoint; fewer for a trial.', lower_bound=1)
_SIDE = flags.DEFINE_enum('side', '', ['', *SIDES], 'Only load the checkpoint in --workdir, this way, and print what was measured as JSON.')
_FOLDER = flags.DEFINE_string('folder', str(pathlib.Path(__file__).parent), 'Where pretrained.json is kept.')


def load_side(folder: pathlib.Path, side: str) -> None:
  import jax

  jax.config.update('jax_num_cpu_devices', 8)
  from experiments.benchmarks import pretrained_parts as p
  from rolegen_jax.config import MeshConfig

  config = p.settled(folder, MeshConfig(data=1, fsdp=4, tensor=2))
  print(json.dumps(p.measure_load(getattr(p, side)(folder, config), folder)))


def main() -> None:
  folder = pathlib.Path(_WORKDIR.value).absolute() / 'checkpoint'
  if _SIDE.value:
    return load_side(folder, _SIDE.value)
  from experiments.benchmarks import measure, pretrained_parts as p

  p.write_folder(folder, p.QWEN3_06B | dict(num_hidden_layers=_LAYERS.value))
  found = {side: [] for side in SIDES}
  for _ in range(_ROUNDS.value):
    for side in SIDES:
      command = [sys.executable, '-m', 'experiments.benchmarks.pretrained', f'--side={side}', f'--workdir={folder.parent}']
      ran = subprocess.run(command, env=os.environ | dict(JAX_PLATFORMS='cpu'), stdout=subprocess.PIPE, text=True, check=True)
      found[side].append(json.loads(ran.stdout.splitlines()[-1]))
      print(p.line(side, found[side][-1]), flush=True)
  shutil.rmtree(folder)
  path = measure.keep('pretrained', dict(layers=_LAYERS.value, devices=8, rounds=found), 'safetensors', folder=_FOLDER.value)
  print(f'-> {path}')


if __name__ == '__main__':
  commands.run(main)
