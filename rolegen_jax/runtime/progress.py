"""Progress of long work: a bar on a terminal, a line now and then in a log, and signs of life for a watchdog."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from rolegen_jax.runtime import heartbeat

LINE_EVERY_S = 10.0


def say(text: str) -> None:
  """A line for whoever watches; what a command returns goes to stdout."""
  print(text, file=sys.stderr, flush=True)


def progress(items: Iterable, label: str, total: int | None = None, initial: int = 0) -> Iterator:
  """Yields `items`, drawing a bar when stderr is a terminal and printing `label: done/total` every ten seconds otherwise."""
  total = len(items) if total is None and hasattr(items, '__len__') else total
  items = _alive(items)
  if sys.stderr.isatty():
    yield from tqdm(items, desc=label, total=total, initial=initial, dynamic_ncols=True)
    return
  started = last = time.monotonic()
  done = initial
  for item in items:
    yield item
    done += 1
    now = time.monotonic()
    if now - last >= LINE_EVERY_S or done == total:
      last = now
      print(
        f'{label}: {done}/{total if total is not None else "?"} ({now - started:.0f} s)',
        file=sys.stderr,
        flush=True,
      )


def _alive(items: Iterable) -> Iterator:
  """Yields `items` with a sign of life at each.

  The first round may compile, and what follows the last may prepare the next loop. Steps are dispatched ahead of the device: only
  the end of the second round shows that the first has run, and so that all other processes have compiled too.
  """
  heartbeat.beat(heartbeat.START)
  try:
    for number, item in enumerate(items):
      yield item
      heartbeat.beat(heartbeat.STEP if number else heartbeat.START)
  finally:
    heartbeat.beat(heartbeat.START)
