"""TPU slices as Google Cloud names them: generation and topology -> accelerator type, hosts, node labels."""

from __future__ import annotations

import dataclasses
import math
import re

from rolegen_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Generation:
  accelerator: str  # prefix of gcloud's --accelerator-type
  counts: int  # what the number after the prefix counts: 1 = chips, 2 = TensorCores, two a chip
  dimensions: int  # of a topology
  runtime: str  # software version of a TPU VM
  label: str  # node label cloud.google.com/gke-tpu-accelerator
  chips_per_host: int  # of a slice of several hosts
  one_host: tuple[int, ...]  # chips of slices that have one host


# Sources: Cloud TPU docs, "TPU versions" (a page a generation: configurations, host counts), "TPU software versions", and GKE
# docs "Plan TPUs in GKE" (accelerator labels, topologies).
GENERATIONS = {
    'v4': Generation('v4', 2, 3, 'tpu-ubuntu2204-base', 'tpu-v4-podslice', 4, (4,)),
    'v5e': Generation('v5litepod', 1, 2, 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', 4, (1, 4, 8)),
    'v5p': Generation('v5p', 2, 3, 'v2-alpha-tpuv5', 'tpu-v5p-slice', 4, (4,)),
    'v6e': Generation('v6e', 1, 2, 'v2-alpha-tpuv6e', 'tpu-v6e-slice', 4, (1, 4, 8)),
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
    example = 'x'.join('4' * generation.dimensions)
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', topology) or topology.count('x') + 1 != generation.dimensions:
      raise ConfigError(f'--topology={topology}: must be {generation.dimensions} numbers of chips for {name}, e.g. {example}')
    chips = math.prod(int(side) for side in topology.split('x'))
    if chips not in generation.one_host and chips % generation.chips_per_host:
      raise ConfigError(f'--topology={topology}: {chips} chips; must be a multiple of {generation.chips_per_host}, the chips of a host')
    return cls(generation, topology, chips, 1 if chips in generation.one_host else chips // generation.chips_per_host)

  @property
  def accelerator_type(self) -> str:
    """gcloud's, e.g. v5litepod-16 (chips) or v5p-32 (TensorCores)."""
    return f'{self.generation.accelerator}-{self.chips * self.generation.counts}'

  @property
  def chips_per_host(self) -> int:
    return self.chips // self.hosts
