"""Recommendations of a trained run for users as they are at the end of the log, with the reasoning behind them.

python -m rolegen_jax recommend --workdir=runs/demo --users=dormant --output=recommendations.parquet
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
  from rolegen_jax.pipeline.run import Run, saved_config
  from rolegen_jax.serving.recommend import recommend

  run = Run(overrides.apply(saved_config(_WORKDIR.value), _SET.value), _WORKDIR.value)
  table = recommend(
    run.rolegen,
    run.trained,
    run.data[0],
    run.excitation,
    run.trie,
    run.mesh,
    _USERS.value,
    _OUTPUT.value,
    _TOP.value,
  )
  say(f'{table["user_id"].n_unique()} users, {len(table)} recommendations -> {_OUTPUT.value}')
