"""What goes wrong: bad requests, too many, too late, gone, and a device that fails."""

import concurrent.futures
import contextlib
import json
import random
import socket
import threading
import time

import jax
import numpy as np
import pytest
from live import serving_shop

from rolegen_jax.data.events import FIRST_TIMESTAMP, MAX_TIMESTAMP
from rolegen_jax.serving.http import app as app_lib
from rolegen_jax.serving.http.app import App
from rolegen_jax.serving.http.batcher import Batcher
from rolegen_jax.serving.http.client import Client, Failure, Incomplete
from rolegen_jax.serving.http.dispatch import Dispatcher
from rolegen_jax.serving.http.guard import Guard
from rolegen_jax.serving.http.metrics import Metrics

PAST = FIRST_TIMESTAMP + 5
GOOD = {
  '/v1/recommend': [
    dict(user_id=3, time=1_700_000_000, k=5, where={'price': {'min': 1, 'max': 90}, 'brand': 'x'}),
    dict(events=[dict(item_id=1, event='view', timestamp=PAST)], exclude=[2], explain=True),
    dict(user_id=3, reasoning='cached', deadline_ms=60_000, reasoning_deadline_ms=60_000),
  ],
  '/v1/events': [dict(user_id=77_777, events=[dict(item_id=1, event='view', timestamp=PAST)])],
  '/v1/catalogue': [
    dict(add=[dict(item_id=900, like=1, columns={'brand': 'x'})], remove=[4], if_version=10**6),
    dict(tag=[dict(item_id=5, columns={'region': 'x', 'price': None})], if_version=10**6),
  ],
}
BAD_VALUES = [
  *(None, True, -1, 1.5, 10**30, '', 'x' * 2000, [], {}, [[]], {'min': 'x'}, {'a': {}}, '\ud800'),
  *('\x00', ['x', 1], {'min': 9, 'max': 1}, 2**53, '../../etc/passwd', [None], -(2**63)),
]


def mutated(rng: random.Random, value):
  """A copy of a JSON value with one thing of it wrong, or not."""
  if isinstance(value, dict) and value:
    key = rng.choice(list(value))
    kind = rng.randrange(4)
    if kind == 0:
      return {k: v for k, v in value.items() if k != key}
    if kind == 1:
      return value | {key + rng.choice(['x', '', ' ', '\n']): rng.choice(BAD_VALUES)}
    return value | {key: mutated(rng, value[key])}
  if isinstance(value, list) and value and rng.random() < 0.7:
    place = rng.randrange(len(value))
    return [*value[:place], mutated(rng, value[place]), *value[place + 1 :]]
  return rng.choice(BAD_VALUES)


def mutated_bytes(rng: random.Random, body: bytes) -> bytes:
  """The body cut off, or with some bytes that are others."""
  if rng.random() < 0.5:
    return body[: rng.randrange(len(body))]
  changed = bytearray(body)
  for _ in range(rng.randint(1, 3)):
    changed[rng.randrange(len(changed))] = rng.randrange(256)
  return bytes(changed)


def columns_of(item_id, **columns) -> dict:
  """A tag."""
  return dict(item_id=item_id, columns=columns)


def test_malformed_requests_are_told_which_field_is_wrong(shop, capfd):
  rng, refused = random.Random(0), 0
  for path, requests in GOOD.items():
    for number in range(150):
      asked = rng.choice(requests)
      body = json.dumps(asked).encode()
      body = (
        mutated_bytes(rng, body) if number % 3 == 0 else json.dumps(mutated(rng, asked)).encode()
      )
      status, content, _ = shop.ask_raw(path, body)
      answer = json.loads(content)
      assert status == 200 or 400 <= status < 500, (path, body, status, answer)
      if status != 200:
        refused += 1
        assert set(answer) == {'field', 'message'} and answer['field'] and answer['message']
        assert 'Traceback' not in answer['message'] and '.py' not in answer['message']
  assert refused > 250
  assert 'failed' not in capfd.readouterr().err


