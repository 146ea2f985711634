"""Runs the processes of a local job as one: restarts what may pass, forwards SIGTERM, and gives the job's exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from rolegen_jax.commands import BAD_INPUT, DIVERGED, LOST_PEER, PREEMPTED

POLL_S = 0.2
PEERS_S = 20.0  # after one process failed, the others have so long to end by themselves


def retryable(code: int) -> bool:
  """42, 134, and a death by signal, as 128 + N."""
  return code in (PREEMPTED, LOST_PEER) or code > 128


def run(commands: Callable[[], list[list[str]]], max_restarts: int, grace_s: float) -> int:
  """`commands()` -> one command a process, asked anew at each start (a fresh port). Returns the exit code of the last attempt."""
  stop = _Stop()
  for attempt in range(max_restarts + 1):
    code = _attempt(commands(), stop, grace_s)
    if not retryable(code) or stop.told or attempt == max_restarts:
      return code
    print(f'launch: exit {code}, restart {attempt + 1} of {max_restarts}', file=sys.stderr, flush=True)
  raise AssertionError('unreachable')


class _Stop:
  """SIGTERM or Ctrl-C to the launcher."""

  def __init__(self):
    self.told = False
    for name in (signal.SIGTERM, signal.SIGINT):
      signal.signal(name, self._note)

  def _note(self, *_):
    self.told = True


def _attempt(commands: list[list[str]], stop: _Stop, grace_s: float) -> int:
  # A session each: killing the group takes the training process along, whatever state its host_entry is in.
  running = [subprocess.Popen(command, start_new_session=True) for command in commands]
  ended: list[int] = []  # exit codes in the order of dying
  deadline, told = None, False
  while running:
    time.sleep(POLL_S)
    for process in [p for p in running if p.poll() is not None]:
      running.remove(process)
      ended.append(128 - process.returncode if process.returncode < 0 else process.returncode)
      _signal(process, signal.SIGKILL)  # what it may have left behind
      if ended[-1] and deadline is None:
        deadline = time.monotonic() + (grace_s if ended[-1] == PREEMPTED else PEERS_S)
    if stop.told and not told:
      told, deadline = True, time.monotonic() + grace_s + PEERS_S
      for process in running:
        process.terminate()
    if deadline is not None and time.monotonic() > deadline:
      for process in running:
        _signal(process, signal.SIGKILL)
  return job_code(ended)


def job_code(ended: list[int]) -> int:
  """The job's code from those of its processes: 2 and 3 count wherever they come, else the first failure; the rest are its echo."""
  never = [code for code in ended if code in (BAD_INPUT, DIVERGED)]
  return next(iter(never + [code for code in ended if code]), 0)


def _signal(process: subprocess.Popen, number: int) -> None:
  try:
    os.killpg(process.pid, number)
  except ProcessLookupError:
    pass
