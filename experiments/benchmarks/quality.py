"""What the runs of `--experiment=quality:NAME` found, as one file: hit rates of all systems, what each part adds, roles, diversity, A/B tests.

  python -m launch.sweep --experiment=quality:demo --workdir=runs/quality/demo          # and the others: experiments/quality.py
  python -m rolegen_jax.simulate_ab --workdir=runs/quality/demo/points/seed0            # and again with --world=held_back
  python -m experiments.benchmarks.quality --runs=runs/quality

The sweeps take hours on two cores, and continue where they were stopped. This command only reads the runs: of what is
missing there, quality.json keeps the figures that it has, with their own provenance. Tables go into docs/quality.md and README.md.
"""

from __future__ import annotations

import json
import pathlib

from absl import flags

from rolegen_jax import commands

_RUNS = flags.DEFINE_string('runs', 'runs/quality', 'Folder with the sweeps, each named like its experiment.')
_ROOT = pathlib.Path(__file__).parents[2]
_PAGES = flags.DEFINE_list('pages', [str(_ROOT / 'docs/quality.md'), str(_ROOT / 'README.md')], 'Pages that hold the tables.')
_FOLDER = flags.DEFINE_string('folder', str(pathlib.Path(__file__).parent), 'Where quality.json is written.')


def main() -> None:
  from experiments.benchmarks import measure, quality_parts, quality_tables

  kept = pathlib.Path(_FOLDER.value) / 'quality.json'
  found = quality_parts.collected(pathlib.Path(_RUNS.value), json.loads(kept.read_text()) if kept.exists() else {})
  path = measure.keep('quality', found, folder=_FOLDER.value)
  tables = quality_tables.tables(found)
  print('\n\n'.join(f'{name}\n{table}' for name, table in tables.items()))
  for page in _PAGES.value:
    quality_tables.write(tables, pathlib.Path(page))
  print('-> ' + ', '.join(map(str, (path, *_PAGES.value))))


if __name__ == '__main__':
  commands.run(main)
