"""Metrics of a stage, written one step late so that the device never waits for the host.

Beside them, where the wall time of each host went.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable
from typing import IO, Any

import jax
import tensorboardX

from rolegen_jax.data.files import as_data_error
from rolegen_jax.runtime import storage
from rolegen_jax.training.trackers import Reporting


class Diverged(RuntimeError):
  """The loss is no longer a finite number."""


class MetricsLog:
  """Rows {step, time_s, name: value...} in `folder/metrics.jsonl`, and the same to TensorBoard."""

  def __init__(
    self,
    folder: str | os.PathLike,
    tensorboard: str | os.PathLike,
    start: int,
    report: Callable[[list[dict]], Reporting] | None = None,
  ):
    """Open the log for steps from `start` on.

    Later rows, left by a run that was cut off after its last checkpoint, are dropped. report: given
    the rows so far, dropped ones too, returns what else gets the metrics.
    """
    self.path = storage.path(folder) / 'metrics.jsonl'
    self._spools = [storage.Spool(self.path)] if jax.process_index() == 0 else []
    rows = self._cut(start)
    # Process 0 writes; nothing here is collective.
    self._file: IO[str] | None = None
    self._board: Any = None
    self._reporting: Reporting | None = None
    if jax.process_index() == 0:
      self._spools.append(storage.Spool(storage.path(tensorboard)))
      here, board = (spool.here for spool in self._spools)
      self._file = here.open('a', encoding='utf-8')
      self._board = tensorboardX.SummaryWriter(str(board))
      self._reporting = report(rows) if report else None
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self._started = time.monotonic()
    self.last: dict[str, float] = {}
    self.tokens = 0.0  # that the reasoner has read, by the metric of that name

  def _cut(self, start: int) -> list[dict]:
    """Drop the rows from `start` on; return all rows that were there."""
    if jax.process_index() or not self._spools[0].here.exists():
      return []
    here = self._spools[0].here
    with as_data_error(self.path, 'a JSON object per line; it may be removed'):
      text = here.read_text(encoding='utf-8')
      lines = [line for line in text.split('\n') if line.endswith('}')]
      rows = [json.loads(line) for line in lines]
      earlier = [line for line, row in zip(lines, rows) if row['step'] < start]
    temporary = here.with_suffix('.tmp')
    temporary.write_text(''.join(line + '\n' for line in earlier), encoding='utf-8')
    os.replace(temporary, here)
    return rows

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Take the metrics of `step` and write those of the step before.

    Raises Diverged naming the step of a loss that is not finite.
    """
    pending, self._pending = self._pending, (step, metrics)
    if pending is not None:
      self._write(*pending)

  def flush(self) -> None:
    """Write what is pending."""
    pending, self._pending = self._pending, None
    if pending is not None:
      self._write(*pending)
    if self._file:
      self._file.flush()
    for spool in self._spools:
      spool.flush()

  def _write(self, step: int, metrics: dict[str, jax.Array]) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    self.last = values
    self.tokens += values.get('tokens', 0.0)
    if self._file:
      row = dict(step=step, time_s=round(time.monotonic() - self._started, 3)) | values
      self._file.write(json.dumps(row) + '\n')
      for name, value in values.items():
        self._board.add_scalar(name, value, step)
    if self._reporting:
      self._reporting.log(step, values)
    if not math.isfinite(values['loss']):
      self.flush()
      bad = [name for name, value in values.items() if not math.isfinite(value)]
      raise Diverged(f'step {step}: not finite: {", ".join(bad)}; see {self.path}')

  def close(self) -> None:
    """Write what is pending and close the files."""
    self.flush()
    if self._file:
      self._file.close()
      self._board.close()
      for spool in self._spools:
        spool.flush()
    if self._reporting:
      self._reporting.close()


class Clock:
  """Where this host's wall time in a stage went: `folder/time.PROCESS.jsonl`.

  `launch.status` reads it. A first row {at, start, host, pid, processes} marks that a process
  entered the stage at step `start`; then comes one row {at, step, KIND_s ...} per step and a last
  one {at, end}; `at` is the unix time at the row's end. Kinds:

    restore      the state is created or restored
    compile      the first call
    data         the host waits for its batch
    step         the rest, mostly the wait for the metrics of the step before
    checkpoint   a checkpoint is handed over, or the last one written

  Rows are never cut: a step that stands there twice was lost once.
  """

  WRITE_EVERY_S = 1.0  # what a killed process loses of its account, about
  SEND_EVERY_S = 30.0  # the same in a bucket, which gets the file anew each time

  def __init__(self, folder: str | os.PathLike):
    self.path = storage.path(folder) / f'time.{jax.process_index()}.jsonl'
    self._spool = storage.Spool(self.path)
    self._every_s = self.SEND_EVERY_S if storage.is_remote(self.path) else self.WRITE_EVERY_S
    self._spent: dict[str, float] = {}
    self._total: dict[str, float] = {}
    self._lines: list[str] = []
    self._lapped = self._written = time.monotonic()

  def lap(self, kind: str) -> None:
    """Count the time since the last lap as `kind`."""
    now = time.monotonic()
    for account, name in ((self._spent, f'{kind}_s'), (self._total, kind)):
      account[name] = account.get(name, 0.0) + now - self._lapped
    self._lapped = now

  def start(self, step: int) -> None:
    """Note that this process entered the stage at `step`."""
    self._row(start=step, host=socket.gethostname(), pid=os.getpid(), processes=jax.process_count())
    self._write()  # the first step may compile for long

  def row(self, step: int) -> None:
    """End the row of `step`."""
    self._row(step=step)
    if self._lapped - self._written > self._every_s:
      self._write()

  def end(self) -> None:
    """Note that the last checkpoint is on disk."""
    self.lap('checkpoint')
    self._row(end=True)
    self._write()

  def summary(self, tokens: float = 0.0) -> str:
    """Return where the time went since this clock was made, and tokens per second of its steps."""
    total = sum(self._total.values())
    shares = {kind: spent / total for kind, spent in self._total.items()}
    largest = sorted(shares, key=lambda kind: -shares[kind])
    parts = ', '.join(f'{kind} {100 * shares[kind]:.0f} %' for kind in largest)
    stepped = self._total.get('step', 0.0)
    rate = f'; {tokens / stepped:,.0f} tokens/s' if tokens and stepped else ''
    return f'{total:.0f} s: {parts}{rate}'

  def _row(self, **fields: str | int | bool) -> None:
    spent = {kind: round(seconds, 5) for kind, seconds in self._spent.items()}
    self._spent = {}
    row = dict(at=round(time.time(), 3)) | fields | spent
    self._lines.append(json.dumps(row) + '\n')

  def _write(self) -> None:
    lines, self._lines = self._lines, []
    with self._spool.here.open('a', encoding='utf-8') as file:
      file.write(''.join(lines))
    self._spool.flush()
    self._written = time.monotonic()
