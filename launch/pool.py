"""Run the points of a sweep as local processes, several at a time, and record them in the ledger.

Exit codes of a run decide (WORKSPACE.md): 0 is done; 42, 134 and a signal start the same command
again, up to a limit, because it continues where it was; any other code is a failure that another
attempt would repeat. SIGTERM or Ctrl-C stops the children with SIGTERM, waits for them to save,
and marks them as stopped.

No folder ever has two writers: each child holds a lock on its folder (flock, inherited) for as
long as it lives; that of a folder in a bucket, and its log until the child ends, are in the
temporary folder of this machine. The children of a sweep that was killed keep running; the next
sweep counts them among its running processes and waits for each.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from typing import TextIO

from launch.ledger import Entry, Ledger, utc_now
from rolegen_jax.cli.entry import BAD_INPUT, DIVERGED, LOST_PEER, PREEMPTED
from rolegen_jax.runtime import storage

RETRYABLE = (PREEMPTED, LOST_PEER)
POLL_S = 0.1
TAIL_LINES, TAIL_BYTES = 5, 4096  # of a failed point's log, copied to the ledger
MEANINGS = {
  0: 'done',
  BAD_INPUT: 'bad setting or data',
  DIVERGED: 'diverged',
  PREEMPTED: 'preempted and saved',
  LOST_PEER: 'watchdog or a lost peer',
}


@dataclasses.dataclass(frozen=True)
class Point:
  """One run of a sweep."""

  name: str
  command: list[str]
  folder: pathlib.Path  # holds log.txt and the product; may be in a bucket
  product: str = 'report.json'  # the file that a command which exits with 0 has written

  @property
  def here(self) -> pathlib.Path:
    """The folder of this machine for the lock and the growing log: `folder`, if it is local."""
    if not storage.is_remote(self.folder):
      return self.folder
    name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
    return pathlib.Path(tempfile.gettempdir()) / f'rolegen_sweeps_{os.getuid()}' / name

  @property
  def log(self) -> pathlib.Path:
    return self.here / 'log.txt'

  @property
  def product_path(self) -> pathlib.Path:
    return self.folder / self.product


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a pool may use."""

  parallel: int = 1  # points that run at the same time
  max_restarts: int = 3  # of one point in one call
  grace_s: float = 120.0  # from SIGTERM to SIGKILL of the children


@dataclasses.dataclass
class _Child:
  point: Point
  process: subprocess.Popen[bytes]
  log_start: int  # bytes of log.txt that earlier starts wrote
  started: float  # time.monotonic()


