"""What the benchmarks share: rivals timed in turn, and results kept with their provenance."""

from __future__ import annotations

import os
import pathlib
import platform
import time
from collections.abc import Callable

import jax
import numpy as np

from rolegen_jax.data.files import write_json
from rolegen_jax.provenance import machine

FOLDER = pathlib.Path(__file__).parent


def alternate(calls: dict[str, Callable[[], object]], repeats: int, warm_up: int = 1) -> dict[str, dict]:
  """Calls every side once a round and waits for its result, so that a machine's bad moments meet all of them.

  Returns per side median_s, quartiles_s and seconds (all rounds). The side that goes first moves on each round; `warm_up`
  rounds are not timed.
  """
  seconds = {name: [] for name in calls}
  names = list(calls)
  for i in range(warm_up + repeats):
    for name in names[i % len(names):] + names[:i % len(names)]:
      started = time.perf_counter()
      jax.block_until_ready(calls[name]())
      seconds[name].append(time.perf_counter() - started)
  return {name: summary(times[warm_up:]) for name, times in seconds.items()}


def summary(seconds: list[float]) -> dict:
  """median_s, quartiles_s and the times themselves."""
  return dict(median_s=float(np.median(seconds)), quartiles_s=[float(q) for q in np.quantile(seconds, (0.25, 0.75))], seconds=list(seconds))


def keep(name: str, found: dict, *packages: str, folder: str | os.PathLike = FOLDER) -> pathlib.Path:
  """Writes `found` to NAME.json with provenance: `provenance.machine` of `packages`, the processor and how many cores."""
  path = pathlib.Path(folder) / f'{name}.json'
  cpu = dict(cpu=processor(), cores=len(os.sched_getaffinity(0)))
  write_json(found | dict(provenance=machine(*packages) | cpu), path)
  return path


def processor() -> str:
  """The processor's model, as far as the system tells."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  return next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), platform.machine())
