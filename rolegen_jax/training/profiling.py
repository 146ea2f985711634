"""Traces of chosen steps on chosen processes, for xprof and TensorBoard's profiler."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from rolegen_jax.config import Config, ConfigError
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.progress import say

STAGES = {
  'warmup': 'warmup',
  'kinds': 'kinds',
  'align': 'align',
  'reason': 'reason',
  'loop': 'loop_stage',
}


class Profile:
  """Which steps of which stages are traced, where, and which were.

  A trace begins when the device is idle and ends when it has done the last step, so it holds these
  steps and nothing else. Each process writes its own folder: those of one host would overwrite
  each other.
  """

  def __init__(self, windows: Mapping[str, tuple[int, int]], folder: str | os.PathLike):
    """Trace the steps first..last of each stage of `windows` into `folder`/STAGE/process_N."""
    self._windows, self._folder = dict(windows), storage.path(folder)
    self._traced: set[str] = set()
    self._open = ''  # the stage whose trace is being taken

  def begin(self, stage: str, step: int, before: Any) -> None:
    """Begin a trace where one begins at `step`; `before` is what earlier steps compute."""
    first, last = self._windows.get(stage, (0, -1))
    if self._open or stage in self._traced or not first <= step <= last:
      return
    jax.block_until_ready(before)
    folder = self._folder / stage / f'process_{jax.process_index()}'
    self._spool = storage.Spool(folder)
    jax.profiler.start_trace(str(self._spool.here))
    self._open = stage

  def step(self, step: int) -> jax.profiler.StepTraceAnnotation:
    """Return the context in which `step` is dispatched, which a trace shows by its number."""
    return jax.profiler.StepTraceAnnotation('step', step_num=step)

  def end(self, stage: str, step: int, result: Any) -> None:
    """End the trace where one ends after `step`, which computes `result`."""
    if self._open == stage and step >= self._windows[stage][1]:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    """End a trace that is being taken, also where its stage was cut off."""
    if self._open:
      jax.profiler.stop_trace()
      self._spool.flush()
      self._traced.add(self._open)
      say(f'{self._open}: traced -> {self._folder / self._open}')
      self._open = ''

  def report(self) -> None:
    """Say of which stages nothing was traced, because these steps were trained before."""
    for stage in self._windows:
      if stage not in self._traced:
        first, last = self._windows[stage]
        say(f'--profile={stage}:{first}-{last}: not traced, these steps were trained before')


NOTHING = Profile({}, '')


def parse(
  windows: Iterable[str], processes: Iterable[str], config: Config, workdir: str
) -> Profile:
  """Return what `--profile` and `--profile_processes` ask of this process.

  Raises ConfigError, on every process, saying what would be right.
  """
  chosen: dict[str, tuple[int, int]] = {}
  for stage, steps in (_window(text, config) for text in windows):
    if stage in chosen:
      raise ConfigError(f'--profile: has two windows of {stage}; must be one per stage')
    chosen[stage] = steps
  numbers = [_process(text) for text in processes]
  if not chosen or ('all' not in numbers and jax.process_index() not in numbers):
    return NOTHING
  return Profile(chosen, storage.path(workdir) / 'profiles')


def _window(text: str, config: Config) -> tuple[str, tuple[int, int]]:
  match = re.fullmatch(r'(\w+):(\d+)(?:-(\d+))?', text)
  if not match or match[1] not in STAGES:
    stages = ', '.join(STAGES)
    raise ConfigError(f'--profile={text}: must be STAGE:FIRST-LAST, with a stage of {stages}')
  stage, first, last = match[1], int(match[2]), int(match[3] or match[2])
  steps = getattr(config, STAGES[stage]).steps
  if not first <= last < steps:
    right = f'steps in order from 0 to {steps - 1}, those of {stage}'
    raise ConfigError(f'--profile={text}: must be {right}')
  return stage, (first, last)


def _process(text: str) -> int | str:
  count = jax.process_count()
  if text == 'all' or (text.isdigit() and int(text) < count):
    return text if text == 'all' else int(text)
  right = f'"all", or numbers of processes from 0 to {count - 1}'
  raise ConfigError(f'--profile_processes={text}: must be {right}')
