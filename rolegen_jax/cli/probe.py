"""What the devices of this host can do, for `launch.doctor`, which never imports jax: one JSON object on the last line of stdout.

python -m rolegen_jax probe
"""

from __future__ import annotations

import json
import time

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig

FLOATS = 1 << 20  # per device and collective: 4 MiB


def devices() -> dict:
  found = jax.local_devices()
  memory = (found[0].memory_stats() or {}).get('bytes_limit')
  return dict(
    platform=found[0].platform, kind=found[0].device_kind, count=len(found), memory_bytes=memory
  )


def collective(axis: str) -> dict:
  """A sum over all local devices laid along one mesh axis: whether it is right, and its milliseconds once compiled."""
  found = jax.local_devices()
  mesh = sharding.make_mesh(
    MeshConfig(**{a: len(found) if a == axis else 1 for a in sharding.MESH_AXES}), found
  )
  with jax.set_mesh(mesh):
    add = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, axis), in_specs=P(axis), out_specs=P()))
    ranks = jnp.repeat(jnp.arange(len(found), dtype=jnp.float32), FLOATS)
    total = jax.device_put(ranks, jax.NamedSharding(mesh, P(axis)))
    right = bool((add(total) == len(found) * (len(found) - 1) / 2).all())
    started = time.perf_counter()
    add(total).block_until_ready()
  return dict(
    axis=axis, devices=len(found), right=right, ms=round(1000 * (time.perf_counter() - started), 3)
  )


def main() -> None:
  print(
    json.dumps(
      dict(devices=devices(), collectives=[collective(axis) for axis in sharding.MESH_AXES])
    )
  )
