"""What trends while a server runs: the table of a log with the events, whoever is listed where."""

import jax
import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.features import trending
from rolegen_jax.features.trending import DAY, NO_MORE, PAGE
from rolegen_jax.serving.hot_swap import MutableCatalogue
from rolegen_jax.serving.http.columns import Columns
from rolegen_jax.serving.http.items import Change, Items, Rows
from rolegen_jax.serving.http.trends import DAYS_KEPT, Trends
from rolegen_jax.serving.http.users import History
from tests import tiny
from tests.evaluation import tiny_log

ITEMS, WIDTH, HALF_LIFE = 6, 4, 1.5
# (user, item, event, day); day 0 of these is day 1 since 1970.
ROWS = [(0, 0, 'view', 0), (1, 1, 'view', 1), (2, 1, 'cart', 1), (0, 2, 'purchase', 2)]
END = 3  # of the log, in days since 1970
CODES = tiny.codes(12)


def table_of(rows, items: int = ITEMS):
  log = tiny_log.make(rows, items)[0]
  return log, trending.of_counts(*trending.daily_counts(log), HALF_LIFE, WIDTH)


def live(every: float = 0.0) -> tuple[Trends, Items]:
  log, table = table_of(ROWS)
  tables = MutableCatalogue(CODES[:ITEMS], tiny.CODES, ITEMS, trending=table.padded())
  columns = Columns(pl.DataFrame({'item_id': range(ITEMS)}))
  items = Items(list(range(ITEMS)), tables, columns, np.ones(ITEMS), None)
  return Trends(log, HALF_LIFE, table.padded(), items, every), items


def of(rows) -> History:
  columns = zip(*[(i, EVENT_NAMES.index(e), int((d + 1) * DAY), 1) for _, i, e, d in rows])
  return History(*(np.array(column) for column in columns))


def shares(table, day: int):
  """What a table says of a day, as `knows` has it."""
  share = table.of_rows(np.array([day * DAY]), ITEMS).toarray()[0]
  return pytest.approx({int(i): float(share[i]) for i in np.flatnonzero(share)}, abs=1e-6)


def knows(items: Items, day: int) -> dict[int, float]:
  """The shares by item number at a day since 1970, from the device."""
  with items.tables.serving() as trie:
    slot, share = jax.device_get(trie.trending.at(np.array([day * DAY])))
  assert (np.diff(slot[0].astype(np.int64)) >= 0).all()
  numbers = items.numbers_at(np.where(slot[0] < NO_MORE, slot[0], -1))
  return {int(n): round(float(s), 6) for n, s in zip(numbers, share[0]) if s > 0}


def swap(items: Items, removed: int, number: int, codes: np.ndarray, slot: int = -1) -> None:
  """Replace an item by another: a new one, or one that comes back."""
  add = Rows(np.array([number]), np.array([slot]), codes[None], np.zeros(1), np.zeros((1, 0)))
  new = () if number < len(items.ids) else (number,)
  items.apply(Change(add, np.array([removed]), [], new))


@pytest.mark.parametrize('days', [(0.5, 2.2, 3, 3, 6), (2,), (9, 4), tuple(range(3, 18))])
def test_a_day_knows_what_it_would_of_a_log_with_the_events(days):
  more = [(9, i % ITEMS, 'view' if i else 'impression', day) for i, day in enumerate(days)]
  expected = table_of([*ROWS, *more])[1]
  trends, items = live()
  for row in more:
    trends.add(of([row]))
    trends.refresh(20)
  for day in range(END + 1, 20):
    assert knows(items, day) == shares(expected, day)
  before = table_of(ROWS)[1]
  for day in range(1, END + 1):  # times before the end of the log know what they knew
    assert knows(items, day) == shares(before, day)


def test_a_day_waits_for_what_comes_late_but_not_for_the_day_before():
  trends, items = live(every=1e9)
  before = knows(items, 6)
  trends.add(of([(9, 5, 'view', 4)]))  # of day 5
  trends.refresh(5)
  assert knows(items, 6) == before  # nobody asked for a day that may know
  trends.refresh(6)
  after = knows(items, 6)
  assert 5 in after and 5 not in knows(items, 5)
  trends.add(of([(9, 3, 'view', 4)]))
  trends.refresh(6)
  assert knows(items, 6) == after
  trends.refresh(7)
  assert 3 in knows(items, 6) and 3 in knows(items, 7)


