"""A stand-in for a training process, without jax: `python child.py BEHAVIOR [FILE]`.

BEHAVIOR is one of BEHAVIORS, or an exit code.
"""

import pathlib
import signal
import sys
import time

from rolegen_jax.runtime import heartbeat
from rolegen_jax.runtime.progress import progress

FOREVER_S = 60


def hang_in_the_third_step(_: pathlib.Path) -> int:
  for step in progress(range(10), 'steps'):
    time.sleep(FOREVER_S if step == 2 else 0.01)
  return 0


def stop_in_a_loop(_: pathlib.Path) -> int:
  for _ in progress(range(2), 'steps'):
    pass
  heartbeat.beat(heartbeat.STEP)
  signal.raise_signal(signal.SIGSTOP)
  return 0


def start_slowly(_: pathlib.Path) -> int:
  """Take longer than the watchdog allows inside loops."""
  time.sleep(2.5)
  return 0


def save_at_sigterm(file: pathlib.Path) -> int:
  signal.signal(signal.SIGTERM, lambda *_: (file.write_text('saved'), sys.exit(42)))
  with heartbeat.saves():
    return wait(file)


def ignore_sigterm(file: pathlib.Path) -> int:
  """Behave like a process between two training loops of a job of several processes."""
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  with heartbeat.saves():
    pass
  return wait(file)


def wait(_: pathlib.Path) -> int:
  print('ready', flush=True)
  time.sleep(FOREVER_S)
  return 0


def print_more_than_a_pipe_holds(file: pathlib.Path) -> int:
  print('a line\n' * 20_000, end='')
  file.write_text('done')
  return 0


def fail_twice(file: pathlib.Path) -> int:
  starts = len(file.read_text()) if file.exists() else 0
  file.write_text('x' * (starts + 1))
  return 134 if starts < 2 else 0


BEHAVIORS = {
  'hang': hang_in_the_third_step,
  'stop': stop_in_a_loop,
  'slow_start': start_slowly,
  'save': save_at_sigterm,
  'deaf': ignore_sigterm,
  'wait': wait,
  'talk': print_more_than_a_pipe_holds,
  'fail_twice': fail_twice,
}


def main() -> int:
  behavior, file = sys.argv[1], pathlib.Path(sys.argv[-1])
  heartbeat.enable_stack_dumps()
  if behavior.isdigit():
    print('about to exit', behavior)
    return int(behavior)
  return BEHAVIORS[behavior](file)


if __name__ == '__main__':
  sys.exit(main())
