"""Keep `rolegen serve` alive: start it again when it dies of a signal or is preempted.

  python -m launch.serve --workdir=runs/demo --port=8080 --reasoning=cached

All flags but --restarts and --grace_s are those of `rolegen serve`. SIGTERM and SIGINT drain the
server. Where systemd or a container engine restarts processes, let it: this is for everywhere else.
"""

from __future__ import annotations

import sys

from absl import flags

from launch import entry, supervise
from rolegen_jax.cli import serve

_RESTARTS = flags.DEFINE_integer('restarts', 1000, 'Restarts, at most.', lower_bound=0)
_GRACE_S = flags.DEFINE_float('grace_s', 40.0, 'Seconds that a server has to drain.', lower_bound=0)


def main() -> int:
  flags_of_serve = flags.FLAGS.get_flags_for_module(serve.__name__)
  passed = [flag.serialize() for flag in flags_of_serve if flag.present]
  command = [sys.executable, '-m', 'rolegen_jax', 'serve', *passed]
  return supervise.run(lambda: [command], _RESTARTS.value, _GRACE_S.value)


if __name__ == '__main__':
  entry.run(main)
