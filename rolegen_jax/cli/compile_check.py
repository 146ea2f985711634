"""Compiles a config's real programs for chips that are not here: does it fit, what does it send, how fast could it be at best.

  python -m rolegen_jax compile_check --experiment=pod:v5e_16 --topology=tpu:v5e:4x4 --json=check.json
  python -m rolegen_jax compile_check --experiment=pod:v5p_128 --topology=tpu:v5p:4x4x8 --search

Nothing runs on a chip and no data is read. Exit code 2 when a program does not fit, with the compiler's sizes and what to change.
"""

import functools
import json
import sys
import time

from absl import flags

from rolegen_jax.cli import entry
from rolegen_jax.config import ConfigError, digest, to_dict
from rolegen_jax.perf.aot import topology

_EXPERIMENT = flags.DEFINE_string(
  'experiment', 'pod:v5e_16', 'Name of a file in experiments/, or NAME:ARG.'
)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'tpu:v5e:4x4, tpu:v6e:16x16:slices=2, gpu:h100:8x8 (hosts x GPUs of a host).',
  required=True,
)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)
_PROGRAMS = flags.DEFINE_list(
  'programs', ['step', 'recommend'], 'Which to compile: step, recommend.'
)
_ITEMS = flags.DEFINE_integer(
  'items', 1_000_000, 'Catalogue size that the tables on the device have place for.'
)
_LEVEL = flags.DEFINE_string(
  'optimization_level',
  '',
  'XLA effort: O0 compiles faster and plans memory less well; empty = the default.',
)
_JSON = flags.DEFINE_string('json', '', 'Also write everything to this file.')
_SEARCH = flags.DEFINE_bool(
  'search', False, 'Try mesh shapes and remat policies for these chips and rank those that fit.'
)
_LIMIT = flags.DEFINE_integer('search_limit', 12, 'Compile at most so many candidates.')


def examine(config, place: topology.Topology, devices: list, program: str) -> dict:
  """One program compiled: memory, printed at once, then collectives and roofline. Raises DoesNotFit."""
  from rolegen_jax import sharding
  from rolegen_jax.perf.aot import check, programs

  started = time.monotonic()
  mesh = sharding.make_mesh(config.mesh, devices)
  shape = dict(mesh.shape)
  try:
    compiled = check.compile_program(
      programs.lower(program, config, mesh, _ITEMS.value), place.chip.platform
    )
    memory = check.memory(compiled, place)
  except check.DoesNotFit as error:
    todo = '\n'.join(
      f'  - {line}'
      for line in check.advice(
        config, program, shape, place, str(error), functools.partial(topology.lies, devices)
      )
    )
    raise check.DoesNotFit(
      f'{program} of {config.name} does not fit on {place.text}, mesh {shape}.\n{error}\nWhat to change:\n{todo}'
    ) from error
  found = dict(
    program=program, mesh=shape, compile_seconds=time.monotonic() - started, memory=memory
  )
  print(
    show_memory(found, place), flush=True
  )  # the rest reads the program back, which takes long and can fail
  found['collectives'] = check.collectives(compiled, place)
  found['roofline'] = check.roofline(config, program, place, shape, found['collectives'])
  print(show_roof(found), flush=True)
  return found


def show_memory(found: dict, place: topology.Topology) -> str:
  gib, m = 2**30, found['memory']
  return (
    f'{found["program"]} on {place.text}, {place.chips} chips, mesh {found["mesh"]}: compiled in {found["compile_seconds"]:.0f} s\n  GiB a device: '
    + ', '.join(
      f'{k} {m[k] / gib:.2f}' for k in ('arguments', 'outputs', 'aliased', 'temporaries', 'code')
    )
    + f'; together {m["total"] / gib:.2f} of {m["hbm"] / gib:.2f}'
  )


