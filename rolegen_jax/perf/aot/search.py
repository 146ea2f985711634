"""Mesh shapes and remat policies for a chip count: which to compile, in an order that tries the promising first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from rolegen_jax.config import Config, MeshConfig
from rolegen_jax.perf.aot.topology import Topology
from rolegen_jax.perf.flops import parameters


def _divisors(n: int, limit: int) -> list[int]:
  return [d for d in range(1, limit + 1) if n % d == 0]


def meshes(config: Config, topology: Topology) -> list[MeshConfig]:
  """Meshes that divide chips, heads and batch: tensor inside one fast domain, all ways to split the rest into data x fsdp by powers of two."""
  devices = topology.chips * topology.chip.devices
  models = (config.reasoner.transformer, config.backbone.temporal)
  found = []
  for tensor in _divisors(devices, min(8, topology.domain)):
    if any(t.kv_heads % tensor or t.mlp % tensor for t in models):
      continue
    rest, data = devices // tensor, 1
    while data <= rest and rest % data == 0:
      fsdp = rest // data
      if all(t.width % fsdp == 0 for t in models):
        for rollout in ('replicated', 'tensor') if tensor > 1 else ('replicated',):
          parts = devices if rollout == 'replicated' else rest
          if config.loop_stage.batch % parts == 0 and config.evaluation.batch % parts == 0:
            found.append(MeshConfig(data, fsdp, tensor, rollout))
      data *= 2
  return found


def resident(config: Config, mesh: MeshConfig) -> float:
  """Bytes a device certainly holds at once: the training state, and the reasoner's weights while decoding."""
  count = parameters(config)
  size = 2 if config.reasoner.transformer.dtype == 'bfloat16' else 4
  state = (12 * count['backbone'] + 16 * count['reasoner']) / (mesh.fsdp * mesh.tensor)
  return state + size * count['reasoner'] / (mesh.tensor if mesh.rollout == 'tensor' else 1)


def candidates(
  config: Config, topology: Topology, lies: Callable[[MeshConfig], bool] = lambda mesh: True
) -> Iterator[Config]:
  """Configs to compile, least rematerialisation first. Left out: meshes that do not lie on the chips' torus (`topology.lies`), and
  those whose state and decoding weights alone exceed the memory."""
  hbm = topology.chip.hbm / topology.chip.devices
  possible = [m for m in meshes(config, topology) if resident(config, m) < hbm and lies(m)]
  for mesh in sorted(possible, key=lambda m: (m.tensor, -m.fsdp)):
    for remat in ('none', 'dots', 'full'):
      stack = lambda t: dataclasses.replace(t, remat=remat)
      yield dataclasses.replace(
        config,
        mesh=mesh,
        reasoner=dataclasses.replace(
          config.reasoner, transformer=stack(config.reasoner.transformer)
        ),
        backbone=dataclasses.replace(config.backbone, temporal=stack(config.backbone.temporal)),
      )
