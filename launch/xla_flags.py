"""XLA and libtpu flags, each with its reason and source. `--xla_flags=name,name` turns them on.

All are off by default. A flag that helps one model can slow down another: turn on one, measure,
then decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rolegen_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Flag:
  """One flag, and why one would turn it on."""

  text: str
  variable: str  # XLA_FLAGS, or LIBTPU_INIT_ARGS for flags that only libtpu knows
  platforms: tuple[str, ...]
  reason: str
  source: str


_GPU_TIPS = 'JAX docs, "GPU performance tips"'
_TPU_FLAGS = 'MaxText, benchmarks/xla_flags_library.py'
_GPU, _TPU, _ALL = ('gpu',), ('tpu',), ('cpu', 'gpu', 'tpu')

FLAGS = {
  'gpu_latency_hiding': Flag(
    '--xla_gpu_enable_latency_hiding_scheduler=true',
    'XLA_FLAGS',
    _GPU,
    'starts the FSDP all-gathers of the next layer while this one computes',
    _GPU_TIPS,
  ),
  'gpu_triton_gemm': Flag(
    '--xla_gpu_triton_gemm_any=true',
    'XLA_FLAGS',
    _GPU,
    'lets Triton take any matrix product, not only those that cuBLAS is slow at; the small heads '
    'of these models may gain',
    _GPU_TIPS,
  ),
  'gpu_no_command_buffer': Flag(
    '--xla_gpu_enable_command_buffer=',
    'XLA_FLAGS',
    _GPU,
    'disables CUDA graphs, so that a hang or a fault names its kernel; for debugging only',
    _GPU_TIPS,
  ),
  'tpu_latency_hiding': Flag(
    '--xla_tpu_enable_latency_hiding_scheduler=true',
    'LIBTPU_INIT_ARGS',
    _TPU,
    'overlaps the collectives of FSDP with compute',
    _TPU_FLAGS,
  ),
  'tpu_async_all_gather': Flag(
    '--xla_enable_async_all_gather=true',
    'LIBTPU_INIT_ARGS',
    _TPU,
    'gathers the parameters of the next layer in the background; needs memory for two layers',
    _TPU_FLAGS,
  ),
  'tpu_async_collective_fusion': Flag(
    '--xla_tpu_enable_async_collective_fusion=true',
    'LIBTPU_INIT_ARGS',
    _TPU,
    'runs the steps of a collective inside neighboring compute',
    _TPU_FLAGS,
  ),
  'tpu_scoped_vmem_96m': Flag(
    '--xla_tpu_scoped_vmem_limit_kib=98304',
    'LIBTPU_INIT_ARGS',
    _TPU,
    'lets fusions use more vector memory, of which v6e has twice as much as v5e',
    _TPU_FLAGS,
  ),
  'dump': Flag(
    '--xla_dump_to=xla_dump',
    'XLA_FLAGS',
    _ALL,
    'writes every compiled program to xla_dump/ in the working directory',
    'XLA docs, "XLA tooling"',
  ),
}


def environment(names: Sequence[str], current: Mapping[str, str]) -> dict[str, str]:
  """Return the variables that turn on the named flags, after what `current` already sets.

  Raises ConfigError on an unknown name.
  """
  variables: dict[str, str] = {}
  for name in names:
    if name not in FLAGS:
      raise ConfigError(f'--xla_flags={name}: must be among {", ".join(FLAGS)}')
    flag = FLAGS[name]
    value = variables.get(flag.variable, current.get(flag.variable, ''))
    variables[flag.variable] = f'{value} {flag.text}'.strip()
  return variables