@pytest.mark.parametrize(
  'path, asked, status, field',
  [
    ('/v1/recommend', {}, 422, 'user_id'),
    ('/v1/recommend', {'user_id': 10**9}, 404, 'user_id'),
    ('/v1/recommend', {'user_id': True}, 422, 'user_id'),
    ('/v1/recommend', {'user_id': 1, 'events': []}, 422, 'user_id'),
    ('/v1/recommend', {'user_id': 1, 'k': 11}, 422, 'k'),
    ('/v1/recommend', {'user_id': 1, 'exclude': [1, 10**6]}, 422, 'exclude[1]'),
    ('/v1/recommend', {'user_id': 1, 'where': {'colour': 'red'}}, 422, 'where.colour'),
    ('/v1/recommend', {'user_id': 1, 'where': {'brand': {'min': 1}}}, 422, 'where.brand'),
    ('/v1/recommend', {'user_id': 1, 'reasoning': 'much'}, 422, 'reasoning'),
    ('/v1/recommend', {'user_id': 1, 'where': {'brand': 'a', 'price': None}}, 422, 'where.price'),
    ('/v1/recommend', {'user_id': 1, 'where': {'brand': ['a', []]}}, 422, 'where.brand[1]'),
    ('/v1/recommend', {'user_id': 1, 'where': {'price': {'mix': 1}}}, 422, 'where.price.mix'),
    ('/v1/recommend', b'{"where": {"a": 1, "price": {"min": 1e400}}}', 422, 'where.price.min'),
    ('/v1/recommend', b'{"where": {"a": null}, "where": 1}', 422, 'where'),
    ('/v1/recommend', b'{"where": {"a": null}, "where": {"a": 1}}', 422, 'where'),
    ('/v1/recommend', b'{"where": {"a": null}, "where', 422, 'where'),
    ('/v1/catalogue', {'tag': [columns_of(1, a=1, b=[1])]}, 422, 'tag[0].columns.b'),
    ('/v1/catalogue', {'add': [columns_of(1), columns_of(1, b={})]}, 422, 'add[1].columns.b'),
    ('/v1/events', {'user_id': 1, 'events': []}, 422, 'events'),
    ('/v1/recommend', b'{', 400, 'body'),
    ('/v1/recommend', b'[' * 100_000, 422, 'body'),
    ('/v2/recommend', {}, 404, 'path'),
    ('/healthz', {}, 405, 'path'),
    ('/v1/recommend/', {'user_id': 1}, 404, 'path'),
  ],
)
def test_refusals_name_the_field(shop, path, asked, status, field):
  got, problem = shop.ask(path, asked)
  assert (got, problem['field']) == (status, field)


def test_events_of_another_day_or_kind_are_refused(shop):
  def problem(**changed):
    event = dict(item_id=1, event='view', timestamp=PAST) | changed
    status, said = shop.ask('/v1/events', dict(user_id=1, events=[event]))
    assert status == 422
    return said

  ahead = problem(timestamp=int(time.time()) + 2 * 86_400)
  assert ahead['field'] == 'events[0].timestamp' and 'a day from now' in ahead['message']
  early = problem(timestamp=FIRST_TIMESTAMP - 1)
  assert early['field'] == 'events[0].timestamp'
  assert early['message'].startswith(f'must be from {FIRST_TIMESTAMP} to ')
  assert problem(event='look')['message'].endswith('impression, view, fav, cart, remove, purchase')
  assert problem(item_id='1')['field'] == 'events[0].item_id'
  status, said = shop.ask('/v1/events', dict(user_id='1', events=[]))
  assert status == 422
  event = dict(item_id=1, event='view', timestamp=PAST)
  status, said = shop.ask('/v1/events', dict(user_id='1', events=[event]))
  assert (status, said['field']) == (422, 'user_id')


