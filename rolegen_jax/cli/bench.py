"""Throughput per chip of every phase of a config on the devices at hand, as JSON with provenance.

  python -m rolegen_jax bench --experiment=demo --workdir=runs/demo --json=experiments/benchmarks/demo_cpu.json
  python -m rolegen_jax bench --compare=before.json,after.json

The log is prepared in --workdir if it is not there yet; models are freshly initialised, since fixed shapes take as long whatever
the weights. --input=random needs no log: batches of the right shapes over a catalogue of --items.
"""

from __future__ import annotations

import pathlib

from absl import flags

from rolegen_jax.cli import entry
from rolegen_jax.config import ConfigError

_EXPERIMENT = flags.DEFINE_string(
  'experiment', 'demo', 'Name of a file in experiments/, or NAME:ARG.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Run folder that holds, or gets, the prepared log; needed with --input=log.'
)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)
_PHASES = flags.DEFINE_list(
  'phases', ['all'], 'Some of input, rollout, execution, reflection, step, recommend; or all.'
)
_INPUT = flags.DEFINE_enum('input', 'log', ['log', 'random'], 'Where batches come from.')
_ITEMS = flags.DEFINE_integer(
  'items', 100_000, 'Catalogue size with --input=random.', lower_bound=1
)
_REPEATS = flags.DEFINE_integer('repeats', 20, 'Timed calls of each phase.', lower_bound=3)
_JSON = flags.DEFINE_string('json', '', 'Also write everything to this file.')
_COMPARE = flags.DEFINE_list(
  'compare', [], 'Two JSON files, FIRST,SECOND: print ratios of medians instead of running.'
)


def main() -> None:
  if _COMPARE.value:
    if len(_COMPARE.value) != 2:
      raise ConfigError('--compare: must be two files, FIRST,SECOND')
    from rolegen_jax.perf import throughput

    print(throughput.compare(*map(throughput.read, _COMPARE.value)))
    return
  config = entry.experiment(_EXPERIMENT.value, _SET.value)
  if _INPUT.value == 'log' and not _WORKDIR.value:
    raise ConfigError('--workdir: must name a run folder with --input=log')
  from rolegen_jax.data.files import write_json
  from rolegen_jax.perf import throughput

  found = throughput.measure(
    config, _WORKDIR.value, _PHASES.value, _INPUT.value, _ITEMS.value, _REPEATS.value
  )
  print(throughput.show(found))
  if _JSON.value:
    write_json(found, pathlib.Path(_JSON.value))
    print(f'-> {_JSON.value}')
