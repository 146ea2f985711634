"""The boundary between Flax modules and pure functions; the only file of the models that splits and merges.

A model is built once as (graphdef, axes); from then on its parameters are a plain nested dict of arrays, and
`bind(graphdef, params)` gives the callable module back inside a pure function.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.compile import jit


def abstract(make_model: Callable[[nnx.Rngs], nnx.Module]):
  """(graphdef, shapes, axes): the module's structure, its ShapeDtypeStructs and its logical axes, computing nothing.

  Layers stacked by `nnx.vmap` have one more leading dimension than they declare: it is the `layers` axis.
  """
  graphdef, state = nnx.split(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))), nnx.Param)
  is_variable = lambda x: isinstance(x, nnx.Variable)

  def axes_of(variable):
    shape, axes = variable.get_value().shape, tuple(variable.get_metadata()['axes'])
    return ('layers',) * (len(shape) - len(axes)) + axes

  axes = jax.tree.map(axes_of, nnx.to_pure_dict(state, extract_fn=lambda v: v), is_leaf=is_variable)
  return graphdef, nnx.to_pure_dict(state), axes


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
  create = lambda key: nnx.to_pure_dict(nnx.split(make_model(nnx.Rngs(key)), nnx.Param)[1])
  with jax.set_mesh(mesh):
    return graphdef, jit(create, out_shardings=shardings(make_model, mesh))(key)


def bind(graphdef, params) -> nnx.Module:
  """The module over these parameters. For use inside pure functions; nothing is copied."""
  return nnx.merge(graphdef, nnx.State(params))
