"""What the server remembers beside the tables: worlds by what was read, columns, histories."""

import numpy as np
import polars as pl
import pytest

from rolegen_jax.data.events import MAX_TIMESTAMP
from rolegen_jax.features.interest_shift import Opens
from rolegen_jax.serving.http import users as users_lib
from rolegen_jax.serving.http.columns import Columns
from rolegen_jax.serving.http.programs import batch_sizes
from rolegen_jax.serving.http.schema import Range, Refused
from rolegen_jax.serving.http.users import AHEAD, History, Users, merged
from rolegen_jax.serving.http.worlds import WorldCache, key_of
from tests.evaluation import tiny_log


def test_the_worlds_used_least_recently_go_first():
  cache, worlds = WorldCache(100), [np.full(10, i, np.float32) for i in range(4)]
  for number in (0, 1):
    cache.put(key_of(number), (worlds[number],))
  assert cache.get(key_of(0))[0] is worlds[0] and cache.bytes == 80
  cache.put(key_of(2), (worlds[2],))
  assert cache.get(key_of(1)) is None and cache.get(key_of(0)) and cache.get(key_of(2))
  cache.put(key_of(2), (worlds[3],))
  assert len(cache) == 2 and cache.bytes == 80 and cache.get(key_of(2))[0] is worlds[3]
  cache.put(key_of(3), (np.zeros(1000),))
  assert len(cache) == 0 and cache.bytes == 0  # what exceeds the budget alone is not kept


def test_filters_are_of_values_ranges_and_paths():
  items = pl.DataFrame(
    {
      'item_id': [5, 6, 7, 8],
      'brand': ['a', 'b', None, 'a'],
      'category_code': ['x', 'x.y', 'xx.y', None],
      'price': [1.0, 2.0, None, 3.5],
    }
  )
  columns = Columns(items)

  def fit(**where):
    return columns.satisfy(where, columns_known).tolist()

  columns_known = 4
  assert fit(brand='a') == [True, False, False, True]
  assert fit(brand=['b', 'c']) == [False, True, False, False]
  assert fit(category_code='x') == [True, True, False, False]
  assert fit(price=Range(min=2)) == [False, True, False, True]
  assert fit(price=Range(max=2), brand='a') == [True, False, False, False]
  assert fit(price=2) == [False, True, False, False]  # 2 and 2.0 are one number
  assert columns.update(7, {'brand': 'a', 'new': True}) == {'brand': None, 'new': None}
  columns_known = 8
  assert fit(brand='a') == [True, False, False, True, False, False, False, True]
  assert fit(new=True)[7] and not any(fit(new=1))
  assert columns.update(0, {'brand': None}) == {'brand': 'a'} and not fit(brand='a')[0]
  with pytest.raises(
    Refused, match='where.colour: is not a column of the items; must be one of bra'
  ):
    columns.check({'colour': 'red'})
  with pytest.raises(Refused, match='where.brand: has no numbers'):
    columns.check({'brand': Range(min=1)})
  with pytest.raises(Refused, match='where.price.min: must be at most max, 1'):
    columns.check({'price': Range(min=2, max=1)})


def test_new_values_are_of_the_kind_of_their_column():
  columns = Columns(pl.DataFrame({'item_id': [5, 6], 'brand': ['a', None], 'price': [1.0, None]}))
  columns.check_new({'tag[0].columns': {'price': 2, 'brand': 'b', 'new': 'x'}})
  columns.check_new({'tag[0].columns': {'price': None}})
  for value in ('cheap', True):
    with pytest.raises(Refused, match=r'add\[3\].columns.price: must be a number'):
      columns.check_new({'tag[0].columns': {'price': 1}, 'add[3].columns': {'price': value}})
  with pytest.raises(Refused, match=r'tag\[0\].columns.item_id: is not a column of the items'):
    columns.check_new({'tag[0].columns': {'item_id': 7}})
  new = {f'new{i}': 1 for i in range(98)}
  columns.check_new({'tag[0].columns': new, 'tag[1].columns': new})
  with pytest.raises(Refused, match=r'tag\[1\].columns: must leave the catalogue at most 100 col'):
    columns.check_new({'tag[0].columns': new, 'tag[1].columns': {'one': 1}})


def of(*rows) -> History:
  """A history of rows (item, event, timestamp)."""
  item, event, timestamp = np.array(rows).T
  ones = np.ones(len(rows), np.int32)
  return History(item.astype(np.int32), event.astype(np.int8), timestamp, ones)


