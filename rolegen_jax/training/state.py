"""The state of a training stage, born sharded: optimizer moments lie where their parameters lie.

`jit(tx.init)` alone would replicate the moments and make step 2 compile again; so their shardings are derived from the
parameters' and given to every jit, in and out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rolegen_jax.config import OptimizerConfig
from rolegen_jax.models import functional
from rolegen_jax.runtime.compile import jit


class State(NamedTuple):
  step: jax.Array  # int32 []
  rng: jax.Array  # uint32 [2], data of the key that all noise of the stage comes from; an argument, so that seeds share a compiled program
  params: dict[str, Any]  # per model
  opt: dict[str, Any]  # per trained model

  def key(self) -> jax.Array:
    """Of this step."""
    return jax.random.fold_in(jax.random.wrap_key_data(self.rng), self.step)


def optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """AdamW with global-norm clipping, linear warmup and cosine decay; matrices decay, vectors do not.

  The scalars of the structural equations are paced: a step of Adam is as long for a log-gain, which has far to go, as for one of
  a matrix's many entries.
  """
  warmup = min(config.warmup_steps, max(steps // 4, 1))
  schedule = optax.warmup_cosine_decay_schedule(
    0.0,
    config.learning_rate,
    warmup,
    max(steps, warmup + 1),
    config.final_share * config.learning_rate,
  )
  decays = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)
  of_equations = lambda params: jax.tree_util.tree_map_with_path(
    lambda path, _: path[0].key == 'intent', params
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(schedule, b2=config.b2, weight_decay=config.weight_decay, mask=decays),
    optax.masked(optax.scale(config.equation_lr_multiplier), of_equations),
  )


def shardings(
  model_fns: dict, optimizers: dict[str, optax.GradientTransformation], mesh: Mesh
) -> State:
  """NamedShardings of a State. `makers` builds the models that the state holds, `txs` optimizes those that train."""
  replicated = NamedSharding(mesh, P())
  params = {name: functional.shardings(make, mesh) for name, make in model_fns.items()}

  def of_opt(name):
    shapes = functional.abstract(model_fns[name])[1]
    of_param = lambda _, sharding: sharding
    abstract = jax.eval_shape(optimizers[name].init, shapes)
    found = []

    def trace():  # tree_map_params runs `init` on placeholders: traced, so that it also works on a mesh that only compiles
      found.append(
        optax.tree_utils.tree_map_params(
          optimizers[name],
          of_param,
          abstract,
          params[name],
          transform_non_params=lambda _: replicated,
        )
      )

    jax.eval_shape(trace)
    return found[0]

  return State(replicated, replicated, params, {name: of_opt(name) for name in optimizers})


def create(
  model_fns: dict, optimizers: dict, mesh: Mesh, key: jax.Array, given: dict | None = None
) -> State:
  """A fresh state at step 0: models in `given` keep those parameters, the others are initialised from `key`, from which the steps' noise comes too."""
  given = given or {}
  layout = shardings(model_fns, optimizers, mesh)
  params = {}
  for i, (name, make) in enumerate(model_fns.items()):
    # A copy: the step donates its state, the caller's parameters must survive it.
    own = lambda tree, s: jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=s)(tree)
    params[name] = (
      own(given[name], layout.params[name])
      if name in given
      else functional.init(make, jax.random.fold_in(key, i), mesh)[1]
    )
  opt = {
    name: jit(tx.init, out_shardings=layout.opt[name])(params[name])
    for name, tx in optimizers.items()
  }
  return State(
    jax.device_put(jnp.zeros((), jnp.int32), layout.step),
    jax.device_put(jax.random.key_data(key), layout.rng),
    params,
    opt,
  )


def abstract(model_fns: dict, optimizers: dict, mesh: Mesh) -> State:
  """ShapeDtypeStructs with shardings, for restoring and for compiling without data."""
  shapes = {name: functional.abstract(make)[1] for name, make in model_fns.items()}
  opt = {name: jax.eval_shape(tx.init, shapes[name]) for name, tx in optimizers.items()}
  rng = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
  state = State(jax.ShapeDtypeStruct((), jnp.int32), rng, shapes, opt)
  attach = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(
    attach,
    state,
    shardings(model_fns, optimizers, mesh),
    is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct),
  )
