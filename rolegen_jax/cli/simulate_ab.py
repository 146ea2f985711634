"""Play an A/B test in the simulated shop of a trained run.

  rolegen simulate_ab --workdir=runs/demo
  rolegen simulate_ab --workdir=runs/demo --simulator=held_back
  rolegen simulate_ab --workdir=runs/seed0,runs/seed1,runs/seed2

Each arm recommends daily to the dormant users, who respond. Lifts of RoleGen are like for like: by
log p over arms by log p, slates over slates. With one run, intervals hold for its training seed;
with several, which may differ in `seed` alone, they are over training seeds too. The same command
continues after any interruption.
"""

from absl import flags

from rolegen_jax.cli.path_flags import path_list_flag

_WORKDIR = path_list_flag(
  'workdir',
  'Folder of a run of rolegen train on a simulated log, or several of other training seeds.',
  required=True,
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
  'Noise seeds: repetitions, each with noise of its own that all arms share.',
  lower_bound=1,
  upper_bound=1000,
)
_ARMS = flags.DEFINE_list(
  'arms',
  [
    *('popularity', 'popular_opens', 'recency', 'counting', 'counting_slates', 'SASRec'),
    *('SASRec_slates', 'no_reasoner', 'no_reasoner_slates', 'RoleGen', 'RoleGen_slates'),
  ],
  'Some of these, and oracle, oracle_slates and oracle_ahead, which know the truth. NAME_slates '
  'shows slates, NAME what is likeliest; popular_opens is one slate for everybody; oracle_ahead '
  'shows what most raises the chance of a purchase.',
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

  workdir, *others = _WORKDIR.value
  result = simulate_ab(
    workdir,
    _SIMULATOR.value,
    _DAYS.value,
    _SEEDS.value,
    _ARMS.value,
    _SLATE.value,
    others,
    _RETRAIN.value,
  )
  print(table(result))
