"""What can be looked up over HTTP: users, histories, items, columns, worlds, the run, its test."""

import concurrent.futures
import json
import threading

import numpy as np
import pytest
from live import serving_shop

from rolegen_jax.ab_test.arms import Played
from rolegen_jax.ab_test.summary import MEASURES, summarize
from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.data.examples import PURCHASE, inference_examples
from rolegen_jax.data.files import DataError, write_json
from rolegen_jax.pipeline import serving
from rolegen_jax.reasoning.predict import predict
from rolegen_jax.reasoning.worlds import Interventions
from rolegen_jax.serving.audience import dormant
from rolegen_jax.serving.http.app import App
from rolegen_jax.serving.http.batcher import Batcher
from rolegen_jax.serving.http.dispatch import Dispatcher
from rolegen_jax.serving.http.guard import Guard, own_names
from rolegen_jax.serving.http.metrics import Metrics
from rolegen_jax.serving.http.openapi import ROUTES
from rolegen_jax.serving.http.programs import Worlds
from rolegen_jax.serving.http.reasoned import reasoned
from rolegen_jax.serving.http.schema import Intervention
from rolegen_jax.serving.http.users import History


def good(shop, path: str, body=None) -> dict:
  status, answer = shop.ask(path, body)
  assert status == 200, answer
  return answer


def ab_result(workdir) -> dict:
  """What `rolegen simulate_ab` writes for three arms, and the file."""
  rng, blank = np.random.default_rng(0), np.zeros((40, 6))
  arms = {
    name: [Played(rng.poisson(rate, blank.shape), blank, blank, blank, blank + 1) for _ in range(2)]
    for name, rate in dict(popularity=0.2, no_reasoner=0.3, RoleGen=0.5).items()
  }
  about = dict(data='a log', when='2026-01-02T03:04:05+00:00', device_kind='cpu', commit='abc')
  result = summarize(arms, [0], 50, 0) | dict(
    simulator='simulator of a test',
    slate=10,
    measures=MEASURES,
    provenance=about | dict(intervals='95 % intervals', versions={}),
  )
  write_json(result, workdir / 'ab.json')
  return result


def test_users_are_found_by_part_of_their_id_the_exact_one_first(shop):
  log = shop.inputs.log
  found = good(shop, '/v1/users', dict(search='14', limit=100))
  ids = [user['user_id'] for user in found['users']]
  assert ids[:12] == [14, *range(140, 150), 114] and found['total'] == len(ids)
  assert all('14' in str(user) for user in ids)  # other tests may have appended to new ones
  everybody = good(shop, '/v1/users', dict(limit=7))
  assert [user['user_id'] for user in everybody['users']] == log.users.to_list()[:7]
  assert everybody['total'] == len(shop.app.engine.users.ids)
  is_dormant = dormant(log, shop.run.config.data, int(log.timestamp.max()) + 1)
  found = good(shop, '/v1/users', dict(dormant=True, limit=100))
  assert found['total'] == is_dormant.sum() > 0
  assert all(is_dormant[user['user_id']] and user['dormant'] for user in found['users'])
  assert good(shop, '/v1/users', dict(search='nobody')) == dict(users=[], total=0)


def test_others_are_answered_while_users_are_searched(shop, monkeypatch):
  """As ids may be of millions of users."""
  begun, release = threading.Event(), threading.Event()
  users = shop.app._lookups.users

  def slowly(asked):
    begun.set()
    release.wait(60)
    return users(asked)

  monkeypatch.setattr(shop.app._lookups, 'users', slowly)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    searching = pool.submit(shop.ask, '/v1/users', dict(search='14'))
    assert begun.wait(60)
    threading.Timer(5.0, release.set).start()  # or nobody would be told that it was wrong
    assert shop.ask('/healthz')[0] == 200 and not release.is_set()
    release.set()
    assert searching.result()[1]['users'][0]['user_id'] == 14


def test_a_new_user_is_found_and_has_a_history(shop):
  new, now = 2**62 + 1, int(shop.inputs.log.timestamp.max())
  events = [dict(item_id=3, event=name, timestamp=now) for name in ('view', 'view', 'purchase')]
  good(shop, '/v1/events', dict(user_id=new, events=events))
  (user,) = good(shop, '/v1/users', dict(search=str(new)))['users']
  expected = dict(user_id=new, events=2, purchases=1, last=now, last_purchase=now, dormant=False)
  assert user == expected
  past = good(shop, '/v1/history', dict(user_id=new))
  assert past['user'] == user
  assert [(row['event'], row['count']) for row in past['events']] == [('view', 2), ('purchase', 1)]


