"""Compiles attention layers for four TPU v5e chips on a host without any; prints how many Pallas kernels each program holds."""

import jax
import jax.numpy as jnp

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig, TransformerConfig
from rolegen_jax.models import functional
from rolegen_jax.models.attention import causal
from rolegen_jax.models.transformer import Transformer
from rolegen_jax.perf.aot import topology


def main():
  topology.prepare()
  jax.config.update('jax_optimization_level', 'O0')
  mesh = sharding.make_mesh(MeshConfig(1, 2, 2), topology.devices(topology.parse('tpu:v5e:2x2')))
  for kernel in ('auto', 'xla'):
    config = TransformerConfig(
      layers=2,
      width=128,
      heads=4,
      kv_heads=2,
      head_dim=128,
      mlp=256,
      dtype='bfloat16',
      remat='full',
      attention=kernel,
    )
    make = lambda rngs: Transformer(config, rngs=rngs)
    graphdef, shapes, _ = functional.abstract(make)
    like = lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)
    params = jax.tree.map(like, shapes, functional.shardings(make, mesh))
    rows = lambda shape, dtype: jax.ShapeDtypeStruct(
      shape, dtype, sharding=sharding.sharding(mesh, 'batch')
    )

    def loss(params, x, segment):
      positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
      return jnp.sum(
        functional.bind(graphdef, params)(x, positions, causal(segment)).astype(jnp.float32)
      )

    with jax.set_mesh(mesh):
      compiled = (
        jax.jit(jax.grad(loss))
        .lower(params, rows((4, 150, 128), jnp.bfloat16), rows((4, 150), jnp.int32))
        .compile()
      )
    print(kernel, compiled.as_text().count('custom_call_target="tpu_custom_call"'))


if __name__ == '__main__':
  main()
