"""The host loop of a training stage: batches in, metrics out, checkpoints on the way, resume by the same command."""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.config import StageConfig
from rolegen_jax.data.loader import Batches
from rolegen_jax.runtime import distributed, heartbeat
from rolegen_jax.runtime.compile import jit, together
from rolegen_jax.runtime.progress import progress
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.training import state as states
from rolegen_jax.training.checkpoint import Checkpoints
from rolegen_jax.training.metrics import Clock, MetricsLog


class Preempted(RuntimeError):
  """SIGTERM came; the state is saved and the same command continues."""


class _Sigterm:
  """Notes a SIGTERM instead of dying of it, while a stage runs. Several processes leave at the same step, whoever got it."""

  def __enter__(self):
    self._came = False
    if not distributed.several():  # else jax has its own handler, which a Python one would replace
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def _note(self, *_):
    self._came = True

  def came(self) -> bool:
    """To be asked once a step, on every process."""
    return self._came or distributed.preempted()

  def __exit__(self, *_):
    if not distributed.several():
      signal.signal(signal.SIGTERM, self._before)


def run(
  name: str,
  step: Callable,  # (state, batch, trie, *extra) -> (state, metrics); pure
  model_fns: dict,
  optimizers: dict,
  given: Callable[
    [], dict
  ],  # parameters that models start from, by name; asked only when the stage begins
  trie: Trie,
  batches: Callable[[], Batches],  # asked only when there is something to train
  stage: StageConfig,
  mesh: Mesh,
  seed: int,
  hashes: dict[str, str],
  folder: str | os.PathLike,
  tensorboard: str | os.PathLike,
  extra: tuple = (),  # further arguments of `step`, the same at every step
) -> dict:
  """Trains until `stage.steps` and returns the parameters. Order of a start:

  1. the newest good checkpoint of this stage, if there is one, with its data position; else
  2. a fresh state: `given` parameters, the rest initialised from `seed`.

  Raises Preempted after saving, Diverged, ArtefactMismatch.
  """
  folder, clock = pathlib.Path(folder), Clock(folder)
  checkpoints = Checkpoints(folder / 'checkpoints', hashes)
  with jax.set_mesh(mesh):
    restored = checkpoints.restore(states.abstract(model_fns, optimizers, mesh))
    state, position = restored or (
      states.create(model_fns, optimizers, mesh, jax.random.key(seed), given()),
      None,
    )
    start = int(state.step)
    if start == stage.steps:
      checkpoints.close()
      return state.params
    batches = batches()
    if position is not None:
      batches.seek(position)
    layout = states.shardings(model_fns, optimizers, mesh)
    rows = sharding.sharding(mesh, 'batch')
    trie = jax.device_put(trie, sharding.sharding(mesh))
    jitted = jit(
      step,
      donate_argnums=0,
      in_shardings=(layout, rows, None, *(None,) * len(extra)),
      out_shardings=(layout, None),
    )
    to_device = lambda batch: jax.tree.map(
      lambda x: sharding.global_batch(mesh, np.asarray(x), batches.here, batches.batch), batch
    )
    log = MetricsLog(folder, tensorboard, start)
    clock.lap('restore')
    clock.start(start)
    with _Sigterm() as sigterm, heartbeat.saves():
      try:
        for i in progress(range(start, stage.steps), name, total=stage.steps, initial=start):
          batch = to_device(next(batches))
          clock.lap('data')
          if i == start:
            compiled = together(jitted, state, batch, trie, *extra)
            clock.lap('compile')
          state, metrics = compiled(state, batch, trie, *extra)
          log.add(i, metrics)
          last = i + 1 == stage.steps
          leave = sigterm.came() and not last
          save = last or leave or (i + 1) % stage.save_every == 0
          if save:
            log.flush()  # a checkpoint never holds a step whose loss was not looked at
          clock.lap('step')
          if save:
            checkpoints.save(state, batches.position)
            clock.lap('checkpoint')
          clock.row(i)
          if leave:
            raise Preempted(f'{name}: saved at step {i + 1}')
      finally:
        log.close()
        checkpoints.close()
        clock.end()
  return state.params
