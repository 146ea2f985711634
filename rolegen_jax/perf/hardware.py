"""What a chip can do at best: the vendors' numbers behind rooflines, utilization and memory checks.

Peak is dense bfloat16. `link` is what a chip can SEND over all its ICI or NVLink links together:
vendors quote both directions, so it is half of that. `network` is a chip's share of its host's or
pod's data-center network, one way. No jax here.
"""

from __future__ import annotations

import dataclasses

from rolegen_jax.config import ConfigError

TERA, GIGA, GIB = 1e12, 1e9, 2**30
GBIT = GIGA / 8


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of chip."""

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
_CHIPS = (
  Chip(
    name='v4',
    platform='tpu',
    flops=275 * TERA,
    hbm=32 * GIB,
    hbm_bandwidth=1228 * GIGA,
    link=300 * GIGA,
    network=50 * GBIT,
    devices=1,
    source=_TPU + 'v4: 275 TFLOPS, 32 GiB, 1228 GB/s; 6 links of 50 GB/s',
  ),
  Chip(
    name='v5e',
    platform='tpu',
    flops=197 * TERA,
    hbm=16 * GIB,
    hbm_bandwidth=819 * GIGA,
    link=200 * GIGA,
    network=25 * GBIT,
    devices=1,
    source=_TPU + 'v5e: 197 TFLOPS, 16 GB, 819 GB/s, ICI 400 GB/s; 2 x 100 Gbit/s per 8-chip host',
  ),
  Chip(
    name='v5p',
    platform='tpu',
    flops=459 * TERA,
    hbm=95 * GIB,
    hbm_bandwidth=2765 * GIGA,
    link=600 * GIGA,
    network=50 * GBIT,
    devices=1,
    source=_TPU
    + 'tpu7x (its comparison): 459 TFLOPS, 95 GiB, 2765 GB/s, ICI 1200 GB/s, DCN 50 Gbit/s',
  ),
  Chip(
    name='v6e',
    platform='tpu',
    flops=918 * TERA,
    hbm=32 * GIB,
    hbm_bandwidth=1638 * GIGA,
    link=400 * GIGA,
    network=100 * GBIT,
    devices=1,
    source=_TPU + 'v6e: 918 TFLOPS, 32 GB, 1638 GB/s, ICI 800 GB/s; DCN 100 Gbit/s',
  ),
  Chip(
    name='tpu7x',
    platform='tpu',
    flops=2307 * TERA,
    hbm=192 * GIB,
    hbm_bandwidth=7380 * GIGA,
    link=600 * GIGA,
    network=100 * GBIT,
    devices=2,
    source=_TPU + 'tpu7x: 2307 TFLOPS, 192 GiB, 7380 GB/s, ICI 1200 GB/s; two devices a chip',
  ),
  Chip(
    name='a100',
    platform='gpu',
    flops=312 * TERA,
    hbm=80 * GIGA,
    hbm_bandwidth=2039 * GIGA,
    link=300 * GIGA,
    network=200 * GBIT,
    devices=1,
    source=_NVIDIA
    + 'A100 80GB SXM: 312 TFLOPS, 2039 GB/s, NVLink 600 GB/s; '
    + 'HDR 200 Gbit/s per GPU as in DGX A100',
  ),
  Chip(
    name='h100',
    platform='gpu',
    flops=989.4 * TERA,
    hbm=80 * GIGA,
    hbm_bandwidth=3350 * GIGA,
    link=450 * GIGA,
    network=400 * GBIT,
    devices=1,
    source=_NVIDIA
    + 'H100 SXM: 989.4 TFLOPS, 3.35 TB/s, NVLink 900 GB/s; NDR 400 Gbit/s per GPU as in DGX H100',
  ),
  Chip(
    name='h200',
    platform='gpu',
    flops=989.4 * TERA,
    hbm=141 * GIGA,
    hbm_bandwidth=4800 * GIGA,
    link=450 * GIGA,
    network=400 * GBIT,
    devices=1,
    source=_NVIDIA
    + 'H200 SXM: 989.4 TFLOPS, 141 GB, 4.8 TB/s, NVLink 900 GB/s; '
    + 'NDR 400 Gbit/s per GPU as in DGX H200',
  ),
)
CHIPS = {chip.name: chip for chip in _CHIPS}

# Substrings of jax's device_kind, in this order.
_KINDS = {
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
  """Return the chip of that name. Raises ConfigError."""
  if name not in CHIPS:
    raise ConfigError(f'chip {name!r}: must be one of {", ".join(CHIPS)}')
  return CHIPS[name]


def of_kind(device_kind: str) -> Chip | None:
  """Return the chip behind jax's `device.device_kind`; None when it is not known.

  Such as 'TPU v5 lite' or 'NVIDIA H100 80GB HBM3'.
  """
  kind = device_kind.lower()
  return next((CHIPS[name] for part, name in _KINDS.items() if part in kind), None)
