"""The real programs of a config, lowered for devices that may only compile.

They are the joint train step and the decode program. Shapes come from the config, never from data:
the batch is the stage's, the catalogue has `items` items.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.batches import Examples, Excites, Trajectories
from rolegen_jax.features.attributes import PER_ITEM
from rolegen_jax.features.trending import Trending
from rolegen_jax.perf.random_inputs import DAYS
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import WORD, Trie, default_capacity
from rolegen_jax.text.packing import Packed
from rolegen_jax.training import state, steps

PROGRAMS = ('step', 'recommend')


def lower(program: str, config: Config, mesh: Mesh, items: int) -> jax.stages.Lowered:
  """Return one of PROGRAMS lowered for a mesh."""
  lower_program = lower_step if program == 'step' else lower_recommend
  return lower_program(config, mesh, items)


def lower_step(config: Config, mesh: Mesh, items: int) -> jax.stages.Lowered:
  """Lower the joint train step as `training/fit.py` jits it.

  The state is donated, and output shardings are given.
  """
  rolegen = RoleGen(config, default_capacity(items))
  model_fns, optimizers = steps.joint_parts(rolegen)
  switches = steps.Switches(
    intervene=jax.ShapeDtypeStruct((), jnp.bool_), reflect=jax.ShapeDtypeStruct((), jnp.float32)
  )
  with jax.set_mesh(mesh):
    shardings = state.shardings(model_fns, optimizers, mesh)
    jitted = jax.jit(
      functools.partial(steps.joint_train_step, rolegen, optimizers),
      donate_argnums=0,
      out_shardings=(shardings, None),
    )
    return jitted.lower(
      state.abstract(model_fns, optimizers, mesh),
      examples_like(config, config.loop_stage.batch, mesh),
      trie_like(config, items, mesh),
      switches,
      state.abstract(rolegen.frozen, {}, mesh).params,
    )


def lower_recommend(config: Config, mesh: Mesh, items: int) -> jax.stages.Lowered:
  """Lower the decode program as `reasoning/predict.py` jits it.

  Parameters, catalogue and a batch go in, ranked items come out.
  """
  rolegen = RoleGen(config, default_capacity(items))

  def recommend(params: Any, trie: Trie, examples: Examples) -> Any:
    result = rolegen.recommend(params, examples, trie, config.backbone.beam)
    assert result.rollout is not None
    return result.ranking.item, result.ranking.score, result.rollout.candidates

  with jax.set_mesh(mesh):
    jitted = jax.jit(recommend, out_shardings=sharding.sharding(mesh))
    return jitted.lower(
      state.abstract(rolegen.model_fns, {}, mesh).params,
      trie_like(config, items, mesh),
      examples_like(config, config.evaluation.batch, mesh),
    )


def examples_like(config: Config, users: int, mesh: Mesh) -> Any:
  """Return an Examples of ShapeDtypeStructs, a global batch of `users`.

  Raises ConfigError when the mesh does not divide it.
  """
  replicated = config.mesh.rollout == 'replicated'
  parts = mesh.size if replicated else mesh.shape['data'] * mesh.shape['fsdp']
  if users % parts:
    raise ConfigError(
      f'batch={users}: must be a multiple of the {parts} devices that it is sharded over '
      f'(mesh {dict(mesh.shape)})'
    )
  rows = sharding.sharding(mesh, 'batch')

  def ints(*shape: int) -> Any:
    return jax.ShapeDtypeStruct((users, *shape), jnp.int32, sharding=rows)

  def floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct((users, *shape), jnp.float32, sharding=rows)

  n, reasoner = config.backbone.context, config.reasoner
  replay = config.text.replay if reasoner.text_pieces else 0
  codes, transitions = (n, reasoner.coarse_codes), (n, reasoner.transitions)
  excites = Excites(
    ints(*codes),
    floats(*codes),
    floats(*codes),
    ints(*transitions),
    floats(*transitions),
    ints(n, PER_ITEM) if reasoner.kinds else None,
  )
  return Examples(
    history=Trajectories(*(ints(n) for _ in Trajectories._fields)),
    timestamp=ints(),
    excites=excites,
    target=ints(),
    roles=ints(reasoner.role_events),
    path=ints(reasoner.candidates),
    words=Packed(*(ints(replay) for _ in Packed._fields)) if replay else None,
  )


def trie_like(config: Config, items: int, mesh: Mesh) -> Trie:
  """Return the tables of a catalogue with room for `items` items, replicated.

  Capacities are those of `build_trie`. Raises ConfigError when there are fewer IDs than items.
  """
  levels, codes = config.semantic_ids.levels, config.semantic_ids.codes
  if items > codes**levels:
    raise ConfigError(
      f'semantic_ids.levels={levels}, codes={codes}: {codes**levels} IDs for {items} items; '
      'more levels or codes are needed'
    )
  capacity = default_capacity(items)
  nodes = [min(codes**level, capacity) for level in range(levels + 1)]
  replicated = sharding.sharding(mesh)

  def like(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated)

  words, trending = -(-codes // WORD), None
  if 'trending' in config.backbone.experts:
    shape = DAYS, config.backbone.trending
    trending = Trending(like(shape[:1], np.int32), like(shape, np.int32), like(shape, np.float32))
  return Trie(
    tuple(like((count + 1,), np.int32) for count in nodes[:-1]),
    tuple(like((count, words), np.uint32) for count in nodes[:-1]),
    like((nodes[-1],), np.int32),
    like((capacity, levels), np.int32),
    like((capacity,), np.float32),
    None,
    codes,
    trending=trending,
  )
