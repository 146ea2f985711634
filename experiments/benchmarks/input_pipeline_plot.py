"""The picture of input_pipeline.json."""

from __future__ import annotations

import os

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt

LIMIT = 4 * 2**30  # bytes


def draw(found: dict, path: str | os.PathLike) -> None:
  """Three panels: pace and memory of preparing by size of the log, and the share of 1 ms steps spent waiting by batch."""
  figure, (pace, memory, waiting) = plt.subplots(1, 3, figsize=(11, 3.2), layout='constrained')
  events = [each['events'] for each in found['prepared']]
  pace.plot(events, [each['events_per_s'] / 1e3 for each in found['prepared']], 'o-')
  pace.set(xscale='log', xlabel='events of the log (simulated)', ylabel='thousand events / s', ylim=(0, None), title='Preparing')
  memory.plot(events, [each['peak_bytes'] / 2**30 for each in found['prepared']], 'o-')
  memory.axhline(LIMIT / 2**30, color='grey', linestyle='--', label='limit')
  memory.set(xscale='log', xlabel='events of the log (simulated)', ylabel='GiB, all processes', ylim=(0, None), title='Peak memory')
  memory.legend()
  for cold, label in ((True, 'from the disk'), (False, 'in the page cache')):
    loops = [each for each in found['reading'] if each['cold'] == cold and each['step_s']]
    waiting.plot([each['batch'] for each in loops], [100 * each['wait_share'] for each in loops], 'o-', label=label)
  waiting.set(xscale='log', xlabel='rows of a batch', ylabel='% of the loop', ylim=(0, None), title='Waiting for data, steps of 1 ms')
  batches = sorted({each['batch'] for each in found['reading']})
  waiting.set_xticks(batches, map(str, batches))
  waiting.minorticks_off()
  waiting.legend()
  figure.savefig(path)
  plt.close(figure)
