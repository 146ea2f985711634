"""Compile a sum and a gather over the data axis of two TPU slices; print what goes where."""

import json

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from rolegen_jax import sharding
from rolegen_jax.config import ConfigError, MeshConfig
from rolegen_jax.perf.aot import check, topology

PLACE = topology.parse('tpu:v5e:2x4:slices=2')


def main() -> None:
  topology.prepare()
  devices = topology.devices(PLACE)
  mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=4), devices)
  slices = [sorted({device.slice_index for device in row.flat}) for row in mesh.devices]
  try:
    sharding.make_mesh(MeshConfig(data=1, fsdp=16), devices)
    refused = ''
  except ConfigError as error:
    refused = str(error)
  x = jax.ShapeDtypeStruct((4 * 64, 4 * 128), jnp.float32, sharding=_sharding(mesh))
  sent = {}
  for name, function in dict(sum=lax.psum, gather=lax.all_gather).items():
    over_data = jax.jit(
      jax.shard_map(
        lambda a, function=function: function(a, 'data'),
        mesh=mesh,
        in_specs=P('data', 'fsdp'),
        out_specs=P(None, 'fsdp') if name == 'sum' else P(None, None, 'fsdp'),
        check_vma=False,
      )
    )
    sent[name] = check.collectives(over_data.lower(x).compile(), PLACE)['phases']['other']
  print(json.dumps(dict(slices=slices, refused=refused, sent=sent)))


def _sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  return jax.sharding.NamedSharding(mesh, P('data', 'fsdp'))


if __name__ == '__main__':
  main()