def test_histories_are_those_of_the_log_the_latest_rows(shop):
  log = shop.inputs.log
  for user in range(3):
    rows = slice(log.offsets[user], log.offsets[user + 1])
    past = good(shop, '/v1/history', dict(user_id=log.users[user], limit=5))
    assert past['user']['events'] == rows.stop - rows.start
    assert past['user']['purchases'] == log.count[rows][log.event[rows] == PURCHASE].sum()
    fields = ('item_id', 'event', 'timestamp', 'count')
    shown = [tuple(row[name] for name in fields) for row in past['events']]
    names = [EVENT_NAMES[event] for event in log.event[rows]]
    ids = log.items['item_id'].gather(log.item[rows])
    assert shown == list(zip(ids, names, log.timestamp[rows], log.count[rows]))[-5:]


def test_items_and_columns_are_those_of_the_catalogue_as_it_is_now(shop):
  table = shop.inputs.log.items
  rows = good(shop, '/v1/items', dict(item_ids=[5, 2]))['items']
  assert [row['columns'] | dict(item_id=row['item_id']) for row in rows] == [
    {name: value for name, value in table.row(i, named=True).items() if value is not None}
    for i in (5, 2)
  ]
  columns = {column['name']: column for column in good(shop, '/v1/columns')['columns']}
  assert columns.keys() == set(table.columns) - {'item_id'}
  assert columns['price']['kind'] == 'number' and not columns['price']['values']
  assert columns['price']['min'] == table['price'].min()
  paths = {each['value']: each['items'] for each in columns['category_code']['values']}
  assert columns['category_code']['kind'] == 'path'
  above = table['category_code'][0].split('.')[0]
  below = table['category_code'].str.starts_with(f'{above}.')
  assert paths[above] == below.sum() > 0
  assert paths == {path: n for path, n in paths.items() if '.' not in path} | dict(
    table['category_code'].value_counts().rows()
  )
  assert [*paths.values()] == sorted(paths.values(), reverse=True)
  # Most items have a brand of their own here: values of it group nothing.
  assert columns['brand']['distinct'] == table['brand'].n_unique() > len(table) / 2
  assert columns['brand']['values'] == []

  gone, left = np.flatnonzero(below).tolist(), int(np.flatnonzero(~below)[0])
  region = dict(item_id=left, columns=dict(region='north'))
  new = [True, True, True, 1, 1.0, '1', '1', '1', '1']
  others = np.flatnonzero(~below)[1:].tolist()
  tags = [dict(item_id=i, columns=dict(new=value)) for i, value in zip(others, new, strict=False)]
  version = shop.change(remove=gone, tag=[region, *tags])['version']
  assert not good(shop, '/v1/items', dict(item_ids=gone[:1]))['items'][0]['listed']
  after = good(shop, '/v1/columns')
  assert after['catalogue_version'] == version
  columns = {column['name']: column for column in after['columns']}
  assert above not in [each['value'] for each in columns['category_code']['values']]
  # True is not 1, though Python has them equal.
  common = [(type(each['value']), each['items']) for each in columns['new']['values']]
  assert common == [(str, 4), (bool, 3), (int, 2)] and columns['new']['distinct'] == 3
  # One item has a region: it groups nothing, so no value is named.
  assert (columns['region']['distinct'], columns['region']['values']) == (1, [])


@pytest.fixture(scope='module')
def said(shop_at_start):
  """What `recommend` predicts for the first users."""
  shop, log = shop_at_start, shop_at_start.inputs.log
  config, users = shop.run.config, np.arange(20, dtype=np.int32)
  table = inference_examples(
    log,
    users,
    log.offsets[users + 1],
    np.full(len(users), log.timestamp.max() + 1),
    config.reasoner.role_events,
    config.reasoner.candidates,
    shop.inputs.excitation,
  )
  beams, trie = config.backbone.beam, shop.inputs.trie
  return predict(shop.run.rolegen, shop.trained.params, table, trie, shop.run.mesh, beams)


