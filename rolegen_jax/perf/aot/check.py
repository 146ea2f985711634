"""What a program needs on a chip and how fast a step could at best be: the compiler's memory and collectives, analytic FLOPs, a roofline.

The roofline of a phase is the slowest of: FLOPs / peak, bytes read / memory bandwidth, bytes sent / link bandwidth. Phases follow each
other; inside one everything overlaps. A real step is slower; a roofline says which resource bounds a phase.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable

from rolegen_jax.config import Config, ConfigError, MeshConfig
from rolegen_jax.perf.aot import hlo
from rolegen_jax.perf.aot.topology import Topology
from rolegen_jax.perf.flops import Flops, parameters, trained

GIB = 2**30
PHASES = (*hlo.PHASES, 'other')
ASSUMPTIONS = (
  'roofline per phase = max(FLOPs / peak bf16, bytes read / HBM bandwidth, bytes sent / links); phases in turn, full overlap inside one',
  'FLOPs: analytic, remat counted, all attention pairs; elementwise work, gathers and optimizers are not counted',
  'bytes read: rollout = weights in the compute type and the whole cache per token; training = weights three times, frozen ones twice; '
  'other = what trains, its moments and reference in fp32',
  'bytes sent: ring algorithms, every link of a chip used; a group beyond one slice or host goes over the data-centre network',
  'links and peaks of rolegen_jax/perf/hardware.py; topology places mesh axes as jax.make_mesh does',
)


class DoesNotFit(ConfigError):
  """The program does not fit into a chip's memory. The message has the compiler's sizes and what to change."""


# Triton's tile search fails without a GPU to tune on (`Couldn't find output tile sizes`); cuBLAS does the products instead.
OPTIONS = {'gpu': {'xla_gpu_enable_triton_gemm': False}}


def compile_program(lowered, platform: str):
  """Compiles; an out-of-memory of the compiler raises DoesNotFit with its sizes."""
  import jax

  try:
    return lowered.compile(compiler_options=OPTIONS.get(platform))
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    if not re.search(r'Ran out of memory|RESOURCE_EXHAUSTED|HbmOom|exceeds? .*memory', text):
      raise
    raise DoesNotFit(_sizes(text)) from error


def _sizes(text: str) -> str:
  """The sums of the compiler's report and its five largest allocations."""
  sums = re.findall(
    r'(?:Used \S+ of \S+ \w+|Exceeded \w+ capacity by \S+\w|Total hbm usage.*|  +(?:reserved|program|arguments|HLO temp|global|scoped) .*)',
    text,
  )
  largest = re.findall(
    r'Size: ([\d.]+\w+)\s+(?:Operator: op_name="([^"]*)")?(?:.*\n)?.*?Shape: (\S+)', text
  )[:5]
  lines = [' '.join(s.split()) for s in dict.fromkeys(sums)] or [
    text.removeprefix('RESOURCE_EXHAUSTED: ')[:1500]
  ]
  return '\n'.join(
    lines + [f'  {size:>10}  {shape.split("{")[0]}  {scope}' for size, scope, shape in largest]
  )


def memory(compiled, topology: Topology) -> dict:
  """Bytes per device by kind. Raises DoesNotFit where the compiler let more pass than there is (XLA:GPU does)."""
  m = compiled.memory_analysis()
  found = dict(
    arguments=m.argument_size_in_bytes,
    outputs=m.output_size_in_bytes,
    aliased=m.alias_size_in_bytes,
    temporaries=m.temp_size_in_bytes,
    code=m.generated_code_size_in_bytes,
  )
  found['total'] = (
    found['arguments'] + found['outputs'] - found['aliased'] + found['temporaries'] + found['code']
  )
  found['hbm'] = topology.chip.hbm / topology.chip.devices
  if found['total'] > found['hbm']:
    raise DoesNotFit(
      f'Used {found["total"] / GIB:.2f} GiB of {found["hbm"] / GIB:.2f} GiB: '
      + ', '.join(f'{k} {v / GIB:.2f}' for k, v in found.items())
    )
  return found


