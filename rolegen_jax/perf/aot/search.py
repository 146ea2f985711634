"""Mesh shapes and remat policies for a chip count: which to compile, the promising ones first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from rolegen_jax.config import Config, MeshConfig
from rolegen_jax.perf.aot.advice import HasPlace, anywhere
from rolegen_jax.perf.aot.check import compute_bytes
from rolegen_jax.perf.aot.topology import Topology
from rolegen_jax.perf.flops import parameters


def candidates(
  config: Config, topology: Topology, room: int, has_place: HasPlace = anywhere
) -> Iterator[Config]:
  """Yield configs to compile, least rematerialization first.

  Left out are meshes that have no place on the chips' torus, and those whose state and decoding
  weights alone exceed the memory. room: items that the catalogue has room for.
  """
  hbm = topology.chip.hbm / topology.chip.devices
  possible = [
    m for m in meshes(config, topology) if resident(config, m, room) < hbm and has_place(m)
  ]
  for mesh in sorted(possible, key=lambda m: (m.tensor, -m.fsdp)):
    for remat in ('none', 'dots', 'full'):
      yield _with_remat(dataclasses.replace(config, mesh=mesh), remat)


def _with_remat(config: Config, remat: str) -> Config:
  reasoner = dataclasses.replace(config.reasoner.transformer, remat=remat)
  backbone = dataclasses.replace(config.backbone.temporal, remat=remat)
  return dataclasses.replace(
    config,
    reasoner=dataclasses.replace(config.reasoner, transformer=reasoner),
    backbone=dataclasses.replace(config.backbone, temporal=backbone),
  )


def meshes(config: Config, topology: Topology) -> list[MeshConfig]:
  """Return the meshes that divide chips, heads and batch.

  tensor stays inside one fast domain; the rest splits into data x fsdp by powers of two.
  """
  devices = topology.chips * topology.chip.devices
  stacks = (config.reasoner.transformer, config.backbone.temporal)
  possible = []
  for tensor in _divisors(devices, min(8, topology.domain)):
    if any(stack.kv_heads % tensor or stack.mlp % tensor for stack in stacks):
      continue
    rest = devices // tensor
    for data in _powers_of_two_that_divide(rest):
      fsdp = rest // data
      if any(stack.width % fsdp for stack in stacks):
        continue
      for rollout in ('replicated', 'tensor') if tensor > 1 else ('replicated',):
        parts = devices if rollout == 'replicated' else rest
        if config.loop_stage.batch % parts == 0 and config.evaluation.batch % parts == 0:
          possible.append(MeshConfig(data, fsdp, tensor, rollout))
  return possible


def _divisors(n: int, limit: int) -> list[int]:
  return [d for d in range(1, limit + 1) if n % d == 0]


def _powers_of_two_that_divide(n: int) -> list[int]:
  powers = [1]
  while powers[-1] * 2 <= n and n % (powers[-1] * 2) == 0:
    powers.append(powers[-1] * 2)
  return powers


def resident(config: Config, mesh: MeshConfig, room: int) -> float:
  """Return the bytes a device certainly holds at once.

  They are the training state, and the reasoner's weights while decoding.
  """
  count = parameters(config, room)
  state = (12 * count['backbone'] + 16 * count['reasoner']) / (mesh.fsdp * mesh.tensor)
  shards = mesh.tensor if mesh.rollout == 'tensor' else 1
  return state + compute_bytes(config.reasoner.transformer) * count['reasoner'] / shards
