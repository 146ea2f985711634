"""The boundary between Flax modules and pure functions; the only file of the models that splits and merges.

A model is built once as (graphdef, axes); from then on its parameters are a plain nested dict of arrays, and
`bind(graphdef, params)` gives the callable module back inside a pure function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.runtime.compile import jit


@dataclasses.dataclass(frozen=True)
class Part:
  """What builds a model of which only some parameters are meant: those of which `holds`, asked with their names, says yes."""

  make_model: Callable[[nnx.Rngs], nnx.Module]
  holds: Callable[[tuple[str, ...]], bool]

  def __call__(self, rngs: nnx.Rngs) -> nnx.Module:
    return self.make_model(rngs)


def part(make_model, params: dict, names: tuple[str, ...] = ()) -> dict:
  """Those of a model's parameters that `make_model` means: all, unless it is a Part."""
  if not isinstance(make_model, Part):
    return params
  found = {}
  for name, value in params.items():
    if isinstance(value, dict):
      value = part(make_model, value, (*names, name))
    if value if isinstance(value, dict) else make_model.holds((*names, name)):
      found[name] = value
  return found


def join(params: dict, others: dict) -> dict:
  """The parameters of two parts of a model."""
  return params | {
    n: join(params[n], other) if n in params else other for n, other in others.items()
  }


def abstract(make_model: Callable[[nnx.Rngs], nnx.Module]):
  """(graphdef, shapes, axes): the module's structure, its ShapeDtypeStructs and its logical axes, computing nothing.

  Of a Part, the structure is that of the whole model. Layers stacked by `nnx.vmap` have one more leading dimension than they
  declare: it is the `layers` axis.
  """
  graphdef, state = nnx.split(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))), nnx.Param)
  is_variable = lambda x: isinstance(x, nnx.Variable)

  def axes_of(variable):
    shape, axes = variable.get_value().shape, tuple(variable.get_metadata()['axes'])
    return ('layers',) * (len(shape) - len(axes)) + axes

  axes = jax.tree.map(axes_of, nnx.to_pure_dict(state, extract_fn=lambda v: v), is_leaf=is_variable)
  return graphdef, part(make_model, nnx.to_pure_dict(state)), part(make_model, axes)


def shardings(make_model, mesh: Mesh):
  """NamedShardings of the parameters, in their structure. Raises ConfigError naming an array that the mesh does not divide."""
  _, shapes, axes = abstract(make_model)

  def one(path, shape, ax):
    sharding.check_divisible(jax.tree_util.keystr(path), shape.shape, ax, mesh)
    return sharding.sharding(mesh, *ax)

  return jax.tree_util.tree_map_with_path(one, shapes, axes, is_leaf=lambda x: hasattr(x, 'shape'))


def init(make_model, key: jax.Array, mesh: Mesh):
  """(graphdef, params): parameters born sharded, fp32."""
  graphdef, _, _ = abstract(make_model)
  create = lambda key: part(
    make_model, nnx.to_pure_dict(nnx.split(make_model(nnx.Rngs(key)), nnx.Param)[1])
  )
  with jax.set_mesh(mesh):
    return graphdef, jit(create, out_shardings=shardings(make_model, mesh))(key)


def bind(graphdef, params) -> nnx.Module:
  """The module over these parameters. For use inside pure functions; nothing is copied."""
  return nnx.merge(graphdef, nnx.State(params))
