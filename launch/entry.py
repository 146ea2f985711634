"""How the commands of launch/ start: flags, then `main`; a ConfigError becomes its one line and exit code 2."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from absl import app

from rolegen_jax.commands import BAD_INPUT
from rolegen_jax.config import ConfigError


def run(main: Callable[[], int | None]) -> None:
  """`main` returns the exit code. Unlike `rolegen_jax.commands.run` this joins no job: it works on any host of a cluster."""

  def guarded(argv):
    try:
      if len(argv) > 1:
        raise ConfigError(f'unexpected argument {argv[1]!r}: flags are --name=value')
      return main()
    except ConfigError as error:
      print(error, file=sys.stderr, flush=True)
      return BAD_INPUT

  try:
    try:
      app.run(guarded)
    finally:
      sys.stdout.flush()
  except BrokenPipeError:  # `| head` has seen enough: end as of SIGPIPE, with nothing left for Python to flush
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
