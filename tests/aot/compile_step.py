"""Compiles THE step for 16 TPU v5e chips on a host without any, and writes the HLO: python -m tests.aot.compile_step FILE."""

import functools
import os
import sys

os.environ |= {
    'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-4', 'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',  # nothing runs on a TPU: other processes may hold the library
}

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from rolegen_jax import overrides, sharding
from rolegen_jax.config import Config, MeshConfig
from rolegen_jax.data.rows import Cases, Excites, Trajectories
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import build_trie
from rolegen_jax.training import state, step

USERS, CATALOGUE = 32, 4096
MODEL = ('width=128', 'heads=8', 'kv_heads=4', 'mlp=384', 'dtype=bfloat16')


def main(path: str):
  jax.config.update('jax_optimization_level', 'O0')  # a quarter of the time; layouts are decided all the same
  models = [f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in MODEL]
  config = overrides.apply(Config(), models + [
      'backbone.temporal.layers=1', 'backbone.context=16', 'reasoner.events=8', 'reasoner.role_events=4', 'reasoner.candidates=2',
      'reasoner.intents=1', 'semantic_ids.levels=2',
  ])
  mesh = sharding.make_mesh(MeshConfig(2, 4, 2), topologies.get_topology_desc(platform='tpu', topology_name='v5e:4x4').devices)
  rolegen = RoleGen(config)
  like = lambda x, *axes: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.sharding(mesh, *axes))
  table = lambda *shape: like(np.zeros((USERS, *shape), np.int32), 'batch')
  c = config.reasoner
  history = Trajectories(*(table(config.backbone.context) for _ in Trajectories._fields))
  evidence = lambda dtype: like(np.zeros((USERS, config.backbone.context, c.neighbourhoods), dtype), 'batch')
  cases = Cases(history, table(), Excites(evidence(np.int32), evidence(np.float32)), table(), table(c.role_events), table(c.candidates))
  codes = np.arange(200)[:, None].repeat(config.semantic_ids.levels, axis=1)
  trie = jax.tree.map(like, build_trie(codes, config.semantic_ids.codes, CATALOGUE))
  txs = {name: state.optimizer(config.loop_stage.optimizer, 100) for name in ('backbone', 'reasoner')}
  makers = rolegen.makers | {'reference': rolegen.makers['reasoner']}
  switches = step.Switches(*(jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.bool_, jnp.float32)))
  with jax.set_mesh(mesh):
    shardings = state.shardings(makers, txs, mesh)
    jitted = jax.jit(functools.partial(step.loop_step, rolegen, txs), donate_argnums=0, out_shardings=(shardings, None))
    compiled = jitted.lower(state.abstract(makers, txs, mesh), cases, trie, switches).compile()
  with open(path, 'w') as file:
    file.write(compiled.as_text())


if __name__ == '__main__':
  main(sys.argv[1])