def collectives(compiled, topology: Topology) -> dict:
  """Per phase: bytes that a device sends, by kind and by reach, and how many run inside the loops of the rollout.

  No phases, and why in `unknown`, where this jaxlib cannot read the program: a compiler newer than it writes what it does not know.
  """
  import jax

  try:
    module = hlo.Module(compiled.as_text())
  except jax.errors.JaxRuntimeError as error:
    return dict(
      unknown=f'jaxlib cannot read the program of this compiler: {str(error).splitlines()[0]}',
      phases={},
    )
  found = {p: dict(link=0.0, network=0.0, kinds=collections.Counter(), in_loops=0) for p in PHASES}
  for c in module.collectives(topology.domain):
    of = found[c.phase]
    of['network' if c.wide else 'link'] += c.sent
    of['kinds'][c.kind] += c.times
    of['in_loops'] += c.times if c.in_loop else 0
  loops = module.loops()
  rollout = [loop.collectives for loop in loops if hlo.phase(loop.scope) == 'rollout']
  return dict(
    unknown='',
    phases={p: f | dict(kinds=dict(f['kinds'])) for p, f in found.items()},
    rollout_loops=len(rollout),
    in_rollout_bodies=sum(map(len, rollout)),
    loops_of_unknown_length=sum(loop.trips is None for loop in loops),
  )


def work(config: Config, program: str) -> dict[str, float]:
  """Hardware FLOPs over all devices by phase."""
  flops = Flops(config)
  if program == 'recommend':
    rollout = sum(
      v.hardware
      for k, v in flops.phases(config.evaluation.batch).items()
      if k.startswith('rollout')
    )
    return dict(
      rollout=rollout,
      execution=0.0,
      reflection=0.0,
      other=flops.stages()['recommend'].hardware - rollout,
    )
  p = {name: w.hardware for name, w in flops.phases().items()}
  return dict(
    rollout=p['rollout prefill'] + p['rollout decode'],
    execution=p['execution'] + p['feedback'],
    reflection=p['reflection'],
    other=0.0,
  )


def bytes_read(config: Config, program: str, devices: int, tensor: int) -> dict[str, float]:
  """HBM traffic per device by phase, see ASSUMPTIONS."""
  flops, count, training = Flops(config), parameters(config), trained(config)
  size = lambda t: 2 if t.dtype == 'bfloat16' else 4
  t, b = config.reasoner.transformer, config.backbone.temporal
  spread = tensor if config.mesh.rollout == 'tensor' else 1
  users = (config.loop_stage if program == 'step' else config.evaluation).batch
  weights = count['reasoner'] * size(t) / spread
  row = (
    2 * t.layers * t.kv_heads * t.head_dim * size(t)
  )  # keys and values of one position of one sequence
  prompt, length, roles, w = (
    flops.layout.prompt_length,
    flops.layout.length,
    config.reasoner.role_events,
    config.loop.worlds,
  )
  cache = users / devices * row * (roles * (prompt + roles) + length * (prompt + length) * w)
  found = dict(
    rollout=weights * (roles + length + 2) + cache, execution=0.0, reflection=0.0, other=0.0
  )
  if program == 'step':
    shards = devices / (config.mesh.data if config.mesh.data > 0 else 1)
    found['execution'] = 3 * count['backbone'] * size(b) / tensor
    found['reflection'] = (
      (4 if config.reasoner.train == 'all' else 3) * count['reasoner'] * size(t) / tensor
    )  # the reference too
    found['other'] = 4 * (7 * training['backbone'] + 9 * training['reasoner']) / shards
  else:
    found['other'] = count['backbone'] * size(b) / spread * (1 + config.semantic_ids.levels)
  return found


def roofline(config: Config, program: str, topology: Topology, mesh: dict, sent: dict) -> dict:
  """Per phase: seconds by resource, the roofline and what bounds it; without links where the collectives are unknown."""
  chip, devices = topology.chip, topology.chips * topology.chip.devices
  flops, read = work(config, program), bytes_read(config, program, devices, mesh['tensor'])
  found = {}
  for p in PHASES:
    of = sent['phases'].get(p)
    parts = dict(
      compute=flops[p] / topology.chips / chip.flops,
      memory=read[p] / (chip.hbm_bandwidth / chip.devices),
    )
    if of:
      parts['interconnect'] = (
        of['link'] * chip.devices / chip.link + of['network'] * chip.devices / chip.network
      )
    bound = max(parts, key=parts.get)
    found[p] = dict(flops=flops[p], bytes_read=read[p], **parts, roofline=parts[bound], bound=bound)
  total = sum(f['roofline'] for f in found.values())
  model = Flops(config).stages()['loop' if program == 'step' else 'recommend'].model
  mfu = model / topology.chips / chip.flops / total if total else 0.0
  return dict(phases=found, seconds=total, model_flops=model, mfu_at_roofline=mfu)


