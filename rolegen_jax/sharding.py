"""The mesh, and the ONE table that says where every array lives.

Modules name logical axes only. A parameter declares them once (`nnx.Param(value, axes=('embed', 'mlp'))`), an activation
through `constrain(x, 'batch', None, 'embed_act')`. The table below is the only place that knows mesh axes:

  data    replicas: batch only, parameters replicated over it
  fsdp    batch, and parameters sharded
  tensor  heads, MLP and vocabulary sharded

A name means what the layout in force says. TRAIN is the table. Decoding has its own: with parameters left sharded over fsdp, XLA
keeps all-gathers inside the decoding loop (every token, every layer), so they are gathered once before it (`rollout_layout`), in
the compute type. Of the two ROLLOUTS, `replicated` holds them whole and spreads the batch over all devices: no collective in the
loop. `tensor` leaves heads and MLP spread over tensor: a device holds and reads 1/tensor of the weights for each token, at the
price of two all-reduces of activations per layer and token. That is for models that do not fit whole beside the training state.
"""

from __future__ import annotations

import contextlib
import contextvars
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rolegen_jax.config import ConfigError, MeshConfig

MESH_AXES = ('data', 'fsdp', 'tensor')

TRAIN = {
  # parameters
  'layers': None,
  'embed': 'fsdp',  # the residual width of a weight
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_dim': None,
  'mlp': 'tensor',
  'rank': None,  # of a low-rank adapter
  'vocab': 'tensor',  # rows of the token table and of the readouts
  # activations
  'batch': ('data', 'fsdp'),
  'rows': MESH_AXES,  # rows of a plain data matrix (k-means, embeddings)
}
ROLLOUTS = {
  'replicated': dict.fromkeys(TRAIN) | {'batch': MESH_AXES, 'rows': MESH_AXES},
  'tensor': TRAIN | {'embed': None, 'vocab': None},
}
_in_force = contextvars.ContextVar('layout', default=TRAIN)


@contextlib.contextmanager
def layout(table: dict):
  """`constrain` reads its axes from `table` (TRAIN or one of ROLLOUTS) while this is open, at tracing time."""
  token = _in_force.set(table)
  try:
    yield
  finally:
    _in_force.reset(token)


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
  """Mesh of axes (data, fsdp, tensor) over `devices` (default: all of all processes). Raises ConfigError if it does not fit."""
  devices = jax.devices() if devices is None else devices
  sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
  known = math.prod(v for v in sizes.values() if v != -1)
  if -1 in sizes.values():
    if len(devices) % known:
      raise ConfigError(f'mesh={sizes}: {len(devices)} devices cannot be divided by {known}')
    sizes = {k: len(devices) // known if v == -1 else v for k, v in sizes.items()}
  if math.prod(sizes.values()) != len(devices):
    raise ConfigError(
      f'mesh={sizes}: needs {math.prod(sizes.values())} devices, there are {len(devices)}'
    )
  shape = tuple(sizes[a] for a in MESH_AXES)
  try:
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
  except (
    NotImplementedError
  ) as error:  # a TPU torus: JAX splits none of its dimensions between two axes
    torus = ' x '.join(str(1 + max(axis)) for axis in zip(*(d.coords for d in devices)))
    raise ConfigError(
      f'mesh={sizes}: has no place on a torus of {torus}; each axis must be a product of some of its dimensions, used once'
    ) from error


def spec(axes: tuple[str | None, ...], table: dict = TRAIN) -> P:
  """PartitionSpec of logical axes; an unknown name or one mesh axis used twice raises."""
  entries = tuple(None if a is None else table[a] for a in axes)
  flat = [m for e in entries for m in ((e,) if isinstance(e, str) else e or ())]
  if len(flat) != len(set(flat)):
    raise ValueError(f'logical axes {axes} put one mesh axis on two dimensions: {entries}')
  return P(*entries)


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
  return NamedSharding(mesh, spec(axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Pins the layout of an activation under the mesh set by `jax.set_mesh`; plain single-device use has no mesh and no layout."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes, _in_force.get()))


def constrain_rows(tree):
  """Pins every array of a tree by its first axis, the batch."""
  return jax.tree.map(lambda x: constrain(x, 'batch', *(None,) * (x.ndim - 1)), tree)


def rollout_layout(params, axes, dtype):
  """Parameters with their logical axes, gathered once before a decoding loop into the ROLLOUTS layout in force.

  What a layer casts to `dtype` before use, weights with an `embed` axis and adapters, is cast before it travels.
  """
  return jax.tree.map(
    lambda p, a: constrain(p.astype(dtype) if {'embed', 'rank'} & {*a} else p, *a), params, axes
  )


def check_divisible(
  name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh
) -> None:
  """Raises ConfigError naming the array whose dimension its mesh axes do not divide."""
  for size, axis in zip(shape, axes):
    entry = None if axis is None else TRAIN[axis]
    parts = math.prod(mesh.shape[m] for m in ((entry,) if isinstance(entry, str) else entry or ()))
    if size % parts:
      raise ConfigError(
        f'{name}: dimension {axis}={size} cannot be divided over {parts} devices of mesh axis {entry}'
      )


def rows_here(mesh: Mesh, batch: int) -> np.ndarray:
  """Places in a global batch whose rows this process's devices hold, int [R], ascending.

  The mesh decides, not the number of the process: places need not be in one piece, and where `tensor` reaches over processes
  these hold the same rows. Raises ConfigError when the mesh does not divide the batch.
  """
  parts = math.prod(mesh.shape[m] for m in TRAIN['batch'])
  if batch % parts:
    raise ConfigError(
      f'batch={batch}: must be a multiple of {parts}, the devices of mesh axes {" x ".join(TRAIN["batch"])}'
    )
  held = sharding(mesh, 'batch').addressable_devices_indices_map((batch,)).values()
  return np.unique(np.concatenate([np.arange(batch)[index] for (index,) in held]))


def global_batch(mesh: Mesh, local: np.ndarray, here: np.ndarray, batch: int) -> jax.Array:
  """Global array [batch, ...] of the rows `local` [R, ...] at the places `here` of it, `rows_here`. No row leaves its process."""
  row = np.full(batch, -1)
  row[here] = np.arange(len(here))
  return jax.make_array_from_callback(
    (batch, *local.shape[1:]), sharding(mesh, 'batch'), lambda index: local[row[index[0]]]
  )