def test_histories_are_sorted_and_counted_as_in_a_log():
  events = [(3, 1, 20), (2, 1, 10), (3, 1, 20), (1, 5, 20), (3, 0, 20)]
  rows = merged(of(*events), of((2, 1, 10)))
  assert rows.item.tolist() == [2, 3, 3, 1] and rows.event.tolist() == [1, 0, 1, 5]
  assert rows.timestamp.tolist() == [10, 20, 20, 20] and rows.count.tolist() == [2, 1, 2, 1]
  assert rows.before(20).item.tolist() == [2]  # strictly before


def test_events_are_appended_to_known_and_new_users():
  log, _ = tiny_log.make([(1, 5, 'view', 1), (1, 6, 'cart', 2), (4, 7, 'view', 3)], 8)
  users = Users(log)
  assert users.index(True) is None and users.index('1') is None
  latest = users.latest
  assert users.append(1, of((7, 1, latest + 5)))[0] == 3
  assert users.history(users.index(1)).item.tolist() == [5, 6, 7]
  assert users.history(users.index(4)).item.tolist() == [7]  # nobody else's
  assert users.append(9, of((0, 1, 3), (1, 1, 2)))[0] == 2
  assert users.history(users.index(9)).item.tolist() == [1, 0]
  assert users.latest == latest + 5
  kept, new = users.append(9, of((0, 1, 3), (0, 0, 3), (0, 1, 4)))
  assert kept == 4  # one of them was there: a row with a count
  assert list(zip(*(field.tolist() for field in new[:3]))) == [(0, 0, 3), (0, 1, 4)]
  # Days of this log are counted from another origin than 1970's.
  assert users.bounds(now=0) == (1, latest + AHEAD) and users.bounds(now=latest + 9)[1] == (
    latest + 9 + AHEAD
  )
  assert users.bounds(now=2**40) == (1, MAX_TIMESTAMP)
  with pytest.raises(Refused, match='user_id: must be a whole number'):
    users.append('x', of((0, 1, 3)))


def test_memory_for_appended_events_is_bounded(monkeypatch):
  log, _ = tiny_log.make([(1, 5, 'view', 1), (1, 6, 'cart', 2), (4, 7, 'view', 3)], 8)
  monkeypatch.setattr(users_lib, 'MOST_OF_USER', 3)
  monkeypatch.setattr(users_lib, 'MOST_HELD', 5)
  users, day = Users(log, read=2), log.timestamp.max() + 1
  for i in range(20):  # for as long as a server lives
    assert users.append(1, of((i % 3, 1, int(day) + i)))[0] == 3
  assert users.history(0).timestamp.tolist() == [day + 17, day + 18, day + 19]
  kept, new = users.append(1, of((0, 1, int(day) + 3)))
  assert kept == 3 and not len(new.item)  # whether it is new is not known any more
  assert users.append(9, of((0, 1, 3), (1, 1, 2)))[0] == 2
  with pytest.raises(Refused, match='events: no room: 5 rows of histories'):
    users.append(4, of((0, 1, 3)))
  assert users.history(users.index(4)).item.tolist() == [7]
  assert users.append(1, of((0, 1, int(day) + 30)))[0] == 3
  assert len(Users(log, read=10**6)._changed) == 0 and Users(log, read=7)._most == 7


def test_a_column_goes_with_its_last_value():
  columns = Columns(pl.DataFrame({'item_id': [5, 6], 'brand': ['a', None]}))
  columns.update(0, {'region': 'north'})
  before = columns.update(1, {'region': 'south', 'brand': 'b'})
  columns.check({'region': 'north'})
  columns.update(1, before)
  columns.check({'region': 'north'})
  columns.update(0, {'region': None, 'brand': None})
  columns.check({'brand': 'a'})  # of the log
  with pytest.raises(Refused, match='where.region: is not a column'):
    columns.check({'region': 'north'})


def test_batch_sizes_are_few_and_whole_for_the_devices():
  assert batch_sizes(1, 1) == (1,)
  assert batch_sizes(8, 1) == (1, 4, 8)
  assert batch_sizes(32, 1) == (1, 4, 16, 32)
  assert batch_sizes(6, 4) == (4, 8)


def test_new_items_open_nothing_and_leave_the_scale_as_it_was():
  opens = Opens(np.array([0.5, 0.4, 0.3], np.float32), noise=0.01)
  padded = opens.padded(10)
  assert padded.scale == opens.scale
  np.testing.assert_array_equal(padded.log[:3], opens.log)
  np.testing.assert_array_equal(padded.share[3:], 0)
