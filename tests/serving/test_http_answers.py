"""What is answered over HTTP: as `recommend` would, under filters, after events and changes."""

import threading

import numpy as np
import pytest

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.files import read_parquet
from rolegen_jax.serving.http.worlds import WorldCache
from rolegen_jax.serving.recommend import Recommender

DAY = 86_400


@pytest.fixture(scope='module')
def table(shop_at_start, tmp_path_factory):
  """What `rolegen recommend --users=all` writes."""
  shop, log = shop_at_start, shop_at_start.inputs.log
  users = tmp_path_factory.mktemp('recommend') / 'users'
  users.write_text('\n'.join(map(str, log.users[:40])))
  inputs, output = shop.inputs, users.with_suffix('.parquet')
  read = log, inputs.excitation, inputs.trie, shop.run.mesh, inputs.bars_history
  recommender = Recommender(shop.run.rolegen, shop.trained.params, 'key', *read)
  recommender.write(str(users), output, shop.app.engine.top)
  return read_parquet(output)


def test_answers_and_reasons_are_those_of_recommend(shop, table):
  for (user,), rows in table.group_by('user_id', maintain_order=True):
    answer = shop.recommend(user, explain=True)
    expected = rows.sort('rank').to_dicts()
    assert [item['item_id'] for item in answer['items']] == [row['item_id'] for row in expected]
    for item, row in zip(answer['items'], expected):
      for name in ('log_prob', 'rank_score', 'opens'):
        assert item[name] == pytest.approx(row[name], abs=1e-4)
      reason = item['reason']
      assert reason['terms'] == pytest.approx(row['terms'], abs=1e-4)
      assert (reason['world'], reason['seen']) == (row['world'], row['seen'])
      events = [(e['item_id'], e['event'], e['role']) for e in reason['carried_by']]
      assert events == [(e['item_id'], e['event'], e['role']) for e in row['carried_by']]
  assert any(item['reason']['carried_by'] for item in answer['items'])


def history(shop, user: int) -> list[dict]:
  """The events of a user of the log, as requests have them."""
  log = shop.inputs.log
  rows = range(log.offsets[user], log.offsets[user + 1])
  return [
    dict(
      item_id=log.items['item_id'][int(log.item[row])],
      event=EVENT_NAMES[log.event[row]],
      timestamp=int(log.timestamp[row]),
    )
    for row in rows
    for _ in range(log.count[row])
  ]


def test_a_raw_history_is_answered_as_its_user_is(shop):
  user = 8 * 3  # of the same fold as somebody who is in no log
  log, now = shop.inputs.log, int(shop.inputs.log.timestamp.max()) + 1
  events = np.random.default_rng(0).permutation(history(shop, user)).tolist()
  of_user = shop.recommend(log.users[user], time=now)
  assert shop.recommend(events=events, time=now)['items'] == of_user['items']
  earlier = int(log.timestamp[log.offsets[user + 1] - 1])  # its last event is not known then
  before = [event for event in events if event['timestamp'] < earlier]
  assert len(before) < len(events)
  assert shop.recommend(events=before, time=earlier) == shop.recommend(
    log.users[user], time=earlier
  )
  assert len(shop.listed(events=[])) == 10


FILTERS = [
  dict(where={'category_code': 'fashion'}),
  dict(where={'price': {'min': 10, 'max': 40}}),
  dict(where={'price': {'max': 25.5}}, exclude=[1, 2, 3]),
  dict(exclude=list(range(40))),
  dict(where={'brand': ['nobody makes it']}),
]


@pytest.mark.parametrize('asked', FILTERS, ids=str)
@pytest.mark.parametrize('reasoning', ['online', 'off'])
def test_filters_hold_and_lists_are_those_of_the_catalogue_that_is_left(shop, asked, reasoning):
  """As if the other items were not there, which is what removing them says."""
  items = shop.inputs.log.items.to_dicts()

  def fits(item):
    where = asked.get('where', {})
    price = where.get('price', {})
    return (
      item['item_id'] not in asked.get('exclude', [])
      and price.get('min', 0) <= item['price'] <= price.get('max', np.inf)
      and item['brand'] in where.get('brand', [item['brand']])
      and item['category_code'].split('.')[0]
      == where.get('category_code', item['category_code'].split('.')[0])
    )

  fitting = [item['item_id'] for item in items if fits(item)]
  answers = [shop.recommend(user, reasoning=reasoning, **asked) for user in range(3)]
  for answer in answers:
    listed = [item['item_id'] for item in answer['items']]
    assert set(listed) <= set(fitting) and len(listed) == min(10, len(fitting))
  if reasoning == 'off' and fitting:
    shop.change(remove=sorted({item['item_id'] for item in items} - set(fitting)))
    for user, answer in enumerate(answers):
      left = shop.recommend(user, reasoning='off')['items']
      assert [item['item_id'] for item in left] == [item['item_id'] for item in answer['items']]
      scores = [[item['log_prob'] for item in found] for found in (left, answer['items'])]
      np.testing.assert_allclose(*scores, atol=1e-4)