def show_roof(found: dict) -> str:
  sent, roofline = found['collectives'], found['roofline']
  lines = [
    f'  {"phase":<10} {"PFLOPs":>9} {"GB read":>8} {"GB sent":>8} {"in loops":>8} {"compute":>9} {"memory":>9} {"links":>9}  bound'
  ]
  for name, f in roofline['phases'].items():
    of = sent['phases'].get(name)
    lines.append(
      f'  {name:<10} {f["flops"] / 1e15:9.3f} {f["bytes_read"] / 1e9:8.2f} '
      + (
        f'{(of["link"] + of["network"]) / 1e9:8.3f} {of["in_loops"]:8d}'
        if of
        else f'{"?":>8} {"?":>8}'
      )
      + f' {1e3 * f["compute"]:7.1f}ms {1e3 * f["memory"]:7.1f}ms '
      + (f'{1e3 * f["links"]:7.1f}ms' if of else f'{"?":>9}')
      + f'  {f["bound"]}'
    )
  best = (
    f'  at best {1e3 * roofline["seconds"]:.1f} ms, MFU {100 * roofline["mfu_at_roofline"]:.1f} %; '
  )
  if sent['unknown']:
    return '\n'.join(lines + [best + f'without links: collectives are unknown, {sent["unknown"]}'])
  lines.append(
    best
    + f'collectives in the {sent["rollout_loops"]} loops of the rollout: {sent["in_rollout_bodies"] or "none"}'
  )
  if sent['loops_of_unknown_length']:
    lines.append(
      f'  {sent["loops_of_unknown_length"]} loops of unknown length count once: bytes sent are a lower bound'
    )
  return '\n'.join(lines)


def searched(config, place, devices) -> list[dict]:
  """Every candidate's step, those that fit first, fastest first."""
  from rolegen_jax.perf.aot import search
  from rolegen_jax.perf.aot.check import DoesNotFit

  results = []
  for candidate in search.candidates(config, place, functools.partial(topology.lies, devices)):
    label = dict(mesh=to_dict(candidate.mesh), remat=candidate.reasoner.transformer.remat)
    if any(r['fits'] and r['mesh'] == label['mesh'] for r in results):
      continue  # less rematerialisation fits already
    if len(results) == _LIMIT.value:
      print(f'stopped after --search_limit={len(results)} candidates', flush=True)
      break
    try:
      results.append(label | dict(fits=True, found=examine(candidate, place, devices, 'step')))
      print(f'fits: {label}', flush=True)
    except DoesNotFit as error:
      results.append(label | dict(fits=False, error=str(error)))
      print(f'does not fit: {label}: {str(error).splitlines()[1]}', flush=True)
  if not results:
    raise ConfigError(
      f'--topology={place.text}: no mesh that lies on these chips divides the models and the batch and holds their state'
    )
  return sorted(
    results, key=lambda r: (not r['fits'], r['found']['roofline']['seconds'] if r['fits'] else 0)
  )


def main() -> None:
  config, place = entry.experiment(_EXPERIMENT.value, _SET.value), topology.parse(_TOPOLOGY.value)
  topology.prepare()
  import jax

  from rolegen_jax.perf.aot import check, programs
  from rolegen_jax.runtime.provenance import machine

  if set(_PROGRAMS.value) - set(programs.PROGRAMS):
    raise ConfigError(
      f'--programs={",".join(_PROGRAMS.value)}: must be of {", ".join(programs.PROGRAMS)}'
    )
  if _LEVEL.value:
    jax.config.update('jax_optimization_level', _LEVEL.value)
  devices = topology.devices(place)
  known = machine()
  result = dict(
    experiment=config.name,
    topology=place.text,
    items=_ITEMS.value,
    config=to_dict(config),
    chip_source=place.chip.source,
    when=known['when'],
    commit=known['commit'],
    config_digest=digest(config),
    versions=known['versions'] | dict(compiler=topology.compiler(place)),
    optimization_level=_LEVEL.value or 'default',
    assumptions=check.ASSUMPTIONS,
  )
  failed = []
  if _SEARCH.value:
    result['search'] = searched(config, place, devices)
    for r in result['search']:
      roofline = (
        f'{1e3 * r["found"]["roofline"]["seconds"]:8.1f} ms  {r["found"]["memory"]["total"] / 2**30:6.2f} GiB'
        if r['fits']
        else 'does not fit'
      )
      print(f'{roofline:>24}  {r["mesh"]}  remat={r["remat"]}')
    failed = (
      []
      if result['search'][0]['fits']
      else ['nothing that was tried fits:', result['search'][0]['error']]
    )
  else:
    result['programs'] = []
    for program in _PROGRAMS.value:
      try:
        result['programs'].append(examine(config, place, devices, program))
      except check.DoesNotFit as error:
        result['programs'].append(dict(program=program, error=str(error)))
        failed.append(str(error))
    if any('roofline' in found for found in result['programs']):
      print('assumes: ' + '; '.join(check.ASSUMPTIONS))
  if _JSON.value:
    from rolegen_jax.data.files import write_json

    write_json(json.loads(json.dumps(result, default=str)), _JSON.value)
  if failed:
    raise ConfigError('\n'.join(failed))
  sys.stdout.flush()
