"""Runs every stage of an experiment, from the log to the report; the same command continues after any interruption.

python -m rolegen_jax train --experiment=demo --workdir=runs/demo --set loop.worlds=6 --set loop.kl=0.05
"""

from absl import flags

from rolegen_jax.cli import entry

_EXPERIMENT = flags.DEFINE_string(
  'experiment', 'demo', 'Name of a file in experiments/, or NAME:ARG.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run folder: outputs, checkpoints, report. Made if absent.', required=True
)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)


def main() -> None:
  config = entry.experiment(_EXPERIMENT.value, _SET.value)
  from rolegen_jax.pipeline.run import Run

  Run(config, _WORKDIR.value).report(print_tables=True)
