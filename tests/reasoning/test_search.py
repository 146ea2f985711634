"""What worlds name, apart from models: the likeliest items that no world before them has."""

import numpy as np

from rolegen_jax.reasoning.search import _apart

NONE = -1


def test_worlds_leave_each_other_what_they_named():
  item = np.array([[[4, 7, 2, 5], [4, 2, 9, 7]]])
  log_prob = np.array([[[-1.0, -2.0, -3.0, -4.0], [-0.5, -1.5, -2.5, -3.5]]], np.float32)
  named, scores = _apart(item, log_prob, 2)
  np.testing.assert_array_equal(named, [[[4, 7], [2, 9]]])
  np.testing.assert_allclose(scores, [[[-1.0, -2.0], [-1.5, -2.5]]])


def test_fewer_items_than_a_world_names():
  named, _ = _apart(np.array([[[3]]]), np.array([[[-1.0]]], np.float32), 3)
  np.testing.assert_array_equal(named, [[[3, NONE, NONE]]])


def test_where_too_few_are_left_places_stay_empty():
  item = np.array([[[4, 7, NONE], [7, 4, NONE]]])
  log_prob = np.array([[[-1.0, -2.0, -1e9], [-0.5, -1.5, -1e9]]], np.float32)
  named, scores = _apart(item, log_prob, 2)
  np.testing.assert_array_equal(named, [[[4, 7], [NONE, NONE]]])
  np.testing.assert_allclose(scores, [[[-1.0, -2.0], [-1e9, -1e9]]])
