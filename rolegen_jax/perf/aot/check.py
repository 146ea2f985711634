"""What a program needs on a chip, and how fast a step could be at best.

Memory and collectives come from the compiler, FLOPs are analytic, and a roofline joins them. The
roofline of a phase is the slowest of FLOPs / peak, bytes read / memory bandwidth, and bytes sent /
interconnect bandwidth. Phases follow each other; inside one everything overlaps. A real step is
slower; a roofline says which resource bounds a phase.
"""

from __future__ import annotations

import collections
import re
from typing import Any

import jax

from rolegen_jax.config import Config, ConfigError, TransformerConfig
from rolegen_jax.perf.aot import hlo
from rolegen_jax.perf.aot.topology import Topology
from rolegen_jax.perf.flops import Flops, parameters, trained

GIB = 2**30
PHASES = (*hlo.PHASES, 'other')
ASSUMPTIONS = (
  'roofline per phase = max(FLOPs / peak bf16, bytes read / HBM bandwidth, bytes sent / '
  'interconnect); phases in turn, full overlap inside one',
  'FLOPs: analytic, remat counted, all attention pairs; elementwise work, gathers, optimizers and '
  'replayed tokens (text.replay) are not counted',
  'bytes read: rollout = weights in the compute type and the whole cache per token; training = '
  'weights three times, frozen ones twice; other = what trains, its moments and reference in fp32',
  'bytes sent: ring algorithms, every link of a chip used; a group beyond one slice or host goes '
  'over the data-center network',
  'bandwidths and peaks of rolegen_jax/perf/hardware.py; topology places mesh axes as '
  'jax.make_mesh does',
)
# Triton's tile search fails without a GPU to tune on (`Couldn't find output tile sizes`); cuBLAS
# does the products instead.
OPTIONS: dict[str, dict[str, Any]] = {'gpu': {'xla_gpu_enable_triton_gemm': False}}


class DoesNotFit(ConfigError):
  """The program does not fit into a chip's memory.

  The message has the compiler's sizes and what to change, on several lines.
  """

  def __str__(self) -> str:
    return ValueError.__str__(self)


