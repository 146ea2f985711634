"""What a chip can do at best: the vendors' numbers that roofs, utilisation and memory checks refer to. No jax here.

Peak is dense bfloat16. `link` is what a chip can SEND over all its ICI or NVLink links together: vendors quote both directions,
so it is half of that. `network` is a chip's share of its host's or pod's data-centre network, one way.
"""

from __future__ import annotations

import dataclasses

from rolegen_jax.config import ConfigError

TERA, GIGA, GIB = 1e12, 1e9, 2**30
GBIT = GIGA / 8


@dataclasses.dataclass(frozen=True)
class Chip:
  name: str
  platform: str  # tpu | gpu
  flops: float  # peak bf16 FLOP/s
  hbm: float  # bytes
  hbm_bandwidth: float  # bytes/s
  link: float  # bytes/s sent to chips of the same slice or NVLink domain
  network: float  # bytes/s sent to chips outside it
  devices: int  # JAX devices that it shows as; memory and peak are shared by them
  source: str


_TPU = 'docs.cloud.google.com/tpu/docs/'
_NVIDIA = 'NVIDIA data sheet, '
CHIPS = {
  c.name: c
  for c in (
    Chip(
      'v4',
      'tpu',
      275 * TERA,
      32 * GIB,
      1228 * GIGA,
      300 * GIGA,
      50 * GBIT,
      1,
      _TPU + 'v4: 275 TFLOPS, 32 GiB, 1228 GB/s; 6 links of 50 GB/s',
    ),
    Chip(
      'v5e',
      'tpu',
      197 * TERA,
      16 * GIB,
      819 * GIGA,
      200 * GIGA,
      25 * GBIT,
      1,
      _TPU + 'v5e: 197 TFLOPS, 16 GB, 819 GB/s, ICI 400 GB/s; 2 x 100 Gbit/s per 8-chip host',
    ),
    Chip(
      'v5p',
      'tpu',
      459 * TERA,
      95 * GIB,
      2765 * GIGA,
      600 * GIGA,
      50 * GBIT,
      1,
      _TPU + 'tpu7x (its comparison): 459 TFLOPS, 95 GiB, 2765 GB/s, ICI 1200 GB/s, DCN 50 Gbit/s',
    ),
    Chip(
      'v6e',
      'tpu',
      918 * TERA,
      32 * GIB,
      1638 * GIGA,
      400 * GIGA,
      100 * GBIT,
      1,
      _TPU + 'v6e: 918 TFLOPS, 32 GB, 1638 GB/s, ICI 800 GB/s; DCN 100 Gbit/s',
    ),
    Chip(
      'tpu7x',
      'tpu',
      2307 * TERA,
      192 * GIB,
      7380 * GIGA,
      600 * GIGA,
      100 * GBIT,
      2,
      _TPU + 'tpu7x: 2307 TFLOPS, 192 GiB, 7380 GB/s, ICI 1200 GB/s; two devices a chip',
    ),
    Chip(
      'a100',
      'gpu',
      312 * TERA,
      80 * GIGA,
      2039 * GIGA,
      300 * GIGA,
      200 * GBIT,
      1,
      _NVIDIA
      + 'A100 80GB SXM: 312 TFLOPS, 2039 GB/s, NVLink 600 GB/s; HDR 200 Gbit/s per GPU as in DGX A100',
    ),
    Chip(
      'h100',
      'gpu',
      989.4 * TERA,
      80 * GIGA,
      3350 * GIGA,
      450 * GIGA,
      400 * GBIT,
      1,
      _NVIDIA
      + 'H100 SXM: 989.4 TFLOPS, 3.35 TB/s, NVLink 900 GB/s; NDR 400 Gbit/s per GPU as in DGX H100',
    ),
    Chip(
      'h200',
      'gpu',
      989.4 * TERA,
      141 * GIGA,
      4800 * GIGA,
      450 * GIGA,
      400 * GBIT,
      1,
      _NVIDIA
      + 'H200 SXM: 989.4 TFLOPS, 141 GB, 4.8 TB/s, NVLink 900 GB/s; NDR 400 Gbit/s per GPU as in DGX H200',
    ),
  )
}

_KINDS = {  # substrings of jax's device_kind, in this order
  'v5 lite': 'v5e',
  'v5e': 'v5e',
  'v6 lite': 'v6e',
  'v6e': 'v6e',
  'v5p': 'v5p',
  'v5': 'v5p',
  'v4': 'v4',
  'tpu7x': 'tpu7x',
  'v7': 'tpu7x',
  'h200': 'h200',
  'h100': 'h100',
  'a100': 'a100',
}


def chip(name: str) -> Chip:
  """The chip of that name. Raises ConfigError."""
  if name not in CHIPS:
    raise ConfigError(f'chip {name!r}: must be one of {", ".join(CHIPS)}')
  return CHIPS[name]


def of_kind(device_kind: str) -> Chip | None:
  """The chip behind jax's `device.device_kind`, e.g. 'TPU v5 lite' or 'NVIDIA H100 80GB HBM3'; None when it is no row here."""
  kind = device_kind.lower()
  return next((CHIPS[name] for part, name in _KINDS.items() if part in kind), None)
