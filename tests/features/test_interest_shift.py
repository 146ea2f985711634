import numpy as np
import pytest

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.features import interest_shift as lib
from tests.features.test_excitation import CODES, estimate
from tests.evaluation import tiny_log

VIEW = EVENT_NAMES.index('view')


@pytest.mark.parametrize('seed', range(3))
def test_counts_against_counting_one_by_one(seed):
  log, train_end, coarse, counted, _ = estimate(seed)
  for fold in range(lib.FOLDS):
    expected = np.zeros((2, len(log.items), CODES))
    for a in range(len(log.item)):
      for b in range(a + 1, min(a + lib.NEAR + 1, train_end[log.user[a]])):
        later = log.timestamp[b] - log.timestamp[a]
        if log.user[a] == log.user[b] and later > 0 and log.user[a] % lib.FOLDS != fold:
          for table, contact, other in ((0, a, b), (1, b, a)):
            if log.event[contact] != lib.PURCHASE:
              worth = lib.PURCHASE_WEIGHT if log.event[other] == lib.PURCHASE else 1.0
              expected[table, log.item[contact], coarse[log.item[other]]] += worth * np.exp(
                -later / 86_400 / lib.DECAY_DAYS
              )
    np.testing.assert_allclose(
      [counts.toarray() for counts in counted.others(fold)], expected, rtol=1e-5, atol=1e-6
    )


# Items 0..3 are in coarse codes 0..3; item 4 is one more of coarse code 2, item 5 one more of coarse code 3.
COARSE = np.array([0, 1, 2, 3, 2, 3], np.int32)


def seen(lives: list[list[tuple[int, str]]], kept: int = 10**6) -> lib.InterestShift:
  """One user per life, an event a day."""
  log, _ = tiny_log.make(
    [
      (user, item, event, day)
      for user, life in enumerate(lives)
      for day, (item, event) in enumerate(life)
    ],
    6,
  )
  return lib.InterestShift.of(log, np.minimum(log.offsets[1:], log.offsets[:-1] + kept), COARSE, 4)


def views(*items: int) -> list[tuple[int, str]]:
  return [(item, 'view') for item in items]


def test_a_trigger_is_followed_by_interest_that_was_not_there():
  """Item 2 turns everybody from coarse code 0 to 1; item 4, of the same coarse code, changes nothing; item 3 ends interest in 1."""
  found = seen(
    [views(0, 0, 2, 1, 1)] * 40
    + [views(0, 0, 4, 0, 0)] * 40
    + [views(1, 1, 3, 0, 0)] * 40
    + [views(1, 1, 5, 1, 1)] * 40
  )
  z = lambda item, coarse_code: found.z(np.array([item]), np.array([coarse_code]))[0]
  assert z(2, 1) > 4 and z(2, 0) < -3 and z(3, 1) < -3
  assert z(4, 1) < 0 < z(4, 0)  # less than its kind does on the whole
  assert found.opens_I.argmax() in (2, 3) and found.opens_I[2] > 3 * found.opens_I[4]
  assert found.z(np.array([[2, 4], [3, 5]]), np.array([[1, 1], [1, 1]])).shape == (2, 2)


def test_purchases_are_no_contacts_but_say_what_complements_what():
  found = seen([[(0, 'view'), (0, 'purchase'), (1, 'view'), (1, 'view')]] * 10)
  assert found.complement_KxK[0].tolist() == [-1, 1, 0, 0]  # before: 0 alone, after: 1 alone
  assert (
    found.total[0].toarray()[0].argmax() == 0
  )  # the view of item 0 is followed by a purchase in 0, which weighs most
  assert found.total[0].toarray().sum() == pytest.approx(
    10 * (lib.PURCHASE_WEIGHT * np.exp(-0.1) + np.exp(-0.2) + np.exp(-0.3) + np.exp(-0.1)), rel=1e-5
  )


def test_what_comes_after_training_is_not_counted():
  lives = [views(0, 1, 2, 3)] * 4
  assert seen(lives, kept=2).total[0].sum() == seen([life[:2] for life in lives]).total[0].sum() > 0


def test_items_and_neighbourhoods_without_events_say_nothing():
  found = seen([views(0, 1)] * 3)
  assert (
    found.z(np.array([5, 5]), np.array([0, 3])).tolist() == [0, 0]
    and (found.opens_I[[2, 3, 4, 5]] == 0).all()
  )
  assert np.isfinite(found.complement_KxK).all()
