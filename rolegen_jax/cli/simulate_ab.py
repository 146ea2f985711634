"""An A/B test in the simulated world of a trained run: each arm recommends daily to the dormant users, who answer.

python -m rolegen_jax simulate_ab --workdir=runs/demo
python -m rolegen_jax simulate_ab --workdir=runs/demo --world=held_back
"""

from absl import flags

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of a run of rolegen train on a simulated log.', required=True
)
_WORLD = flags.DEFINE_enum(
  'world',
  'default',
  ['default', 'held_back'],
  'That of the log; or another: trains anew in WORKDIR/held_back.',
)
_DAYS = flags.DEFINE_integer('days', 28, 'Days from the end of the log.')
_SEEDS = flags.DEFINE_integer(
  'seeds', 5, 'Repetitions, each with noise of its own that all arms share.'
)
_ARMS = flags.DEFINE_list(
  'arms',
  ['popularity', 'recency', 'SASRec', 'no_reasoner', 'RoleGen'],
  'Some of these, RoleGen_by_likelihood, no_reasoner_slates, and oracle, which knows the world.',
)
_SLATE = flags.DEFINE_integer('slate', 10, 'Items shown on a visit, at most backbone.beam.')


def main() -> None:
  from rolegen_jax.ab_test.simulation import simulate_ab
  from rolegen_jax.ab_test.summary import table

  print(
    table(
      simulate_ab(
        _WORKDIR.value, _WORLD.value, _DAYS.value, _SEEDS.value, _ARMS.value, _SLATE.value
      )
    )
  )
