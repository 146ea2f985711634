"""Metrics of a stage, written one step late so that the device never waits for the host."""

from __future__ import annotations

import json
import math
import os
import pathlib
import time

import jax
import tensorboardX


class Diverged(RuntimeError):
  """The loss is no longer a finite number."""


class MetricsLog:
  """Rows {step, time_s, name: value...} in `folder/metrics.jsonl`, and the same to TensorBoard."""

  def __init__(self, folder: str | os.PathLike, tensorboard: str | os.PathLike, start: int):
    """Rows of step `start` and later, left by a run that was cut off after its last checkpoint, are dropped."""
    self.path = pathlib.Path(folder) / 'metrics.jsonl'
    self._cut(start)
    # Process 0 writes; nothing here is collective.
    self._file = self.path.open('a') if jax.process_index() == 0 else None
    self._board = tensorboardX.SummaryWriter(str(tensorboard)) if self._file else None
    self._pending: tuple[int, dict] | None = None
    self._started = time.monotonic()
    self.last: dict[str, float] = {}

  def _cut(self, start: int) -> None:
    if jax.process_index() == 0 and self.path.exists():
      lines = [line for line in self.path.read_text().splitlines() if line.endswith('}')]
      kept = [line for line in lines if json.loads(line)['step'] < start]
      temporary = self.path.with_suffix('.tmp')
      temporary.write_text(''.join(line + '\n' for line in kept))
      os.replace(temporary, self.path)

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of `step`, writes those of the step before. Raises Diverged naming the step of a loss that is not finite."""
    pending, self._pending = self._pending, (step, metrics)
    if pending is not None:
      self._write(*pending)

  def flush(self) -> None:
    """Writes what is pending."""
    pending, self._pending = self._pending, None
    if pending is not None:
      self._write(*pending)
    if self._file:
      self._file.flush()

  def _write(self, step: int, metrics) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    self.last = values
    if self._file:
      row = dict(step=step, time_s=round(time.monotonic() - self._started, 3)) | values
      self._file.write(json.dumps(row) + '\n')
      for name, value in values.items():
        self._board.add_scalar(name, value, step)
    if not math.isfinite(values['loss']):
      self.flush()
      bad = [name for name, value in values.items() if not math.isfinite(value)]
      raise Diverged(f'step {step}: not finite: {", ".join(bad)}; see {self.path}')

  def close(self) -> None:
    self.flush()
    if self._file:
      self._file.close()
      self._board.close()
