"""Compiles attention layers for four TPU v5e chips, on a host without any.

Prints for each setting of `attention` how many Pallas kernels the program holds.
"""

import jax
import jax.numpy as jnp

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig, TransformerConfig
from rolegen_jax.models import functional
from rolegen_jax.models.attention import causal
from rolegen_jax.models.transformer import Transformer
from rolegen_jax.perf.aot import topology


def count_kernels(attention: str, mesh: jax.sharding.Mesh) -> int:
  config = TransformerConfig(
    layers=2,
    width=128,
    heads=4,
    kv_heads=2,
    head_dim=128,
    mlp=256,
    dtype='bfloat16',
    remat='full',
    attention=attention,
  )

  def model_fn(rngs):
    return Transformer(config, rngs=rngs)

  graphdef, shapes, _ = functional.abstract(model_fn)
  params = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    functional.shardings(model_fn, mesh),
  )
  batch = sharding.sharding(mesh, 'batch')
  x = jax.ShapeDtypeStruct((4, 150, 128), jnp.bfloat16, sharding=batch)
  segment = jax.ShapeDtypeStruct((4, 150), jnp.int32, sharding=batch)

  def loss(params, x, segment):
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    hidden = functional.bind(graphdef, params)(x, positions, causal(segment))
    return jnp.sum(hidden.astype(jnp.float32))

  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss)).lower(params, x, segment).compile()
  return compiled.as_text().count('custom_call_target="tpu_custom_call"')


def main() -> None:
  topology.prepare()
  jax.config.update('jax_optimization_level', 'O0')
  devices = topology.devices(topology.parse('tpu:v5e:2x2'))
  mesh = sharding.make_mesh(MeshConfig(1, 2, 2), devices)
  for attention in ('auto', 'xla'):
    print(attention, count_kernels(attention, mesh))


if __name__ == '__main__':
  main()
