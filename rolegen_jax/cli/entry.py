"""What the commands share: experiments by name or file, and exit codes by kind of failure.

jax is imported only when work starts.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType, ModuleType

from absl import app, logging

from rolegen_jax import overrides
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.runtime import distributed, heartbeat

BAD_INPUT, DIVERGED, PREEMPTED, LOST_PEER = 2, 3, 42, 134  # see WORKSPACE.md; 0 is done


def experiment(name: str, assignments: list[str]) -> Config:
  """Return the validated config of --experiment=`name` with --set `assignments` applied."""
  module, arg = load_experiment(name)
  return overrides.apply(module.get_config(arg), assignments)


def load_experiment(name: str) -> tuple[ModuleType, str]:
  """Return the module that --experiment=`name` means, and the argument of its get_config.

  `name` is that of a file in experiments/ (`demo`) or the path of one (`my/exp.py`), and may carry
  an argument after a colon (`pod:v5e_16`, `my/exp.py:wide`). Raises ConfigError.
  """
  target, _, arg = name.partition(':')
  module = _from_file(name, target) if target.endswith('.py') else _from_package(name, target)
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'--experiment={name}: {module.__file__} has no get_config(arg)')
  return module, arg


def _from_file(name: str, path: str) -> ModuleType:
  if not pathlib.Path(path).is_file():
    raise ConfigError(f'--experiment={name}: there is no file {pathlib.Path(path).absolute()}')
  spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _from_package(name: str, module: str) -> ModuleType:
  spec = importlib.util.find_spec('experiments')
  folders = list(spec.submodule_search_locations or ()) if spec else []
  known = sorted(m.name for m in pkgutil.iter_modules(folders) if not m.ispkg)
  if module not in known:
    raise ConfigError(
      f'--experiment={name}: must be one of {", ".join(known)}, or the path of a file that ends '
      'in .py'
    )
  return importlib.import_module(f'experiments.{module}')


def run(main: Callable[[], None]) -> None:
  """Run `main` after absl has parsed the flags; known failures are one line and an exit code."""

  def guarded(argv: list[str]) -> None:
    # Checkpoint libraries log every file they touch; a run's own lines are on stderr.
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
      message = f'unexpected argument {argv[1]!r}: flags are --name=value'
      sys.exit(_report(message, BAD_INPUT))
    heartbeat.enable_stack_dumps()
    # Where a training loop does not answer it by saving, there is nothing to save.
    signal.signal(signal.SIGTERM, _exit_at_once)
    try:
      distributed.initialize()
      main()
    except Exception as error:  # sorted by kind below; anything unknown keeps its traceback
      _exit(error)

  app.run(guarded)


def _exit_at_once(signum: int, frame: FrameType | None) -> None:
  """Leave without unwinding, which can crash while XLA computes."""
  del signum, frame
  os._exit(_report('stopped by SIGTERM; the same command continues', PREEMPTED))


def _exit(error: Exception) -> None:
  """Leave with the exit code of a known failure; raise any other."""
  code = _code(error)
  if code is not None:
    sys.exit(_report(str(error), code))
  if not distributed.several():
    raise error
  # The others wait for this process in some collective: waiting for them would hang both.
  traceback.print_exc()
  sys.stderr.flush()
  os._exit(LOST_PEER if distributed.lost_peer(error) else 1)


def _code(error: Exception) -> int | None:
  if isinstance(error, ConfigError):
    return BAD_INPUT
  from rolegen_jax.data.files import DataError
  from rolegen_jax.semantic_ids.catalogue import ArtifactError
  from rolegen_jax.training.checkpoint import ArtifactMismatch
  from rolegen_jax.training.fit import Preempted
  from rolegen_jax.training.metrics import Diverged

  if isinstance(error, (DataError, ArtifactError, ArtifactMismatch)):
    return BAD_INPUT
  if isinstance(error, Diverged):
    return DIVERGED
  return PREEMPTED if isinstance(error, Preempted) else None


def _report(message: str, code: int) -> int:
  print(message, file=sys.stderr, flush=True)
  return code
