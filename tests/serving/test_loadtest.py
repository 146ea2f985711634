"""The load test: when it sends what, which answers it calls wrong, and from when latency counts."""

import asyncio
import contextlib
import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from rolegen_jax.config import ConfigError
from rolegen_jax.data.events import validate
from rolegen_jax.data.files import DataError
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.serving.load import drive, figures, plan, shelf
from rolegen_jax.serving.load.drive import BUSY, OK, Outcome, Sent
from rolegen_jax.serving.load.plan import APPEND, CHANGE, MALFORMED, RECOMMEND, Mix
from tests.serving.served import served

SHOP = plan.Shop(list(range(50)), {i: dict(title=f'thing {i}') for i in range(40)}, 1_700_000_000)


def test_arrivals_are_drawn_beforehand_at_the_rate_and_in_the_shares_asked_for():
  mix = Mix(rps=200, duration=50, users=5, appends=0.2, malformed=0.1, changes=600, seed=3)
  arrivals = plan.planned(mix, SHOP)
  assert arrivals == plan.planned(mix, SHOP)
  at = np.array([arrival.at for arrival in arrivals])
  assert (np.diff(at) >= 0).all() and 0 <= at[0] and at[-1] < 50
  counts = {kind: sum(a.kind == kind for a in arrivals) for kind in (RECOMMEND, APPEND, MALFORMED)}
  assert sum(counts.values()) == pytest.approx(10_000, abs=400)  # four standard deviations
  assert counts[APPEND] == pytest.approx(2000, abs=200)
  assert counts[MALFORMED] == pytest.approx(1000, abs=150)
  assert sum(a.kind == CHANGE for a in arrivals) == pytest.approx(500, abs=100)
  gaps = np.diff([a.at for a in arrivals if a.kind != CHANGE])
  assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # exponential, not a metronome
  assert len({a.body['user_id'] for a in arrivals if a.kind == RECOMMEND}) == 5


def listed(of: shelf.Shelf, item) -> str | None:
  return of.fault([item], 10, sent=10.0, answered=11.0)


def drawn(of: shelf.Shelf, key: str, now: float) -> shelf.Change:
  """Draw until a change of this kind comes; the others are settled."""
  while True:
    change = of.draw(now)
    if key in change.body and change.item in SHOP.items:
      return change
    of.settle(change, now, True)


def test_an_item_is_gone_from_its_acknowledged_removal_to_the_request_for_its_return():
  of = shelf.Shelf(SHOP, 0)
  change = drawn(of, 'remove', now=1.0)
  item = change.item
  assert listed(of, item) is None  # asked for, not acknowledged
  of.settle(change, 10.5, True)
  assert listed(of, item) is None  # the list was asked for before
  assert of.fault([item], 10, sent=10.6, answered=11.0) == 'a removed item'
  while (back := drawn(of, 'add', now=20.0)).item != item:
    of.settle(back, 20.0, True)
  assert of.fault([item], 10, sent=19.0, answered=20.5) is None
  assert of.fault([item], 10, sent=18.0, answered=19.0) == 'a removed item'
  assert of.fault([item], 10, sent=21.0, answered=22.0) is None


def test_a_change_whose_fate_is_unknown_says_nothing_about_its_item_any_more():
  of = shelf.Shelf(SHOP, 0)
  change = drawn(of, 'remove', now=1.0)
  of.settle(change, 2.0, False)
  assert listed(of, change.item) is None
  later = []
  while (another := of.draw(3.0)) is not None:
    later.append(another.item)
  assert change.item not in later and len(set(later)) == len(later)


def test_a_shelf_starts_from_what_the_server_lists():
  unnamed = plan.Shop(SHOP.users, {f'i{i}': {} for i in range(40)}, SHOP.latest)
  before, of = shelf.Shelf(unnamed, 0), shelf.Shelf(unnamed, 1)
  assert of.new == before.new  # whatever the seed
  gone, added, unknown = of.of_run[0], of.new[0], of.new[1]
  of.start(dict.fromkeys(of.of_run, True) | {gone: False, added: True})
  assert (listed(of, gone), listed(of, added)) == ('a removed item', None)
  assert listed(of, unknown) == 'a removed item'
  changes = {}
  while (change := of.draw(1.0)) is not None:
    changes[change.item] = change
  assert 'add' not in changes[added].body
  assert changes[gone].body['add'][0].keys() == {'item_id', 'columns'}
  # Nothing else might say where a new item belongs; this one stays.
  assert changes[unknown].body['add'][0]['like'] in unnamed.items.keys() - changes.keys()
  change = changes[unknown]
  while change is changes[unknown] or 'add' not in change.body:
    of.settle(change, 2.0, True)
    change = of.draw(3.0)
  assert change.body['add'][0].keys() == {'item_id', 'columns'}  # it comes back as what it was


