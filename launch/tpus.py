"""TPU slices by Google Cloud's names: (generation, topology) -> chips, hosts, flags, labels."""

from __future__ import annotations

import dataclasses
import math
import re

from rolegen_jax.config import ConfigError

# Chips along each side: every two-dimensional slice, and the three-dimensional ones up to 64 chips.
TOPOLOGIES_2D = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
TOPOLOGIES_3D = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4')
CHIPS_PER_HOST = 4  # in a slice of several hosts


@dataclasses.dataclass(frozen=True)
class Generation:
  """One TPU generation as Google Cloud offers it."""

  type: str  # gcloud's --type, and the prefix of its --accelerator-type
  topologies: tuple[str, ...]
  max_chips: int  # in one slice
  max_chips_of_one_host: int  # a slice of up to this many chips has one host
  runtime: str  # software version of a TPU VM
  label: str  # node label cloud.google.com/gke-tpu-accelerator

  @property
  def three_dimensional(self) -> bool:
    return self.topologies is TOPOLOGIES_3D


# Sources: Cloud TPU docs, one page per generation ("TPU v5e" and so on: configurations, VM types),
# "TPU types and topologies" and "TPU software versions"; GKE docs, "Plan TPUs in GKE" (accelerator
# labels, machine types). A host here is a VM, which runs one process: ct5lp-hightpu-4t,
# ct6e-standard-4t, ct5p-hightpu-4t and ct4p-hightpu-4t have 4 chips; a slice of 8 chips on its own
# is one ct5lp-hightpu-8t or ct6e-standard-8t. The 2 hosts that "TPU v5e" lists for a 4x4 are
# physical machines; each carries two such VMs.
GENERATIONS = {
  'v4': Generation('v4', TOPOLOGIES_3D, 4096, 4, 'tpu-ubuntu2204-base', 'tpu-v4-podslice'),
  'v5e': Generation(
    'v5litepod', TOPOLOGIES_2D, 256, 8, 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice'
  ),
  'v5p': Generation('v5p', TOPOLOGIES_3D, 6144, 4, 'v2-alpha-tpuv5', 'tpu-v5p-slice'),
  'v6e': Generation('v6e', TOPOLOGIES_2D, 256, 8, 'v2-alpha-tpuv6e', 'tpu-v6e-slice'),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice of one generation: the chips that one job uses."""

  generation: Generation
  topology: str
  chips: int
  hosts: int

  @classmethod
  def of(cls, name: str, topology: str) -> Slice:
    """Return the slice; raise ConfigError when the generation does not offer the topology."""
    generation = GENERATIONS[name]
    is_product = re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', topology)
    sides = [int(side) for side in topology.split('x')] if is_product else []
    chips = math.prod(sides)
    offered = topology in generation.topologies
    larger = ''
    if generation.three_dimensional:
      offered |= _is_large_3d(sides) and chips <= generation.max_chips
      larger = f', or three multiples of 4 in ascending order, at most {generation.max_chips} chips'
    if not offered:
      known = ', '.join(generation.topologies)
      raise ConfigError(f'--topology={topology}: must be one of {known}{larger} for {name}')
    one_host = chips <= generation.max_chips_of_one_host
    return cls(generation, topology, chips, 1 if one_host else chips // CHIPS_PER_HOST)

  @property
  def gcloud_flags(self) -> str:
    """gcloud's flags that name this slice.

    In three dimensions the number of chips does not name it: v5p-1024 is 8x8x8, and 4x8x16 has as
    many chips.
    """
    if self.generation.three_dimensional:
      return f'--type={self.generation.type} --topology={self.topology}'
    return f'--accelerator-type={self.generation.type}-{self.chips}'

  @property
  def chips_per_host(self) -> int:
    return self.chips // self.hosts


def _is_large_3d(sides: list[int]) -> bool:
  multiples_of_4 = all(side % 4 == 0 for side in sides)
  return len(sides) == 3 and sides == sorted(sides) and multiples_of_4
