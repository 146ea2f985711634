"""The boundary between Flax modules and pure functions; no other file splits or merges modules.

A model is built once, as (graphdef, axes). From then on its parameters are a plain nested dict of
arrays, and `bind(graphdef, params)` returns the callable module inside a pure function.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx, traverse_util
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.runtime.compile import jit_once

ModelFn = Callable[[nnx.Rngs], nnx.Module]  # builds a model
Params = dict[str, Any]  # name -> array, or the Params of a submodule
Path = tuple[str, ...]  # the names that lead to a parameter


@dataclasses.dataclass(frozen=True)
class Part:
  """A model function that stands for some of its model's parameters: those whose path `holds`."""

  make_model: ModelFn
  holds: Callable[[Path], bool]

  def __call__(self, rngs: nnx.Rngs) -> nnx.Module:
    return self.make_model(rngs)


def part(make_model: ModelFn, params: Params, path: Path = ()) -> Params:
  """Return the parameters that `make_model` stands for: all of them, unless it is a Part."""
  if not isinstance(make_model, Part):
    return params
  chosen: Params = {}
  for name, value in params.items():
    if isinstance(value, dict):
      if inner := part(make_model, value, (*path, name)):
        chosen[name] = inner
    elif make_model.holds((*path, name)):
      chosen[name] = value
  return chosen


def join(params: Params, others: Params) -> Params:
  """Join the parameters of two disjoint parts of a model."""
  joined = dict(params)
  for name, other in others.items():
    joined[name] = join(params[name], other) if name in params else other
  return joined


def flatten(params: Params) -> dict[str, Any]:
  """Return the leaves of nested parameters by their dotted paths, such as 'experts.log_weight'."""
  return traverse_util.flatten_dict(params, sep='.')


def unflatten(leaves: dict[str, Any]) -> Params:
  """Return nested parameters from leaves by dotted path."""
  return traverse_util.unflatten_dict(leaves, sep='.')


@functools.lru_cache(maxsize=32)  # a run asks for each many times, and building takes a while
def abstract(make_model: ModelFn) -> tuple[nnx.GraphDef, Params, Params]:
  """Return a model's structure, shapes and logical axes without computing anything.

  Callers share the result and leave it as it is.

  Shapes are `jax.ShapeDtypeStruct`s and axes tuples of names, both in the structure of the
  parameters. Layers that `nnx.vmap` stacked have one more leading dimension than they declare: it
  is the axis `layers`. For a Part, the structure is that of the whole model.
  """
  graphdef, state = nnx.split(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))), nnx.Param)

  def axes_of(variable: nnx.Variable) -> tuple[str | None, ...]:
    shape, axes = variable.get_value().shape, tuple(variable.get_metadata()['axes'])
    return ('layers',) * (len(shape) - len(axes)) + axes

  variables = nnx.to_pure_dict(state, extract_fn=lambda variable: variable)
  axes = jax.tree.map(axes_of, variables, is_leaf=lambda x: isinstance(x, nnx.Variable))
  return graphdef, part(make_model, nnx.to_pure_dict(state)), part(make_model, axes)


def shardings(make_model: ModelFn, mesh: Mesh) -> Params:
  """Return the NamedShardings of a model's parameters, in their structure.

  Raises ConfigError naming an array that the mesh does not divide.
  """
  _, shapes, axes = abstract(make_model)

  def sharding_of(
    path: tuple[Any, ...], shape: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]
  ) -> jax.sharding.NamedSharding:
    sharding.check_divisible(jax.tree_util.keystr(path), shape.shape, axes, mesh)
    return sharding.sharding(mesh, *axes)

  return jax.tree_util.tree_map_with_path(
    sharding_of, shapes, axes, is_leaf=lambda x: hasattr(x, 'shape')
  )


def init(make_model: ModelFn, key: jax.Array, mesh: Mesh) -> tuple[nnx.GraphDef, Params]:
  """Return a model's structure and fresh fp32 parameters, born sharded."""
  graphdef, _, _ = abstract(make_model)

  def create(key: jax.Array) -> Params:
    _, state = nnx.split(make_model(nnx.Rngs(key)), nnx.Param)
    return part(make_model, nnx.to_pure_dict(state))

  with jax.set_mesh(mesh):
    return graphdef, jit_once(create, out_shardings=shardings(make_model, mesh))(key)


def held_but(module: nnx.Module, *names: str) -> Any:
  """Return the module with gradients to those of its own parameters alone that are named."""
  graphdef, state = nnx.split(module)
  params = nnx.to_pure_dict(state)
  held = {name: p if name in names else jax.lax.stop_gradient(p) for name, p in params.items()}
  return bind(graphdef, held)


def bind(graphdef: nnx.GraphDef, params: Params) -> Any:
  """Return the module over these parameters, for use inside pure functions; nothing is copied."""
  return nnx.merge(graphdef, nnx.State(params))


def with_leaves(params: Params, leaves: dict[str, Any]) -> Params:
  """Return nested parameters with some leaves replaced, by dotted path; each lies where it lay."""
  flat = flatten(params)
  placed = {name: jax.device_put(leaf, flat[name].sharding) for name, leaf in leaves.items()}
  return unflatten(flat | placed)