def test_appended_events_do_not_move_the_last_time_that_is_accepted(shop, monkeypatch):
  users = shop.app.engine.users
  latest = users.latest
  last = max(int(time.time()), int(shop.inputs.log.timestamp.max())) + 86_400

  def append(timestamp):
    event = dict(item_id=1, event='view', timestamp=timestamp)
    return shop.ask('/v1/events', dict(user_id=88_888, events=[event]))[0]

  try:
    assert append(last) == 200 and append(last + 600) == 422
    users.latest = 2**31 - 1  # whatever it came from
    assert shop.recommend(3, reasoning='off')['time'] == MAX_TIMESTAMP + 1
  finally:
    users.latest = latest
  monkeypatch.setattr(app_lib.time, 'time', lambda: float(MAX_TIMESTAMP))
  assert append(MAX_TIMESTAMP + 1) == 422


def test_whole_numbers_are_of_64_bits(shop):
  largest, n = 2**63 - 1, len(shop.inputs.log.items)
  shop.change(add=[dict(item_id=largest, like=1)], tag=[columns_of(2, stock=-(2**63))])
  assert shop.listed(0, where={'stock': -(2**63)}) == [2]
  event = dict(item_id=largest, event='view', timestamp=PAST)
  assert shop.ask('/v1/events', dict(user_id=largest, events=[event]))[0] == 200
  assert len(shop.listed(largest, exclude=[largest])) == min(10, n)
  status, problem = shop.ask('/v1/recommend', dict(user_id=largest + 1))
  assert (status, problem['field']) == (422, 'user_id')


def test_a_body_has_a_size_and_a_time(shop, monkeypatch):
  monkeypatch.setattr(app_lib, 'MOST_BYTES', 1000)
  status, problem = shop.ask('/v1/recommend', b' ' * 1001)
  assert status == 413 and problem['field'] == 'body'
  monkeypatch.setattr(app_lib, 'MOST_SECONDS', 0.2)
  with socket.create_connection(('127.0.0.1', shop.port), timeout=10) as slow:
    slow.sendall(b'POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{')
    assert slow.recv(100).startswith(b'HTTP/1.1 408')


def wait_until(is_so, seconds: float = 60.0):
  end = time.monotonic() + seconds
  while not is_so():
    assert time.monotonic() < end
    time.sleep(0.005)


@contextlib.contextmanager
def busy(shop):
  """Keep the device's thread from answering, with one request on it, while this is open."""
  release = threading.Event()
  shop.app.dispatcher._device.submit(release.wait)
  begun = 'rolegen_phase_seconds_count{phase="queue"}'
  before = shop.gauge(begun)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(shop.recommend, 0, reasoning='off')
    try:
      wait_until(lambda: shop.gauge(begun) > before)
      yield
    finally:
      release.set()
  assert first.result()['items']


def test_too_many_requests_are_told_to_come_again_and_the_others_are_answered(shop):
  expected = [shop.recommend(user, reasoning='off') for user in range(12)]
  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    with busy(shop):
      asked = [
        pool.submit(shop.ask_raw, '/v1/recommend', dict(user_id=user, reasoning='off'))
        for user in range(12)
      ]
      # Eight wait, and there is no room for more.
      wait_until(lambda: sum(each.done() for each in asked) == 4)
      told = [each.result() for each in asked if each.done()]
      assert [status for status, *_ in told] == [429] * 4
      assert all(int(headers['retry-after']) >= 1 for *_, headers in told)
      assert json.loads(told[0][1])['field'] == 'server'
      assert shop.app.dispatcher.waiting == 8
    answers = [each.result() for each in asked]
  for user, (status, content, _) in enumerate(answers):
    if status == 200:
      assert json.loads(content) == expected[user]
  assert sorted(status for status, *_ in answers) == [200] * 8 + [429] * 4