def test_worlds_are_those_of_the_models(said, shop):
  """Items, roles and interventions as predicted for the same users."""
  log, config, now = shop.inputs.log, shop.run.config, int(shop.inputs.log.timestamp.max()) + 1
  m, ends, kinds = config.reasoner.role_events, log.offsets[1:], set()
  for row in range(len(said.item)):
    answer = shop.recommend(row, time=now, worlds=True, k=1)
    reasoned = answer['reasoned']
    n = len(reasoned['events'])
    rows = slice(ends[row] - n, ends[row])
    assert n == min(ends[row] - log.offsets[row], m)
    assert [event['timestamp'] for event in reasoned['events']] == log.timestamp[rows].tolist()
    assert [event['item_id'] for event in reasoned['events']] == log.item[rows].tolist()
    assert len(reasoned['worlds']) == config.loop.worlds
    factual = [ROLE_NAMES[role] if role >= 0 else None for role in said.roles[row, m - n :]]
    assert reasoned['worlds'][0]['roles'] == factual
    for place, world in enumerate(reasoned['worlds']):
      named = [step['item_id'] for step in world['candidates']]
      assert named == said.candidates[row, place].tolist()
      assert all(step['log_prob'] <= 0 for step in world['candidates'])
      done = world['intervention']
      kinds.add(done and done['kind'])
      removed, forced = said.removed[row, place, m - n :], said.forced_role[row, place, m - n :]
      if done is None:
        assert place == 0 and not removed.any() and (forced < 0).all()
      elif done['kind'] == 'intent':
        assert done['code'] == said.forced_intent[row, place] == world['intents'][0]['code']
      elif done['kind'] == 'remove':
        assert removed[done['event']]
      else:
        assert ROLE_NAMES[forced[done['event']]] == done['role']
        assert world['roles'][done['event']] == done['role']
      codes = shop.inputs.codes[:, 0]
      for intent in world['intents']:
        assert (codes[intent['items']] == intent['code']).all()
  assert None in kinds and len(kinds) > 1
  cached = shop.recommend(3, time=now, worlds=True, reasoning='cached')
  online = shop.recommend(3, time=now, worlds=True)
  assert cached == online | dict(reasoning='cached')
  assert 'reasoned' not in shop.recommend(3, worlds=True, reasoning='off')
  assert 'reasoned' not in shop.recommend(3)


def test_each_world_has_its_own_intervention_and_roles(shop):
  """A history of two events in three slots: what is done is told by the place among its events."""
  items, pair = shop.app.engine.items, np.array([7, 3], np.int32)
  history = History(pair, np.array([1, 3], np.int8), np.array([10, 20]), np.ones(2, np.int32))
  role = np.full((4, 3), -1)
  role[3, 1] = 5
  removed = np.arange(12).reshape(4, 3) == 8  # in the third world, the last slot
  worlds = Worlds(
    said=None,
    candidates=np.array([[1, -1], [2, 3], [4, 5], [6, 7]]),
    candidate_log_prob=np.log(np.array([[0.5, 1.0], [0.25, 1], [1, 1], [1, 1]])),
    roles=np.array([[-1, 0, 1], [-1, 2, 3], [-1, 4, -1], [-1, 5, 6]]),
    intents=np.array([[2, 2], [4, 2], [2, 4], [2, 4]]),
    interventions=Interventions(role, removed, np.array([-1, 4, -1, -1])),
  )
  told = reasoned(history, worlds, items)
  assert [(event.item_id, event.event) for event in told.events] == [(7, 'view'), (3, 'cart')]
  assert [world.intervention for world in told.worlds] == [
    None,
    Intervention('intent', code=4),
    Intervention('remove', event=1),
    Intervention('role', event=0, role=ROLE_NAMES[5]),
  ]
  named = [[role and ROLE_NAMES.index(role) for role in world.roles] for world in told.worlds]
  assert named == [[0, 1], [2, 3], [4, None], [5, 6]]
  assert [[step.item_id for step in world.candidates] for world in told.worlds] == [
    [1],
    [2, 3],
    [4, 5],
    [6, 7],
  ]
  assert told.worlds[0].candidates[0].log_prob == pytest.approx(np.log(0.5))
  shop.change(remove=[2, 7])  # worlds that were kept may still name them, histories do
  left = reasoned(history, worlds, items)
  named = [[step.item_id for step in world.candidates] for world in left.worlds]
  assert named == [[1], [3], [4, 5], [6]]
  assert left.events == told.events
  assert [[i.code for i in world.intents] for world in told.worlds[:2]] == [[2], [4, 2]]


def test_the_run_and_its_test_are_told(shop):
  facts = good(shop, '/v1/run')
  assert facts['simulated'] and facts['reasons'] and facts['top'] == 10
  assert facts['roles'] == [*ROLE_NAMES] and facts['worlds'] == shop.run.config.loop.worlds
  assert not facts['ab_test']
  status, problem = shop.ask('/v1/ab_test')
  assert (status, problem['field']) == (404, 'ab_test') and 'simulate_ab' in problem['message']

  written, app = ab_result(shop.run.workdir), shop.app
  try:
    tested = serving._ab_test(shop.run)
    (shop.run.workdir / 'ab.json').write_text('{"users": "many"}')
    with pytest.raises(DataError, match=r'ab\.json: .*; must be what rolegen simulate_ab writes'):
      serving._ab_test(shop.run)
  finally:
    (shop.run.workdir / 'ab.json').unlink()
  metrics = Metrics()
  dispatcher = Dispatcher(app.engine, Batcher(2, 0.001, 8), metrics)
  with_test = App(app.engine, app._placer, dispatcher, metrics, 'online', ab_test=tested)
  with serving_shop(shop, with_test) as served:
    assert good(served, '/v1/run')['ab_test']
    told = good(served, '/v1/ab_test')
  assert told['arms'].keys() == written['arms'].keys()
  for name, arm in told['arms'].items():
    assert arm['orders'] == pytest.approx(written['arms'][name]['orders'])
  lift = written['lifts']['no_reasoner']
  assert told['lifts']['no_reasoner']['orders_by_day'] == json.loads(
    json.dumps(lift['orders_by_day'])
  )


