"""What the commands share: experiments by name, and exit codes by kind of failure. Imports jax only when work starts."""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable

from absl import app, logging

from rolegen_jax import overrides
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.runtime import distributed, heartbeat

BAD_INPUT, DIVERGED, PREEMPTED, LOST_PEER = 2, 3, 42, 134  # see WORKSPACE.md; 0 is done


def experiment(name: str, assignments: list[str]) -> Config:
  """The validated config of `experiments/NAME.py`; `NAME:ARG` passes ARG to its get_config. Raises ConfigError."""
  module, _, arg = name.partition(':')
  import experiments

  known = sorted(m.name for m in pkgutil.iter_modules(experiments.__path__))
  if module not in known:
    raise ConfigError(f'--experiment={name}: must be one of {", ".join(known)}')
  found = importlib.import_module(f'experiments.{module}')
  if not hasattr(found, 'get_config'):
    raise ConfigError(
      f'--experiment={name}: experiments/{module}.py is a command, not an experiment'
    )
  return overrides.apply(found.get_config(arg), assignments)


def run(main: Callable[[], None]) -> None:
  """absl entry: runs `main` after flags are parsed; known failures become one line and an exit code."""

  def guarded(argv):
    # Checkpoint libraries log every file they touch; a run's own lines are on stderr.
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
      sys.exit(_say(f'unexpected argument {argv[1]!r}: flags are --name=value', BAD_INPUT))
    heartbeat.enable_stack_dumps()
    # Where a training loop does not answer it by saving, there is nothing to save. At once: unwinding while XLA computes can crash.
    signal.signal(
      signal.SIGTERM,
      lambda *_: os._exit(_say('stopped by SIGTERM; the same command continues', PREEMPTED)),
    )
    try:
      distributed.initialize()
      main()
    except Exception as error:  # sorted by kind below; anything unknown keeps its traceback
      code = _code(error)
      if code is not None:
        sys.exit(_say(str(error), code))
      if not distributed.several():
        raise
      # The others wait for this process in some collective: waiting for them at exit would hang both.
      traceback.print_exc()
      sys.stderr.flush()
      os._exit(LOST_PEER if distributed.lost_peer(error) else 1)

  app.run(guarded)


def _code(error: Exception) -> int | None:
  if isinstance(error, ConfigError):
    return BAD_INPUT
  from rolegen_jax.data.files import DataError
  from rolegen_jax.semantic_ids.catalogue import ArtifactError
  from rolegen_jax.training.checkpoint import ArtifactMismatch
  from rolegen_jax.training.fit import Preempted
  from rolegen_jax.training.metrics import Diverged

  kinds = [
    ((DataError, ArtifactError, ArtifactMismatch), BAD_INPUT),
    (Diverged, DIVERGED),
    (Preempted, PREEMPTED),
  ]
  return next((code for kind, code in kinds if isinstance(error, kind)), None)


def _say(message: str, code: int) -> int:
  print(message, file=sys.stderr, flush=True)
  return code
