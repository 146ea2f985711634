"""The table and the figure of `serving.py`, for the terminal and docs/serving.md."""

from __future__ import annotations

import pathlib

import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.quality_report import write_blocks

PAGE = harness.ROOT / 'docs' / 'serving.md'
NAMES = dict(rolegen='RoleGen', hf_t5='FastAPI + HF T5')


def rows(results: dict) -> list[tuple[str, str]]:
  """Return what was measured, and the figure with its target."""
  points = results['points']
  makers = dict(throughput=_throughput, reasoning=_reasoning, soak=_soak, swap=_swap, kill=_kill)
  found = []
  for name, point in points.items():
    section, _, run = name.partition(', ')
    where = f'{run}: ' if run else ''
    found += [(where + what, figure) for what, figure in makers[section](point)]
  return found


def _throughput(point: dict) -> list[tuple[str, str]]:
  sides, ratios, found = point['sides'], point['ratios'], []
  for name, side in sides.items():
    one, busy = side['one_caller'], float(np.median(side['busy_per_second']))
    limit = f'{side["rps_within_limit"]:g}/s at a p99 of at most {side["limit_ms"]:g} ms'
    found.append((NAMES[name], f'{busy:.1f} answers/s when busy; {limit}'))
    target = ' (target: 12)' if name == 'rolegen' else ''
    found.append((f'{NAMES[name]}, one caller', f'median {1e3 * one["median_s"]:.1f} ms{target}'))
  ours, theirs = (side['rps_within_limit'] for side in sides.values())
  within = f'{ours / theirs:.1f}x' if theirs else 'none: T5 exceeds it at every rate'
  found.append(('answers/s within the limit, RoleGen over T5', f'{within} (target: 20x)'))
  found.append(('answers/s when busy, RoleGen over T5', f'{ratios["busy"]["median"]:.1f}x'))
  found.append(('latency of one caller, T5 over RoleGen', f'{ratios["one_caller"]["median"]:.1f}x'))
  return found


def _reasoning(point: dict) -> list[tuple[str, str]]:
  found = []
  for mode, target in (('online', 3), ('cached', 1.1)):
    ratio, ms = point['ratios'][mode]['median'], 1e3 * point['modes'][mode]['median_s']
    figure = f'{ratio:.2f}x the backbone alone (target: {target}x), {ms:.0f} ms'
    found.append((f'{point["batch"]} requests at once, reasons {mode}', figure))
  return found


def _soak(point: dict) -> list[tuple[str, str]]:
  figures = point['figures']
  kinds, server = figures['kinds'], figures['server']
  first, last = (server['memory_bytes'][when] / 2**20 for when in ('first', 'last'))
  changes = kinds['change']['ok']
  ms = kinds['recommend']['latency_ms']
  name = f'soak of {point["seconds"] / 60:g} min, {point["rps"]:.1f} requests/s'
  return [
    (f'{name}, {changes} changes', f'{figures["failed"]} good requests failed'),
    ('wrong answers, removed items among them', str(figures['wrong'])),
    ('programs compiled', f'{server["compilations"]["most"]:g}'),
    ('memory, first and last', f'{first:.0f} and {last:.0f} MiB'),
    ('latency', f'p50 {ms["p50"]:.0f}, p99 {ms["p99"]:.0f}, p99.9 {ms["p99.9"]:.0f} ms'),
  ]


def _swap(point: dict) -> list[tuple[str, str]]:
  whole, writes = (1e3 * point[name]['median_s'] for name in ('end_to_end', 'writes'))
  figure = f'{whole:.1f} ms (target: 10); its writes, each waited for, {writes:.1f} ms (target: 5)'
  return [(f'{point["swapped"]:,} of {point["items"]:,} items replaced', figure)]


def _kill(point: dict) -> list[tuple[str, str]]:
  lost = f'{len(point["lost"])} of {point["requests"]} requests lost'
  again = f'{point["ready_again_s"]:.1f} s from the kill to ready (target: 20)'
  again += f', {point["ready_again_cpu_s"]:.1f} s of CPU'
  return [('kill -9 of one of two replicas', f'{lost}; {again}')]


def table(results: dict) -> str:
  """Return the rows as text."""
  found = rows(results)
  width = max(len(name) for name, _ in found)
  return '\n'.join(f'{name:<{width}}  {figure}' for name, figure in found)


def markdown(results: dict) -> str:
  """Return the rows as docs/serving.md has them."""
  lines = ['| measured | figure |', '|---|---|']
  return '\n'.join(lines + [f'| {name} | {figure} |' for name, figure in rows(results)])


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw p99 by rate of both sides, and memory over the soak.

  Beside the figure of the docs, the table of their page is written.
  """
  points = results['points']
  figure, [[rates, memory]] = harness.panels(1, 2, (9.6, 3.6))
  colors = dict(rolegen=harness.BLUE, hf_t5=harness.VERMILION)
  for name, side in points.get('throughput', {}).get('sides', {}).items():
    trials = sorted((trial['rps'], trial['p99_ms']) for trial in side['trials'])
    rates.plot(*zip(*trials), 'o-', color=colors[name], label=NAMES[name], markersize=4)
  rates.axhline(100, color='black', linestyle='--', linewidth=0.8)
  rates.set(xscale='log', yscale='log', xlabel='requests a second', ylabel='p99 of 10 s, ms')
  rates.set_xticks((1, 10, 100, 1000), ('1', '10', '100', '1000'))
  rates.set_yticks((10, 30, 100, 300), ('10', '30', '100', '300'))
  rates.minorticks_off()
  rates.legend(frameon=False, fontsize=8)
  if 'soak' in points:
    seconds, held = np.array(points['soak']['memory']).T
    memory.plot(seconds / 60, held / 2**20, color=harness.BLUE)
    memory.set(ylim=(0, 1.2 * held.max() / 2**20))
  memory.set(xlabel='minutes of the soak', ylabel="the server's memory, MiB")
  figure.savefig(figure_path, dpi=110)
  if figure_path.parent == harness.FIGURES:
    write_blocks(dict(serving=markdown(results)), PAGE)
