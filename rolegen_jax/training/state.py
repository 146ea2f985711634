"""The state of a training stage, born sharded: optimizer moments lie where their parameters lie.

`jit(tx.init)` alone would replicate the moments and make step 2 compile again. So their shardings
are derived from those of the parameters and given to every jit, in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rolegen_jax.config import OptimizerConfig
from rolegen_jax.models import functional
from rolegen_jax.models.intent import EQUATIONS
from rolegen_jax.runtime.compile import jit_once

ModelFns = dict[str, Callable]
Optimizers = dict[str, optax.GradientTransformation]


class State(NamedTuple):
  """What a training step reads and writes."""

  step: Any  # int32 [] array; in trees of shapes or shardings, that of it
  # uint32 [2], data of the key that all noise of the stage comes from. It is an argument of the
  # step, so that seeds share a compiled program.
  rng: Any
  params: dict[str, Any]  # per model
  opt: dict[str, Any]  # per trained model

  def key(self) -> jax.Array:
    """Return the random key of this step."""
    return jax.random.fold_in(jax.random.wrap_key_data(self.rng), self.step)


def optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """Return AdamW with global-norm clipping, linear warmup and cosine decay; matrices decay.

  The scalars of the structural equations have a learning rate of their own: a step of Adam is as
  long for a log-gain, which has far to go, as for one of a matrix's many entries.
  """
  warmup_steps = min(config.warmup_steps, max(steps // 4, 1))
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.learning_rate,
    warmup_steps=warmup_steps,
    decay_steps=max(steps, warmup_steps + 1),
    end_value=config.final_share * config.learning_rate,
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(schedule, b2=config.b2, weight_decay=config.weight_decay, mask=_is_matrix),
    optax.masked(optax.scale(config.equation_lr_multiplier), _is_of_equations),
  )


def _is_matrix(params: Any) -> Any:
  # Kinds of users have a stage, and penalties, of their own.
  return jax.tree_util.tree_map_with_path(
    lambda path, p: p.ndim >= 2 and not any(part.key == 'kinds' for part in path), params
  )


def _is_of_equations(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key in EQUATIONS, params)


def shardings(model_fns: ModelFns, optimizers: Optimizers, mesh: Mesh) -> State:
  """Return the NamedShardings of a State.

  `model_fns` builds the models that the state holds; `optimizers` update those that train.
  """
  replicated = NamedSharding(mesh, P())
  params = {name: functional.shardings(fn, mesh) for name, fn in model_fns.items()}
  opt = {
    name: _optimizer_shardings(tx, functional.abstract(model_fns[name])[1], params[name], mesh)
    for name, tx in optimizers.items()
  }
  return State(replicated, replicated, params, opt)


def _optimizer_shardings(
  tx: optax.GradientTransformation, shapes: Any, params: Any, mesh: Mesh
) -> Any:
  """Return the shardings of an optimizer's state: moments as `params`, counters replicated."""
  replicated = NamedSharding(mesh, P())
  abstract_state = jax.eval_shape(tx.init, shapes)
  traced = []

  def trace() -> None:
    # tree_map_params runs `init` on placeholders. Traced, it also works on a mesh that only
    # compiles.
    traced.append(
      optax.tree_utils.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        abstract_state,
        params,
        transform_non_params=lambda _: replicated,
      )
    )

  jax.eval_shape(trace)
  return traced[0]


def create(
  model_fns: ModelFns,
  optimizers: Optimizers,
  mesh: Mesh,
  key: jax.Array,
  initial_params: dict[str, Any] | None = None,
  earlier_opt: dict[str, Any] | None = None,
) -> State:
  """Return a fresh state at step 0.

  Models in `initial_params` keep those parameters; the others are initialized from `key`, from
  which the noise of the steps comes too. Models in `earlier_opt`, states of their optimizers, keep
  Adam's moments of them, with their number of steps; the schedule begins anew.
  """
  initial_params, earlier_opt = initial_params or {}, earlier_opt or {}
  layout = shardings(model_fns, optimizers, mesh)
  params = {}
  for i, (name, model_fn) in enumerate(model_fns.items()):
    if name in initial_params:
      # A copy: the step donates its state, and the caller's parameters must survive it.
      copy = jit_once(_copied, out_shardings=layout.params[name])
      params[name] = copy(initial_params[name])
    else:
      params[name] = functional.init(model_fn, jax.random.fold_in(key, i), mesh)[1]
  opt = {
    name: jit_once(tx.init, out_shardings=layout.opt[name])(params[name])
    for name, tx in optimizers.items()
  }
  for name, earlier in earlier_opt.items():
    opt[name] = jit_once(_with_moments, out_shardings=layout.opt[name])(opt[name], earlier)
  step = jax.device_put(jnp.zeros((), jnp.int32), layout.step)
  rng = jax.device_put(jax.random.key_data(key), layout.rng)
  return State(step, rng, params, opt)


def _with_moments(opt: Any, earlier: Any) -> Any:
  """Return an optimizer's state with Adam's part of an earlier one."""
  is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
  return jax.tree.map(
    lambda now, then: _copied(then) if is_adam(now) else now, opt, earlier, is_leaf=is_adam
  )


def _copied(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, tree)


def abstract(model_fns: ModelFns, optimizers: Optimizers, mesh: Mesh) -> State:
  """Return ShapeDtypeStructs with shardings, for restoring and for compiling without data."""
  shapes = {name: functional.abstract(fn)[1] for name, fn in model_fns.items()}
  opt = {name: jax.eval_shape(tx.init, shapes[name]) for name, tx in optimizers.items()}
  rng = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
  state = State(jax.ShapeDtypeStruct((), jnp.int32), rng, shapes, opt)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings(model_fns, optimizers, mesh),
    is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct),
  )
