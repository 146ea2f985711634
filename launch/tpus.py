"""TPU slices as Google Cloud names them: generation and topology -> chips, hosts, gcloud's flags, node labels."""

from __future__ import annotations

import dataclasses
import math
import re

from rolegen_jax.config import ConfigError

# Chips along each side: all slices of two dimensions, and those of three up to 64 chips.
SQUARES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4')
CHIPS_PER_HOST = 4  # of a slice of several hosts


@dataclasses.dataclass(frozen=True)
class Generation:
  type: str  # gcloud's --type, and the prefix of its --accelerator-type
  topologies: tuple[str, ...]
  most_chips: int  # of one slice
  largest_host: int  # chips; slices of up to so many have one host
  runtime: str  # software version of a TPU VM
  label: str  # node label cloud.google.com/gke-tpu-accelerator

  @property
  def three_dimensional(self) -> bool:
    return self.topologies is CUBES


# Sources: Cloud TPU docs, a page a generation ("TPU v5e" and so on: configurations, VM types), "TPU types and topologies", "TPU
# software versions"; GKE docs, "Plan TPUs in GKE" (accelerator labels, machine types). A host here is a VM, which runs one
# process: ct5lp-hightpu-4t, ct6e-standard-4t, ct5p-hightpu-4t and ct4p-hightpu-4t of 4 chips, and for a slice of 8 chips on its
# own ct5lp-hightpu-8t and ct6e-standard-8t. The 2 hosts that "TPU v5e" lists for a 4x4 are machines; each carries two such VMs.
GENERATIONS = {
    'v4': Generation('v4', CUBES, 4096, 4, 'tpu-ubuntu2204-base', 'tpu-v4-podslice'),
    'v5e': Generation('v5litepod', SQUARES, 256, 8, 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice'),
    'v5p': Generation('v5p', CUBES, 6144, 4, 'v2-alpha-tpuv5', 'tpu-v5p-slice'),
    'v6e': Generation('v6e', SQUARES, 256, 8, 'v2-alpha-tpuv6e', 'tpu-v6e-slice'),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  generation: Generation
  topology: str
  chips: int
  hosts: int

  @classmethod
  def of(cls, name: str, topology: str) -> Slice:
    """Raises ConfigError when the topology is none of this generation."""
    generation = GENERATIONS[name]
    sides = [int(side) for side in topology.split('x')] if re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', topology) else []
    chips = math.prod(sides)
    known, larger = topology in generation.topologies, ''
    if generation.three_dimensional:
      known |= len(sides) == 3 and sides == sorted(sides) and all(side % 4 == 0 for side in sides) and chips <= generation.most_chips
      larger = f', or three multiples of 4 in ascending order, {generation.most_chips} chips at most'
    if not known:
      raise ConfigError(f'--topology={topology}: must be one of {", ".join(generation.topologies)}{larger} for {name}')
    return cls(generation, topology, chips, 1 if chips <= generation.largest_host else chips // CHIPS_PER_HOST)

  @property
  def gcloud_flags(self) -> str:
    """By topology where an accelerator type does not tell it: v5p-1024 is 8x8x8, and 4x8x16 has as many chips."""
    if self.generation.three_dimensional:
      return f'--type={self.generation.type} --topology={self.topology}'
    return f'--accelerator-type={self.generation.type}-{self.chips}'

  @property
  def chips_per_host(self) -> int:
    return self.chips // self.hosts
