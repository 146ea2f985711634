"""Recommend items to users as they are at the end of the log, with the reasoning behind each list.

rolegen recommend --workdir=runs/demo --users=dormant --output=recommendations.parquet

Lists are slates: `rank` is by the column `rank_score`, log p plus what the item opens; `log_prob`
is log p alone, which serving.exploration_weight=0 ranks by.
"""

from absl import flags

from rolegen_jax import overrides
from rolegen_jax.runtime.progress import say

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run of rolegen train.', required=True)
_USERS = flags.DEFINE_string(
  'users', 'dormant', 'all, dormant, or a text file with one user_id per line.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'Parquet file to write.', required=True)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)
_TOP = flags.DEFINE_integer('top', 10, 'Items per user, at most backbone.beam.', lower_bound=1)


def main() -> None:
  """Write the table of recommendations that the flags ask for."""
  from rolegen_jax.pipeline.artifacts import saved_config
  from rolegen_jax.pipeline.context import open_run
  from rolegen_jax.pipeline.inputs import prepare_inputs
  from rolegen_jax.pipeline.run import train_models
  from rolegen_jax.serving.recommend import recommend

  run = open_run(overrides.apply(saved_config(_WORKDIR.value), _SET.value), _WORKDIR.value)
  inputs = prepare_inputs(run)
  table = recommend(
    run.rolegen,
    train_models(run, inputs).calibrated.load(),
    inputs.log,
    inputs.excitation,
    inputs.trie,
    run.mesh,
    _USERS.value,
    _OUTPUT.value,
    _TOP.value,
  )
  n_users = table['user_id'].n_unique()
  say(f'{n_users} users, {len(table)} recommendations -> {_OUTPUT.value}')