class Pool:
  """Runs points within `limits`; `run` may be called once."""

  def __init__(self, ledger: Ledger, limits: Limits) -> None:
    self._ledger, self._limits = ledger, limits
    self._waiting: list[Point] = []
    self._running: list[_Child] = []
    self._restarts: collections.Counter[str] = collections.Counter()
    self._announced: set[str] = set()  # points that a killed sweep left running
    self._signals: list[int] = []
    self._deadline: float | None = None  # of the children, once a signal came

  def run(self, points: list[Point]) -> bool:
    """Run all points. Return False when a signal stopped the sweep before the end."""
    self._waiting.extend(points)
    numbers = (signal.SIGTERM, signal.SIGINT)
    old_handlers = {number: signal.signal(number, self._receive) for number in numbers}
    try:
      while self._running or (self._waiting and not self._signals):
        if self._signals:
          self._stop_children()
        else:
          self._start_children()
        self._collect_children()
        time.sleep(POLL_S)
    finally:
      for number, handler in old_handlers.items():
        signal.signal(number, handler)
    for point in self._waiting:
      if _is_locked(point):
        say(f'{point.name}: keeps running{_holder(point)}; end that too, or let it finish')
    return not self._signals

  def _receive(self, number: int, _: object) -> None:
    self._signals.append(number)

  def _start_children(self) -> None:
    if len(self._running) == self._limits.parallel:
      return
    locked = [point for point in self._waiting if _is_locked(point)]
    for point in locked:
      if point.name not in self._announced:
        self._announced.add(point.name)
        say(f'{point.name}: still runs{_holder(point)}, left by a killed sweep; waiting for it')
    room = max(0, self._limits.parallel - len(self._running) - len(locked))
    unlocked = [point for point in self._waiting if point not in locked]
    for point in unlocked[:room]:
      self._waiting.remove(point)
      self._start(point)

  def _start(self, point: Point) -> None:
    with _open_lock(point) as lock, point.log.open('ab') as log:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      lock.truncate(0)
      entry = self._settle(point)
      if entry.state == 'done':
        say(f'{point.name}: done, while no sweep watched')
        return
      start = dict(state='running', why='', exit_code=None, started=utc_now(), ended=None)
      entry = self._ledger.update(point.name, **start, starts=entry.starts + 1)
      log.write(f'== start {entry.starts}, {entry.started}: {shlex.join(point.command)}\n'.encode())
      log.flush()
      # The child holds the lock through its copy of the file. In a session of its own it gets
      # Ctrl-C from this process only, once.
      process = subprocess.Popen(
        point.command,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        pass_fds=[lock.fileno()],
        start_new_session=True,
      )
      lock.write(str(process.pid))
      self._running.append(_Child(point, process, log.tell(), time.monotonic()))
    say(f'{point.name}: start {entry.starts} -> {point.log}')

  def _settle(self, point: Point) -> Entry:
    """Complete the entry of a point that was running when its sweep was killed; return it."""
    entry = self._ledger.entries[point.name]
    if entry.state != 'running':
      return entry
    seconds = _seconds_since_start(entry, point.product_path)
    if seconds is not None:
      wall_s = round(entry.wall_s + seconds, 1)
      done = dict(state='done', exit_code=0, ended=utc_now(), wall_s=wall_s)
      return self._ledger.update(point.name, **done)
    seconds = _seconds_since_start(entry, point.log) or 0.0
    return dataclasses.replace(entry, wall_s=round(entry.wall_s + seconds, 1))

  def _collect_children(self) -> None:
    for child in [child for child in self._running if child.process.poll() is not None]:
      self._running.remove(child)
      self._collect(child)

  def _collect(self, child: _Child) -> None:
    """Record how a child ended, and queue it again where that may help."""
    point, code = child.point, child.process.returncode
    if storage.is_remote(point.folder):
      storage.put(point.log, point.folder / point.log.name)
    wall_s = self._ledger.entries[point.name].wall_s + time.monotonic() - child.started
    retryable = code in RETRYABLE or code < 0
    if code == 0 and point.product_path.exists():
      state, why = 'done', ''
    elif self._signals:
      sender = _signal_name(self._signals[0])
      state, why = 'stopped', f'{sender} to the sweep; the same command continues'
    elif retryable and self._restarts[point.name] < self._limits.max_restarts:
      state, why = 'waiting', f'{_meaning(code)}; started again'
      self._restarts[point.name] += 1
      self._waiting.append(point)
    else:
      state, why = 'failed', self._failure(child, retryable)
    ended = dict(exit_code=code, ended=utc_now(), wall_s=round(wall_s, 1))
    self._ledger.update(point.name, state=state, why=why, **ended)
    say(f'{point.name}: {state} after {wall_s:.0f} s' + (f', {why}' if why else ''))

  def _failure(self, child: _Child, retryable: bool) -> str:
    code = child.process.returncode
    lines = [f'exited with 0 but wrote no {child.point.product}'] if code == 0 else []
    restarts = f', after {self._limits.max_restarts} restarts' if retryable else ''
    return '\n'.join([*lines, _meaning(code) + restarts, _log_tail(child)]).strip()

  def _stop_children(self) -> None:
    """Send SIGTERM to each child once; SIGKILL after the grace period or at a second signal."""
    if self._deadline is None:
      grace_s = self._limits.grace_s
      self._deadline = time.monotonic() + grace_s
      name, count = _signal_name(self._signals[0]), len(self._running)
      say(f'{name}: stopping {count} points, which save first (at most {grace_s:.0f} s)')
      for child in self._running:
        child.process.terminate()
    elif len(self._signals) > 1 or time.monotonic() > self._deadline:
      for child in self._running:
        os.killpg(child.process.pid, signal.SIGKILL)


def say(text: str) -> None:
  """Print a line for whoever watches the sweep."""
  with contextlib.suppress(BrokenPipeError):  # the reader has gone; the points continue
    print(text, file=sys.stderr, flush=True)


def _open_lock(point: Point) -> TextIO:
  """Open the lock file for appending: a mere look must not erase the holder's process number."""
  point.here.mkdir(parents=True, exist_ok=True)
  return (point.here / '.lock').open('a+', encoding='utf-8')


def _is_locked(point: Point) -> bool:
  """Return whether another process works in the point's folder. Not for one's own children."""
  with _open_lock(point) as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False


def _holder(point: Point) -> str:
  number = (point.here / '.lock').read_text(encoding='utf-8')
  return f' as process {number}' if number else ''


def _seconds_since_start(entry: Entry, path: pathlib.Path) -> float | None:
  """Return the time from the latest start to the file's last change; None if it is older."""
  if not path.exists() or entry.started is None:
    return None
  started = datetime.datetime.fromisoformat(entry.started).timestamp()
  seconds = storage.changed_at(path) - started
  return seconds if seconds >= 0 else None


def _signal_name(number: int) -> str:
  return signal.Signals(number).name


def _meaning(code: int) -> str:
  if code < 0:
    return f'killed by {_signal_name(-code)}'
  return f'exit code {code}' + (f' ({MEANINGS[code]})' if code in MEANINGS else '')


def _log_tail(child: _Child) -> str:
  """Return the last lines that this start wrote to its log."""
  with child.point.log.open('rb') as log:
    size = os.fstat(log.fileno()).st_size
    log.seek(max(child.log_start, size - TAIL_BYTES))
    text = log.read().decode(errors='replace')
  lines = [line for line in text.splitlines() if line.strip()]
  return '\n'.join(lines[-TAIL_LINES:])