def test_lists_that_cannot_be_right_are_told_apart():
  of = shelf.Shelf(SHOP, 0)
  assert of.fault([], 3, 0, 1) == 'an empty list'
  assert of.fault([1, 1], 3, 0, 1) == 'an item twice'
  assert of.fault([1, 2, 3, 4], 3, 0, 1) == 'too long a list'
  assert of.fault([999], 3, 0, 1) == 'an unknown item'
  assert of.fault([40], 3, 0, 1) == 'a removed item'  # one to add, which nobody has added yet
  assert of.fault([1, 2, 3], 3, 0, 1) is None


@contextlib.contextmanager
def faulty(**handlers):
  """A server that is ready, and wrong in what its handlers say."""

  async def ready(request):
    return JSONResponse({'ready': True})

  routes = [Route('/readyz', ready)] + [
    Route(f'/v1/{name}', handler, methods=['POST']) for name, handler in handlers.items()
  ]
  with served(Starlette(routes=routes)) as port:
    yield f'http://127.0.0.1:{port}'


def run(url: str, mix: Mix) -> tuple[Outcome, dict]:
  outcome = drive.drive(url, plan.planned(mix, SHOP), SHOP, mix, timeout=10)
  return outcome, figures.summary(outcome)


def test_a_server_that_breaks_its_promises_is_found_out():
  async def recommend(request):
    await request.body()
    return JSONResponse({'items': [{'item_id': item} for item in SHOP.items]})

  async def catalogue(request):
    return JSONResponse({'version': 1, 'items': 1})  # and does nothing

  async def events(request):
    return JSONResponse({'field': 'server', 'message': 'no'}, 500)

  with faulty(recommend=recommend, catalogue=catalogue, events=events) as url:
    mix = Mix(rps=150, duration=2, appends=0.1, malformed=0.1, changes=3000, k=40)
    _, found = run(url, mix)
  kinds = found['kinds']
  assert kinds['recommend']['errors'].keys() == {'wrong: a removed item'}
  assert kinds['append'] == dict(
    requests=kinds['append']['requests'],
    ok=0,
    errors={'500': kinds['append']['requests']},
    latency_ms={},
  )
  assert 'wrong: 200 to a malformed request' in kinds['malformed']['errors']
  assert found['failed'] == sum(sum(kinds[k]['errors'].values()) for k in ('recommend', 'append'))
  assert found['wrong'] > 0


def test_a_stall_is_charged_to_all_who_came_meanwhile():
  """A closed loop would send one request into the stall, and count one slow answer."""
  asked, lock = [0], asyncio.Lock()

  async def recommend(request):
    asked[0] += 1
    async with lock:
      if asked[0] == 20:
        await asyncio.sleep(1.0)
    return JSONResponse({'items': [{'item_id': 1}]})

  with faulty(recommend=recommend) as url:
    outcome, found = run(url, Mix(rps=50, duration=2))
  ms = np.array([1e3 * (sent.answered - sent.due) for sent in outcome.requests])
  assert found['failed'] == 0 and len(ms) == found['requests']
  # Some fifty came within that second, and waited for what was left of it.
  assert 25 <= (ms > 100).sum() <= 75 and (ms > 900).sum() <= 15
  assert found['kinds']['recommend']['latency_ms']['p99'] > 800


