"""The real programs of a config, lowered for devices that may only compile: the joint train step and the decode program.

Shapes come from the config, never from data: B = the stage's batch, and a catalogue of `items` items.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.batches import Examples, Excites, Trajectories
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import WORD, Trie, default_capacity
from rolegen_jax.training import state, steps

PROGRAMS = ('step', 'recommend')


def examples_like(config: Config, users: int, mesh: Mesh) -> Examples:
  """ShapeDtypeStructs of a global batch of `users` cases. Raises ConfigError when the mesh does not divide it."""
  parts = (
    mesh.size if config.mesh.rollout == 'replicated' else mesh.shape['data'] * mesh.shape['fsdp']
  )
  if users % parts:
    raise ConfigError(
      f'batch={users}: must be a multiple of the {parts} devices that it is spread over (mesh {dict(mesh.shape)})'
    )
  table = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(
    (users, *shape), dtype, sharding=sharding.sharding(mesh, 'batch')
  )
  n, r = config.backbone.context, config.reasoner
  history = Trajectories(*(table(n) for _ in Trajectories._fields))
  about = lambda kept, shares: (
    table(n, kept),
    *(table(n, kept, dtype=jnp.float32) for _ in range(shares)),
  )
  excites = Excites(*about(r.coarse_codes, 2), *about(r.transitions, 1))
  return Examples(history, table(), excites, table(), table(r.role_events), table(r.candidates))


def trie_like(config: Config, items: int, mesh: Mesh) -> Trie:
  """The tables of a catalogue with place for `items` items, replicated; the capacities of `build_trie`."""
  levels, codes = config.semantic_ids.levels, config.semantic_ids.codes
  if items > codes**levels:
    raise ConfigError(
      f'semantic_ids.levels={levels}, codes={codes}: {codes**levels} IDs for {items} items; more levels or codes are needed'
    )
  capacity = default_capacity(items)
  nodes = [min(codes**level, capacity) for level in range(levels + 1)]
  like = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.sharding(mesh))
  return Trie(
    tuple(like((c + 1,), np.int32) for c in nodes[:-1]),
    tuple(like((c, -(-codes // WORD)), np.uint32) for c in nodes[:-1]),
    like((nodes[-1],), np.int32),
    like((capacity, levels), np.int32),
    codes,
  )


def lower_step(config: Config, mesh: Mesh, items: int):
  """`training.step.joint_train_step` as `training/fit.py` jits it: donated state, output shardings given."""
  rolegen = RoleGen(config)
  model_fns, optimizers = steps.joint_parts(rolegen)
  switches = steps.Switches(
    *(jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.bool_, jnp.float32))
  )
  with jax.set_mesh(mesh):
    shardings = state.shardings(model_fns, optimizers, mesh)
    jitted = jax.jit(
      functools.partial(steps.joint_train_step, rolegen, optimizers),
      donate_argnums=0,
      out_shardings=(shardings, None),
    )
    batch = examples_like(config, config.loop_stage.batch, mesh)
    frozen = state.abstract(rolegen.frozen, {}, mesh).params
    return jitted.lower(
      state.abstract(model_fns, optimizers, mesh),
      batch,
      trie_like(config, items, mesh),
      switches,
      frozen,
    )


def lower_recommend(config: Config, mesh: Mesh, items: int):
  """The decode program as `reasoning/predict.py` jits it: parameters, catalogue and a batch in, ranked items out."""
  rolegen = RoleGen(config)

  def recommend(params, trie, number, examples):
    key = jax.random.fold_in(jax.random.key(config.evaluation.seed), number)
    found = rolegen.recommend(params, examples, trie, key, config.backbone.beam)
    return found.ranking.item, found.ranking.score, found.rollout.candidates

  with jax.set_mesh(mesh):
    params = state.abstract(rolegen.model_fns, {}, mesh).params
    jitted = jax.jit(recommend, out_shardings=sharding.sharding(mesh))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return jitted.lower(
      params,
      trie_like(config, items, mesh),
      number,
      examples_like(config, config.evaluation.batch, mesh),
    )


def lower(program: str, config: Config, mesh: Mesh, items: int):
  return dict(step=lower_step, recommend=lower_recommend)[program](config, mesh, items)
