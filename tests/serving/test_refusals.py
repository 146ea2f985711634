"""What is refused at once: before it costs much, and whoever asks on whatever path."""

import contextlib
import http.client
import json
import threading

import pytest
from live import serving_shop

from rolegen_jax.serving.http import schema
from rolegen_jax.serving.http.app import App
from rolegen_jax.serving.http.batcher import Batcher
from rolegen_jax.serving.http.dispatch import Dispatcher
from rolegen_jax.serving.http.guard import Guard
from rolegen_jax.serving.http.metrics import Metrics


def refusal(body, kind) -> schema.Refused:
  with pytest.raises(schema.Refused) as refused:
    schema.parse(body if isinstance(body, bytes) else json.dumps(body).encode(), kind)
  return refused.value


LONG = 'x' * 1_000_000
MANY = {f'k{i}': 1 for i in range(200_000)}


@pytest.mark.parametrize(
  'asked, kind, field, message',
  [
    ({'time': 1_714_435_200_000}, schema.RecommendRequest, 'time', 'Expected .*, in seconds UTC'),
    ({'user_id': 1, 'reasoning': LONG}, schema.RecommendRequest, 'reasoning', '.*x...; must be'),
    ({LONG: 1}, schema.RecommendRequest, f'{LONG[:100]}...', 'is no field here'),
    ({'where': {'time': None}}, schema.RecommendRequest, 'where.time', 'Expected .* got `null`'),
    (
      {'tag': [{'item_id': 1, 'columns': {f'k{i}': 1 for i in range(101)}}]},
      schema.CatalogueRequest,
      'tag[0].columns',
      'Expected `object` of length <= 100',
    ),
    (
      {'add': [{'item_id': 1, 'columns': MANY | {'z': [1]}}]},
      schema.CatalogueRequest,
      'add[0].columns',
      'Expected .* got `array`',
    ),
  ],
  ids=['unit', 'value', 'name', 'filter', 'columns', 'columns of wrong values'],
)
def test_errors_are_short_and_say_what_is_right(asked, kind, field, message):
  refused = refusal(asked, kind)
  assert refused.field == field and len(refused.message) < 250
  assert schema.re.match(message, refused.message), refused.message


def test_keys_of_a_map_that_is_too_large_are_not_looked_at_one_by_one(monkeypatch):
  looked = []
  is_valid = schema._is_valid
  monkeypatch.setattr(schema, '_is_valid', lambda *a: looked.append(a) or is_valid(*a))
  few = dict(list(MANY.items())[:5000])
  for columns, most in ((few, schema.MOST_COLUMNS), (MANY, 0)):
    looked.clear()
    tag = {'tag': [{'item_id': 1, 'columns': columns | {'z': [1]}}]}
    assert refusal(tag, schema.CatalogueRequest).field == 'tag[0].columns'
    assert len(looked) == most


def test_a_change_that_cannot_be_is_refused_before_its_texts_are_read(shop, monkeypatch):
  read = []
  vectors = shop.app._placer.vectors
  monkeypatch.setattr(shop.app._placer, 'vectors', lambda c: read.append(len(c)) or vectors(c))
  new = dict(item_id=900, like=1, columns={'title': 'red shoe'})
  room = shop.app.engine.items.tables.capacity - len(shop.app.engine.items)
  many = [dict(new, item_id=900 + i) for i in range(room + 1)]
  for wrong in (dict(add=many), dict(add=[new, new]), dict(add=[new], if_version=10**6)):
    assert shop.ask('/v1/catalogue', wrong)[0] in (409, 422)
  assert not read
  shop.change(add=[new])
  assert read == [1]


def test_what_removes_waits_for_nobodys_texts(shop):
  release = threading.Event()
  shop.app._texts.submit(release.wait)
  try:
    shop.change(remove=[3], tag=[dict(item_id=4, columns={'region': 'x'})])
  finally:
    release.set()


def test_the_item_that_has_an_id_is_named_by_its_own(shop):
  shop.change(remove=[0])
  codes = shop.inputs.codes[5].tolist()
  shop.change(remove=[5], add=[dict(item_id=77_005, codes=codes)])
  status, said = shop.ask('/v1/catalogue', dict(add=[dict(item_id=900, codes=codes)]))
  assert (status, said['field']) == (422, 'add[0].codes')
  assert said['message'] == 'are those of item 77005'


def test_a_guard_stands_before_paths_and_methods(shop):
  app, metrics = shop.app, Metrics()
  dispatcher = Dispatcher(app.engine, Batcher(2, 0.001, 8), metrics)
  guard = Guard('sesame-open-it-now', ['shop.example.com'])
  token = {'authorization': 'Bearer sesame-open-it-now'}
  guarded = App(app.engine, app._placer, dispatcher, metrics, 'off', guard)
  with serving_shop(shop, guarded) as served:

    def asked(method, path, **headers):
      connection = http.client.HTTPConnection('127.0.0.1', served.port, timeout=60)
      with contextlib.closing(connection):
        connection.request(method, path, None, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())['field'], response.getheader('allow')

    assert asked('GET', '/nope') == asked('DELETE', '/v1/run') == (401, 'authorization', None)
    assert asked('GET', '/nope', **token) == (404, 'path', None)
    assert asked('GET', '/nope', host='elsewhere.com', **token) == (421, 'host', None)
    status, field, allow = asked('DELETE', '/v1/catalogue', **token)
    assert (status, field) == (405, 'path') and {'GET', 'POST'} <= set(allow.split(', '))
