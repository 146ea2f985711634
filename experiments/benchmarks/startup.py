"""Start-up: importing what a run needs, `--help` of every command, and from the start of a process to the end of its first step.

  python -m experiments.benchmarks.startup

Targets: import in 2 s, `--help` in 1 s, and the second start of an experiment at the end of its first step in a third of the
first's time (the run folder keeps compiled programs). Stage `loop` of the demo, whose program is the largest, the stages before it
complete; the first start has an empty cache, the second is the same command after a preemption. Each finished round of starts is
kept in experiments/benchmarks/startup.json: the same command continues.
"""

from __future__ import annotations

import json
import pathlib

from absl import flags

from rolegen_jax import commands
from rolegen_jax.config import ConfigError

PARTS = ('imports', 'help', 'starts')

_PARTS = flags.DEFINE_list('parts', list(PARTS), 'Some of imports, help, starts.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed processes of each import and each --help.', lower_bound=3)
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'First and second starts.', lower_bound=1)
_WORKDIR = flags.DEFINE_string('workdir', 'runs/startup', 'Where the run folders of the starts are made; about 100 MB.')
_FOLDER = flags.DEFINE_string('folder', str(pathlib.Path(__file__).parent), 'Where startup.json is kept.')


def main() -> None:
  if unknown := sorted(set(_PARTS.value) - set(PARTS)):
    raise ConfigError(f'--parts={unknown[0]}: must be some of {", ".join(PARTS)}')
  from experiments.benchmarks import measure, startup_parts as s

  path, workdir = pathlib.Path(_FOLDER.value) / 'startup.json', pathlib.Path(_WORKDIR.value).absolute()
  found = json.loads(path.read_text()) if path.exists() else {}

  def keep(part: str, result: dict) -> None:
    found[part] = result
    measure.keep('startup', dict(targets=s.TARGETS) | {name: found[name] for name in PARTS if name in found}, folder=path.parent)

  if 'imports' in _PARTS.value:
    keep('imports', s.imports(_REPEATS.value))
  if 'help' in _PARTS.value:
    keep('help', s.helps(s.commands(), _REPEATS.value))
  if 'starts' in _PARTS.value:
    key = s.key()
    old = found.get('starts', {})
    rounds = old['rounds'] if old.get('key') == key else []
    if len(rounds) < _ROUNDS.value:
      s.prepare(workdir / 'prepared', s.FLAGS)
    s.starts(workdir / 'prepared', workdir / 'run', s.FLAGS, _ROUNDS.value, rounds, lambda r: keep('starts', s.medians(r) | dict(rounds=r, key=key, flags=s.FLAGS)))
  print(s.table(found))
  print(f'-> {path}')


if __name__ == '__main__':
  commands.run(main)
