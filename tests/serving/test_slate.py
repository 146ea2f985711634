"""The order of a slate: log p, what an item opens, and what earlier lists showed."""

import numpy as np

from rolegen_jax.serving.slate import slates

OPENS = np.array([0.01, 0.01, 0.01, 0.05, 0.0], np.float32)  # item 3 opens interest elsewhere
ITEM = np.array([[0, 1, 3, 4], [3, 2, 1, -1]])
SCORE = np.log(np.array([[0.4, 0.3, 0.2, 0.1], [0.3, 0.25, 0.2, 1.0]]))


def test_a_trigger_is_shown_before_slightly_likelier_items():
  assert slates(ITEM, SCORE, OPENS, 2.0).tolist() == [[2, 0, 1, 3], [0, 1, 2, 3]]


def test_the_exploration_weight_applies_to_log_opens_plus_the_median():
  value = SCORE + 0.5 * np.log(OPENS + 0.01)[ITEM]
  expected = np.argsort(-np.where(ITEM < 0, -np.inf, value), axis=1)
  np.testing.assert_array_equal(slates(ITEM, SCORE, OPENS, 0.5), expected)


def test_without_weight_lists_stay_as_they_are_and_empty_slots_come_last():
  unchanged = [[0, 1, 2, 3]] * 2
  np.testing.assert_array_equal(slates(ITEM, SCORE, OPENS, 0.0), unchanged)


def test_where_no_item_opens_anything_lists_stay_as_they_are():
  unchanged = [[0, 1, 2, 3]] * 2
  np.testing.assert_array_equal(slates(ITEM, SCORE, np.zeros(5), 2.0), unchanged)


def test_an_exposure_penalty_favors_what_earlier_lists_did_not_show():
  item = np.tile(np.arange(5), (40, 1))
  score = np.tile(np.log([0.3, 0.25, 0.2, 0.15, 0.1]), (40, 1))

  def times_shown(exposure_penalty):
    order = slates(item, score, OPENS, 0.0, exposure_penalty, top=2)
    shown = np.take_along_axis(item, order, axis=1)[:, :2]
    return np.bincount(shown.ravel(), minlength=5)

  assert times_shown(0.0).tolist() == [40, 40, 0, 0, 0]
  weak, strong = times_shown(0.5), times_shown(2.0)
  assert (weak[2:] > 0).sum() >= 1 and weak[1] < 40
  assert (strong > 0).all() and np.ptp(strong) < np.ptp(weak)
  # Nothing was shown before the first list.
  assert slates(item, score, OPENS, 0.0, 2.0, top=2)[0].tolist() == [0, 1, 2, 3, 4]


def test_an_exposure_penalty_keeps_empty_slots_last():
  assert slates(ITEM, SCORE, OPENS, 2.0, 1.0)[1, -1] == 3
  assert slates(ITEM[:, ::-1], SCORE, OPENS, 0.0, 1.0)[1, -1] == 0