def test_who_waits_no_longer_leaves_the_queue(shop):
  with busy(shop):
    status, problem = shop.ask('/v1/recommend', dict(user_id=3, deadline_ms=30))
    assert (status, problem['field']) == (504, 'deadline_ms')
    assert shop.app.dispatcher.waiting == 0
    with socket.create_connection(('127.0.0.1', shop.port)) as gone:
      body = b'{"user_id": 4}'
      head = f'POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n'
      gone.sendall(head.encode() + body)
      wait_until(lambda: shop.app.dispatcher.waiting == 1)
    wait_until(lambda: shop.app.dispatcher.waiting == 0)


def test_one_batch_that_fails_fails_alone(shop, capfd):
  programs, good = shop.app.engine.programs, shop.recommend(3, reasoning='off')
  alone = programs.alone
  try:
    nothing = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), alone)
    programs.alone = jax.device_put(nothing, jax.tree.leaves(alone)[0].sharding)
    status, problem = shop.ask('/v1/recommend', dict(user_id=3, reasoning='off'))
    assert status == 500 and problem['field'] == 'server' and 'NotANumber' in problem['message']
    assert shop.recommend(3)['reasoning'] == 'online'  # the other models are as they were
    programs.alone = {}
    status, problem = shop.ask('/v1/recommend', dict(user_id=3, reasoning='off'))
    assert status == 500 and set(problem) == {'field', 'message'}
    said = capfd.readouterr().err
    assert 'a batch of 1 failed: TypeError' in said and 'Traceback' not in said
  finally:
    programs.alone = alone
  assert shop.recommend(3, reasoning='off') == good
  assert shop.ask('/readyz') == (200, {'ready': True})


def test_a_program_that_fails_leaves_no_half_written_histories(shop, monkeypatch):
  """The pool is given away to be written in place, and is gone where that fails."""
  engine, good = shop.app.engine, shop.recommend(5, reasoning='off')

  def fails(*args):
    for part in engine.programs._pool:
      part.delete()
    raise RuntimeError('the device is gone')

  engine.encoded.clear()
  with monkeypatch.context() as patched:
    patched.setattr(engine.programs, 'encode', fails)
    assert shop.ask('/v1/recommend', dict(user_id=5, reasoning='off'))[0] == 500
  assert shop.recommend(5, reasoning='off') == good


def test_lists_are_made_while_new_items_are_read(shop, monkeypatch):
  release, begun = threading.Event(), threading.Event()

  def slowly(columns):
    begun.set()
    release.wait()
    return np.zeros((len(columns), shop.app._placer.text_width), np.float32)

  monkeypatch.setattr(shop.app._placer, 'vectors', slowly)
  asked = dict(add=[dict(item_id=77_001, like=1)])
  changing = threading.Thread(target=shop.ask, args=('/v1/catalogue', asked))
  changing.start()
  assert begun.wait(60) and len(shop.listed(3, reasoning='off')) == 10
  release.set()
  changing.join()
  assert shop.listed(3, reasoning='off', exclude=[77_001])


def test_mixed_traffic_compiles_nothing_and_names_no_removed_item(shop):
  """Requests of all kinds from several threads while items go and come and users act."""
  stop, removed, wrong = threading.Event(), {}, []
  now = int(shop.inputs.log.timestamp.max())

  def ask(seed):
    rng = random.Random(seed)
    client = Client(f'http://127.0.0.1:{shop.port}', wait=0.01, tries=50)
    while not stop.is_set():
      gone = {item for item, version in list(removed.items())}
      asked = dict(reasoning=rng.choice(['online', 'cached', 'off']), explain=rng.random() < 0.2)
      if rng.random() < 0.3:
        asked['where'] = {'price': {'min': rng.uniform(0, 30)}}
      answer = client.recommend(rng.randrange(140), **asked)
      listed = {item['item_id'] for item in answer['items']}
      wrong.extend(listed & gone & set(removed))
      client.append(100 + rng.randrange(40), [dict(item_id=1, event='view', timestamp=now)])
    client.close()

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    running = [pool.submit(ask, seed) for seed in range(4)]
    for item in range(0, 24):
      version = shop.change(remove=[item])['version']
      removed[item] = version  # acknowledged: from here on nobody may get it
      if item % 3 == 2:
        del removed[item]
        shop.change(add=[dict(item_id=item)])
    stop.set()
    for each in running:
      each.result()
  assert not wrong


