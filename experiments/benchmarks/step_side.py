"""One side of step.py: runs THE step of an experiment on random cases, one for every line of its input, from the code that PYTHONPATH names.

  python step_side.py EXPERIMENT ITEMS [SECTION.FIELD=VALUE ...]

Prints JSON lines: first compile_seconds and temporaries (bytes), then the seconds and the loss of each step. It calls only what the code
before the changes has too.
"""

import functools
import importlib
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax import overrides, sharding
from rolegen_jax.compile import jit
from rolegen_jax.config import Config, MeshConfig
from rolegen_jax.data.rows import Cases, Excites, Trajectories
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import build_trie
from rolegen_jax.training import state as state_lib, step as step_lib

NOW = 1_400_000_000


def cases(config: Config, items: int) -> tuple[Cases, np.ndarray]:
  """Occasions of full histories, every part random, and the catalogue's codes [items, L]."""
  rng, s, r = np.random.default_rng(0), config.semantic_ids, config.reasoner
  b, n = config.loop_stage.batch, config.backbone.context
  ids = rng.choice(min(s.codes**s.levels, 2**20), items, replace=False)
  draw = lambda *shape, high: rng.integers(0, high, shape).astype(np.int32)
  time_s = (NOW - np.cumsum(rng.integers(1, 9000, (b, n)), axis=1)[:, ::-1]).astype(np.int32)
  history = Trajectories(draw(b, n, high=items), rng.choice([1, 3, 5], (b, n)).astype(np.int32), 1 + draw(b, n, high=3), time_s, np.ones((b, n), np.int32))
  shares = lambda kept, some: (rng.random((b, n, kept)).astype(np.float32) for _ in range(some))
  excites = Excites(draw(b, n, r.neighbourhoods, high=s.codes), *shares(r.neighbourhoods, 2), draw(b, n, r.successors, high=items), *shares(r.successors, 1))
  found = Cases(history, np.full(b, NOW, np.int32), excites, draw(b, high=items), draw(b, r.role_events, high=7), draw(b, r.candidates, high=items))
  return found, (ids[:, None] // s.codes ** np.arange(s.levels)[::-1] % s.codes).astype(np.int32)


def main(experiment: str, items: int, *assignments: str) -> None:
  name, _, arg = experiment.partition(':')
  config = overrides.apply(importlib.import_module(f'experiments.{name}').get_config(*[arg] * bool(arg)), list(assignments))
  rolegen, mesh = RoleGen(config), sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  batch, codes = cases(config, items)
  makers, txs = step_lib.loop_parts(rolegen)
  switches = step_lib.Switches(jnp.bool_(True), jnp.float32(1.0))
  with jax.set_mesh(mesh):
    state = state_lib.create(makers, txs, mesh, jax.random.key(0))
    step = jit(functools.partial(step_lib.loop_step, rolegen, txs), donate_argnums=0, out_shardings=(state_lib.shardings(makers, txs, mesh), None))
    arguments = jax.device_put((batch, build_trie(codes, config.semantic_ids.codes), switches), sharding.sharding(mesh))
    started = time.perf_counter()
    compiled = step.lower(state, *arguments).compile()
    say = lambda **found: print(json.dumps(found), flush=True)
    say(compile_seconds=time.perf_counter() - started, temporaries=compiled.memory_analysis().temp_size_in_bytes)
    for _ in sys.stdin:
      started = time.perf_counter()
      state, metrics = jax.block_until_ready(compiled(state, *arguments))
      say(seconds=time.perf_counter() - started, loss=float(metrics['loss']))


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
