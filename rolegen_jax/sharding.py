"""The mesh, and the ONE table that says where every array lives.

Modules name logical axes only. A parameter declares them once (`nnx.Param(value, axes=('embed',
'mlp'))`), an activation through `constrain(x, 'batch', None, 'embed')`. The tables below are the
only place that knows mesh axes:

  data    replicas: batch only, parameters replicated over it; the axis that spans TPU slices
  fsdp    batch, and parameters sharded
  tensor  heads, MLP and vocabulary sharded

A logical axis means what the layout in force says. Training uses TRAIN. Decoding has layouts of
its own: with parameters left sharded over fsdp, XLA keeps all-gathers inside the decoding loop
(every token, every layer), so they are gathered once before it (`rollout_layout`), in the compute
type. Of the two ROLLOUTS, `replicated` holds parameters whole and shards the batch over all
devices: no collective in the loop. `tensor` leaves heads and MLP sharded over tensor: a device
holds and reads 1/tensor of the weights for each token, at the price of two all-reduces of
activations per layer and token. That is for models that do not fit whole beside the training state.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rolegen_jax.config import Config, ConfigError, MeshConfig

MESH_AXES = ('data', 'fsdp', 'tensor')

MeshAxes = str | tuple[str, ...] | None
Table = dict[str, MeshAxes]  # logical axis -> mesh axes

TRAIN: Table = {
  # parameters
  'layers': None,
  'embed': 'fsdp',  # the residual width of a weight
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_dim': None,
  'mlp': 'tensor',
  'rank': None,  # of a low-rank adapter
  'vocab': 'tensor',  # rows of the token table and of the readouts
  'items': ('fsdp', 'tensor'),  # rows of the item table
  # activations
  'batch': ('data', 'fsdp'),
  'rows': MESH_AXES,  # rows of a plain data matrix (k-means, embeddings)
}
ROLLOUTS: dict[str, Table] = {
  'replicated': dict.fromkeys(TRAIN) | {'batch': MESH_AXES, 'rows': MESH_AXES, 'items': MESH_AXES},
  'tensor': TRAIN | {'embed': None, 'vocab': None, 'items': MESH_AXES},
}
_in_force = contextvars.ContextVar('layout', default=TRAIN)


@contextlib.contextmanager
def layout(table: Table) -> Iterator[None]:
  """Make `constrain` read its axes from `table` while this is open, at tracing time."""
  token = _in_force.set(table)
  try:
    yield
  finally:
    _in_force.reset(token)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Return the mesh of axes (data, fsdp, tensor) over `devices`, by default all of all processes.

  Slices of a TPU job lie along `data`: what crosses the data-center network between them is, above
  all, the sum of gradients once a step. Raises ConfigError when the devices do not divide so.
  """
  devices = jax.devices() if devices is None else devices
  sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if -1 in sizes.values():
    if len(devices) % fixed:
      raise ConfigError(f'mesh={sizes}: {len(devices)} devices cannot be divided by {fixed}')
    rest = len(devices) // fixed
    sizes = {axis: rest if size == -1 else size for axis, size in sizes.items()}
  needed = math.prod(sizes.values())
  if needed != len(devices):
    raise ConfigError(f'mesh={sizes}: needs {needed} devices, there are {len(devices)}')
  slices = _slices(devices)
  if sizes['data'] % slices:
    raise ConfigError(f'mesh={sizes}: data must be a multiple of {slices}, the slices of the job')
  types = (AxisType.Auto,) * 3
  try:
    if slices == 1:
      shape = tuple(sizes[axis] for axis in MESH_AXES)
      return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
    placed = mesh_utils.create_hybrid_device_mesh(
      (sizes['data'] // slices, sizes['fsdp'], sizes['tensor']),
      (slices, 1, 1),
      devices,
      # As jax.make_mesh does, which knows one slice only.
      allow_split_physical_axes=devices[0].device_kind in ('TPU v5 lite', 'TPU v5e'),
    )
    return Mesh(placed, MESH_AXES, axis_types=types)
  except NotImplementedError as error:
    # A TPU torus: JAX splits none of its dimensions between two axes.
    coordinates = zip(*(device.coords for device in devices))
    torus = ' x '.join(str(1 + max(axis)) for axis in coordinates)
    raise ConfigError(
      f'mesh={sizes}: has no place on a torus of {torus}; each axis must be a product of some of '
      'its dimensions, used once'
    ) from error


def _slices(devices: Sequence[jax.Device]) -> int:
  """Return the number of TPU slices; what else calls itself a slice, a host of GPUs, is none."""
  return len({getattr(d, 'slice_index', 0) if d.platform == 'tpu' else 0 for d in devices})


def spec(axes: Sequence[str | None], table: Table = TRAIN) -> P:
  """Return the PartitionSpec of logical axes.

  Raises KeyError on an unknown axis, ValueError when two of them share a mesh axis.
  """
  entries = tuple(None if axis is None else table[axis] for axis in axes)
  used = [mesh_axis for entry in entries for mesh_axis in _as_tuple(entry)]
  if len(used) != len(set(used)):
    raise ValueError(f'logical axes {axes} put one mesh axis on two dimensions: {entries}')
  return P(*entries)


def _as_tuple(entry: MeshAxes) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else entry or ()


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
  """Return the NamedSharding of logical axes; without any, replicated."""
  return NamedSharding(mesh, spec(axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Pin the layout of an activation under the mesh set by `jax.set_mesh`.

  Plain single-device use has no mesh and no layout.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes, _in_force.get()))


def item_shards() -> int:
  """Return over how many devices the layout in force spreads the item table."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = _as_tuple(_in_force.get()['items'])
  return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in axes)


def of_item_shards(function: Callable[[Any], Any], x: Any) -> Any:
  """Return `function` of arrays [P, ...] of all P parts of the items, each where it lies.

  XLA gathers what it cannot divide, `top_k` among it, even along axes that are only mapped over.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return function(x)
  parts = spec(('items',), _in_force.get())
  return jax.shard_map(function, in_specs=parts, out_specs=parts)(x)


def constrain_rows(tree: Any) -> Any:
  """Pin every array of a tree by its first axis, the batch."""
  return jax.tree.map(lambda x: constrain(x, 'batch', *(None,) * (x.ndim - 1)), tree)


def rollout_layout(params: Any, axes: Any, dtype: Any) -> Any:
  """Return parameters gathered once before a decoding loop, into the ROLLOUTS layout in force.

  What a layer casts to `dtype` before use, weights with an `embed` axis and adapters, is cast
  before it travels.
  """

  def gather(param: jax.Array, param_axes: Sequence[str | None]) -> jax.Array:
    is_cast = not {'embed', 'rank', 'items'}.isdisjoint(param_axes)
    return constrain(param.astype(dtype) if is_cast else param, *param_axes)

  return jax.tree.map(gather, params, axes)


def check_divisible(
  name: str, shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh
) -> None:
  """Raise ConfigError naming an array whose dimension its mesh axes do not divide."""
  for size, axis in zip(shape, axes):
    entry = None if axis is None else TRAIN[axis]
    parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in _as_tuple(entry))
    if size % parts:
      raise ConfigError(
        f'{name}: dimension {axis}={size} cannot be divided over {parts} devices of mesh axis '
        f'{entry}'
      )


