import numpy as np

from rolegen_jax.serving.slate import slates

OPENS = np.array([0.01, 0.01, 0.01, 0.05, 0.0], np.float32)  # item 3 opens interest elsewhere
ITEM = np.array([[0, 1, 3, 4], [3, 2, 1, -1]])
SCORE = np.log(np.array([[0.4, 0.3, 0.2, 0.1], [0.3, 0.25, 0.2, 1.0]]))


def test_a_trigger_is_shown_before_items_that_are_a_little_likelier():
  assert slates(ITEM, SCORE, OPENS, 2.0).tolist() == [[2, 0, 1, 3], [0, 1, 2, 3]]


def test_the_weight_is_of_log_opens_above_the_median():
  value = SCORE + 0.5 * np.log(OPENS + 0.01)[ITEM]
  expected = np.argsort(-np.where(ITEM < 0, -np.inf, value), axis=1)
  np.testing.assert_array_equal(slates(ITEM, SCORE, OPENS, 0.5), expected)


def test_without_weight_lists_stay_as_they_are_and_empty_slots_last():
  np.testing.assert_array_equal(slates(ITEM, SCORE, OPENS, 0.0), [[0, 1, 2, 3]] * 2)
  np.testing.assert_array_equal(
    slates(ITEM, SCORE, np.zeros(5), 2.0), [[0, 1, 2, 3]] * 2
  )  # nobody knows of any trigger


def test_spread_lists_turn_to_what_the_lists_before_did_not_show():
  item, score = (
    np.tile(np.arange(5), (40, 1)),
    np.tile(np.log([0.3, 0.25, 0.2, 0.15, 0.1]), (40, 1)),
  )
  shown = lambda exposure_penalty: np.bincount(
    np.take_along_axis(item, slates(item, score, OPENS, 0.0, exposure_penalty, top=2), axis=1)[
      :, :2
    ].ravel(),
    minlength=5,
  )
  assert shown(0.0).tolist() == [40, 40, 0, 0, 0]
  gentle, strong = shown(0.5), shown(2.0)
  assert (
    (gentle[2:] > 0).sum() >= 1
    and (strong > 0).all()
    and np.ptp(strong) < np.ptp(gentle)
    and gentle[1] < 40
  )
  assert slates(item, score, OPENS, 0.0, 2.0, top=2)[0].tolist() == [
    0,
    1,
    2,
    3,
    4,
  ]  # nothing was shown before the first


def test_spread_keeps_empty_slots_last():
  assert (
    slates(ITEM, SCORE, OPENS, 2.0, 1.0)[1, -1],
    slates(ITEM[:, ::-1], SCORE, OPENS, 0.0, 1.0)[1, -1],
  ) == (3, 0)
