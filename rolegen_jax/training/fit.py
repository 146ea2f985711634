"""The host loop of one stage: batches in, metrics out, checkpoints on the way.

The same call resumes where it was cut off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.config import StageConfig
from rolegen_jax.data.files import DataError
from rolegen_jax.data.loader import Batches
from rolegen_jax.models import functional
from rolegen_jax.runtime import distributed, heartbeat
from rolegen_jax.runtime.compile import compile_in_step, jit
from rolegen_jax.runtime.progress import progress, say
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.training import state as states
from rolegen_jax.training.checkpoint import Checkpoints
from rolegen_jax.training.losses import Metrics, Params
from rolegen_jax.training.metrics import Clock, MetricsLog
from rolegen_jax.training.profiling import NOTHING, Profile
from rolegen_jax.training.state import State
from rolegen_jax.training.trackers import Reporting, Tracking


class Preempted(RuntimeError):
  """SIGTERM arrived; the state is saved and the same command continues."""


@dataclasses.dataclass(frozen=True)
class Start:
  """What the models of a stage start from, by name; what is not named starts from the seed."""

  params: Callable[[], dict[str, Params]] = dict
  opt: Callable[[], dict[str, Any]] = dict  # states of optimizers, whose moments are taken
  leaves: Callable[[], dict[str, Any]] = dict  # single parameters, by dotted path; they come last


@dataclasses.dataclass(frozen=True)
class Task:
  """What one stage trains, and how."""

  name: str
  # (state, batch, trie, *extra) -> (state, metrics); a pure function.
  step: Callable[..., tuple[State, Metrics]]
  model_fns: dict[str, Callable]
  optimizers: dict[str, optax.GradientTransformation]
  # What models start from, by name; called only when the stage begins.
  start: Start
  # Called only when there is something left to train.
  batches: Callable[[], Batches]
  config: StageConfig
  # Further arguments of `step`, the same at every step.
  extra: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Observers:
  """What looks on while stages train; no result depends on it."""

  profile: Profile = NOTHING
  tracking: Tracking | None = None


@dataclasses.dataclass(frozen=True)
class Site:
  """Where a stage runs and what it writes."""

  mesh: Mesh
  seed: int
  folder: pathlib.Path
  tensorboard: pathlib.Path
  # What a checkpoint depends on; one of other hashes is refused.
  hashes: dict[str, str]
  # False = a stage whose last checkpoint is missing or damaged is an error.
  may_train: bool = True
  observers: Observers = Observers()


def fit(task: Task, site: Site, trie: Trie) -> dict[str, Params]:
  """Train until `task.config.steps` and return the parameters of each model. Order of a start:

  1. the newest good checkpoint of this stage, if there is one, with its data position; else
  2. a fresh state: `task.start`, and the rest initialized from the seed.

  Raises:
    Preempted: after saving.
    Diverged: the loss is no longer finite.
    ArtifactMismatch: a checkpoint of other hashes.
    DataError: something is left to train, and the site is not for training.
  """
  clock = Clock(site.folder)
  checkpoints = Checkpoints(site.folder / 'checkpoints', site.hashes, site.may_train)
  with jax.set_mesh(site.mesh):
    state, position = _restore_or_create(task, site, checkpoints)
    start = int(state.step)
    if start == task.config.steps:
      checkpoints.close()
      return state.params
    batches = task.batches()
    if position is not None:
      batches.seek(position)
    clock.lap('restore')
    clock.start(start)
    tracking, profile = site.observers.tracking, site.observers.profile
    report = functools.partial(Reporting, tracking, task.name, site.folder) if tracking else None
    log = MetricsLog(site.folder, site.tensorboard, start, report)
    with _SigtermNotice() as sigterm, heartbeat.saves(), contextlib.ExitStack() as at_end:
      at_end.callback(lambda: say(f'{task.name}: {clock.summary(log.tokens)}'))
      for close in (clock.end, checkpoints.close, log.close, profile.close):
        at_end.callback(close)  # the last first, and each though another failed
      for i, (state, metrics) in _steps(task, site, state, batches, trie, clock):
        log.add(i, metrics)
        is_last = i + 1 == task.config.steps
        leave = sigterm.arrived() and not is_last
        save = is_last or leave or (i + 1) % task.config.save_every == 0
        if save:
          log.flush()  # a checkpoint never holds a step whose loss was not looked at
        clock.lap('step')
        if save:
          checkpoints.save(state, batches.position)
          clock.lap('checkpoint')
        clock.row(i)
        if leave:
          raise Preempted(f'{task.name}: saved at step {i + 1}')
  return state.params


def _restore_or_create(
  task: Task, site: Site, checkpoints: Checkpoints
) -> tuple[State, dict | None]:
  """Return the state to start from, and its data position if it was restored."""
  restored = checkpoints.restore(states.abstract(task.model_fns, task.optimizers, site.mesh))
  if not site.may_train and not (restored and int(restored[0].step) == task.config.steps):
    raise DataError(
      f'{site.folder}: has no checkpoint of its last step, {task.config.steps}; '
      '--retrain trains again what was lost'
    )
  if restored:
    return restored
  key = jax.random.key(site.seed)
  start = task.start.params(), task.start.opt()
  state = states.create(task.model_fns, task.optimizers, site.mesh, key, *start)
  if leaves := task.start.leaves():
    state = state._replace(params=functional.with_leaves(state.params, leaves))
  return state, None


def _steps(
  task: Task, site: Site, state: State, batches: Batches, trie: Trie, clock: Clock
) -> Iterator[tuple[int, tuple[State, Metrics]]]:
  """Yield (step number, (state, metrics)) of every step that is left; compiles at the first."""
  layout = states.shardings(task.model_fns, task.optimizers, site.mesh)
  rows = sharding.sharding(site.mesh, 'batch')
  trie = jax.device_put(trie, sharding.sharding(site.mesh))
  jitted = jit(
    task.step,
    donate_argnums=0,
    in_shardings=(layout, rows, None, *(None,) * len(task.extra)),
    out_shardings=(layout, None),
  )
  put, profile = functools.partial(_put_batch, site.mesh, batches), site.observers.profile
  start, end = int(state.step), task.config.steps
  compiled = None
  for i in progress(range(start, end), task.name, total=end, initial=start):
    batch = put(next(batches))
    clock.lap('data')
    if compiled is None:
      compiled = compile_in_step(jitted, state, batch, trie, *task.extra)
      clock.lap('compile')
    profile.begin(task.name, i, state)
    with profile.step(i):
      state, metrics = compiled(state, batch, trie, *task.extra)
    profile.end(task.name, i, metrics)
    yield i, (state, metrics)


def _put_batch(mesh: Mesh, batches: Batches, batch: Any) -> Any:
  """Return the global batch on the devices, of the rows that this process holds."""

  def put(x: np.ndarray) -> jax.Array:
    return sharding.global_batch(mesh, np.asarray(x), batches.here, batches.batch)

  return jax.tree.map(put, batch)


class _SigtermNotice:
  """Notes a SIGTERM while a stage runs, instead of dying of it.

  Of several processes all leave at the same step, whichever got the signal.
  """

  def __enter__(self) -> _SigtermNotice:
    self._arrived = False
    if not distributed.several():  # else jax has its own handler, which ours would replace
      self._previous = signal.signal(signal.SIGTERM, self._note)
    return self

  def _note(self, *_: Any) -> None:
    self._arrived = True

  def arrived(self) -> bool:
    """Return whether to leave; to be asked once a step, on every process."""
    return self._arrived or distributed.preempted()

  def __exit__(self, *_: Any) -> None:
    if not distributed.several():
      signal.signal(signal.SIGTERM, self._previous)
