"""What the runs of `--experiment=quality:NAME` found, as one file: hit rates of all systems, what each part adds, roles, diversity, A/B tests.

  python -m launch.sweep --experiment=quality:demo --workdir=runs/quality/demo          # and the other two: experiments/quality.py
  python -m rolegen_jax.simulate_ab --workdir=runs/quality/demo/points/seed0            # and again with --world=held_back
  python -m experiments.benchmarks.quality --runs=runs/quality

The sweeps take hours on two cores, and continue where they were stopped. This command only reads: what is missing is left out and named.
"""

from __future__ import annotations

import pathlib

from absl import flags

from rolegen_jax import commands

_RUNS = flags.DEFINE_string('runs', 'runs/quality', 'Folder with the sweeps, each named like its experiment.')
_FOLDER = flags.DEFINE_string('folder', str(pathlib.Path(__file__).parent), 'Where quality.json is written.')


def main() -> None:
  from experiments.benchmarks import measure, quality_parts

  found = quality_parts.collected(pathlib.Path(_RUNS.value))
  path = measure.keep('quality', found, folder=_FOLDER.value)
  print(quality_parts.table(found))
  print(f'-> {path}')


if __name__ == '__main__':
  commands.run(main)