def test_shares_go_with_the_items_not_with_their_places():
  trends, items = live()
  trends.add(of([(9, 4, 'view', 5)]))
  trends.refresh(7)
  before = knows(items, 7)
  place, codes = int(items.slots(np.array(4))), items.row(4).codes[0]
  swap(items, 4, ITEMS, CODES[ITEMS])  # there is no other room
  assert int(items.slots(np.array(ITEMS))) == place
  assert knows(items, 7) == {n: s for n, s in before.items() if n != 4}
  trends.add(of([(9, ITEMS, 'view', 5)]))  # the new one trends by itself
  trends.refresh(7)
  assert ITEMS in knows(items, 7) and 4 not in knows(items, 7)
  items.roll_back(0)
  assert (items.row(4).codes == codes).all()
  assert ITEMS not in knows(items, 7)  # nor does the old one have the share of the new one
  trends.refresh(7)
  assert 4 in knows(items, 7) and ITEMS not in knows(items, 7)


def test_an_event_long_after_the_log_leaves_its_days_as_they_were():
  trends, items = live()
  before = [knows(items, day) for day in range(END + 2)]
  trends.add(of([(9, 5, 'view', 4000)]))
  trends.refresh(4002)
  assert 5 in knows(items, 4002) and 5 in knows(items, 10**4) and 5 not in knows(items, 4001)
  assert [knows(items, day) for day in range(END + 2)] == before
  trends.add(of([(9, 4, 'view', END - 2)]))  # late: of a day of the log
  trends.refresh(4002)
  assert [knows(items, day) for day in range(END + 1)] == before[:-1]
  assert 4 in knows(items, END + 1) and 4 not in before[-1]


def test_when_there_is_no_more_room_the_earliest_days_know_nothing():
  trends, items = live()
  for day in range(10, 10 + 3 * PAGE):
    trends.add(of([(9, day % ITEMS, 'view', day)]))
    trends.refresh(day + 2)
    assert day % ITEMS in knows(items, day + 2)
  assert knows(items, 1) == knows(items, END + 1) == {}
  last = knows(items, 10 + 3 * PAGE)
  trends.add(of([(9, 0, 'view', 2)] * 9))  # late: where its day was, there is no row any more
  trends.refresh(10 + 3 * PAGE)
  assert knows(items, 1) == knows(items, END + 1) == {}
  assert knows(items, 10 + 3 * PAGE) == pytest.approx(last, abs=1e-6)


def test_what_a_device_error_interrupts_is_done_again(monkeypatch):
  trends, items = live()
  before = knows(items, 9)
  trends.add(of([(9, 5, 'view', 5)]))
  put, calls = items.tables._put, []

  def fails_at_the_third(table):
    calls.append(table)
    if len(calls) == 3:
      raise RuntimeError('no memory')
    return put(table)

  monkeypatch.setattr(items.tables, '_put', fails_at_the_third)
  with pytest.raises(RuntimeError):
    trends.refresh(9)
  assert knows(items, 9) == before
  trends.refresh(9)
  assert 5 in knows(items, 9)


def test_items_that_are_gone_take_no_places_and_have_theirs_again_when_they_return():
  trends, items = live()
  swap(items, 1, ITEMS, CODES[ITEMS])  # the item of the largest share
  more = [(9, 3, 'view', 5), (9, 4, 'view', 5), (9, 5, 'view', 5)]
  trends.add(of(more))
  trends.refresh(7)
  there = knows(items, 7)
  assert len(there) == WIDTH and 1 not in there
  share = table_of([*ROWS, *more])[1].of_rows(np.array([7 * DAY]), ITEMS).toarray()[0]
  assert there[3] == pytest.approx(share[3], abs=1e-6)  # of all that there was, gone or not
  items.roll_back(0)
  trends.refresh(7)
  assert 1 in knows(items, 7)


def test_days_that_are_long_over_are_kept_as_one():
  trends, items = live()
  for day in range(3, 60):
    trends.add(of([(9, day % ITEMS, 'view', day)]))
    trends.refresh(day + 2)
  assert len(trends._days) <= DAYS_KEPT and not trends._came
  before = knows(items, 61)
  trends.add(of([(9, 1, 'view', 20)] * 100))  # late by far more: it fades from its own day on
  trends.refresh(61)
  late, total = 100 * 0.5 ** ((59 - 20) / HALF_LIFE), sum(0.5 ** (i / HALF_LIFE) for i in range(57))
  assert late < 1e-5 * total and knows(items, 61) == pytest.approx(before, abs=1e-5)
