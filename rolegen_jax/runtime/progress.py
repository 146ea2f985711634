"""Progress of long work: a bar on a terminal, a line now and then in a log.

Every step is also a sign of life for the watchdog.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

from rolegen_jax.fields import as_given
from rolegen_jax.runtime import heartbeat

T = TypeVar('T')

LINE_EVERY_S = 10.0


def say(text: str) -> None:
  """Print a line for whoever watches; what a command returns goes to stdout."""
  print(as_given(text), file=sys.stderr, flush=True)


def progress(
  items: Iterable[T], label: str, total: int | None = None, initial: int = 0
) -> Iterator[T]:
  """Yield `items`, showing how many are done.

  A bar on a terminal; otherwise a line `label: done/total` every ten seconds.
  """
  if total is None and isinstance(items, Sized):
    total = len(items)
  watched = _with_heartbeat(items)
  if sys.stderr.isatty():
    yield from tqdm(watched, desc=label, total=total, initial=initial, dynamic_ncols=True)
    return
  started = last = time.monotonic()
  done = initial
  for item in watched:
    yield item
    done += 1
    now = time.monotonic()
    if now - last >= LINE_EVERY_S or done == total:
      last = now
      say(f'{label}: {done}/{total if total is not None else "?"} ({now - started:.0f} s)')


def _with_heartbeat(items: Iterable[T]) -> Iterator[T]:
  """Yield `items` with a sign of life at each.

  The first round may compile, and what follows the last may prepare the next loop. Steps are
  dispatched ahead of the device: only the end of the second round shows that the first has run,
  and so that all other processes have compiled too.
  """
  heartbeat.beat(heartbeat.START)
  try:
    for number, item in enumerate(items):
      yield item
      heartbeat.beat(heartbeat.STEP if number else heartbeat.START)
  finally:
    heartbeat.beat(heartbeat.START)
