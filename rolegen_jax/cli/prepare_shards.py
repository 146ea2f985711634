"""Turns a log that memory does not hold into training rows on disk; the same command continues after any interruption.

  python -m rolegen_jax prepare_shards --experiment=contract --set data.path=my_shop --output=shards/my_shop
  python -m rolegen_jax train --experiment=contract --set data.path=my_shop --set data.shards=shards/my_shop --set data.max_users=50000

Beyond one machine, by Apache Beam (requirements-cluster.txt), on folders that all workers see:

  python -m rolegen_jax prepare_shards ... --runner=FlinkRunner --beam=--flink_master=host:8081 --beam=--parallelism=64
"""

import json
import sys

from absl import flags

from rolegen_jax.cli import entry

_EXPERIMENT = flags.DEFINE_string(
  'experiment',
  'contract',
  'Name of a file in experiments/, or NAME:ARG: its data and backbone.context settings.',
)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder of the shards: new, empty, or one of an earlier run.', required=True
)
_SHARDS = flags.DEFINE_integer(
  'shards', 0, 'Number of shards; 0 = one for each 2 million events.', lower_bound=0
)
_WORKERS = flags.DEFINE_integer(
  'workers', 0, 'Processes on this machine; 0 = one per core.', lower_bound=0
)
_RUNNER = flags.DEFINE_string(
  'runner',
  '',
  "Beam's runner: DirectRunner, FlinkRunner, SparkRunner ...; empty = this machine's processes.",
)
_BEAM = flags.DEFINE_multi_string(
  'beam', [], 'A further option of the Beam runner, --name=value. May be repeated.'
)


def main() -> None:
  config = entry.experiment(_EXPERIMENT.value, _SET.value)
  from rolegen_jax.data.adapters import log_path
  from rolegen_jax.data.shards.convert import make_plan

  plan = make_plan(config, log_path(config.data), _SHARDS.value)
  print(
    f'{plan.events} events in {len(plan.chunks)} chunks -> {plan.shards} shards',
    file=sys.stderr,
    flush=True,
  )
  if _RUNNER.value:
    from rolegen_jax.data.shards import beam

    index = beam.build(plan, _OUTPUT.value, [f'--runner={_RUNNER.value}', *_BEAM.value])
  else:
    from rolegen_jax.data.shards import build

    index = build.build(plan, _OUTPUT.value, _WORKERS.value)
  print(json.dumps({name: value for name, value in index.items() if name != 'shards'}, indent=2))
  print(
    f'{index["rows"]} rows of {index["width"]} events in {len(index["shards"])} shards -> {_OUTPUT.value}',
    file=sys.stderr,
    flush=True,
  )
