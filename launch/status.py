"""Print how a run or a sweep is doing: last step per host and stage, time by kind, stragglers.

  python -m launch.status --workdir=runs/demo --watch

It reads what the run writes, on any machine that sees the folder. launch/goodput.py explains the
kinds of time.
"""

from __future__ import annotations

import sys
import time

from absl import flags

from launch import entry, overview
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.runtime import storage

CLEAR_SCREEN = '\x1b[2J\x1b[H'

_WORKDIR = path_flag('workdir', None, 'Folder of a run or of a sweep.', required=True, urls=True)
_WATCH = flags.DEFINE_bool('watch', False, 'Print repeatedly, until Ctrl-C.')
_INTERVAL_S = flags.DEFINE_float(
  'interval_s', 5.0, 'Seconds between two prints with --watch.', lower_bound=0.1
)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object instead of tables.')


def main() -> int:
  workdir = storage.path(_WORKDIR.value)
  if not _WATCH.value:
    print(overview.describe(workdir, _JSON.value), flush=True)
    return 0
  try:
    while True:
      text = overview.describe(workdir, _JSON.value)
      if sys.stdout.isatty():
        print(CLEAR_SCREEN, end='')
      print(text + '\n', flush=True)
      time.sleep(_INTERVAL_S.value)
  except KeyboardInterrupt:
    return 0


if __name__ == '__main__':
  entry.run(main)
