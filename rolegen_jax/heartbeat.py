"""Signs of life for the watchdog of `launch/host_entry.py`: a file that long work touches. Without a watchdog, nothing happens.

The file's text says which limit holds. `step`: inside a loop, the next sign comes soon. `start`: before, between and in the
first two rounds of loops, where programs compile and data is prepared, the longer limit.
"""

from __future__ import annotations

import faulthandler
import os
import pathlib
import signal

FILE = 'ROLEGEN_HEARTBEAT'  # environment variable: the path of the file
START, STEP = 'start', 'step'
DUMP_SIGNAL = signal.SIGUSR1


def beat(phase: str) -> None:
  """Says that this process is alive, in `phase`."""
  path = os.environ.get(FILE)
  if path:
    pathlib.Path(path).write_text(phase, encoding='utf-8')


def enable_stack_dumps() -> None:
  """On DUMP_SIGNAL the stacks of all Python threads go to stderr, whatever they wait for. Only under a watchdog."""
  if os.environ.get(FILE):
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
