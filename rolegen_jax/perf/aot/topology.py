"""Devices that only compile: TPU slices and GPU clusters by name, on a host that has none of them.

`tpu:v5e:4x4`, `tpu:v6e:16x16:slices=2`, `gpu:h100:8x8` (hosts x GPUs per host). Sources:
jax.experimental.topologies; for GPUs without a GPU, openxla/xla pull request 16913 (topology and
target_config as options of the plugin).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from importlib import metadata
from types import ModuleType
from typing import Any

from rolegen_jax.config import ConfigError, MeshConfig
from rolegen_jax.perf import hardware

# Nothing runs on these chips, so no metadata server is asked and other processes may hold the
# library.
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
  'TF_CPP_MIN_LOG_LEVEL': '2',
}

# Text-format GpuTargetConfigProto. Values of the CUDA programming guide's table for compute
# capabilities 8.0 and 9.0.
_GPU = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} minor: 0 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""
_HOPPER: dict[str, Any] = dict(
  shared=233472, cores=132, fpus=128, l2=52428800, clock=1.98, optin=232448, major=9
)
_GPUS: dict[str, dict[str, Any]] = {
  'h100': _HOPPER | dict(name='NVIDIA H100 80GB HBM3'),
  'h200': _HOPPER | dict(name='NVIDIA H200'),
  'a100': dict(
    shared=167936,
    cores=108,
    fpus=64,
    l2=41943040,
    clock=1.41,
    optin=166912,
    major=8,
    name='NVIDIA A100-SXM4-80GB',
  ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips and how they are connected."""

  text: str
  chip: hardware.Chip
  shape: tuple[int, ...]  # chips along each dimension of a slice; hosts, GPUs per host
  slices: int = 1

  @property
  def chips(self) -> int:
    """The number of chips of all slices."""
    return math.prod(self.shape) * self.slices

  @property
  def domain(self) -> int:
    """Devices that reach each other over ICI or NVLink: a slice, a host of GPUs."""
    if self.chip.platform == 'gpu':
      return self.shape[-1]
    return math.prod(self.shape) * self.chip.devices


def parse(text: str) -> Topology:
  """Return the topology of this name. Raises ConfigError that says what one looks like."""
  match = re.fullmatch(r'(tpu|gpu):(\w+):([1-9]\d*(?:x[1-9]\d*)*)(?::slices=([1-9]\d*))?', text)
  right = (
    'must be like tpu:v5e:4x4, tpu:v5p:8x16x16, tpu:v6e:16x16:slices=2 or gpu:h100:8x8 '
    '(hosts x GPUs of a host)'
  )
  if not match:
    raise ConfigError(f'--topology={text}: {right}')
  platform, name, dimensions, slices = match.groups()
  chip, shape = hardware.chip(name), tuple(map(int, dimensions.split('x')))
  if chip.platform != platform:
    raise ConfigError(f'--topology={text}: {name} is a {chip.platform}')
  if platform == 'gpu' and (len(shape) != 2 or slices):
    raise ConfigError(f'--topology={text}: {right}')
  return Topology(text, chip, shape, int(slices or 1))


def prepare() -> None:
  """Have this process compute on the CPU only, so that no plugin looks for its chips.

  To be called before the first device is asked for.
  """
  os.environ |= ENVIRONMENT
  import jax

  # Where jax was imported before, it no longer reads the environment.
  jax.config.update('jax_platforms', 'cpu')


def devices(topology: Topology) -> list[Any]:
  """Return the devices to build a mesh of.

  Raises ConfigError where the compiler for them is missing or knows no such slice.
  """
  from jax.experimental import topologies

  try:
    if topology.chip.platform == 'tpu':
      return _tpu(topology, topologies)
    return _gpu(topology, topologies)
  except (RuntimeError, NotImplementedError) as error:
    # The plugin refuses the name or the shape, or did not load.
    raise ConfigError(
      f'--topology={topology.text}: the compiler knows no such topology: {str(error)[:300]}'
    ) from error


def lies(devices: list[Any], config: MeshConfig) -> bool:
  """Return whether a mesh of this shape has a place on these devices."""
  from rolegen_jax import sharding

  try:
    return bool(sharding.make_mesh(config, devices))
  except ConfigError:
    return False


def compiler(topology: Topology) -> str:
  """Return name and version of the package that compiles for these chips.

  To be called after `devices`.
  """
  names = (
    ('libtpu',) if topology.chip.platform == 'tpu' else ('jax-cuda12-plugin', 'jax-cuda13-plugin')
  )
  known = {d.name: d.version for d in metadata.distributions()}
  return ', '.join(f'{name} {known[name]}' for name in names if name in known)


def _tpu(topology: Topology, topologies: ModuleType) -> list[Any]:
  if importlib.util.find_spec('libtpu') is None:
    raise ConfigError(
      f'--topology={topology.text}: needs the TPU compiler: pip install "jax[tpu]" of this jax, '
      'or requirements-test.txt'
    )
  shape = topology.shape
  name = f'{topology.chip.name}:{"x".join(map(str, shape))}'
  options = {}
  if topology.slices > 1:
    options['num_slices'] = topology.slices
  return topologies.get_topology_desc(platform='tpu', topology_name=name, **options).devices


def _gpu(topology: Topology, topologies: ModuleType) -> list[Any]:
  if not any(importlib.util.find_spec(f'jax_cuda{v}_plugin') for v in (12, 13)):
    raise ConfigError(
      f'--topology={topology.text}: needs the GPU compiler: pip install -r requirements-gpu.txt'
    )
  chip = topology.chip
  target = _GPU.format(**_GPUS[chip.name], bandwidth=int(chip.hbm_bandwidth), memory=int(chip.hbm))
  hosts, gpus = topology.shape
  return topologies.get_topology_desc(
    chip.name, platform='cuda', topology=f'1x{hosts}x{gpus}', target_config=target
  ).devices
