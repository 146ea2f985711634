"""Histories that stay encoded: lists are those of histories that are encoded anew."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.serving.http.encoded import Slots
from rolegen_jax.serving.http.engine import NotANumber, Query
from rolegen_jax.serving.http.rows import latest
from rolegen_jax.serving.http.users import History, merged

DAY = 86_400


def history(times, seed: int = 0) -> History:
  """Events at different times."""
  times = np.sort(np.array(times, np.int64))
  item = (times * 7 + seed) % 50
  return History(item.astype(np.int32), (times % 6).astype(np.int8), times, np.ones_like(times))


def events(rows: History) -> list[tuple]:
  return list(zip(*(field.tolist() for field in rows)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_what_is_read_from_a_slot_was_encoded_for_it(seed):
  """A slot is modelled as what each of its places was encoded after, and by which encoder."""
  rng, width, rows = np.random.default_rng(seed), 6, 3
  slots, pool = Slots(4), {}
  users = {user: history(rng.choice(40, rng.integers(0, 9), replace=False)) for user in range(5)}
  for _ in range(30):
    for user in users:
      if rng.random() < 0.3:  # an event more: later than all, or not, or once more
        more = rng.integers(0, 40, 1) + 40 * (rng.random() < 0.5)
        users[user] = merged(users[user], history(more))
      if rng.random() < 0.1:  # an item that is gone
        users[user] = users[user].picked(np.flatnonzero(rng.random(len(users[user].item)) < 0.9))
    asked = rng.integers(0, 5, rng.integers(1, rows + 1)).tolist()
    windows = [latest(users[user].before(int(rng.integers(20, 90))), width) for user in asked]
    name = ['alone', 'reasoned'][rng.integers(2)]
    places = slots.place(name, list(zip(asked, windows)))

    def encoded_as(window, name=name):
      read = events(window)
      return [(name, *read[: i + 1]) for i in range(len(read))]

    for place, window in zip(places, windows):
      if place.kept < len(window.item):
        new = encoded_as(window)[place.kept :]
        pool[place.slot] = pool.get(place.slot, [])[: place.kept] + new
    for place, window in zip(places, windows):
      assert pool.get(place.slot, [])[: len(window.item)] == encoded_as(window)
  assert len(slots) <= 4


def test_a_history_is_encoded_from_where_it_differs():
  slots = Slots(2)
  old = history(range(5))

  def kept(*histories):
    return [place.kept for place in slots.place('alone', histories)]

  assert kept(('a', old)) == [0]
  assert kept(('a', old), ('a', old.before(3))) == [5, 3]
  longer = merged(old, history([9]))
  assert kept(('a', longer)) == [5]
  more_often = longer._replace(count=longer.count + (np.arange(6) == 2))
  assert kept(('a', more_often)) == [2]
  assert kept(('b', old), ('c', old)) == [0, 0]
  assert kept(('a', more_often)) == [0]  # it made room


@pytest.fixture
def encoded(shop):
  """The server's encoded histories; tests count what they encode."""
  shop.app.engine.encoded.clear()
  return shop.app.engine.encoded


def days_ago(shop, days: int) -> int:
  """A time in seconds so long before the log's last event, which other tests ask after."""
  return int(shop.inputs.log.timestamp.max()) - days * DAY


def lists(shop, encoded, user_id, **fields) -> list:
  """Return a list, which must be that of a history that is encoded anew."""
  found = shop.recommend(user_id, **fields)['items']
  encoded.clear()
  anew = shop.recommend(user_id, **fields)['items']
  assert [item['item_id'] for item in found] == [item['item_id'] for item in anew]
  for name in ('log_prob', 'rank_score'):
    scores = [[item[name] for item in items] for items in (found, anew)]
    np.testing.assert_allclose(*scores, atol=1e-4)
  return found


