"""Measure the throughput per chip of every phase of a config, as JSON with provenance.

  rolegen bench --experiment=demo --workdir=runs/demo --json=demo_cpu.json
  rolegen bench --compare=before.json,after.json

The log is prepared in --workdir if it is not there yet. Models are freshly initialized: fixed
shapes take as long whatever the weights. --input=random needs no log: batches of the right shapes
over a catalogue of --items.
"""

from __future__ import annotations

from absl import flags

from rolegen_jax.cli import entry
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError
from rolegen_jax.fields import local_path

_EXPERIMENT = flags.DEFINE_string(
  'experiment', 'demo', 'Name of a file in experiments/, or the path of one; NAME:ARG passes ARG.'
)
_WORKDIR = path_flag(
  'workdir',
  '',
  'Run folder that holds, or gets, the prepared log; needed with --input=log.',
  urls=True,
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
_JSON = path_flag('json', '', 'Also write everything to this file.', urls=True)
_COMPARE = flags.DEFINE_list(
  'compare', [], 'Two JSON files, FIRST,SECOND: print ratios of medians instead of running.'
)


def main() -> None:
  """Measure, or compare two measurements."""
  if _COMPARE.value:
    if len(_COMPARE.value) != 2:
      raise ConfigError('--compare: must be two files, FIRST,SECOND')
    both = [local_path(path, '--compare', urls=True) for path in _COMPARE.value]
    from rolegen_jax.perf import throughput

    print(throughput.compare(*map(throughput.read, both)))
    return
  config = entry.experiment(_EXPERIMENT.value, _SET.value)
  if _INPUT.value == 'log' and not _WORKDIR.value:
    raise ConfigError('--workdir: must name a run folder with --input=log')
  from rolegen_jax.data.files import write_json
  from rolegen_jax.perf import throughput

  result = throughput.measure(
    config, _WORKDIR.value, _PHASES.value, _INPUT.value, _ITEMS.value, _REPEATS.value
  )
  print(throughput.show(result))
  if _JSON.value:
    write_json(result, _JSON.value)
    print(f'-> {_JSON.value}')