def test_the_next_answer_knows_an_event(shop):
  user, now = 10_000, int(shop.inputs.log.timestamp.max())  # nobody so far
  answers = {known: shop.recommend(known, explain=True) for known in range(60, 80)}
  known, new = next(
    (known, item['item_id'])
    for known, answer in answers.items()
    for item in answer['items']
    if not item['reason']['seen']
  )
  hits = shop.gauge('rolegen_worlds_hits')
  again = shop.recommend(known, explain=True, reasoning='cached')
  assert again == answers[known] | {'reasoning': 'cached'}
  assert shop.gauge('rolegen_worlds_hits') == hits + 1
  event = dict(item_id=new, event='cart', timestamp=now)
  for someone in (known, user):
    status, before = shop.ask('/v1/events', dict(user_id=someone, events=[event]))
    assert status == 200
    after = shop.ask('/v1/events', dict(user_id=someone, events=[event]))[1]
    assert after == before  # the same event once more is a row with a larger count
    answer = shop.recommend(someone, explain=True, reasoning='cached')
    assert answer['reasoning'] == 'online'  # the worlds of before the event are out of date
    of_item = [item for item in answer['items'] if item['item_id'] == new]
    assert of_item and of_item[0]['reason']['seen']
    assert of_item[0]['reason']['terms']['history'] > 0


