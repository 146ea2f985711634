"""XLA and libtpu flags, each with its reason and source. All are off unless chosen by name: `--xla_flags=name,name`.

A flag that helps one model can hurt another: choose one, measure, keep it or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rolegen_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Flag:
  text: str
  variable: str  # XLA_FLAGS, or LIBTPU_INIT_ARGS for flags that only libtpu knows
  platforms: tuple[str, ...]
  reason: str
  source: str


_GPU_TIPS = 'JAX docs, "GPU performance tips"'
_TPU_FLAGS = 'MaxText, benchmarks/xla_flags_library.py'

FLAGS = {
    'gpu_latency_hiding': Flag(
        '--xla_gpu_enable_latency_hiding_scheduler=true', 'XLA_FLAGS', ('gpu',),
        'FSDP all-gathers of the next layer start while this one computes', _GPU_TIPS),
    'gpu_triton_gemm': Flag(
        '--xla_gpu_triton_gemm_any=true', 'XLA_FLAGS', ('gpu',),
        'lets Triton take any matrix product, not only those that cuBLAS is bad at; the small heads here may gain', _GPU_TIPS),
    'gpu_no_command_buffer': Flag(
        '--xla_gpu_enable_command_buffer=', 'XLA_FLAGS', ('gpu',),
        'no CUDA graphs: a hang or a fault then names the kernel; for looking for errors only', _GPU_TIPS),
    'tpu_latency_hiding': Flag(
        '--xla_tpu_enable_latency_hiding_scheduler=true', 'LIBTPU_INIT_ARGS', ('tpu',),
        'overlaps collectives of FSDP with compute', _TPU_FLAGS),
    'tpu_async_all_gather': Flag(
        '--xla_enable_async_all_gather=true', 'LIBTPU_INIT_ARGS', ('tpu',),
        'parameters of the next layer are gathered in the background; needs memory for two layers', _TPU_FLAGS),
    'tpu_async_collective_fusion': Flag(
        '--xla_tpu_enable_async_collective_fusion=true', 'LIBTPU_INIT_ARGS', ('tpu',),
        'runs the steps of a collective inside neighbouring compute', _TPU_FLAGS),
    'tpu_scoped_vmem_96m': Flag(
        '--xla_tpu_scoped_vmem_limit_kib=98304', 'LIBTPU_INIT_ARGS', ('tpu',),
        'v6e has twice the vector memory of v5e; fusions may use more of it', _TPU_FLAGS),
    'dump': Flag(
        '--xla_dump_to=xla_dump', 'XLA_FLAGS', ('cpu', 'gpu', 'tpu'),
        'writes every compiled program to xla_dump/ in the working directory, to be read', 'XLA docs, "XLA tooling"'),
}


def environment(names: list[str], current: Mapping[str, str]) -> dict[str, str]:
  """Variables to set for the chosen flags, what `current` holds kept in front. Raises ConfigError on an unknown name."""
  found: dict[str, str] = {}
  for name in names:
    if name not in FLAGS:
      raise ConfigError(f'--xla_flags={name}: must be some of {", ".join(FLAGS)}')
    flag = FLAGS[name]
    found[flag.variable] = f'{found.get(flag.variable, current.get(flag.variable, ""))} {flag.text}'.strip()
  return found
