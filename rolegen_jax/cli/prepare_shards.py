"""Convert a log that does not fit in memory to packed training rows on disk.

  rolegen prepare_shards --experiment=contract --set data.path=my_shop --output=shards/my_shop
  rolegen train --experiment=contract --set data.path=my_shop \\
      --set data.shards=shards/my_shop --set data.max_users=50000 --workdir=runs/shop

The same command continues after any interruption. Apache Beam (requirements-cluster.txt) does it
on a cluster, on folders that all workers see:

  rolegen prepare_shards ... --runner=FlinkRunner --beam=--flink_master=host:8081
"""

import json

from absl import flags

from rolegen_jax.cli import entry
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError
from rolegen_jax.runtime import mirror
from rolegen_jax.runtime.progress import say

_EXPERIMENT = flags.DEFINE_string(
  'experiment',
  'contract',
  'Experiment whose data and backbone.context settings are used: NAME, PATH.py or NAME:ARG.',
)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)
_OUTPUT = path_flag(
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
  """Write the shards that the flags ask for."""
  config = entry.experiment(_EXPERIMENT.value, _SET.value)
  from rolegen_jax.data.adapters import fetched_log, log_path
  from rolegen_jax.data.shards.convert import make_plan

  if _RUNNER.value and mirror.is_mirrored(log_path(config.data)):
    raise ConfigError(
      f'--runner={_RUNNER.value}: a log in a bucket is read by the processes of this machine only; '
      'must be a folder that all workers see, or no --runner'
    )
  plan = make_plan(config, fetched_log(config.data), _SHARDS.value)
  say(f'{plan.events} events in {len(plan.chunks)} chunks -> {plan.shards} shards')
  if _RUNNER.value:
    from rolegen_jax.data.shards import beam

    index = beam.build(plan, _OUTPUT.value, [f'--runner={_RUNNER.value}', *_BEAM.value])
  else:
    from rolegen_jax.data.shards import build

    index = build.build(plan, _OUTPUT.value, _WORKERS.value)
  print(json.dumps({name: value for name, value in index.items() if name != 'shards'}, indent=2))
  rows, width, n_shards = index['rows'], index['width'], len(index['shards'])
  say(f'{rows} rows of {width} events in {n_shards} shards -> {_OUTPUT.value}')
