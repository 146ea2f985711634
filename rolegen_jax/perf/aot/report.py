"""Programs compiled for chips that are not here, examined, and shown as text."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax

from rolegen_jax import sharding
from rolegen_jax.config import Config, ConfigError, to_dict
from rolegen_jax.perf.aot import check, programs, search, topology
from rolegen_jax.perf.aot.advice import advice
from rolegen_jax.perf.aot.check import GIB, DoesNotFit
from rolegen_jax.perf.aot.topology import Topology
from rolegen_jax.semantic_ids.trie import default_capacity


def examine(
  config: Config, place: Topology, devices: list[jax.Device], program: str, items: int
) -> dict[str, Any]:
  """Compile one program and return its memory, collectives and roofline.

  Memory is printed at once: the rest reads the program back, which takes long and can fail. Raises
  DoesNotFit, saying what to change.
  """
  started = time.monotonic()
  mesh = sharding.make_mesh(config.mesh, devices)
  shape, room = dict(mesh.shape), default_capacity(items)
  try:
    lowered = programs.lower(program, config, mesh, items)
    compiled = check.compile_program(lowered, place.chip.platform)
    memory = check.memory(compiled, place)
  except DoesNotFit as error:
    has_place = functools.partial(topology.lies, devices)
    lines = advice(config, program, shape, place, room, str(error), has_place)
    changes = '\n'.join(f'  - {line}' for line in lines)
    raise DoesNotFit(
      f'{program} of {config.name} does not fit on {place.text}, mesh {shape}.\n{error}\n'
      f'What to change:\n{changes}'
    ) from error
  seconds = time.monotonic() - started
  result = dict(program=program, mesh=shape, compile_seconds=seconds, memory=memory)
  print(show_memory(result, place), flush=True)
  sent = check.collectives(compiled, place)
  roofline = check.roofline(config, program, place, shape, sent, room)
  result |= dict(collectives=sent, roofline=roofline)
  print(show_roofline(result), flush=True)
  return result


def show_memory(result: dict[str, Any], place: Topology) -> str:
  """Return what a program holds on a device, as text."""
  sizes = result['memory']
  kinds = ('arguments', 'outputs', 'aliased', 'temporaries', 'code')
  listed = ', '.join(f'{kind} {sizes[kind] / GIB:.2f}' for kind in kinds)
  return (
    f'{result["program"]} on {place.text}, {place.chips} chips, mesh {result["mesh"]}: '
    f'compiled in {result["compile_seconds"]:.0f} s\n'
    f'  GiB a device: {listed}; '
    f'together {sizes["total"] / GIB:.2f} of {sizes["hbm"] / GIB:.2f}'
  )


def show_roofline(result: dict[str, Any]) -> str:
  """Return the phases of a program and what bounds them, as text."""
  sent, roofline = result['collectives'], result['roofline']
  # Sent inside a slice or host (ICI, NVLink), and to others over the data-center network.
  titles = (
    'PFLOPs',
    'GB read',
    'GB ICI',
    'GB DCN',
    'in loops',
    'compute',
    'memory',
    'interconnect',
  )
  widths = (9, 8, 8, 8, 8, 9, 9, 12)
  header = ' '.join(f'{title:>{width}}' for title, width in zip(titles, widths))
  lines = [f'  {"phase":<10} {header}  bound']
  for name, phase in roofline['phases'].items():
    lines.append(f'  {name:<10} {_phase(phase, sent["phases"].get(name))}  {phase["bound"]}')
  best = (
    f'  at best {1e3 * roofline["seconds"]:.1f} ms, MFU {100 * roofline["mfu_at_roofline"]:.1f} %; '
  )
  if sent['unknown']:
    unknown = f'without interconnect: collectives are unknown, {sent["unknown"]}'
    return '\n'.join([*lines, best + unknown])
  inside = sent['in_rollout_bodies'] or 'none'
  loops = f'collectives in the {sent["rollout_loops"]} loops of the rollout: {inside}'
  lines.append(best + loops)
  if sent['loops_of_unknown_length']:
    lines.append(
      f'  {sent["loops_of_unknown_length"]} loops of unknown length count once: '
      'bytes sent are a lower bound'
    )
  return '\n'.join(lines)


def _phase(phase: dict[str, Any], sent: dict[str, Any] | None) -> str:
  work = f'{phase["flops"] / 1e15:9.3f} {phase["bytes_read"] / 1e9:8.2f}'
  seconds = f'{1e3 * phase["compute"]:7.1f}ms {1e3 * phase["memory"]:7.1f}ms'
  if sent is None:
    return f'{work} {"?":>8} {"?":>8} {"?":>8} {seconds} {"?":>12}'
  link, network = sent['link'] / 1e9, sent['network'] / 1e9
  collectives = f'{link:8.3f} {network:8.3f} {sent["in_loops"]:8d}'
  return f'{work} {collectives} {seconds} {1e3 * phase["interconnect"]:10.1f}ms'


def search_meshes(
  config: Config, place: Topology, devices: list[jax.Device], items: int, limit: int
) -> list[dict[str, Any]]:
  """Compile the step of every candidate; return those that fit first, fastest first.

  Raises ConfigError when there is no candidate.
  """
  has_place = functools.partial(topology.lies, devices)
  results: list[dict[str, Any]] = []
  for candidate in search.candidates(config, place, default_capacity(items), has_place):
    label = dict(mesh=to_dict(candidate.mesh), remat=candidate.reasoner.transformer.remat)
    if any(result['fits'] and result['mesh'] == label['mesh'] for result in results):
      continue  # less rematerialization fits already
    if len(results) == limit:
      print(f'stopped after --search_limit={limit} candidates', flush=True)
      break
    try:
      found = examine(candidate, place, devices, 'step', items)
      results.append(label | dict(fits=True, found=found))
      print(f'fits: {label}', flush=True)
    except DoesNotFit as error:
      results.append(label | dict(fits=False, error=str(error)))
      print(f'does not fit: {label}: {str(error).splitlines()[1]}', flush=True)
  if not results:
    raise ConfigError(
      f'--topology={place.text}: no mesh that lies on these chips divides the models and the '
      'batch and holds their state'
    )
  return sorted(results, key=_rank)


def _rank(result: dict[str, Any]) -> tuple[bool, float]:
  return not result['fits'], result['found']['roofline']['seconds'] if result['fits'] else 0.0


def show_search(results: list[dict[str, Any]]) -> str:
  """Return a line for each candidate."""
  lines = []
  for result in results:
    verdict = 'does not fit'
    if result['fits']:
      found = result['found']
      milliseconds, gib = 1e3 * found['roofline']['seconds'], found['memory']['total'] / GIB
      verdict = f'{milliseconds:8.1f} ms  {gib:6.2f} GiB'
    lines.append(f'{verdict:>24}  {result["mesh"]}  remat={result["remat"]}')
  return '\n'.join(lines)