def test_a_token_is_asked_for(shop):
  app, token = shop.app, 'sesame-open-it-now'
  metrics = Metrics()
  dispatcher = Dispatcher(app.engine, Batcher(2, 0.001, 8), metrics)
  guarded = App(app.engine, app._placer, dispatcher, metrics, 'off', Guard(token))
  with serving_shop(shop, guarded) as served:
    for given in ({}, {'authorization': 'Bearer sesame'}, {'authorization': f'Basic {token}'}):
      status, content, headers = served.ask_raw('/v1/recommend', dict(user_id=1), **given)
      assert status == 401 and json.loads(content)['field'] == 'authorization'
      assert headers['www-authenticate'] == 'Bearer'
      assert served.ask_raw('/metrics', **given)[0] == 401
    assert served.ask('/readyz')[0] == served.ask('/healthz')[0] == 200
    url = f'http://127.0.0.1:{served.port}'
    with pytest.raises(Failure, match='401 authorization'):
      Client(url).recommend(1)
    client = Client(url, token=token)
    assert client.recommend(1)['reasoning'] == 'off'
    document = served.ask('/openapi.json', authorization=f'bearer {token}')[1]
    assert document['security'] == [{'token': []}]


def test_the_client_passes_over_a_replica_that_is_gone(shop):
  with socket.create_server(('127.0.0.1', 0)) as closed:
    port = closed.getsockname()[1]
  here = f'http://127.0.0.1:{shop.port}'
  client = Client(f'http://127.0.0.1:{port}', here, wait=0.001)
  answers = [client.recommend(user, reasoning='off') for user in range(4)]
  assert answers == [shop.recommend(user, reasoning='off') for user in range(4)]
  with pytest.raises(Failure, match=r'422 k: must be at most 10') as refused:
    client.recommend(1, k=99)
  assert refused.value.field == 'k'
  with pytest.raises(ConnectionRefusedError):
    Client(f'http://127.0.0.1:{port}', tries=2, wait=0.001).catalogue()


def test_the_client_writes_to_every_replica_and_says_which_did_not(shop):
  app, metrics, user = shop.app, Metrics(), 99_106
  dispatcher = Dispatcher(app.engine, Batcher(2, 0.001, 8), metrics)
  events = [dict(item_id=1, event='view', timestamp=PAST)]

  def counts():
    return app.engine.users.history(app.engine.users.index(user)).count.tolist()

  here = f'http://127.0.0.1:{shop.port}'
  # Two servers of one state, which therefore counts what each of them is told.
  with serving_shop(shop, App(app.engine, app._placer, dispatcher, metrics, 'off')) as other:
    there = f'http://127.0.0.1:{other.port}'
    client = Client(here, there, tries=2, wait=0.001)
    assert client.append(user, events) == [{'events': 1}] * 2 and counts() == [2]
    version = client.catalogue()['version']
    changed = client.change(tag=[columns_of(2, region='x')])
    assert [each['version'] for each in changed] == [version + 1, version + 2]
    with pytest.raises(Failure, match='422 user_id'):
      client.append('x', events)
  with pytest.raises(Incomplete, match=f'1 of 2 servers did not do it: {there}: ') as incomplete:
    client.append(user, events)
  assert incomplete.value.answers == {here: {'events': 1}} and counts() == [3]
  assert list(incomplete.value.errors) == [there]
  with pytest.raises(OSError):
    Client(there, tries=2, wait=0.001).append(user, events)
