"""What to change when a program does not fit into a chip's memory."""

from __future__ import annotations

import re
from collections.abc import Callable

from rolegen_jax.config import Config, MeshConfig
from rolegen_jax.perf.aot.check import GIB, compute_bytes
from rolegen_jax.perf.aot.topology import Topology
from rolegen_jax.perf.flops import parameters, trained

HasPlace = Callable[[MeshConfig], bool]  # does a mesh lie on the chips' torus?


def anywhere(mesh: MeshConfig) -> bool:
  """Return True: where chips form no torus, every mesh has a place."""
  del mesh
  return True


def advice(
  config: Config,
  program: str,
  mesh: dict[str, int],
  topology: Topology,
  room: int,
  sizes: str = '',
  has_place: HasPlace = anywhere,
) -> list[str]:
  """Return lines that say what to change, the greatest part of the program's memory first.

  `sizes` are the compiler's; activations are what they hold beyond the state and the weights to
  decode with. room: items that the catalogue has room for.
  """
  hbm = topology.chip.hbm / topology.chip.devices
  state = _state_bytes(config, program, mesh, room)
  decoding = _decoding_bytes(config, mesh, room)
  parts = [(state, _shard_the_state(program, mesh, state, has_place))]
  if wider := _wider_tensor_axis(config, mesh, topology, has_place):
    shards = mesh['fsdp'] * mesh['tensor']
    line = (
      f'reasoner while decoding: {decoding / GIB:.2f} GiB a device; shard it over tensor: '
      f'--set mesh.rollout=tensor --set mesh.tensor={wider} --set mesh.fsdp={shards // wider}'
    )
    parts.append((decoding, [line]))
  parts = [part for part in parts if part[0] > 0.1 * hbm]
  parts.append((needed(sizes) - state - decoding, _smaller(config, program, mesh)))
  return [line for _, lines in sorted(parts, reverse=True) for line in lines]


def needed(sizes: str) -> float:
  """Return the bytes a device would need by the message of DoesNotFit; 0 if it does not say."""
  match = re.search(r'(?:Used|temporaries) \(?([\d.]+) ?([KMGT])', sizes)
  return float(match[1]) * 1024 ** ('KMGT'.index(match[2]) + 1) if match else 0.0


def _state_bytes(config: Config, program: str, mesh: dict[str, int], room: int) -> float:
  """Return the bytes per device of parameters and, in training, of what stands beside them.

  Parameters are float32; training adds gradients and two moments, and to the reasoner its
  reference.
  """
  size = 4.0 * sum(parameters(config, room).values())
  if program == 'step':
    training = trained(config, room)
    size += 12 * training['backbone'] + 16 * training['reasoner']
  return size / (mesh['fsdp'] * mesh['tensor'])


def _decoding_bytes(config: Config, mesh: dict[str, int], room: int) -> float:
  shards = mesh['tensor'] if config.mesh.rollout == 'tensor' else 1
  count = parameters(config, room)['reasoner']
  return compute_bytes(config.reasoner.transformer) * count / shards


def _shard_the_state(
  program: str, mesh: dict[str, int], state: float, has_place: HasPlace
) -> list[str]:
  without_replicas = MeshConfig(1, mesh['data'] * mesh['fsdp'], mesh['tensor'])
  further = 'more chips'
  if mesh['data'] > 1 and has_place(without_replicas):
    further = f'--set mesh.data=1 --set mesh.fsdp={without_replicas.fsdp}'
  what = 'training state' if program == 'step' else 'parameters'
  return [f'{what}: {state / GIB:.2f} GiB a device; shard it further: {further}']


def _wider_tensor_axis(
  config: Config, mesh: dict[str, int], topology: Topology, has_place: HasPlace
) -> int | None:
  """Return the smallest tensor axis that shards the weights while decoding further."""
  stack = config.reasoner.transformer
  shards = mesh['fsdp'] * mesh['tensor']
  now = mesh['tensor'] if config.mesh.rollout == 'tensor' else 1
  for size in (2, 4, 8):
    divides = not (stack.kv_heads % size or shards % size or topology.domain % size)
    if size > now and size >= mesh['tensor'] and divides:
      if has_place(MeshConfig(mesh['data'], shards // size, size)):
        return size
  return None


def _smaller(config: Config, program: str, mesh: dict[str, int]) -> list[str]:
  """Return what makes activations and caches smaller."""
  lines, training = [], program == 'step'
  stacks = {
    'reasoner.transformer': config.reasoner.transformer,
    'backbone.temporal': config.backbone.temporal,
  }
  for name, stack in stacks.items():
    if training and stack.remat != 'full':
      lines.append(f'activations kept for the backward pass: --set {name}.remat=full')
    if stack.dtype != 'bfloat16':
      lines.append(f'activations in float32: --set {name}.dtype=bfloat16')
  stage = 'loop_stage' if training else 'evaluation'
  rows = mesh['data'] * mesh['fsdp'] * (1 if config.mesh.rollout == 'tensor' else mesh['tensor'])
  batch = getattr(config, stage).batch
  lines.append(
    f'activations and caches of {batch} users x {config.loop.worlds} worlds: '
    f'a smaller --set {stage}.batch, a multiple of {rows}, or fewer --set loop.worlds'
  )
  return lines
