"""Signs of life for the watchdog of `launch/host_entry.py`: a file that long work touches.

Without a watchdog, nothing happens. The file's text says which limit holds. `step`: inside a loop,
the next sign comes soon. `start`: before, between and in the first two rounds of loops, where
programs compile and data is prepared, the longer limit.

A second file, SAVES beside it, exists while this process answers a SIGTERM by saving. At any other
moment there is nothing to save, and the launcher ends the process at once: work done by then is on
disk, and files appear only when complete.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pathlib
import signal
from collections.abc import Iterator

FILE = 'ROLEGEN_HEARTBEAT'  # environment variable: the path of the file
SAVES = 'saves'
START, STEP = 'start', 'step'
DUMP_SIGNAL = signal.SIGUSR1


def beat(phase: str) -> None:
  """Tell the watchdog that this process is alive, in `phase`."""
  path = os.environ.get(FILE)
  if path:
    pathlib.Path(path).write_text(phase, encoding='utf-8')


@contextlib.contextmanager
def saves() -> Iterator[None]:
  """Tell the launcher, while this is open, that a SIGTERM is answered by saving."""
  path = os.environ.get(FILE)
  marker = pathlib.Path(path).with_name(SAVES) if path else None
  if marker:
    marker.touch()
  try:
    yield
  finally:
    if marker:
      marker.unlink()


def enable_stack_dumps() -> None:
  """Print the stacks of all Python threads on DUMP_SIGNAL, whatever they wait for.

  Only under a watchdog.
  """
  if os.environ.get(FILE):
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
