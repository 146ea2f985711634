"""A process that reads flags as one command does: `python flag_reader.py MODULE`, cases on stdin.

Each line of stdin is a JSON list of arguments. Each line of stdout says how it ended: an exit code,
what was printed to stderr, and the values that the flags have. The command itself does not run.
"""

import contextlib
import importlib
import io
import json
import sys

from absl import flags

from rolegen_jax.cli import entry


def read(module, argv: list[str]) -> dict:
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  printed, code = io.StringIO(), 0
  with contextlib.redirect_stderr(printed):
    try:
      rest = entry.parse_flags([module.__name__, *argv])
      code = (
        entry.BAD_INPUT if len(rest) > 1 else 0
      )  # entry.run refuses an argument that is no flag
    except SystemExit as error:
      code = error.code
  own = flags.FLAGS.get_key_flags_for_module(module)
  values = {} if code else {flag.name: flag.value for flag in own}
  return dict(code=code, printed=printed.getvalue(), values=values)


if __name__ == '__main__':
  command = importlib.import_module(sys.argv[1])
  for line in sys.stdin:
    print(json.dumps(read(command, json.loads(line))), flush=True)
