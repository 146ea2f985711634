"""A stand-in for a training process, without jax: `python child.py WHAT [FILE]`."""

import pathlib
import signal
import sys
import time

from rolegen_jax import heartbeat
from rolegen_jax.progress import progress


def hang_in_the_third_step():
  for step in progress(range(10), 'steps'):
    time.sleep(60 if step == 2 else 0.01)


def main() -> int:
  what, file = sys.argv[1], pathlib.Path(sys.argv[-1])
  heartbeat.enable_stack_dumps()
  if what.isdigit():
    print('about to exit', what)
    return int(what)
  if what == 'hang':
    hang_in_the_third_step()
  if what == 'stop':
    for _ in progress(range(2), 'steps'):
      pass
    heartbeat.beat(heartbeat.STEP)
    signal.raise_signal(signal.SIGSTOP)
  if what == 'slow_start':  # longer than the watchdog inside loops allows
    time.sleep(2.5)
  if what == 'save':  # notes SIGTERM, saves, leaves
    signal.signal(signal.SIGTERM, lambda *_: (file.write_text('saved'), sys.exit(42)))
    with heartbeat.saves():
      print('ready', flush=True)
      time.sleep(60)
  if what == 'deaf':  # between two loops of a job of several processes
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with heartbeat.saves():
      pass
    print('ready', flush=True)
    time.sleep(60)
  if what == 'talks':  # more than a pipe holds
    print('a line\n' * 20_000, end='')
    file.write_text('done')
  if what == 'wait':
    print('ready', flush=True)
    time.sleep(60)
  if what == 'fails_twice':
    tries = len(file.read_text()) if file.exists() else 0
    file.write_text('x' * (tries + 1))
    return 134 if tries < 2 else 0
  return 0


if __name__ == '__main__':
  sys.exit(main())
