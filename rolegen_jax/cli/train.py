"""Run every stage of an experiment, from the log to the report.

  rolegen train --experiment=demo --workdir=runs/demo --set loop.worlds=6 --set loop.kl=0.05

The same command continues after any interruption. A stage that was trained with other settings or
on other files is an error, or trained again with --retrain.
"""

from absl import flags

from rolegen_jax.cli import entry
from rolegen_jax.cli.path_flags import path_flag

_EXPERIMENT = flags.DEFINE_string(
  'experiment', 'demo', 'Name of a file in experiments/, or the path of one; NAME:ARG passes ARG.'
)
_WORKDIR = path_flag(
  'workdir', None, 'Run folder: outputs, checkpoints, report. Made if absent.', required=True
)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)
_RETRAIN = flags.DEFINE_bool(
  'retrain', False, 'Train again what was trained with other settings or on other files.'
)


def main() -> None:
  """Train and evaluate the run that the flags name."""
  config = entry.experiment(_EXPERIMENT.value, _SET.value)
  from rolegen_jax.pipeline.run import train

  train(config, _WORKDIR.value, retrain=_RETRAIN.value)