def compile_program(lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
  """Compile; an out-of-memory of the compiler raises DoesNotFit with its sizes."""
  try:
    return lowered.compile(compiler_options=OPTIONS.get(platform))
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    if not re.search(r'Ran out of memory|RESOURCE_EXHAUSTED|HbmOom|exceeds? .*memory', text):
      raise
    raise DoesNotFit(_sizes(text)) from error


def _sizes(text: str) -> str:
  """Return the sums of the compiler's report and its five largest allocations."""
  parts = 'reserved|program|arguments|HLO temp|global|scoped'
  sums = re.findall(
    r'(?:Used \S+ of \S+ \w+|Exceeded \w+ capacity by \S+\w|Total hbm usage.*'
    rf'|  +(?:{parts}) .*)',
    text,
  )
  largest = re.findall(
    r'Size: ([\d.]+\w+)\s+(?:Operator: op_name="([^"]*)")?(?:.*\n)?.*?Shape: (\S+)', text
  )[:5]
  lines = [' '.join(line.split()) for line in dict.fromkeys(sums)]
  if not lines:
    lines = [text.removeprefix('RESOURCE_EXHAUSTED: ')[:1500]]
  for size, scope, shape in largest:
    lines.append(f'  {size:>10}  {shape.split("{")[0]}  {scope}')
  return '\n'.join(lines)


def memory(compiled: jax.stages.Compiled, topology: Topology) -> dict[str, float]:
  """Return the bytes per device by kind.

  Raises DoesNotFit where the compiler let more pass than there is, as XLA:GPU does.
  """
  analysis: Any = compiled.memory_analysis()
  sizes: dict[str, float] = dict(
    arguments=analysis.argument_size_in_bytes,
    outputs=analysis.output_size_in_bytes,
    aliased=analysis.alias_size_in_bytes,
    temporaries=analysis.temp_size_in_bytes,
    code=analysis.generated_code_size_in_bytes,
  )
  sizes['total'] = sum(sizes.values()) - 2 * sizes['aliased']
  sizes['hbm'] = topology.chip.hbm / topology.chip.devices
  if sizes['total'] > sizes['hbm']:
    total, hbm = (f'{sizes[name] / GIB:.2f} GiB' for name in ('total', 'hbm'))
    listed = ', '.join(f'{name} {size / GIB:.2f}' for name, size in sizes.items())
    raise DoesNotFit(f'Used {total} of {hbm}: {listed}')
  return sizes


def collectives(compiled: jax.stages.Compiled, topology: Topology) -> dict[str, Any]:
  """Return per phase the bytes a device sends, by kind and reach, and the count inside loops.

  There are no phases, and `unknown` says why, where this jaxlib cannot read the program: a compiler
  newer than it writes what it does not know.
  """
  try:
    module = hlo.Module(compiled.as_text() or '')
  except jax.errors.JaxRuntimeError as error:
    first_line = str(error).splitlines()[0]
    unknown = f'jaxlib cannot read the program of this compiler: {first_line}'
    return dict(unknown=unknown, phases={})
  phases: dict[str, dict[str, Any]] = {
    name: dict(link=0.0, network=0.0, kinds=collections.Counter(), in_loops=0) for name in PHASES
  }
  for collective in module.collectives(topology.domain):
    phase = phases[collective.phase]
    phase['network' if collective.wide else 'link'] += collective.sent
    phase['kinds'][collective.kind] += collective.times
    phase['in_loops'] += collective.times if collective.in_loop else 0
  loops = module.loops()
  rollout = [loop.collectives for loop in loops if hlo.phase(loop.scope) == 'rollout']
  return dict(
    unknown='',
    phases={name: phase | dict(kinds=dict(phase['kinds'])) for name, phase in phases.items()},
    rollout_loops=len(rollout),
    in_rollout_bodies=sum(map(len, rollout)),
    loops_of_unknown_length=sum(loop.trips is None for loop in loops),
  )


def work(config: Config, program: str, room: int) -> dict[str, float]:
  """Return the hardware FLOPs over all devices by phase."""
  flops = Flops(config, room)
  if program == 'recommend':
    phases = flops.phases(config.evaluation.batch).items()
    rollout = sum(work.hardware for name, work in phases if name.startswith('rollout'))
    other = flops.stages()['recommend'].hardware - rollout
    return dict(rollout=rollout, execution=0.0, reflection=0.0, other=other)
  hardware = {name: work.hardware for name, work in flops.phases().items()}
  return dict(
    rollout=hardware['rollout prefill'] + hardware['rollout decode'],
    execution=hardware['execution'] + hardware['feedback'],
    reflection=hardware['reflection'],
    other=0.0,
  )


def compute_bytes(stack: TransformerConfig) -> int:
  """Return the bytes of a number in the compute type."""
  return 2 if stack.dtype == 'bfloat16' else 4


def bytes_read(
  config: Config, program: str, devices: int, tensor: int, room: int, text: int = 0
) -> dict[str, float]:
  """Return the HBM traffic per device by phase, see ASSUMPTIONS."""
  flops, count = Flops(config, room, text), parameters(config, room, text)
  reasoner, backbone = config.reasoner.transformer, config.backbone.temporal
  shards = tensor if config.mesh.rollout == 'tensor' else 1  # of the weights while decoding
  users = (config.loop_stage if program == 'step' else config.evaluation).batch
  weights = count['reasoner'] * compute_bytes(reasoner) / shards
  # Keys and values of one position of one sequence.
  position = 2 * reasoner.layers * reasoner.kv_heads * reasoner.head_dim * compute_bytes(reasoner)
  prompt, length = flops.layout.prompt_length, flops.layout.length
  roles, worlds = config.reasoner.role_events, config.loop.worlds
  positions = roles * (prompt + roles) + length * (prompt + length) * worlds
  cache = users / devices * position * positions
  rollout = weights * (roles + length + 2) + cache
  if program != 'step':
    once = count['backbone'] * compute_bytes(backbone) / shards
    other = once * (1 + config.semantic_ids.levels)
    return dict(rollout=rollout, execution=0.0, reflection=0.0, other=other)
  training = trained(config, room, text)
  parameter_shards = devices / (config.mesh.data if config.mesh.data > 0 else 1)
  passes = 4 if config.reasoner.train == 'all' else 3  # the reference's too
  return dict(
    rollout=rollout,
    execution=3 * count['backbone'] * compute_bytes(backbone) / tensor,
    reflection=passes * count['reasoner'] * compute_bytes(reasoner) / tensor,
    other=4 * (7 * training['backbone'] + 9 * training['reasoner']) / parameter_shards,
  )


def roofline(
  config: Config,
  program: str,
  topology: Topology,
  mesh: dict[str, int],
  sent: dict[str, Any],
  room: int,
) -> dict[str, Any]:
  """Return per phase the seconds by resource, the roofline and what bounds it.

  Without the interconnect where the collectives are unknown. room: items that the catalogue has
  room for.
  """
  chip, devices = topology.chip, topology.chips * topology.chip.devices
  flops = work(config, program, room)
  read = bytes_read(config, program, devices, mesh['tensor'], room)
  phases: dict[str, dict[str, Any]] = {}
  for name in PHASES:
    seconds = dict(
      compute=flops[name] / topology.chips / chip.flops,
      memory=read[name] / (chip.hbm_bandwidth / chip.devices),
    )
    if name in sent['phases']:
      link, network = (sent['phases'][name][reach] for reach in ('link', 'network'))
      on_links, on_network = link * chip.devices / chip.link, network * chip.devices / chip.network
      seconds['interconnect'] = on_links + on_network
    bound = max(seconds, key=lambda resource: seconds[resource])
    about = dict(flops=flops[name], bytes_read=read[name])
    phases[name] = about | seconds | dict(roofline=seconds[bound], bound=bound)
  total = sum(phase['roofline'] for phase in phases.values())
  model = Flops(config, room).stages()['loop' if program == 'step' else 'recommend'].model
  mfu = model / topology.chips / chip.flops / total if total else 0.0
  return dict(phases=phases, seconds=total, model_flops=model, mfu_at_roofline=mfu)