def check_batch(name: str, batch: int, config: Config, mesh: Mesh) -> None:
  """Raise ConfigError naming a batch size that the mesh does not divide.

  What decodes lays its rows as `mesh.rollout` says.
  """
  tables = [TRAIN]
  if name in ('loop_stage.batch', 'evaluation.batch'):
    tables.append(ROLLOUTS[config.mesh.rollout])
  for table in tables:
    axes, parts = _as_tuple(table['batch']), batch_parts(mesh, table)
    if batch % parts:
      raise ConfigError(
        f'{name}={batch}: must be a multiple of {parts}, the devices of mesh axes '
        f'{" x ".join(axes)}'
      )


def batch_parts(mesh: Mesh, table: Table = TRAIN) -> int:
  """Return over how many devices a layout divides a batch."""
  return math.prod(mesh.shape[axis] for axis in _as_tuple(table['batch']))


def rows_here(mesh: Mesh, batch: int) -> np.ndarray:
  """Return the rows of a global batch that this process's devices hold, int [R], ascending.

  The mesh decides, not the number of the process: rows need not be contiguous, and where `tensor`
  reaches over processes these hold the same rows. Raises ConfigError when the mesh does not divide
  the batch.
  """
  parts = batch_parts(mesh)
  if batch % parts:
    names = ' x '.join(_as_tuple(TRAIN['batch']))
    raise ConfigError(
      f'batch={batch}: must be a multiple of {parts}, the devices of mesh axes {names}'
    )
  indices = sharding(mesh, 'batch').addressable_devices_indices_map((batch,)).values()
  held = [np.arange(batch)[index] for (index,) in filter(None, indices)]
  return np.unique(np.concatenate(held))


def global_batch(mesh: Mesh, local: np.ndarray, here: np.ndarray, batch: int) -> jax.Array:
  """Return the global array [batch, ...] whose rows `here` (`rows_here`) are `local` [R, ...].

  No row leaves its process.
  """
  row = np.full(batch, -1)
  row[here] = np.arange(len(here))

  def shard(index: Any) -> np.ndarray:
    return local[row[index[0]]]

  shape = (batch, *local.shape[1:])
  return jax.make_array_from_callback(shape, sharding(mesh, 'batch'), shard)
