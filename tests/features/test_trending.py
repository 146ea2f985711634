"""What is trending: shares by hand, strictly before the day, and the same on host and device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.data import log as log_module
from rolegen_jax.features import trending as lib
from tests.evaluation import tiny_log

# (user, item, event, day)
ROWS = [
  *[(0, 0, 'view', 0), (1, 0, 'view', 0), (0, 1, 'purchase', 0.5), (2, 3, 'impression', 0)],
  *[(1, 2, 'view', 1), (2, 2, 'cart', 1.2)],
  (2, 0, 'purchase', 3),
]


def table(rows=ROWS, half_life: float = 1.0, width: int = 3, items: int = 5) -> lib.Trending:
  log, _ = tiny_log.make(rows, items)
  return lib.of_counts(*lib.daily_counts(log), half_life, width)


def shares(found: lib.Trending, day: int) -> dict[int, float]:
  """What is known on a day; the first one of the log is 0."""
  row = int(np.searchsorted(found.day, found.day[0] + day, side='right')) - 1
  listed = found.share[row] > 0
  assert (found.item[row, ~listed] == lib.NO_MORE).all() and (np.diff(found.item[row]) >= 0).all()
  return dict(zip(found.item[row, listed].tolist(), found.share[row, listed].round(6).tolist()))


def test_shares_of_decayed_events_before_each_day():
  found = table()
  assert found.day.tolist() == [1, 2, 3, 5]  # day 0, and those after a day with events
  assert shares(found, 0) == {}
  assert shares(found, 1) == {0: pytest.approx(2 / 3, abs=1e-6), 1: pytest.approx(1 / 3, abs=1e-6)}
  # A day later the three of day 0 are worth half; two more have been added.
  assert shares(found, 2) == {
    2: pytest.approx(2 / 3.5, abs=1e-6),
    0: pytest.approx(1 / 3.5, abs=1e-6),
    1: pytest.approx(0.5 / 3.5, abs=1e-6),
  }
  assert shares(found, 3) == shares(found, 2)  # nothing happened: all fade alike
  assert shares(found, 4)[0] == pytest.approx(1.25 / 1.875, abs=1e-6)


def test_a_day_knows_nothing_of_itself_or_later():
  later = [*ROWS, (0, 4, 'purchase', 2), (1, 4, 'purchase', 3.5), (2, 3, 'view', 9)]
  before, after = table(), table(later)
  for day in range(3):
    assert shares(before, day) == shares(after, day)
  assert 4 not in shares(after, 2) and 4 in shares(after, 3)


def test_the_largest_shares_are_listed_ties_by_index():
  rows = [(0, item, 'view', 0) for item in (4, 2, 3, 1)] + [(1, 1, 'purchase', 0)]
  assert table(rows, width=3).item[1].tolist() == [1, 2, 3]
  assert table(rows, width=9).item.shape == (2, 9)  # wider than there are items


def test_shares_outlive_a_gap():
  rows = [*[(0, 0, 'view', 0), (1, 0, 'view', 0), (2, 1, 'view', 0)], (0, 2, 'view', 60)]
  found = table(rows, half_life=0.25)
  assert shares(found, 1) == shares(found, 60) and len(shares(found, 60)) == 2
  assert shares(found, 61) == {2: 1}
  more = found.padded()
  assert len(more.item) == len(more.day) == 2 * lib.PAGE  # room for a page at least
  for day in (0, 1, 60, 61, 10**6):
    assert shares(more, day) == shares(found, day)


def test_counts_do_not_depend_on_parts(monkeypatch):
  whole = table()
  monkeypatch.setattr(log_module, 'PART_ROWS', 2)
  monkeypatch.setattr(log_module, 'USER_BLOCK', 1)
  jax.tree.map(np.testing.assert_array_equal, table(), whole)


def test_device_and_host_say_the_same_of_any_time():
  found = table()
  times = np.array([0, 1.0, 1.99, 2, 2.5, 3, 4, 5, 400]) * lib.DAY
  item, share = found.at(jnp.asarray(times, jnp.int32))
  dense = np.zeros((len(times), 5))
  for row, place in zip(*np.nonzero(np.asarray(share))):
    dense[row, item[row, place]] = share[row, place]
  np.testing.assert_array_equal(found.of_rows(times.astype(np.int64), 5).toarray(), dense)
  assert dense[:3].sum() == 0  # the first day, and what is before it, knows of nothing
  np.testing.assert_array_equal(dense[-1], dense[-2])  # later times know what the last day knows


def test_likelihood_of_targets_by_hand():
  found = table()
  times, targets = np.array([2, 2, 0]) * lib.DAY, np.array([1, 4, 1])
  expected = np.log([0.5 / 3 + 0.1, 0.1, 0.1]).mean()
  assert lib.log_likelihood(found, 5, times, targets) == pytest.approx(expected, rel=1e-6)
