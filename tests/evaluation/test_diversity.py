import numpy as np
import pytest

from rolegen_jax.evaluation import diversity

CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]])
EVENTS = np.array([9, 1, 1, 0, 0])  # the head is item 0 alone


def test_lists_by_hand():
  got = diversity.list_diversity(np.array([[0, 1, -1], [0, 2, 4]]), CODES, EVENTS)
  assert got['coverage'] == pytest.approx(4 / 5)
  assert got['coarse_entropy'] == pytest.approx(-(0.6 * np.log(0.6) + 2 * 0.2 * np.log(0.2)))
  assert got['long_tail_share'] == pytest.approx(3 / 5)
  assert got['intra_list_distance'] == pytest.approx((0.5 + 1.0) / 2)
  assert diversity.list_diversity(np.array([[0, 2, 4]]), CODES, EVENTS, k=1)[
    'coverage'
  ] == pytest.approx(1 / 5)


def test_gini_extremes():
  assert diversity.gini(np.ones(10)) == pytest.approx(0)
  assert diversity.gini(np.eye(10)[0]) == pytest.approx(0.9)
  assert np.isnan(diversity.gini(np.zeros(3)))


def test_empty_lists_have_no_figures_but_do_not_fail():
  got = diversity.list_diversity(np.full((2, 3), -1), CODES, EVENTS)
  assert (
    got['coverage'] == 0
    and np.isnan(got['long_tail_share'])
    and np.isnan(got['intra_list_distance'])
  )


def test_worlds_are_sets():
  same_as_set, apart = [1, 0, 1], [3, 4, -1]
  got = diversity.world_diversity(np.array([[[0, 1, -1], same_as_set, apart]]), CODES, EVENTS)
  assert got['jaccard_WxW'][0] == [0.0, 0.0, 1.0]
  assert got['jaccard'] == pytest.approx(2 / 3) and got['union_size'] == 4


def test_lists_that_are_short_or_empty_count_what_they_hold():
  codes = np.array([[0, 0], [1, 0], [1, 1]])
  short = np.array([[2, 0, -1], [2, -1, -1], [-1, -1, -1]])
  found = diversity.list_diversity(short, codes, np.array([5, 1, 1]), k=10)
  assert found['coverage'] == pytest.approx(2 / 3) and found['long_tail_share'] == pytest.approx(
    2 / 3
  )
  assert found['intra_list_distance'] == 1.0  # of the one list with two items
  empty = diversity.list_diversity(np.full((2, 4), -1), codes, np.ones(3))
  assert (empty['coverage'], empty['coarse_entropy']) == (0, 0) and np.isnan(empty['gini'])
  assert diversity.world_diversity(np.full((2, 3, 4), -1), codes, np.ones(3))['union_size'] == 0
