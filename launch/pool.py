"""Runs the points of a sweep as processes of this machine, so many at a time, and writes into the ledger what became of each.

Exit codes of a run decide (WORKSPACE.md): 0 is done; 42, 134 and death by a signal start the same command again, up to a
bound, because it continues where it was; everything else is a failure that another try would repeat. SIGTERM or Ctrl-C
stops the children with SIGTERM, waits for them to save, and marks them as stopped.

No folder ever has two writers: each child holds a lock on its folder for as long as it lives (flock, inherited). The children
of a sweep that was killed work on; the next sweep counts them among the processes that run and waits for each.
"""

from __future__ import annotations

import collections
import contextlib
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
from typing import TextIO

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
    self._waited_for: set[str] = set()
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
    for point in [point for point in self._waiting if _is_held(point)]:
      say(f'{point.name}: goes on{_holder(point)}; end that too, or let it finish')
    return not self._signals

  def _fill(self) -> None:
    if len(self._running) == self._parallel:
      return
    held = [point for point in self._waiting if _is_held(point)]
    for point in held:
      if point.name not in self._waited_for:
        self._waited_for.add(point.name)
        say(f'{point.name}: still runs{_holder(point)}, left behind by a sweep that was killed; waiting for it')
    room = max(0, self._parallel - len(self._running) - len(held))
    for point in [point for point in self._waiting if point not in held][:room]:
      self._waiting.remove(point)
      self._start(point)

  def _start(self, point: Point) -> None:
    with _lock_file(point) as lock, (point.folder / 'log.txt').open('ab') as log:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      lock.truncate(0)
      entry = self._ledger.points[point.name]
      wall_s = entry['wall_s']
      if entry['state'] == 'running':  # a killed sweep's, and what became of it is not written down
        if (took := _seconds(entry, point.path)) is not None:
          self._ledger.update(point.name, state='done', exit_code=0, ended=now(), wall_s=round(wall_s + took, 1))
          say(f'{point.name}: done, while no sweep watched')
          return
        wall_s = round(wall_s + (_seconds(entry, point.folder / 'log.txt') or 0.0), 1)  # to its last word
      self._ledger.update(point.name, state='running', why='', exit_code=None, started=now(), ended=None, starts=entry['starts'] + 1, wall_s=wall_s)
      log.write(f'== start {entry["starts"]}, {entry["started"]}: {shlex.join(point.command)}\n'.encode())
      log.flush()
      # The child holds the lock through its copy of the file. Its own session: Ctrl-C reaches it through us, once.
      process = subprocess.Popen(point.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, pass_fds=[lock.fileno()], start_new_session=True)
      lock.write(str(process.pid))
      self._running.append(_Child(point, process, log.tell(), time.monotonic()))
    say(f'{point.name}: start {entry["starts"]} -> {point.folder / "log.txt"}')

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


def _lock_file(point: Point) -> TextIO:
  """Appending, since who only looks must not wipe out the holder's number."""
  point.folder.mkdir(parents=True, exist_ok=True)
  return (point.folder / '.lock').open('a+', encoding='utf-8')


def _is_held(point: Point) -> bool:
  """Whether a process works in the point's folder. Not to be asked of one's own children."""
  with _lock_file(point) as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False


def _holder(point: Point) -> str:
  number = (point.folder / '.lock').read_text(encoding='utf-8')
  return f' as process {number}' if number else ''


def _seconds(entry: dict, path: pathlib.Path) -> float | None:
  """From the point's latest start to the last change of a file; None when there is none since."""
  took = path.stat().st_mtime - datetime.datetime.fromisoformat(entry['started']).timestamp() if path.exists() else -1.0
  return took if took >= 0 else None


def say(text: str) -> None:
  with contextlib.suppress(BrokenPipeError):  # whoever read this has gone; the points go on
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
