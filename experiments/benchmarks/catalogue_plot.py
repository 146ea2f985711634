"""The picture of catalogue.json."""

from __future__ import annotations

import os

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt

TARGET_MS = 5  # of a swap of 10,000 items
SWAP = 10_000


def draw(found: dict, path: str | os.PathLike) -> None:
  """Four panels against the number of items: bytes of the tables and of the process, a change of the catalogue, masks of a step, build."""
  figure, ((memory, change), (masks, build)) = plt.subplots(2, 2, figsize=(10, 7), layout='constrained')
  sizes = found['sizes']
  items = [each['items'] for each in sizes]

  for name, label in (('live_with_regions', 'live, with regions'), ('live', 'live'), ('compact', 'compact')):
    memory.plot(items, [sum(each[name]['bytes'].values()) / 1e6 for each in sizes], 'o-', label=f'tables, {label}')
  memory.plot(items, [each['csr']['bytes'] / 1e6 for each in sizes], 's:', color='grey', label='tables, CSR (no item codes)')
  memory.plot(items, [each['peak_bytes'] / 1e6 for each in sizes], 'k--', label='peak of the process, host and device')
  memory.set(ylabel='MB', title='Memory')

  for name, label in (('live_with_regions', 'with regions'), ('live', 'no regions')):
    change.plot(items, [_swap(each[name], min(SWAP, each['items'] // 10)) for each in sizes], 'o-', label=f'{SWAP:,} (at most a tenth), {label}')
    change.plot(items, [_swap(each[name], each['items'] // 10) for each in sizes], '^:', label=f'a tenth, {label}')
  change.plot(items, [1e3 * each['compact']['build_and_put_s'] for each in sizes], 's:', color='grey', label='tables built afresh')
  change.axhline(TARGET_MS, color='black', linestyle='--', linewidth=0.8)
  change.set(ylabel='ms', title=f'Items out and as many in (line: {TARGET_MS} ms)')

  ours = (('live', 'mask', 'live'), ('live_with_regions', 'mask_of_regions', 'live, each request its region'), ('live', 'descend', 'live, to the chosen child'))
  for name, step, label in ours:
    masks.plot(items, [_step(each[name]['step'][step]) for each in sizes], 'o-', label=label)
  masks.plot(items, [_step(each['compact']['step']['mask']) for each in sizes], '^-', label='compact')
  masks.plot(items, [_step(each['live']['step']['csr']) for each in sizes], 's:', color='grey', label='CSR')
  dicts = [each for each in sizes if 'dict' in each]
  if dicts:
    masks.plot([each['items'] for each in dicts], [_step(each['dict']['step']) for each in dicts], 'x:', color='black', label='Python dictionaries')
  masks.set(ylabel=f'ms for all {found["levels"]} levels', title=f'Masks of {found["requests"]} x {found["beams"]} beams')

  for name, field, label in (('live', 'build_s', 'live'), ('compact', 'build_and_put_s', 'compact'), ('csr', 'build_s', 'CSR')):
    build.plot(items, [each[name][field] for each in sizes], 'o-', label=label)
  build.set(ylabel='s', title='First build, to tables on the device')

  for panel in (memory, change, masks, build):
    panel.set(xscale='log', yscale='log', xlabel='items (simulated)')
    panel.legend(fontsize=7)
  figure.savefig(path, dpi=90)
  plt.close(figure)


def _swap(live: dict, n: int) -> float:
  """Median ms of a swap of n items; keys are strings once read from JSON."""
  return 1e3 * {int(key): times for key, times in live['swaps'].items()}[n]['median_s']


def _step(levels: list[dict]) -> float:
  return 1e3 * sum(level['median_s'] for level in levels)
