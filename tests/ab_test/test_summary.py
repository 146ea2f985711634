"""Measures, intervals and lifts of arms that were played, as text and as a picture."""

import numpy as np
import pytest

from rolegen_jax.ab_test import simulation, summary
from rolegen_jax.ab_test.arms import Played
from rolegen_jax.ab_test.plot import draw


def arm(rng, rates, users: int = 400) -> list[Played]:
  """A play of ten days for each rate of orders a user and day."""
  blank = np.zeros((users, 10))
  return [Played(rng.poisson(rate, (users, 10)), blank, blank, blank, blank + 1) for rate in rates]


def about(found: dict, dirty: bool | None = False) -> dict:
  provenance = dict(dirty=dirty, commit='0123456789ab' + ('+changes' if dirty else ''))
  return found | dict(simulator='a simulator', opens_agreement=0.25, provenance=provenance)


def test_intervals_hold_the_truth_and_lifts_are_paired(tmp_path):
  rng = np.random.default_rng(0)
  base = arm(rng, [0.2] * 4)
  arms = {'RoleGen': arm(rng, [0.3] * 4), 'recency': base, 'no_reasoner': base}
  found = summary.summarize(arms, [0], 500, 0)
  orders = found['arms']['recency']['orders']
  assert (
    orders['low'] < 800 < orders['high']
    and found['arms']['recency'] == found['arms']['no_reasoner']
  )
  lift = found['lifts']['no_reasoner']['orders']
  assert 0 < lift['low'] < 0.5 < lift['high'] and found['lifts']['no_reasoner']['gmv'] is None
  assert found['lifts']['no_reasoner']['orders_by_day'][-1] == lift
  nothing = summary.summarize({'RoleGen': base, 'no_reasoner': base}, [0], 500, 0)['lifts'][
    'no_reasoner'
  ]['orders']
  assert nothing == dict(mean=0, low=0, high=0)
  draw(about(found), tmp_path / 'ab.png')
  assert 1000 < (tmp_path / 'ab.png').stat().st_size < 200_000


def test_lifts_are_like_for_like(tmp_path):
  """RoleGen by log p over arms by log p, its slates over slates, nothing across."""
  rng = np.random.default_rng(0)
  arms = {name: arm(rng, [0.2]) for name in simulation.KNOWN}
  found = summary.summarize(arms, [0], 20, 0)
  tested = {name: lift['tested'] for name, lift in found['lifts'].items()}
  of_slates = {name for name in simulation.KNOWN if name.endswith('_slates')} | {
    'popular_opens',
    'oracle_ahead',
  }
  assert tested == {
    name: 'RoleGen_slates' if name in of_slates else 'RoleGen'
    for name in simulation.KNOWN
    if name not in ('RoleGen', 'RoleGen_slates')
  }
  text = summary.table(about(found))
  assert 'RoleGen_slates over no_reasoner_slates, %' in text
  assert 'RoleGen over no_reasoner, %' in text
  assert 'RoleGen_slates over counting_slates, %' in text
  assert 'RoleGen_slates over no_reasoner, %' not in text
  assert 'looks at them: 0.25, mean over users' in text
  without = summary.summarize(
    {name: arms[name] for name in ('RoleGen_slates', 'no_reasoner')}, [0], 20, 0
  )
  assert without['lifts'] == {}
  draw(about(found), tmp_path / 'ab.png')


def test_the_default_arms_hold_like_for_like():
  assert set(simulation.ARMS) >= {
    *('RoleGen', 'RoleGen_slates', 'no_reasoner', 'no_reasoner_slates'),
    *('counting', 'counting_slates', 'SASRec', 'SASRec_slates', 'popular_opens'),
  }
  assert set(simulation.KNOWN) - set(simulation.ARMS) == {
    'oracle',
    'oracle_slates',
    'oracle_ahead',
  }


def test_training_seeds_are_resampled_beside_noise_seeds_and_users():
  """Runs that differ by more than noise: one run's interval misses what three runs' one holds."""
  rng = np.random.default_rng(0)
  of_run = [arm(rng, [rate] * 3) for rate in (0.1, 0.2, 0.3)]
  one = summary.summarize({'RoleGen': of_run[0]}, [7], 500, 0)
  three = summary.summarize({'RoleGen': sum(of_run, [])}, [7, 8, 9], 500, 0)
  orders = three['arms']['RoleGen']['orders']
  by_play = np.array([[p.orders.sum() for p in run] for run in of_run])
  assert orders['mean'] == pytest.approx(by_play.mean())
  assert three['arms']['RoleGen']['orders_by_seed'] == by_play.tolist()
  assert orders['low'] < 500 and orders['high'] > 1100
  assert one['arms']['RoleGen']['orders']['high'] < 500
  assert (three['seeds'], three['training_seeds'], one['training_seeds']) == (3, [7, 8, 9], [7])
  head = summary.table(about(three)).splitlines()[0]
  assert '3 noise seeds, trained with seed 7, 8, 9' in head
  assert 'over training seeds, noise seeds and users' in head
  assert 'for one training seed' in summary.table(about(one)).splitlines()[0]


def test_the_interval_over_two_training_seeds_is_the_exact_one():
  """One user who orders 1 under the one and 3 under the other: means 1, 2 or 3."""
  plays = [Played(np.full((1, 1), n), *[np.zeros((1, 1))] * 3, np.ones((1, 1))) for n in (1, 3)]
  orders = summary.summarize({'RoleGen': plays}, [0, 1], 4000, 0)['arms']['RoleGen']['orders']
  assert orders == dict(mean=2.0, low=1.0, high=3.0)


def test_the_table_says_when_the_checkout_was_not_clean():
  found = summary.summarize({'RoleGen': arm(np.random.default_rng(0), [0.2])}, [0], 20, 0)
  assert 'clean' not in summary.table(about(found))
  last = summary.table(about(found, dirty=True)).splitlines()[-1]
  assert last == 'not from a clean checkout: commit 0123456789ab+changes'
  assert 'not from a clean checkout' in summary.table(about(found, dirty=None))
