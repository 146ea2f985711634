"""Compile the joint train step for 16 TPU v5e chips on a host without any, and write the HLO.

python -m tests.perf.aot.compile_step FILE
"""

import sys

import jax

from rolegen_jax import overrides, sharding
from rolegen_jax.config import Config
from rolegen_jax.perf.aot import programs, topology

MODEL = ('width=128', 'heads=8', 'kv_heads=4', 'mlp=384', 'dtype=bfloat16')


def main(path: str):
  topology.prepare()
  jax.config.update(
    'jax_optimization_level', 'O0'
  )  # a quarter of the time; layouts are decided all the same
  models = [
    f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in MODEL
  ]
  config = overrides.apply(
    Config(),
    models
    + [
      'backbone.temporal.layers=1',
      'backbone.context=16',
      'reasoner.events=8',
      'reasoner.role_events=4',
      'reasoner.candidates=2',
      'reasoner.intents=1',
      'semantic_ids.levels=2',
      'loop_stage.batch=32',
      'mesh.data=2',
      'mesh.fsdp=4',
      'mesh.tensor=2',
    ],
  )
  mesh = sharding.make_mesh(config.mesh, topology.devices(topology.parse('tpu:v5e:4x4')))
  text = programs.lower_step(config, mesh, items=3000).compile().as_text()
  with open(path, 'w') as file:
    file.write(text)


if __name__ == '__main__':
  main(sys.argv[1])
