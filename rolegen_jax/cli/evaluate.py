"""Evaluate a trained run again and rewrite its report; only what is missing is trained.

rolegen evaluate --workdir=runs/demo --set evaluation.bootstrap=10000
"""

from absl import flags

from rolegen_jax import overrides
from rolegen_jax.cli.path_flags import path_flag

_WORKDIR = path_flag('workdir', None, 'Folder of a run of rolegen train.', required=True, urls=True)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)
_RETRAIN = flags.DEFINE_bool(
  'retrain', False, 'Train again what was trained with other settings or on other files.'
)


def main() -> None:
  """Evaluate the run that the flags name."""
  from rolegen_jax.pipeline.artifacts import current, saved_config

  workdir = current(_WORKDIR.value)
  config = overrides.apply(saved_config(workdir), _SET.value)
  # This brings jax, which takes seconds: what is wrong is said before.
  from rolegen_jax.pipeline.run import train

  train(config, workdir, print_tables=True, retrain=_RETRAIN.value)
