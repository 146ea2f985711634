"""Play an A/B test in the simulated shop of a trained run.

  rolegen simulate_ab --workdir=runs/demo
  rolegen simulate_ab --workdir=runs/demo --simulator=held_back

Each arm recommends daily to the dormant users, who respond. The same command continues after any
interruption.
"""

from absl import flags

from rolegen_jax.cli.path_flags import path_flag

_WORKDIR = path_flag(
  'workdir', None, 'Folder of a run of rolegen train on a simulated log.', required=True
)
_SIMULATOR = flags.DEFINE_enum(
  'simulator',
  'default',
  ['default', 'held_back'],
  'The simulator of the log, or a held-back one, for which WORKDIR/held_back is trained first.',
)
_DAYS = flags.DEFINE_integer(
  'days', 28, 'Days from the end of the log.', lower_bound=1, upper_bound=3650
)
_SEEDS = flags.DEFINE_integer(
  'seeds',
  5,
  'Repetitions, each with noise of its own that all arms share.',
  lower_bound=1,
  upper_bound=1000,
)
_ARMS = flags.DEFINE_list(
  'arms',
  ['popularity', 'recency', 'SASRec', 'no_reasoner', 'RoleGen'],
  'Some of these, RoleGen_by_likelihood, no_reasoner_slates, and oracle, which knows the truth.',
)
_SLATE = flags.DEFINE_integer(
  'slate', 10, 'Items shown on a visit, at most backbone.beam.', lower_bound=1
)

_RETRAIN = flags.DEFINE_bool(
  'retrain',
  False,
  'Train what is missing, and again what was trained with other settings or on other files.',
)


def main() -> None:
  """Play the test that the flags describe and print its table."""
  from rolegen_jax.ab_test.simulation import simulate_ab
  from rolegen_jax.ab_test.summary import table

  result = simulate_ab(
    _WORKDIR.value,
    _SIMULATOR.value,
    _DAYS.value,
    _SEEDS.value,
    _ARMS.value,
    _SLATE.value,
    _RETRAIN.value,
  )
  print(table(result))