def test_what_others_did_counts_from_the_next_day_on(shop, monkeypatch):
  monkeypatch.setattr(shop.app.engine.trends, '_every', 0.0)
  reader, actors = 50, [shop.inputs.log.users[i] for i in range(60, 64)]
  now = int(shop.inputs.log.timestamp.max())
  midnight = (now // 86_400 + 1) * 86_400

  def trending(time):
    items = shop.recommend(reader, time=time, explain=True, reasoning='off')['items']
    return {item['item_id']: item['reason']['terms']['trending'] for item in items}

  before, today = trending(midnight), trending(midnight - 1)
  one, other = list(before)[:2]
  event = dict(item_id=one, event='cart', timestamp=now - 60)
  for actor in actors:
    assert shop.ask('/v1/events', dict(user_id=actor, events=[event]))[0] == 200
  assert trending(midnight - 1) == today
  # Terms are less their mean over what was found: their differences mean something.
  after = trending(midnight)
  assert after[one] - after[other] > before[one] - before[other] + 1e-3


def test_worlds_of_one_history_are_not_those_of_another_fold(shop, monkeypatch):
  """Over whom is counted what events lead to differs, so what is reasoned does."""
  monkeypatch.setattr(shop.app.engine, 'worlds', WorldCache(1 << 20))
  now = int(shop.inputs.log.timestamp.max()) + 1

  def reasoning(**who):
    return shop.recommend(**who, time=now, reasoning='cached')['reasoning']

  other, same = 8 * 3 + 1, 8 * 3  # beside somebody who is in no log
  assert reasoning(user_id=shop.inputs.log.users[other]) == 'online'
  assert reasoning(events=history(shop, other)) == 'online'
  assert reasoning(user_id=shop.inputs.log.users[same]) == 'online'
  assert reasoning(events=history(shop, same)) == 'cached'


def test_worlds_of_one_day_are_not_those_of_another(shop, monkeypatch):
  monkeypatch.setattr(shop.app.engine, 'worlds', WorldCache(1 << 20))
  now = int(shop.inputs.log.timestamp.max()) + 1
  midnight = (now // DAY + 1) * DAY

  def reasoning(time):
    return shop.recommend(8, time=time, reasoning='cached')['reasoning']

  assert reasoning(midnight + 300 * DAY) == reasoning(midnight - 1) == 'online'
  assert reasoning(midnight - 1) == reasoning(midnight - 2) == 'cached'


def test_an_id_means_what_it_meant_once_its_other_item_is_rolled_back(shop):
  item, other = (int(x) for x in shop.inputs.log.items['item_id'][:2])
  before = shop.ask('/v1/items', dict(item_ids=[item]))[1]
  gone = shop.change(remove=[item])['version']
  shop.change(add=[dict(item_id=item, like=other, columns=dict(title='another'))])
  assert shop.ask('/v1/items', dict(item_ids=[item]))[1] != before
  shop.change(roll_back_to=gone)
  shop.change(add=[dict(item_id=item)])  # the one that was removed
  assert shop.ask('/v1/items', dict(item_ids=[item]))[1] == before


def test_items_go_come_back_and_are_rolled_back(shop):
  users = range(4)
  before = [shop.recommend(user) for user in users]
  start = before[0]['catalogue_version']
  gone = [before[0]['items'][0]['item_id'], before[1]['items'][0]['item_id']]
  gone = list(dict.fromkeys(gone))
  version = shop.change(remove=gone)['version']
  for user in users:
    answer = shop.recommend(user, k=10)
    assert answer['catalogue_version'] == version
    assert not set(gone) & {item['item_id'] for item in answer['items']}
  status, problem = shop.ask('/v1/catalogue', dict(remove=gone[:1]))
  assert status == 422 and problem['field'] == 'remove[0]'
  back = shop.change(add=[dict(item_id=item) for item in gone])['version']
  for user, answer in zip(users, before):
    assert shop.recommend(user) == answer | {'catalogue_version': back}
  shop.change(remove=gone)
  again = shop.change(roll_back_to=start)['version']
  for user, answer in zip(users, before):
    assert shop.recommend(user) == answer | {'catalogue_version': again}


def test_who_comes_back_as_another_is_another(shop):
  """Its ID was given away, or it says to be something else."""
  codes, items = shop.inputs.codes, shop.app.engine.items
  shop.change(remove=[7, 8])
  shop.change(add=[dict(item_id=900, codes=codes[7].tolist())])
  title, brand = 'another thing', shop.inputs.log.items['brand'][9]
  shop.change(
    add=[dict(item_id=7, like=9), dict(item_id=8, columns=dict(title=title, brand=brand))]
  )
  held = items.tables.codes[items.slots(items.numbers([7, 8, 900], '{}'))]
  assert len(np.unique(held, axis=0)) == 3 and (held[2] == codes[7]).all()
  assert items.number(7, '') != 7 and items.number(8, '') != 8
  shop.change(remove=[7])
  shop.change(add=[dict(item_id=7)])  # as the other that it is now
  assert (items.tables.codes[items.slots(items.numbers([7], '{}'))[0]] == held[0]).all()


def test_who_comes_back_to_an_id_that_is_taken_gets_another(shop):
  codes, items = shop.inputs.codes, shop.app.engine.items
  columns = {k: v for k, v in shop.inputs.log.items.row(7, named=True).items() if k != 'item_id'}
  shop.change(remove=[7])
  shop.change(add=[dict(item_id=900, codes=codes[7].tolist())])
  shop.change(add=[dict(item_id=7, columns=columns)])
  held = items.tables.codes[items.slots(items.numbers([7, 900], '{}'))]
  assert (held[1] == codes[7]).all() and (held[0] != codes[7]).any()


def test_slots_that_are_used_again_are_nobody_elses(shop):
  """More new items than there is free room: histories and counts know whose events were whose."""
  before = [shop.recommend(user, explain=True) for user in range(4)]
  start, n = before[0]['catalogue_version'], len(shop.inputs.log.items)
  now = int(shop.inputs.log.timestamp.max()) + 1
  room = shop.app.engine.items.tables.capacity - n
  gone = list(range(0, n, 2))
  shop.change(remove=gone)
  like = [dict(item_id=1000 + i, like=1 + 2 * (i % 30)) for i in range(room + len(gone))]
  assert (
    shop.change(add=like, tag=[dict(item_id=1, columns={'region': 'north'})])['items'] == n + room
  )
  for user in range(4):
    answer = shop.recommend(user, explain=True)
    named = {item['item_id'] for item in answer['items']}
    assert not named & set(gone)
    events = [e['item_id'] for item in answer['items'] for e in item['reason']['carried_by']]
    assert not any(item >= 1000 for item in events)  # nobody has touched a new one
  # Events on items that no table knows any more are as if they had not been.
  reader = 8 * 3  # of the same fold as somebody who is in no log
  left = [event for event in history(shop, reader) if event['item_id'] not in gone]
  assert 0 < len(left) < len(history(shop, reader))
  of_reader = shop.recommend(shop.inputs.log.users[reader], time=now)
  assert of_reader['items'] == shop.recommend(events=left, time=now)['items']
  assert shop.listed(0, where={'region': 'north'}) == [1]
  status, problem = shop.ask('/v1/catalogue', dict(add=[dict(item_id=5000, like=1)]))
  assert (status, problem['field']) == (422, 'add') and 'room for 0' in problem['message']
  back = shop.change(roll_back_to=start)['version']
  for user, answer in enumerate(before):
    assert shop.recommend(user, explain=True) == answer | {'catalogue_version': back}
  status, problem = shop.ask('/v1/recommend', dict(user_id=0, where={'region': 'north'}))
  assert (status, problem['field']) == (422, 'where.region')  # the column is gone again


def test_new_items_are_placed_amid_those_that_resemble_them(shop):
  log, codes = shop.inputs.log, shop.inputs.codes
  twins = [
    dict(item_id=2000 + i, columns={k: v for k, v in row.items() if k != 'item_id'})
    for i, row in enumerate(log.items[:24].to_dicts())
  ]
  shop.change(add=twins)
  items = shop.app.engine.items
  slots = items.slots(items.numbers([twin['item_id'] for twin in twins], '{}'))
  near = items.tables.codes[slots][:, 0] == codes[:24, 0]
  counts = np.bincount(codes[:, 0], minlength=8) / len(codes)
  assert near.mean() > 2 * counts.max()  # than the commonest code for all
  brand = dict(brand=twins[0]['columns']['brand'])
  assert {2000} <= set(shop.listed(0, where=brand, k=10))


def test_a_wrong_change_changes_nothing(shop):
  n = len(shop.inputs.log.items)
  state = shop.ask('/v1/catalogue')[1]
  room, free = shop.app.engine.items.tables.capacity - n, shop.inputs.codes[5].tolist()
  wrong = [
    (dict(remove=[0], add=[dict(item_id=1, like=2)]), 'add[0].item_id'),
    (dict(remove=[0, 0]), 'remove[1]'),
    (dict(remove=[0], tag=[dict(item_id=0, columns={'brand': 'x'})]), 'tag[0].item_id'),
    (dict(remove=[n + 7]), 'remove[0]'),
    (dict(remove=['0']), 'remove[0]'),
    (dict(remove=[True]), 'remove[0]'),
    (dict(add=[dict(item_id=900, codes=[0])]), 'add[0].codes'),
    (dict(add=[dict(item_id=900, codes=shop.inputs.codes[5].tolist())]), 'add[0].codes'),
    (dict(remove=[5], add=[dict(item_id=x, codes=free) for x in (900, 901)]), 'add[1].codes'),
    (dict(add=[dict(item_id=900 + i, like=1) for i in range(room + 1)]), 'add'),
    (dict(add=[dict(item_id=900, like=901)]), 'add[0].like'),
    (dict(add=[dict(item_id=900, like=1, codes=shop.inputs.codes[5].tolist())]), 'add[0].codes'),
    (dict(add=[dict(item_id=900, like=1, columns={'price': 'x'})]), 'add[0].columns.price'),
    (dict(tag=[dict(item_id=1, columns={'item_id': 2})]), 'tag[0].columns.item_id'),
    (dict(add=[dict(item_id=900)]), 'add[0].columns'),
    (dict(add=[dict(item_id='900', like=1)]), 'add[0].item_id'),
    (dict(add=[dict(item_id=900, like=1), dict(item_id=900, like=1)]), 'add[1].item_id'),
    (dict(remove=[0], if_version=10_000), 'if_version'),
    (dict(remove=[0], roll_back_to=0), 'roll_back_to'),
    (dict(roll_back_to=10_000), 'roll_back_to'),
    (dict(), 'body'),
  ]
  for fields, field in wrong:
    status, problem = shop.ask('/v1/catalogue', fields)
    assert status in (409, 422) and problem['field'] == field, (fields, problem)
    assert shop.ask('/v1/catalogue')[1] == state


def test_each_request_has_its_own_reasoning(shop):
  off, online = shop.recommend(5, reasoning='off'), shop.recommend(5)
  assert (off['reasoning'], online['reasoning']) == ('off', 'online')
  assert off['items'] != online['items']
  late = shop.recommend(5, reasoning_deadline_ms=1)
  assert late == off | {'reasoning': 'late'}
  patient = shop.recommend(5, reasoning_deadline_ms=60_000)
  assert patient == online


def test_reasons_that_take_too_long_are_not_waited_for(shop, monkeypatch):
  """The rollout goes on, for the next request."""
  programs = shop.app.engine.programs
  roll_out, may_end = programs.reason, threading.Event()

  def slowly(*args):
    may_end.wait()
    return roll_out(*args)

  off, online = shop.recommend(6, reasoning='off'), shop.recommend(6)
  shop.app.engine.worlds = WorldCache(1 << 20)
  monkeypatch.setattr(programs, 'reason', slowly)
  answer = shop.recommend(6, reasoning='cached', reasoning_deadline_ms=1000)
  assert answer == off | {'reasoning': 'late'} and not len(shop.app.engine.worlds)
  may_end.set()
  again = shop.recommend(6, reasoning='cached', reasoning_deadline_ms=1)
  assert again == online | {'reasoning': 'cached'}
