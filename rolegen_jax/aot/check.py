"""What a program needs on a chip and how fast a step could at best be: the compiler's memory and collectives, analytic FLOPs, a roof.

The roof of a phase is the slowest of: FLOPs / peak, bytes read / memory bandwidth, bytes sent / link bandwidth. Phases follow each
other; inside one everything overlaps. A real step is slower; a roof says which resource bounds a phase.
"""

from __future__ import annotations

import collections
import re

from rolegen_jax.aot import hlo
from rolegen_jax.aot.topology import Topology
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.flops import Flops, parameters

GIB = 2**30
PHASES = (*hlo.PHASES, 'other')
ASSUMPTIONS = (
    'roof per phase = max(FLOPs / peak bf16, bytes read / HBM bandwidth, bytes sent / links); phases in turn, full overlap inside one',
    'FLOPs: analytic, remat counted, all attention pairs; elementwise work, gathers and optimizers are not counted',
    'bytes read: rollout = weights in the compute type and the whole cache per token; training = weights three times; other = parameters, moments, reference in fp32',
    'bytes sent: ring algorithms, every link of a chip used; a group beyond one slice or host goes over the data-centre network',
    'links and peaks of rolegen_jax/hardware.py; topology places mesh axes as jax.make_mesh does',
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
  sums = re.findall(r'(?:Used \S+ of \S+ \w+|Exceeded \w+ capacity by \S+\w|Total hbm usage.*|  +(?:reserved|program|arguments|HLO temp|global|scoped) .*)', text)
  largest = re.findall(r'Size: ([\d.]+\w+)\s+(?:Operator: op_name="([^"]*)")?(?:.*\n)?.*?Shape: (\S+)', text)[:5]
  lines = [' '.join(s.split()) for s in dict.fromkeys(sums)] or [text[:1500]]
  return '\n'.join(lines + [f'  {size:>10}  {shape.split("{")[0]}  {scope}' for size, scope, shape in largest])


def memory(compiled, topology: Topology) -> dict:
  """Bytes per device by kind. Raises DoesNotFit where the compiler let more pass than there is (XLA:GPU does)."""
  m = compiled.memory_analysis()
  found = dict(
      arguments=m.argument_size_in_bytes, outputs=m.output_size_in_bytes, aliased=m.alias_size_in_bytes,
      temporaries=m.temp_size_in_bytes, code=m.generated_code_size_in_bytes,
  )
  found['total'] = found['arguments'] + found['outputs'] - found['aliased'] + found['temporaries'] + found['code']
  found['hbm'] = topology.chip.hbm / topology.chip.devices
  if found['total'] > found['hbm']:
    raise DoesNotFit(f'Used {found["total"] / GIB:.2f} GiB of {found["hbm"] / GIB:.2f} GiB: ' + ', '.join(f'{k} {v / GIB:.2f}' for k, v in found.items()))
  return found


def collectives(text: str, topology: Topology) -> dict:
  """Per phase: bytes that a device sends, by kind and by reach, and how many run inside the loops of the rollout."""
  module = hlo.Module(text)
  found = {p: dict(link=0.0, network=0.0, kinds=collections.Counter(), in_loops=0) for p in PHASES}
  for c in module.collectives(topology.domain):
    of = found[c.phase]
    of['network' if c.wide else 'link'] += c.sent
    of['kinds'][c.kind] += c.times
    of['in_loops'] += c.times if c.in_loop else 0
  inside = sum(len(loop.collectives) for loop in module.loops() if hlo.phase(loop.scope) == 'rollout')
  uncounted = sum(loop.trips is None for loop in module.loops())
  return dict(phases={p: f | dict(kinds=dict(f['kinds'])) for p, f in found.items()}, in_rollout_bodies=inside, loops_of_unknown_length=uncounted)


def work(config: Config, program: str) -> dict[str, float]:
  """Hardware FLOPs over all devices by phase."""
  flops = Flops(config)
  if program == 'recommend':
    rollout = sum(v.hardware for k, v in flops.phases(config.evaluation.batch).items() if k.startswith('rollout'))
    return dict(rollout=rollout, execution=0.0, reflection=0.0, other=flops.stages()['recommend'].hardware - rollout)
  p = {name: w.hardware for name, w in flops.phases().items()}
  return dict(
      rollout=p['rollout prefill'] + p['rollout decode'], execution=p['execution'] + p['feedback'], reflection=p['reflection'], other=0.0,
  )


def bytes_read(config: Config, program: str, devices: int, tensor: int) -> dict[str, float]:
  """HBM traffic per device by phase, see ASSUMPTIONS."""
  flops, count = Flops(config), parameters(config)
  size = lambda t: 2 if t.dtype == 'bfloat16' else 4
  t, b = config.reasoner.transformer, config.backbone.temporal
  spread = tensor if config.mesh.rollout == 'tensor' else 1
  users = (config.loop_stage if program == 'step' else config.evaluation).batch
  weights = count['reasoner'] * size(t) / spread
  row = 2 * t.layers * t.kv_heads * t.head_dim * size(t)  # keys and values of one position of one sequence
  prompt, length, roles, w = flops.layout.prompt_length, flops.layout.length, config.reasoner.role_events, config.loop.worlds
  cache = users / devices * row * (roles * (prompt + roles) + length * (prompt + length) * w)
  found = dict(rollout=weights * (roles + length + 2) + cache, execution=0.0, reflection=0.0, other=0.0)
  if program == 'step':
    shards = devices / (config.mesh.data if config.mesh.data > 0 else 1)
    found['execution'] = 3 * count['backbone'] * size(b) / tensor
    found['reflection'] = 4 * count['reasoner'] * size(t) / tensor  # the reference too
    found['other'] = 4 * (7 * count['backbone'] + 9 * count['reasoner']) / shards
  else:
    found['other'] = count['backbone'] * size(b) / spread * (1 + config.semantic_ids.levels)
  return found


def roofline(config: Config, program: str, topology: Topology, mesh: dict, sent: dict) -> dict:
  """Per phase: seconds by resource, the roof and what bounds it."""
  chip, devices = topology.chip, topology.chips * topology.chip.devices
  flops, read = work(config, program), bytes_read(config, program, devices, mesh['tensor'])
  found = {}
  for p in PHASES:
    of = sent['phases'][p]
    parts = dict(
        compute=flops[p] / topology.chips / chip.flops, memory=read[p] / (chip.hbm_bandwidth / chip.devices),
        links=of['link'] * chip.devices / chip.link + of['network'] * chip.devices / chip.network,
    )
    bound = max(parts, key=parts.get)
    found[p] = dict(flops=flops[p], bytes_read=read[p], **parts, roof=parts[bound], bound=bound)
  total = sum(f['roof'] for f in found.values())
  model = Flops(config).stages()['loop' if program == 'step' else 'recommend'].model
  mfu = model / topology.chips / chip.flops / total if total else 0.0
  return dict(phases=found, seconds=total, model_flops=model, mfu_at_roof=mfu)


def advice(config: Config, mesh: dict, topology: Topology) -> list[str]:
  """What to change when it does not fit, the greatest part first."""
  count, hbm = parameters(config), topology.chip.hbm / topology.chip.devices
  spread = mesh['tensor'] if config.mesh.rollout == 'tensor' else 1
  half = 2 if config.reasoner.transformer.dtype == 'bfloat16' else 4
  # Parameters, two moments and gradients; the reasoner also has a reference.
  shards = mesh['fsdp'] * mesh['tensor']
  parts = {
      f'training state: {(16 * count["backbone"] + 20 * count["reasoner"]) / shards / GIB:.2f} GiB a device; '
      f'spread it further: --set mesh.fsdp above {mesh["fsdp"]}, mesh.data below {mesh["data"]}, or more chips':
          (16 * count['backbone'] + 20 * count['reasoner']) / shards,
      f'reasoner while decoding: {half * count["reasoner"] / spread / GIB:.2f} GiB a device; '
      'spread it over tensor: --set mesh.rollout=tensor --set mesh.tensor=2, 4 or 8': half * count['reasoner'] / spread,
  }
  lines = [text for text, size in sorted(parts.items(), key=lambda kv: -kv[1]) if size > 0.1 * hbm]
  for name, t in (('reasoner.transformer', config.reasoner.transformer), ('backbone.temporal', config.backbone.temporal)):
    if t.remat != 'full':
      lines.append(f'activations kept for the backward pass: --set {name}.remat=full')
    if t.dtype != 'bfloat16':
      lines.append(f'activations in float32: --set {name}.dtype=bfloat16')
  lines.append(f'activations and caches of {config.loop_stage.batch} users x {config.loop.worlds} worlds: a smaller --set loop_stage.batch')
  return lines