def needed(sizes: str) -> float:
  """Bytes that a device would need by the message of DoesNotFit; 0 when it does not say."""
  found = re.search(r'(?:Used|temporaries) \(?([\d.]+) ?([KMGT])', sizes)
  return float(found[1]) * 1024 ** ('KMGT'.index(found[2]) + 1) if found else 0.0


def advice(
  config: Config,
  program: str,
  mesh: dict,
  topology: Topology,
  sizes: str = '',
  lies: Callable[[MeshConfig], bool] = lambda mesh: True,
) -> list[str]:
  """What to change when a program does not fit, the greatest part of its memory first. Meshes it names lie on the chips' torus.

  `sizes`: the compiler's; activations are what they hold beyond the state and the weights to decode with.
  """
  count, hbm, stack = (
    parameters(config),
    topology.chip.hbm / topology.chip.devices,
    config.reasoner.transformer,
  )
  training, shards = program == 'step', mesh['fsdp'] * mesh['tensor']
  # Parameters in float32; training adds gradients and two moments, and to the reasoner its reference.
  learnt = trained(config)
  state = (
    4 * sum(count.values()) + (12 * learnt['backbone'] + 16 * learnt['reasoner'] if training else 0)
  ) / shards
  whole = MeshConfig(1, mesh['data'] * mesh['fsdp'], mesh['tensor'])
  further = (
    f'--set mesh.data=1 --set mesh.fsdp={whole.fsdp}'
    if mesh['data'] > 1 and lies(whole)
    else 'more chips'
  )
  parts = [
    (
      state,
      [
        f'{"training state" if training else "parameters"}: {state / GIB:.2f} GiB a device; spread it further: {further}'
      ],
    )
  ]
  spread = mesh['tensor'] if config.mesh.rollout == 'tensor' else 1
  decoding = (2 if stack.dtype == 'bfloat16' else 4) * count['reasoner'] / spread
  fits = lambda n: (
    n > spread
    and n >= mesh['tensor']
    and not (stack.kv_heads % n or shards % n or topology.domain % n)
  )
  wider = next(
    (n for n in (2, 4, 8) if fits(n) and lies(MeshConfig(mesh['data'], shards // n, n))), None
  )
  if wider:
    parts.append(
      (
        decoding,
        [
          f'reasoner while decoding: {decoding / GIB:.2f} GiB a device; spread it over tensor: '
          f'--set mesh.rollout=tensor --set mesh.tensor={wider} --set mesh.fsdp={shards // wider}'
        ],
      )
    )
  parts = [part for part in parts if part[0] > 0.1 * hbm]
  return [
    line
    for _, lines in sorted(
      [*parts, (needed(sizes) - state - decoding, _smaller(config, program, mesh))], reverse=True
    )
    for line in lines
  ]


def _smaller(config: Config, program: str, mesh: dict) -> list[str]:
  """What makes activations and caches smaller."""
  lines, training = [], program == 'step'
  for name, t in (
    ('reasoner.transformer', config.reasoner.transformer),
    ('backbone.temporal', config.backbone.temporal),
  ):
    if training and t.remat != 'full':
      lines.append(f'activations kept for the backward pass: --set {name}.remat=full')
    if t.dtype != 'bfloat16':
      lines.append(f'activations in float32: --set {name}.dtype=bfloat16')
  stage = 'loop_stage' if training else 'evaluation'
  rows = mesh['data'] * mesh['fsdp'] * (1 if config.mesh.rollout == 'tensor' else mesh['tensor'])
  lines.append(
    f'activations and caches of {getattr(config, stage).batch} users x {config.loop.worlds} worlds: '
    f'a smaller --set {stage}.batch, a multiple of {rows}, or fewer --set loop.worlds'
  )
  return lines