@pytest.mark.parametrize(
  'path, asked, status, field',
  [
    ('/v1/users', {'limit': 101}, 422, 'limit'),
    ('/v1/users', {'serch': ''}, 422, 'serch'),
    ('/v1/history', {}, 422, 'user_id'),
    ('/v1/history', {'user_id': 10**9}, 404, 'user_id'),
    ('/v1/items', {'item_ids': [1, 10**6]}, 422, 'item_ids[1]'),
    ('/v1/items', {'item_ids': [0] * 1001}, 422, 'item_ids'),
    ('/static/app.py', None, 404, 'path'),
    ('/static/../app.py', None, 404, 'path'),
    ('/static/%2e%2e/app.py', None, 404, 'path'),
    ('/static', None, 404, 'path'),
  ],
)
def test_wrong_lookups_name_the_field(shop, path, asked, status, field):
  got, problem = shop.ask(path, asked)
  assert (got, problem['field']) == (status, field)


def test_every_path_is_described(shop):
  document = good(shop, '/openapi.json')
  described = {(method, path) for path, all in document['paths'].items() for method in all}
  assert described == {(method, path) for method, path, *_ in ROUTES}
  schemas = document['components']['schemas']
  assert {
    'RecommendRequest',
    'Answer',
    'Reasoned',
    'Found',
    'ColumnRows',
    'AbTest',
  } <= schemas.keys()


def test_the_page_is_served_with_its_policy_and_from_the_browsers_copy(shop):
  status, content, headers = shop.ask_raw('/')
  assert status == 200 and content.startswith(b'<!DOCTYPE html>')
  policy = headers['content-security-policy']
  assert "default-src 'none'" in policy and 'unsafe' not in policy
  assert "require-trusted-types-for 'script'" in policy
  status, content, _ = shop.ask_raw('/', **{'if-none-match': headers['etag']})
  assert (status, content) == (304, b'')
  status, _, headers = shop.ask_raw('/static/app.js')
  assert status == 200 and headers['content-type'].startswith('text/javascript')


def test_another_sites_page_cannot_change_anything(shop):
  for site, expected in {'cross-site': 403, 'same-site': 403, 'same-origin': 200}.items():
    status, _, _ = shop.ask_raw('/v1/users', {}, **{'sec-fetch-site': site})
    assert status == expected
  for origin, expected in {
    'http://evil.test': 403,
    'null': 403,
    'http://shop.test:81': 200,
  }.items():
    status, _, _ = shop.ask_raw('/v1/users', {}, host='shop.test:81', origin=origin)
    assert status == expected


def test_a_server_of_the_loopback_is_asked_under_its_own_names_alone(shop, monkeypatch):
  """A page that had its name stand for 127.0.0.1 would read what is served, by its own origin."""
  local = own_names('127.0.0.1', '127.0.0.1', has_token=False, allowed=[])
  assert local == frozenset()
  assert own_names('myhost', '127.0.1.1', False, ['Shop.test']) == {'myhost', 'Shop.test'}
  assert own_names('0.0.0.0', '0.0.0.0', False, []) is None  # as in launch/serving, with a token
  assert own_names('127.0.0.1', '127.0.0.1', True, []) is None
  assert own_names('0.0.0.0', '0.0.0.0', False, ['shop.test']) == {'0.0.0.0', 'shop.test'}

  def statuses(names, *hosts):
    monkeypatch.setattr(shop.app, '_guard', Guard(names=names))
    return [shop.ask_raw('/v1/run', host=host)[0] for host in hosts]

  assert statuses(local, 'localhost:81', '127.0.0.1', '[::1]:81', '127.0.0.2') == [200] * 4
  assert statuses(local, 'evil.test:81', 'localhost.evil.test', '10.0.0.1', '[::1', '') == [421] * 5
  assert statuses({'Shop.test'}, 'shop.test:81', 'SHOP.test', 'evil.test') == [200, 200, 421]
  for path, body in {'/': None, '/v1/users': {}, '/metrics': None}.items():
    status, problem = shop.ask(path, body, host='evil.test', origin='http://evil.test')
    assert (status, problem['field']) == (421, 'host')
  assert problem['message'].startswith('must be one of localhost, 127.0.0.1, [::1], shop.test; ')
