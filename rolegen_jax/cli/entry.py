"""What the commands share: experiments by name or file, and exit codes by kind of failure.

jax is imported only when work starts.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import errno
import importlib
import importlib.util
import inspect
import math
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType

from absl import app, flags, logging

from rolegen_jax import overrides
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.fields import local_path
from rolegen_jax.runtime import distributed, heartbeat
from rolegen_jax.runtime.roll_call import MissingPeers

BAD_INPUT, DIVERGED, PREEMPTED, LOST_PEER = 2, 3, 42, 134  # see WORKSPACE.md; 0 is done
# Of an OSError: the path is wrong, the disk full, or the folder somebody else's.
WRONG_PLACE = (
  *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
  *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EFBIG, errno.EDQUOT),
)


def experiment(name: str, assignments: list[str]) -> Config:
  """Return the validated config of --experiment=`name` with --set `assignments` applied."""
  module, arg = load_experiment(name)
  takes_one = bool(inspect.signature(module.get_config).parameters)
  if arg and not takes_one:
    raise ConfigError(f'--experiment={name}: takes no argument; must be {name.partition(":")[0]}')
  with told_in_one_line(f'--experiment={name}', module.__file__):
    config = module.get_config(arg) if takes_one else module.get_config()
  if not isinstance(config, Config):
    raise ConfigError(
      f'--experiment={name}: get_config of {module.__file__} returned '
      f'{type(config).__name__}; must be a rolegen_jax.config.Config'
    )
  return overrides.apply(config, assignments)


def load_experiment(name: str) -> tuple[ModuleType, str]:
  """Return the module that --experiment=`name` means, and the argument of its get_config.

  `name` is that of a file in experiments/ (`demo`) or the path of one (`my/exp.py`), and may carry
  an argument after a colon (`pod:v5e_16`, `my/exp.py:wide`). Raises ConfigError.
  """
  target, colon, arg = name.partition(':')
  if '.py' in name or '/' in name:
    local_path(name, '--experiment')
  if colon and not arg:
    raise ConfigError(f'--experiment={name}: no argument after the colon; must be {target}')
  module = _from_file(name, target) if target.endswith('.py') else _from_package(name, target)
  if not callable(getattr(module, 'get_config', None)):
    raise ConfigError(f'--experiment={name}: {module.__file__} has no get_config(arg)')
  return module, arg


@contextlib.contextmanager
def told_in_one_line(flag: str, file: str | None) -> Iterator[None]:
  """Turn what the code of an experiment raises into a ConfigError that names the line of `file`."""
  try:
    yield
  except ConfigError:
    raise
  except Exception as error:  # whatever an experiment does wrong
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if isinstance(error, SyntaxError):
      lines = [error.lineno]
    what = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise ConfigError(f'{flag}: {file}, line {lines[-1] if lines else "?"}: {what}') from error


def _from_file(name: str, target: str) -> ModuleType:
  path = str(pathlib.Path(local_path(target, '--experiment')).absolute())
  if not pathlib.Path(path).is_file():
    raise ConfigError(f'--experiment={name}: there is no file {path}')
  spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  with told_in_one_line(f'--experiment={name}', path):
    spec.loader.exec_module(module)
  return module


def _from_package(name: str, target: str) -> ModuleType:
  known = _known()
  if target not in known:
    nearest = difflib.get_close_matches(target.lower(), known, n=1)
    raise ConfigError(
      f'--experiment={name}: must be one of {", ".join(known)}'
      + (f' (the nearest is {nearest[0]})' if nearest else '')
      + ', or the path of a file that ends in .py'
    )
  with told_in_one_line(f'--experiment={name}', known[target]):
    return importlib.import_module(f'experiments.{target}')


def _known() -> dict[str, str]:
  """Return the files of experiments/ that define get_config, by name; none is imported."""
  spec = importlib.util.find_spec('experiments')
  folders = list(spec.submodule_search_locations or ()) if spec else []
  files = sorted(path for folder in folders for path in pathlib.Path(folder).glob('*.py'))
  return {path.stem: str(path) for path in files if _defines_get_config(path)}


def _defines_get_config(path: pathlib.Path) -> bool:
  try:
    tree = ast.parse(path.read_bytes())
  except (SyntaxError, ValueError):
    return True  # importing it will tell
  return any(isinstance(node, ast.FunctionDef) and node.name == 'get_config' for node in tree.body)


def parse_flags(argv: list[str]) -> list[str]:
  """Return the arguments that are no flags; a wrong flag is one line and exit code 2."""
  try:
    rest = flags.FLAGS(argv)
    _check_finite()
    return rest
  except flags.Error as error:
    message = ' '.join(str(error).split()).removeprefix('flag ')
    sys.exit(_report(message + _right_value(message), BAD_INPUT))


def _check_finite() -> None:
  """Raise flags.Error for a flag that is nan or infinite: nan is within all bounds of absl."""
  for name in flags.FLAGS:
    value = flags.FLAGS[name].value
    if isinstance(value, float) and not math.isfinite(value):
      raise flags.IllegalFlagValueError(f'--{name}={value}: must be a finite number')


def _right_value(message: str) -> str:
  """Return what the flag of a message must be, where absl names only what was found."""
  name, equals, _ = message.removeprefix('--').partition('=')
  if not equals or name not in flags.FLAGS or 'must be' in message:
    return ''
  parser = flags.FLAGS[name].parser
  right = 'true or false' if isinstance(parser, flags.BooleanParser) else parser.syntactic_help
  return f'; must be {right}' if right else ''  # of choices absl says which there are


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

  app.run(guarded, flags_parser=parse_flags)


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
  if isinstance(error, MissingPeers):
    return LOST_PEER
  from rolegen_jax.data.files import DataError
  from rolegen_jax.semantic_ids.catalogue import ArtifactError
  from rolegen_jax.training.checkpoint import ArtifactMismatch
  from rolegen_jax.training.fit import Preempted
  from rolegen_jax.training.metrics import Diverged

  if isinstance(error, (DataError, ArtifactError, ArtifactMismatch)):
    return BAD_INPUT
  if isinstance(error, OSError) and error.filename and error.errno in WRONG_PLACE:
    return BAD_INPUT
  if isinstance(error, Diverged):
    return DIVERGED
  return PREEMPTED if isinstance(error, Preempted) else None


def _report(message: str, code: int) -> int:
  print(message, file=sys.stderr, flush=True)
  return code
