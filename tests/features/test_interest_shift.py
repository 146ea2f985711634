"""Interest shift: counts in plain Python, and logs with planted triggers and distractors."""

import numpy as np
import pytest

from rolegen_jax.features import interest_shift as lib
from tests.evaluation import tiny_log
from tests.features.test_excitation import CODES, estimate


@pytest.mark.parametrize('seed', range(3))
def test_counts_equal_counting_one_by_one(seed):
  log, train_end, coarse, shift, _ = estimate(seed)
  for fold in range(lib.FOLDS):
    expected = np.zeros((2, len(log.items), CODES))
    for earlier in range(len(log.item)):
      user = log.user[earlier]
      for later in range(earlier + 1, min(earlier + lib.MAX_LAG + 1, train_end[user])):
        seconds = log.timestamp[later] - log.timestamp[earlier]
        if log.user[later] != user or seconds <= 0 or user % lib.FOLDS == fold:
          continue
        decay = np.exp(-seconds / 86_400 / lib.DECAY_DAYS)
        for table, contact, other in ((0, earlier, later), (1, later, earlier)):
          if log.event[contact] != lib.PURCHASE:
            weight = lib.PURCHASE_WEIGHT if log.event[other] == lib.PURCHASE else 1.0
            expected[table, log.item[contact], coarse[log.item[other]]] += weight * decay
    counted = [counts.toarray() for counts in shift.without_fold(fold)]
    np.testing.assert_allclose(counted, expected, rtol=1e-5, atol=1e-6)


# Items 0..3 are in coarse codes 0..3; item 4 is one more of code 2, item 5 one more of code 3.
COARSE = np.array([0, 1, 2, 3, 2, 3], np.int32)


def count(trajectories: list[list[tuple[int, str]]], kept: int = 10**6) -> lib.InterestShift:
  """Count over one user per trajectory, an event a day, of which the first `kept` are training."""
  rows = [
    (user, item, event, day)
    for user, trajectory in enumerate(trajectories)
    for day, (item, event) in enumerate(trajectory)
  ]
  log, _ = tiny_log.make(rows, 6)
  train_end = np.minimum(log.offsets[1:], log.offsets[:-1] + kept)
  return lib.InterestShift.of(log, train_end, COARSE, 4)


def views(*items: int) -> list[tuple[int, str]]:
  return [(item, 'view') for item in items]


def test_a_trigger_is_followed_by_interest_that_was_not_there():
  """Item 2 turns everybody from coarse code 0 to 1, and item 3 ends interest in 1.

  Items 4 and 5, of the same coarse codes, change nothing.
  """
  shift = count(
    [views(0, 0, 2, 1, 1)] * 40
    + [views(0, 0, 4, 0, 0)] * 40
    + [views(1, 1, 3, 0, 0)] * 40
    + [views(1, 1, 5, 1, 1)] * 40
  )

  def z(item, coarse_code):
    return shift.z(np.array([item]), np.array([coarse_code]))[0]

  assert z(2, 1) > 4 and z(2, 0) < -3 and z(3, 1) < -3
  assert z(4, 1) < 0 < z(4, 0)  # less than items of its coarse code do on average
  opens = shift.opens.share
  assert opens.argmax() in (2, 3) and opens[2] > 3 * opens[4]
  assert shift.opens.noise < 0.1 * opens[2], 'both halves of the users agree'
  assert shift.z(np.array([[2, 4], [3, 5]]), np.array([[1, 1], [1, 1]])).shape == (2, 2)


def test_where_chance_alone_moves_interest_nothing_opens_it():
  """Of four other codes one always gains most; what it gains in other users is next to nothing."""
  rng = np.random.default_rng(0)
  chance = count([views(*rng.integers(0, 6, 12)) for _ in range(300)])
  largest = np.concatenate([x.max(1) for _, x in lib.share_shifts(*chance.total, COARSE)])
  assert (
    np.ptp(chance.opens.log) < 0.5 < np.ptp(np.log(np.maximum(largest, 0) + np.median(largest)))
  )


def test_purchases_are_no_contacts_but_show_what_complements_what():
  shift = count([[(0, 'view'), (0, 'purchase'), (1, 'view'), (1, 'view')]] * 10)
  assert shift.complement_KxK[0].tolist() == [-1, 1, 0, 0]  # before: 0 alone, after: 1 alone
  after_IxK = shift.total[0].toarray()
  # The view of item 0 is followed by a purchase in 0, which weighs most.
  assert after_IxK[0].argmax() == 0
  one_day, two_days, three_days = np.exp([-0.1, -0.2, -0.3])
  per_user = lib.PURCHASE_WEIGHT * one_day + two_days + three_days + one_day
  assert after_IxK.sum() == pytest.approx(10 * per_user, rel=1e-5)


def test_events_after_training_are_not_counted():
  trajectories = [views(0, 1, 2, 3)] * 4
  cut_short = [trajectory[:2] for trajectory in trajectories]
  assert count(trajectories, kept=2).total[0].sum() == count(cut_short).total[0].sum() > 0


def test_items_and_coarse_codes_without_events_have_no_shift():
  shift = count([views(0, 1)] * 3)
  assert shift.z(np.array([5, 5]), np.array([0, 3])).tolist() == [0, 0]
  assert (shift.opens.share >= 0).all() and np.isfinite(shift.opens.log).all()
  assert np.isfinite(shift.complement_KxK).all()
