"""The command line: `rolegen COMMAND --flag=value ...`, or `python -m rolegen_jax COMMAND ...`.

Each command is one file of `rolegen_jax/cli/`; only the one that is asked for is imported.
"""

from __future__ import annotations

import ast
import importlib
import pathlib
import sys

COMMANDS = (
  'train',
  'evaluate',
  'recommend',
  'serve',
  'loadtest',
  'annotate',
  'simulate_ab',
  'export',
  'prepare_shards',
  'bench',
  'compile_check',
  'probe',
)


def main() -> None:
  """Run the command that the first argument names, with the flags that follow it."""
  name = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if name in ('--help', '-h', 'help'):
    print(_overview())
    return
  if name not in COMMANDS:
    sys.exit(_unknown(name))
  module = importlib.import_module(f'rolegen_jax.cli.{name}')
  # absl prints the flags of the module that argv[0] names and the docstring of __main__.
  sys.argv = [module.__name__, *sys.argv[2:]]
  sys.modules['__main__'].__doc__ = module.__doc__
  from rolegen_jax.cli import entry

  entry.run(module.main)


def _overview() -> str:
  width = max(map(len, COMMANDS))
  lines = [f'  {name:<{width}}  {_first_sentence(name)}' for name in COMMANDS]
  usage = 'Usage: rolegen COMMAND --flag=value ...   (rolegen COMMAND --help lists the flags)'
  return '\n'.join([usage, '', *lines])


def _first_sentence(name: str) -> str:
  """Read without importing the command, which may bring jax."""
  source = pathlib.Path(__file__).with_name('cli') / f'{name}.py'
  docstring = ast.get_docstring(ast.parse(source.read_text(encoding='utf-8'))) or ''
  return docstring.partition('\n')[0]


def _unknown(name: str) -> int:
  print(f'{name!r}: no such command; must be one of {", ".join(COMMANDS)}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  main()
