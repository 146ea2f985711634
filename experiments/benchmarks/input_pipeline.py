"""Preparing and reading a log that memory does not hold: events per second, peak memory, and whether a short step is kept busy.

  python -m experiments.benchmarks.input_pipeline --folder=DIR --events=1000000,10000000,100000000

The log is SIMULATED; it stays in DIR, and so does what is not done yet when this is cut off. Needs 10 GB there for 100 M events.
With Apache Beam installed (requirements-cluster.txt) the first size is prepared by its local runner too.
`python -m experiments.benchmarks.draw` makes the picture.
"""

import importlib.util
import pathlib

from absl import flags

from rolegen_jax.cli import entry

_FOLDER = flags.DEFINE_string('folder', None, 'Where logs and shards are written.', required=True)
_EVENTS = flags.DEFINE_list('events', ['1000000', '10000000', '100000000'], 'Sizes of the simulated logs; the last one is read.')
_FILES = flags.DEFINE_integer('files', 32, 'Event files of each log.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 2000, 'Steps of each reading loop.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', '', 'Folder of input_pipeline.json; default: that of the benchmarks.')

BATCHES = (16, 32, 64, 128)  # rows; the experiments' warm-ups take 16 and 32
STEP_S = 0.001


def main() -> None:
  from experiments.benchmarks import input_pipeline_parts as parts, measure

  folder, prepared = pathlib.Path(_FOLDER.value), []
  for events in map(int, _EVENTS.value):
    log, shards = folder / f'log{events}', folder / f'shards{events}'
    parts.simulate(log, events, _FILES.value)
    prepared.append(parts.prepare(log, shards))
    print(f'{events:,} events: {prepared[-1]["events_per_s"]:,.0f}/s, peak {prepared[-1]["peak_bytes"] / 2**30:.2f} GiB', flush=True)
  reading = [parts.read(shards, batch, _STEPS.value, step_s, cold) for cold in (True, False) for batch in BATCHES for step_s in (STEP_S, 0.0)]
  found = dict(simulated=True, prepared=prepared, reading=reading, engine=engine(folder, prepared[0]))
  print(f"-> {measure.keep('input_pipeline', found, 'polars', 'grain', 'apache-beam', folder=_OUTPUT.value or measure.FOLDER)}")


def engine(folder: pathlib.Path, alone: dict) -> dict | None:
  """The smallest log by Beam's local runner, and whether the content is that of the one-machine path; None without Beam."""
  if importlib.util.find_spec('apache_beam') is None:
    return None
  from experiments.benchmarks import input_pipeline_parts as parts

  found = parts.prepare(folder / f'log{alone["events"]}', folder / 'shards_beam', '--runner=DirectRunner')
  return found | dict(same_content=found['digest'] == alone['digest'])


if __name__ == '__main__':
  entry.run(main)
