"""The order of a slate: log p, what an item opens, and what earlier lists showed."""

import numpy as np
import pytest

from rolegen_jax.features.interest_shift import Opens
from rolegen_jax.serving import slate as lib
from rolegen_jax.serving.slate import Exposure, Opened, Slates

# Item 3 opens interest elsewhere.
OPENS = Opens(np.array([0.01, 0.01, 0.01, 0.05, 0.0], np.float32), noise=0.01)
ITEM = np.array([[0, 1, 3, 4], [3, 2, 1, -1]])
SCORE = np.log(np.array([[0.4, 0.3, 0.2, 0.1], [0.3, 0.25, 0.2, 1.0]]))


def slates(item, log_prob, opens: Opens, weight, exposure_penalty=0.0, top=10) -> Slates:
  exposure = Exposure(exposure_penalty, len(opens.share), top)
  return lib.slates(item, log_prob, Opened.at_large(opens, item), weight, exposure)


def test_a_trigger_is_shown_before_slightly_likelier_items():
  assert slates(ITEM, SCORE, OPENS, 2.0).item.tolist() == [[3, 0, 1, 4], [3, 2, 1, -1]]


def test_the_exploration_weight_applies_to_the_log_of_what_opens_more_than_noise():
  value = np.where(ITEM < 0, -np.inf, SCORE + 0.5 * np.log(OPENS.share + 0.01)[ITEM])
  shown = slates(ITEM, SCORE, OPENS, 0.5)
  order = np.argsort(-value, axis=1)
  np.testing.assert_array_equal(shown.item, np.take_along_axis(ITEM, order, 1))
  np.testing.assert_array_equal(shown.log_prob, np.take_along_axis(SCORE, order, 1))
  np.testing.assert_allclose(shown.rank_score, np.take_along_axis(value, order, 1))


@pytest.mark.parametrize('exploration_weight, exposure_penalty', [(0, 0), (2, 0), (0, 1), (2, 1)])
def test_the_rank_score_never_rises_along_a_list_and_is_what_ordered(
  exploration_weight, exposure_penalty
):
  rng = np.random.default_rng(0)
  item = np.stack([rng.permutation(30)[:8] for _ in range(50)])
  log_prob = -np.sort(rng.exponential(size=item.shape), axis=1).astype(np.float32)
  item[::7, 5:] = -1
  opens = Opens(rng.exponential(size=30), noise=0.7)
  shown = slates(item, log_prob, opens, exploration_weight, exposure_penalty, top=3)
  empty = shown.item < 0
  assert np.isneginf(shown.rank_score[empty]).all() and np.isfinite(shown.rank_score[~empty]).all()
  full = np.where(empty, -1e9, shown.rank_score)
  assert (np.diff(full, axis=1) <= 0).all() and not np.diff(empty.astype(int), axis=1).min() < 0
  seen, scale = np.zeros(30), max(0.7, np.median(opens.share))
  for items, log_probs, scores in zip(shown.item, shown.log_prob, shown.rank_score):
    worth = exploration_weight * np.log(opens.share + scale)[items]
    exposed = np.log1p(seen[items] / max(seen.mean(), 1e-9)) * exposure_penalty
    want = np.where(items < 0, -np.inf, log_probs + worth - exposed)
    np.testing.assert_allclose(scores, want, rtol=1e-5)
    np.add.at(seen, items[:3][items[:3] >= 0], 1)


def test_what_looks_open_for_users_counts_against_the_median_of_each_list():
  share = np.array([[0.0, 0.1, 0.3, 0.2], [0.4, 0.0, 0.0, 9.0]], np.float32)
  opened = Opened.for_users(share, ITEM)
  np.testing.assert_allclose(opened.scale, [[0.15], [lib.LEAST_SHARE]], rtol=1e-6)
  shown = lib.slates(ITEM, SCORE, opened, 2.0)
  assert shown.item.tolist() == [[3, 1, 4, 0], [3, 2, 1, -1]]
  np.testing.assert_allclose(shown.opens[0], share[0, [2, 1, 3, 0]])


def test_without_weight_lists_stay_as_they_are_and_empty_slots_come_last():
  np.testing.assert_array_equal(slates(ITEM, SCORE, OPENS, 0.0).item, ITEM)


def test_where_no_item_opens_anything_lists_stay_as_they_are():
  np.testing.assert_array_equal(slates(ITEM, SCORE, Opens(np.zeros(5), 0.0), 2.0).item, ITEM)


def test_an_exposure_penalty_favors_what_earlier_lists_did_not_show():
  item = np.tile(np.arange(5), (40, 1))
  score = np.tile(np.log([0.3, 0.25, 0.2, 0.15, 0.1]), (40, 1))

  def times_shown(exposure_penalty):
    shown = slates(item, score, OPENS, 0.0, exposure_penalty, top=2).item[:, :2]
    return np.bincount(shown.ravel(), minlength=5)

  assert times_shown(0.0).tolist() == [40, 40, 0, 0, 0]
  weak, strong = times_shown(0.5), times_shown(2.0)
  assert (weak[2:] > 0).sum() >= 1 and weak[1] < 40
  assert (strong > 0).all() and np.ptp(strong) < np.ptp(weak)
  # Nothing was shown before the first list.
  assert slates(item, score, OPENS, 0.0, 2.0, top=2).item[0].tolist() == [0, 1, 2, 3, 4]


def test_lists_that_are_made_in_parts_are_those_made_at_once():
  rng = np.random.default_rng(0)
  item = np.stack([rng.permutation(5) for _ in range(40)])
  score, opened = -rng.exponential(size=item.shape), Opened(np.zeros(item.shape), 1.0)
  whole = lib.slates(item, score, opened, 0.0, Exposure(1.0, 5, top=2)).item
  exposure = Exposure(1.0, 5, top=2)
  first = lib.slates(item[:15], score[:15], Opened(np.zeros((15, 5)), 1.0), 0.0, exposure).item
  resumed = Exposure(1.0, 5, top=2)
  resumed.add(first[:, :2].ravel())
  last = lib.slates(item[15:], score[15:], Opened(np.zeros((25, 5)), 1.0), 0.0, resumed).item
  np.testing.assert_array_equal(np.concatenate([first, last]), whole)


def test_an_exposure_penalty_keeps_empty_slots_last():
  for item in (ITEM, ITEM[:, ::-1]):
    assert slates(item, SCORE, OPENS, 2.0, 1.0).item[1, -1] == -1
