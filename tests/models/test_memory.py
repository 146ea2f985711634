"""Features of memory slots."""

import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.models import memory as lib
from tests import tiny


def rows_of_memory(timestamps, events, segments) -> lib.Memory:
  """One row of slots, the first of them the start slot."""
  time, event, segment = (np.array([x], np.int32) for x in (timestamps, events, segments))
  ones = np.ones_like(time)
  hidden = jnp.zeros((*time.shape, 1))
  fields = (jnp.asarray(x) for x in (ones, event, time, segment, ones))
  return lib.Memory(hidden, *fields)


def test_a_view_holds_strictly_earlier_events_of_the_segment_and_the_start():
  start = lib.NO_EVENT, lib.VISIBLE
  memory = rows_of_memory([0, 5, 7, 7, 2], [start[0], 1, 2, 3, 1], [start[1], 1, 1, 1, 2])
  view = lib.view_memory(memory, np.array([[7, 8, 5, 9]]), np.array([[1, 1, 1, 2]]))
  assert view.visible[0].tolist() == [
    [True, True, False, False, False],
    [True, True, True, True, False],
    [True, False, False, False, False],
    [True, False, False, False, True],
  ]
  assert view.last.tolist() == [[1, 3, 0, 4]] and view.gap.tolist() == [[2, 1, 0, 7]]
  assert not np.asarray(view.age)[:, :, 0].any()  # the start slot is no event
  assert view.event[0].argmax(-1).tolist() == [lib.NO_EVENT, 1, 2, 3, 1]


@pytest.mark.parametrize(
  'seconds, bucket',
  [(-5, 0), (0, 0), (59, 2), (60, 3), (180, 6), (3600, 17), (86_400, 31), (2**31 - 1, 63)],
)
def test_gap_buckets(seconds, bucket):
  assert int(lib.gap_bucket(jnp.array(seconds))) == bucket


def test_count_buckets():
  counts = jnp.array([0, 1, 2, 3, 4, 7, 8, 1000])
  assert lib.count_bucket(counts).tolist() == [0, 0, 1, 1, 2, 2, 3, 7]


def test_age_features_are_bounded():
  age_s = jnp.array([-1, 0, 60, tiny.DAY, 2**31 - 1])
  rank, count = jnp.array([0, 1, 5, 100, 10**6]), jnp.array([0, 1, 2, 3, 1000])
  features = np.array(lib.age_features(age_s, rank, count))
  assert features.shape == (5, lib.AGE_FEATURES)
  assert np.isfinite(features).all() and np.abs(features).max() <= 8.0
