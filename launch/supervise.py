"""Run the processes of a local job as one: restarts, SIGTERM, and one exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from rolegen_jax.cli.entry import BAD_INPUT, DIVERGED, LOST_PEER, PREEMPTED

POLL_S = 0.2
PEERS_S = 20.0  # after one process failed, the others have this long to end by themselves


def retryable(code: int) -> bool:
  """Return whether another attempt may succeed: after 42, 134, or a signal N (as 128 + N)."""
  return code in (PREEMPTED, LOST_PEER) or code > 128


def run(commands: Callable[[], list[list[str]]], max_restarts: int, grace_s: float) -> int:
  """Run the job until it is done or restarts are used up; return the last attempt's exit code.

  `commands()` returns one command per process. It is called for each attempt: each needs a new
  port.
  """
  stop = _StopRequest()
  for attempt in range(max_restarts + 1):
    code = _attempt(commands(), stop, grace_s)
    if not retryable(code) or stop.received or attempt == max_restarts:
      return code
    message = f'launch: exit {code}, restart {attempt + 1} of {max_restarts}'
    print(message, file=sys.stderr, flush=True)
  raise AssertionError('unreachable')


class _StopRequest:
  """Whether SIGTERM or SIGINT (Ctrl-C) reached the launcher."""

  def __init__(self) -> None:
    self.received = False
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._receive)

  def _receive(self, *_: object) -> None:
    self.received = True


def _attempt(commands: list[list[str]], stop: _StopRequest, grace_s: float) -> int:
  # One session per process: killing its group also kills the training process below host_entry.
  running = [subprocess.Popen(command, start_new_session=True) for command in commands]
  exit_codes: list[int] = []  # in the order in which the processes ended
  deadline: float | None = None
  stop_sent = False
  while running:
    time.sleep(POLL_S)
    for process in [p for p in running if p.poll() is not None]:
      running.remove(process)
      code = _exit_code(process)
      exit_codes.append(code)
      _kill_group(process)  # children that it may have left behind
      if code and deadline is None:
        deadline = time.monotonic() + (grace_s if code == PREEMPTED else PEERS_S)
    if stop.received and not stop_sent:
      stop_sent, deadline = True, time.monotonic() + grace_s + PEERS_S
      for process in running:
        process.terminate()
    if deadline is not None and time.monotonic() > deadline:
      for process in running:
        _kill_group(process)
  return job_code(exit_codes)


def job_code(exit_codes: Sequence[int]) -> int:
  """Return the job's exit code from those of its processes, in the order in which they ended.

  2 and 3 win wherever they occur; otherwise the first failure does, as later ones follow from it.
  """
  final = [code for code in exit_codes if code in (BAD_INPUT, DIVERGED)]
  failures = [code for code in exit_codes if code]
  return next(iter(final + failures), 0)


def _exit_code(process: subprocess.Popen[bytes]) -> int:
  code = process.wait()
  return 128 - code if code < 0 else code


def _kill_group(process: subprocess.Popen[bytes]) -> None:
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