@pytest.mark.parametrize('reasoning', ['off', 'cached'])
def test_lists_after_events_and_changes_are_those_of_recomputation(shop, encoded, reasoning):
  rng, user = np.random.default_rng(1), 10**6 + (reasoning == 'off')  # who is new
  ids, day = shop.inputs.log.items['item_id'].to_list(), days_ago(shop, 40)
  width = shop.run.config.backbone.context
  length, own = 0, []
  while length < width + 3:  # past the context: the oldest events fall out
    number = int(rng.integers(1, 4))
    days = day + DAY * rng.choice([-3, 0, 1, 2], number)  # some come late
    items = rng.choice(ids, number).tolist()
    own += items
    sent = [dict(item_id=i, event='view', timestamp=int(t)) for i, t in zip(items, days)]
    length = shop.ask('/v1/events', dict(user_id=user, events=sent))[1]['events']
    day += DAY * int(rng.random() < 0.8)
    lists(shop, encoded, user, reasoning=reasoning)
    if length % 5 == 0:  # what the user had in hand goes, and comes back another
      gone = int(own[-1])
      shop.change(remove=[gone])
      lists(shop, encoded, user, reasoning=reasoning)
      codes = [int(code) for code in shop.inputs.codes[ids.index(gone)]]
      shop.change(add=[dict(item_id=gone, codes=codes, columns={'title': 'else'})])
      lists(shop, encoded, user, reasoning=reasoning)


def test_only_what_is_new_is_encoded(shop, encoded):
  """A second request encodes nothing, an event more one event; others' lists are their own."""
  user, count = 2 * 10**6, encoded.events
  start = days_ago(shop, 9)
  some = [dict(item_id=1 + i, event='view', timestamp=start + i) for i in range(5)]
  shop.ask('/v1/events', dict(user_id=user, events=some))

  def encodes(**fields) -> int:
    before = count['encoded']
    shop.recommend(user, reasoning='off', **fields)
    return count['encoded'] - before

  assert [encodes(), encodes(), encodes(time=start + 3)] == [5, 0, 0]
  shop.ask('/v1/events', dict(user_id=user, events=[some[0] | dict(timestamp=start + DAY)]))
  assert encodes() == 1
  shop.ask('/v1/events', dict(user_id=user, events=some[4:]))  # once more: a count grows
  assert encodes() == 2


def test_two_histories_of_one_user_in_a_batch_are_each_encoded_by_their_model(shop, encoded):
  """And neither stays where it was encoded to what is no number."""
  engine, user = shop.app.engine, 3 * 10**6
  start = days_ago(shop, 9)
  some = [dict(item_id=1 + i, event='view', timestamp=start + i) for i in range(5)]
  shop.ask('/v1/events', dict(user_id=user, events=some))
  whole = Query(
    user=engine.users.index(user),
    events=None,
    time=start + 5,
    k=10,
    where={},
    exclude=np.zeros(0, np.int64),
    explain=False,
    worlds=False,
    reasoning='off',
  )

  def answers(reasoning):
    """Of the history when it was shorter, and of all of it, in one batch."""
    found: dict = {}
    batch = [dataclasses.replace(whole, time=start + n, reasoning=reasoning) for n in (3, 5)]

    def report(row, answer, is_last):
      found[row] = answer

    shop.app.dispatcher._device.submit(engine.run, batch, report).result()
    return found

  def scores(answer):
    return [item.log_prob for item in answer.items]

  alone, good = engine.programs.alone, {}
  for reasoning in ('off', 'online'):
    encoded.clear()
    good[reasoning] = answers(reasoning)
  for reasoning in ('off', 'online', 'off'):
    for row, answer in answers(reasoning).items():
      np.testing.assert_allclose(scores(answer), scores(good[reasoning][row]), atol=1e-4)
  encoded.clear()
  try:
    nothing = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), alone)
    engine.programs.alone = jax.device_put(nothing, jax.tree.leaves(alone)[0].sharding)
    assert all(isinstance(answer, NotANumber) for answer in answers('off').values())
  finally:
    engine.programs.alone = alone
  for row, answer in answers('off').items():
    np.testing.assert_allclose(scores(answer), scores(good['off'][row]), atol=1e-4)
