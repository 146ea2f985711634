"""What the runs of `--experiment=quality:NAME` found, as one file: hit rates of all systems, what each part adds, roles, diversity, A/B tests.

  python -m launch.sweep --experiment=quality:demo --workdir=runs/quality/demo          # and the other two: experiments/quality.py
  python -m rolegen_jax.simulate_ab --workdir=runs/quality/demo/points/seed0            # and again with --world=held_back
  python -m experiments.benchmarks.quality --runs=runs/quality

The sweeps take hours on two cores, and continue where they were stopped. This command only reads the runs: of what is
missing there, quality.json keeps the figures that it has, with their own provenance.
"""

from __future__ import annotations

import json
import pathlib

from absl import flags

from rolegen_jax import commands

_RUNS = flags.DEFINE_string('runs', 'runs/quality', 'Folder with the sweeps, each named like its experiment.')
_FOLDER = flags.DEFINE_string('folder', str(pathlib.Path(__file__).parent), 'Where quality.json is written.')


def main() -> None:
  from experiments.benchmarks import measure, quality_parts

  kept = pathlib.Path(_FOLDER.value) / 'quality.json'
  found = quality_parts.collected(pathlib.Path(_RUNS.value), json.loads(kept.read_text()) if kept.exists() else {})
  path = measure.keep('quality', found, folder=_FOLDER.value)
  print(quality_parts.table(found))
  print(f'-> {path}')


if __name__ == '__main__':
  commands.run(main)
