"""Print what the devices of this host can do, as one JSON object on the last line of stdout.

  rolegen probe

`launch.doctor`, which never imports jax, reads it.
"""

from __future__ import annotations

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig

FLOATS = 1 << 20  # per device and collective: 4 MiB


def main() -> None:
  """Probe the devices and print the result."""
  collectives = [collective(axis) for axis in sharding.MESH_AXES]
  print(json.dumps(dict(devices=devices(), collectives=collectives)))


def devices() -> dict:
  """Return platform, kind, count and memory of the local devices."""
  local = jax.local_devices()
  memory = (local[0].memory_stats() or {}).get('bytes_limit')
  return dict(
    platform=local[0].platform, kind=local[0].device_kind, count=len(local), memory_bytes=memory
  )


def collective(axis: str) -> dict:
  """Sum over all local devices along one mesh axis: is it right, and how many ms does it take."""
  local = jax.local_devices()
  n = len(local)
  sizes: dict[str, Any] = {a: n if a == axis else 1 for a in sharding.MESH_AXES}
  mesh = sharding.make_mesh(MeshConfig(**sizes), local)
  with jax.set_mesh(mesh):
    add = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, axis), in_specs=P(axis), out_specs=P()))
    ranks = jnp.repeat(jnp.arange(n, dtype=jnp.float32), FLOATS)
    total = jax.device_put(ranks, jax.NamedSharding(mesh, P(axis)))
    right = bool((add(total) == n * (n - 1) / 2).all())  # compiles, too
    started = time.perf_counter()
    add(total).block_until_ready()
  ms = round(1000 * (time.perf_counter() - started), 3)
  return dict(axis=axis, devices=n, right=right, ms=ms)
