"""Recommend items to users as they are at the end of the log, with the reasoning behind each list.

rolegen recommend --workdir=runs/demo --users=dormant --output=recommendations.parquet

Lists are slates: `rank` is by the column `rank_score`, log p plus what the item opens; `log_prob`
is log p alone, which serving.exploration_weight=0 ranks by. Lists of many users are made in parts,
in .NAME.parts/ beside the output: the same command goes on after any interruption.
"""

import os

from absl import flags

from rolegen_jax import overrides
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError
from rolegen_jax.runtime.progress import say

_WORKDIR = path_flag('workdir', None, 'Folder of a run of rolegen train.', required=True, urls=True)
_USERS = path_flag(
  'users',
  'dormant',
  'all, dormant, or a text file with one user_id per line.',
  'all',
  'dormant',
  urls=True,
)
_OUTPUT = path_flag('output', None, 'Parquet file to write.', required=True, urls=True)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)
_TOP = flags.DEFINE_integer('top', 10, 'Items per user, at most backbone.beam.', lower_bound=1)

_RETRAIN = flags.DEFINE_bool(
  'retrain',
  False,
  'Train what is missing, and again what was trained with other settings or on other files.',
)


def main() -> None:
  """Write the table of recommendations that the flags ask for."""
  if os.path.realpath(_USERS.value) == os.path.realpath(_OUTPUT.value):
    raise ConfigError(f'--output={_OUTPUT.value}: is the file of --users; must be another')
  from rolegen_jax.data.files import require_writable
  from rolegen_jax.pipeline.artifacts import current, saved_config

  workdir = current(_WORKDIR.value)
  config = overrides.apply(saved_config(workdir), _SET.value)
  if _TOP.value > config.backbone.beam:
    raise ConfigError(f'--top={_TOP.value}: must be at most backbone.beam={config.backbone.beam}')
  require_writable(_OUTPUT.value)
  # These bring jax, which takes seconds: what is wrong is said before.
  from rolegen_jax.pipeline.context import open_run
  from rolegen_jax.pipeline.inputs import prepare_inputs
  from rolegen_jax.pipeline.run import train_models
  from rolegen_jax.serving.recommend import Recommender

  run = open_run(config, workdir, may_train=_RETRAIN.value, retrain=_RETRAIN.value)
  run, inputs = prepare_inputs(run)
  trained = train_models(run, inputs).calibrated
  recommender = Recommender(
    run.rolegen,
    trained.load(),
    trained.key,
    inputs.log,
    inputs.excitation,
    inputs.trie,
    run.mesh,
    inputs.bars_history,
  )
  written = recommender.write(_USERS.value, _OUTPUT.value, _TOP.value)
  say(f'{written.users} users, {written.recommendations} recommendations -> {_OUTPUT.value}')
