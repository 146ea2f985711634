"""The entry point that the commands of launch/ share: flags, exit codes, closed pipes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from absl import app

from rolegen_jax.cli.entry import BAD_INPUT, parse_flags
from rolegen_jax.config import ConfigError


def run(main: Callable[[], int]) -> None:
  """Parse the flags, call `main` and exit with the code that it returns.

  A ConfigError is printed as one line and exits with 2. Unlike `rolegen_jax.cli.entry.run`, this
  joins no distributed job, so it works on any host of a cluster.
  """

  def guarded_main(argv: list[str]) -> int:
    try:
      if len(argv) > 1:
        raise ConfigError(f'unexpected argument {argv[1]!r}: flags are --name=value')
      return main()
    except ConfigError as error:
      print(error, file=sys.stderr, flush=True)
      return BAD_INPUT

  try:
    try:
      app.run(guarded_main, flags_parser=parse_flags)
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    # The reader (`| head`) closed the pipe. Exit as if by SIGPIPE, with nothing left to flush.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
