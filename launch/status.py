"""How a run, or a sweep, is doing: the last step of each host and stage, where its time went, and who holds up the others.

  python -m launch.status --workdir=runs/demo --watch

Reads what the run writes, on any machine that sees its folder; the kinds of time are explained in launch/goodput.py.
"""

from __future__ import annotations

import pathlib
import sys
import time

from absl import flags

from launch import entry, overview

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run or of a sweep.', required=True)
_WATCH = flags.DEFINE_bool('watch', False, 'Print again and again, until Ctrl-C.')
_INTERVAL_S = flags.DEFINE_float('interval_s', 5.0, 'Seconds between two looks.', lower_bound=0.1)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object instead of tables.')


def main() -> int:
  workdir = pathlib.Path(_WORKDIR.value)
  try:
    while True:
      text = overview.look(workdir, _JSON.value)
      if _WATCH.value and sys.stdout.isatty():
        print('\x1b[2J\x1b[H', end='')
      print(text + ('\n' if _WATCH.value else ''), flush=True)
      if not _WATCH.value:
        return 0
      time.sleep(_INTERVAL_S.value)
  except KeyboardInterrupt:
    return 0


if __name__ == '__main__':
  entry.run(main)
