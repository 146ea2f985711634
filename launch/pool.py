"""Runs the points of a sweep as processes of this machine, so many at a time, and writes into the ledger what became of each.

Exit codes of a run decide (WORKSPACE.md): 0 is done; 42, 134 and death by a signal start the same command again, up to a
bound, because it continues where it was; everything else is a failure that another try would repeat. SIGTERM or Ctrl-C
stops the children with SIGTERM, waits for them to save, and marks them as stopped.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import fcntl
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

from launch.ledger import Ledger, now
from rolegen_jax.commands import BAD_INPUT, DIVERGED, LOST_PEER, PREEMPTED

RETRIED = (PREEMPTED, LOST_PEER)
POLL_S = 0.1
TAIL_LINES, TAIL_BYTES = 5, 4096  # of a failed point's log, kept in the ledger


@dataclasses.dataclass(frozen=True)
class Point:
  name: str
  command: list[str]
  folder: pathlib.Path  # log.txt and the product lie here
  product: str = 'report.json'  # a command that ends with 0 has written this file

  @property
  def path(self) -> pathlib.Path:
    return self.folder / self.product


@dataclasses.dataclass
class _Child:
  point: Point
  process: subprocess.Popen
  log_start: int  # bytes of log.txt that older starts wrote
  began: float


class Pool:
  """`run` may be called once. `max_restarts` bounds the retries of one point in one call."""

  def __init__(self, ledger: Ledger, parallel: int = 1, max_restarts: int = 3, grace_s: float = 120.0):
    self._ledger, self._parallel, self._max_restarts, self._grace_s = ledger, parallel, max_restarts, grace_s
    self._waiting: list[Point] = []
    self._running: list[_Child] = []
    self._restarts: collections.Counter[str] = collections.Counter()
    self._left_behind: set[str] = set()
    self._signals: list[int] = []
    self._deadline: float | None = None  # of the children, once a signal came

  def run(self, points: list[Point]) -> bool:
    """Runs all of them. False when a signal stopped the sweep before it was through."""
    self._waiting.extend(points)
    before = {kind: signal.signal(kind, lambda number, _: self._signals.append(number)) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
      while self._running or (self._waiting and not self._signals):
        if self._signals:
          self._stop()
        else:
          self._fill()
        for child in [c for c in self._running if c.process.poll() is not None]:
          self._running.remove(child)
          self._ended(child)
        time.sleep(POLL_S)
    finally:
      for kind, handler in before.items():
        signal.signal(kind, handler)
    return not self._signals

  def _fill(self) -> None:
    for point in [*self._waiting]:
      if len(self._running) == self._parallel:
        return
      if self._start(point):
        self._waiting.remove(point)

  def _start(self, point: Point) -> bool:
    """True when the point needs no more waiting; False while a process that an earlier, killed sweep started still works in the point's folder."""
    point.folder.mkdir(parents=True, exist_ok=True)
    with (point.folder / '.lock').open('w') as lock, (point.folder / 'log.txt').open('ab') as log:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        if point.name not in self._left_behind:
          self._left_behind.add(point.name)
          say(f'{point.name}: still runs, left behind by a sweep that was killed; waiting for it')
        return False
      entry = self._ledger.points[point.name]
      if entry['state'] == 'running' and self._ended_alone(point, entry):
        return True
      self._ledger.update(point.name, state='running', why='', exit_code=None, started=now(), ended=None, starts=entry['starts'] + 1)
      log.write(f'== start {entry["starts"]}, {entry["started"]}: {shlex.join(point.command)}\n'.encode())
      log.flush()
      # The child holds the lock through its copy of the file. Its own session: Ctrl-C reaches it through us, once.
      process = subprocess.Popen(point.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, pass_fds=[lock.fileno()], start_new_session=True)
      self._running.append(_Child(point, process, log.tell(), time.monotonic()))
    say(f'{point.name}: start {entry["starts"]} -> {point.folder / "log.txt"}')
    return True

  def _ended_alone(self, point: Point, entry: dict) -> bool:
    """Whether a process that a killed sweep left behind wrote its product since: then the point is done."""
    took = point.path.stat().st_mtime - datetime.datetime.fromisoformat(entry['started']).timestamp() if point.path.exists() else -1.0
    if took < 0:
      return False
    self._ledger.update(point.name, state='done', why='', exit_code=0, ended=now(), wall_s=round(entry['wall_s'] + took, 1))
    say(f'{point.name}: done, while no sweep watched')
    return True

  def _ended(self, child: _Child) -> None:
    name, code = child.point.name, child.process.returncode
    entry = self._ledger.points[name]
    wall_s = round(entry['wall_s'] + time.monotonic() - child.began, 1)
    again = code in RETRIED or code < 0
    if code == 0 and child.point.path.exists():
      state, why = 'done', ''
    elif self._signals:
      state, why = 'stopped', f'{_name(self._signals[0])} to the sweep; the same command continues'
    elif again and self._restarts[name] < self._max_restarts:
      state, why = 'waiting', f'{_meaning(code)}; started again'
      self._restarts[name] += 1
      self._waiting.append(child.point)
    else:
      bound = f', after {self._max_restarts} restarts' if again else ''
      lacks = f'ended well but wrote no {child.point.product}\n' if code == 0 else ''
      state, why = 'failed', f'{lacks}{_meaning(code)}{bound}\n{_tail(child)}'.strip()
    self._ledger.update(name, state=state, why=why, exit_code=code, ended=now(), wall_s=wall_s)
    say(f'{name}: {state} after {wall_s:.0f} s' + (f', {why}' if why else ''))

  def _stop(self) -> None:
    """SIGTERM once to each child; SIGKILL when the grace is over or a second signal came."""
    if self._deadline is None:
      self._deadline = time.monotonic() + self._grace_s
      say(f'{_name(self._signals[0])}: stopping {len(self._running)} points, which save first (at most {self._grace_s:.0f} s)')
      for child in self._running:
        child.process.terminate()
    elif len(self._signals) > 1 or time.monotonic() > self._deadline:
      for child in self._running:
        os.killpg(child.process.pid, signal.SIGKILL)


def say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _name(number: int) -> str:
  return signal.Signals(number).name


def _meaning(code: int) -> str:
  meanings = {0: 'done', BAD_INPUT: 'bad setting or data', DIVERGED: 'diverged', PREEMPTED: 'preempted and saved', LOST_PEER: 'watchdog or a lost peer'}
  return f'killed by {_name(-code)}' if code < 0 else f'exit code {code}' + (f' ({meanings[code]})' if code in meanings else '')


def _tail(child: _Child) -> str:
  """The last lines that this start wrote."""
  with (child.point.folder / 'log.txt').open('rb') as log:
    log.seek(max(child.log_start, os.fstat(log.fileno()).st_size - TAIL_BYTES))
    lines = [line for line in log.read().decode(errors='replace').splitlines() if line.strip()]
  return '\n'.join(lines[-TAIL_LINES:])