def test_the_server_answers_a_mix_without_a_fault_and_another_after_it(shop, tmp_path):
  log = shop.inputs.log.items
  columns = log.select([c for c in log.columns if c not in ('item_id', 'embedding')]).to_dicts()
  items = dict(zip(log['item_id'].to_list(), columns))
  latest = int(shop.inputs.log.timestamp.max())
  live = plan.Shop([70_000 + i for i in range(20)], items, latest)
  for user in live.users:
    event = dict(item_id=1, event='view', timestamp=latest)
    assert shop.ask('/v1/events', dict(user_id=user, events=[event]))[0] == 200
  usual = Mix(rps=15, duration=2, appends=0.2, malformed=0.2, changes=1200, reasoning='off', k=5)
  for seed in (0, 1):  # the second finds items gone and added
    mix = dataclasses.replace(usual, seed=seed)
    outcome = drive.drive(f'http://127.0.0.1:{shop.port}', plan.planned(mix, live), live, mix)
    found = figures.summary(outcome)
    assert set(found['kinds']) == {RECOMMEND, APPEND, MALFORMED, CHANGE}
    for kind, of in found['kinds'].items():  # at most eight may wait here
      assert set(of['errors']) <= {'429' if kind != CHANGE else BUSY}, figures.table(found)
      assert of['ok'] > of['requests'] / 2
    assert found['wrong'] == 0
  compilations = found['server']['compilations']
  assert compilations['most'] == compilations['first']  # those were of other tests
  assert found['server']['memory_bytes']['most'] > 2**20
  assert found['server']['catalogue_version']['last'] >= 10
  figures.plot(outcome, tmp_path / 'load.png')
  assert (tmp_path / 'load.png').stat().st_size > 10_000
  assert json.loads(json.dumps(found)) == found


def test_percentiles_and_errors_are_counted():
  requests = [Sent(RECOMMEND, i, i, i + 0.001 * (i + 1), OK) for i in range(100)]
  requests += [Sent(RECOMMEND, 100, 100, 101, '429'), Sent(RECOMMEND, 100, 102, 103, 'timeout')]
  found = figures.summary(Outcome(requests, []))
  of = found['kinds'][RECOMMEND]
  assert of['errors'] == {'429': 1, 'timeout': 1} and of['ok'] == 100 and found['failed'] == 2
  assert of['latency_ms']['p50'] == pytest.approx(50.5) and of['latency_ms']['max'] == 100
  assert found['client_lag_ms'] == {'p50': 0, 'p99': 0}  # one of 102 was sent late
  assert '1 x 429' in figures.table(found)


@pytest.mark.parametrize(
  'outcomes, is_wrong',
  [
    ([(RECOMMEND, OK), (RECOMMEND, '401')], False),
    ([(RECOMMEND, OK), (RECOMMEND, 'wrong: an empty list')], True),
    ([(RECOMMEND, '401'), (CHANGE, '422'), (MALFORMED, OK)], True),
    ([(MALFORMED, OK)], False),
    ([], False),
  ],
)
def test_a_load_test_fails_where_nothing_good_was_answered(outcomes, is_wrong):
  requests = [Sent(kind, 0, 0, 0.1, outcome) for kind, outcome in outcomes]
  assert figures.is_wrong(figures.summary(Outcome(requests, []))) == is_wrong


@pytest.mark.parametrize(
  'url, said',
  [
    ('http://10.0.0.1:80', 'must be an address of this machine'),
    ('http://0.0.0.0:80', 'must be an address of this machine'),
    ('ftp://127.0.0.1:80', 'must be http://HOST:PORT'),
    ('127.0.0.1:80', 'must be http://HOST:PORT'),
    ('http://127.0.0.1:x', 'must be http://HOST:PORT'),
  ],
)
def test_only_this_machine_is_loaded_unless_told_otherwise(url, said):
  with pytest.raises(ConfigError, match=said):
    drive.require_loopback(url)
  drive.require_loopback('http://127.0.0.1:1')
  drive.require_loopback('http://[::1]:1')


def test_a_server_that_is_not_there_and_a_folder_that_is_no_run_are_told(tmp_path):
  with pytest.raises(ConfigError, match='must be a server that is ready'):
    drive.drive('http://127.0.0.1:1', [], SHOP, Mix(rps=1, duration=1))
  with pytest.raises(DataError, match='log_users.parquet: no such file'):
    plan.read_shop(str(tmp_path))


def test_the_shop_is_that_of_the_run(tmp_path):
  events = pl.DataFrame(
    dict(user_id=['b', 'a'], item_id=[2, 1], event='view', timestamp=[1_700_000_000, 1_700_000_009])
  )
  for brand, known in ((['x', None], [dict(brand='x'), {}]), (None, [{}, {}])):
    items = pl.DataFrame(dict(item_id=[1, 2]) | (dict(brand=brand) if brand else {}))
    InteractionLog.build(*validate(events, items)).save(tmp_path / 'data')
    shop = plan.read_shop(tmp_path)
    assert shop == plan.Shop(['a', 'b'], dict(zip([1, 2], known)), 1_700_000_009)
