"""The routes: what a request asks for in terms of the engine, and every error as JSON.

Nothing of a request is a path, code or a pickle. The size of a body and the time to send it are
bounded here, those of what comes before it in `server.py`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.events import MAX_TIMESTAMP
from rolegen_jax.runtime.progress import say
from rolegen_jax.serving.http import changes, openapi, schema, views
from rolegen_jax.serving.http.dispatch import Dispatcher
from rolegen_jax.serving.http.engine import Engine, Query
from rolegen_jax.serving.http.guard import Guard
from rolegen_jax.serving.http.lookups import Lookups
from rolegen_jax.serving.http.metrics import Metrics
from rolegen_jax.serving.http.page import Page
from rolegen_jax.serving.http.placing import Placer
from rolegen_jax.serving.http.schema import Problem, Refused
from rolegen_jax.serving.http.users import History, merged

MOST_BYTES = 16 << 20  # of a body
MOST_SECONDS = 10.0  # to send a body
OPEN = ('/healthz', '/readyz')  # paths without a token, beside those of the page
CLOSED_REQUEST = 499  # in the log: nobody waits for the answer any more
PATHS = {path for _, path, *_ in openapi.ROUTES}

Handler = Callable[[Request], Awaitable[Response]]


class App:
  """The server's state, and its handlers."""

  def __init__(
    self,
    engine: Engine,
    placer: Placer,
    dispatcher: Dispatcher,
    metrics: Metrics,
    reasoning: str,
    guard: Guard | None = None,
    ab_test: views.AbTest | None = None,
  ):
    """reasoning: of requests that do not say. guard: default: no token, and any name."""
    self.engine, self._placer = engine, placer
    self.dispatcher, self.metrics = dispatcher, metrics
    self._reasoning, self._guard = reasoning, guard or Guard()
    # Texts of new items are embedded beside the device's own thread, in the order they come in.
    self._texts = concurrent.futures.ThreadPoolExecutor(1, 'texts')
    # A search reads the ids of all users, which are millions.
    self._searches = concurrent.futures.ThreadPoolExecutor(1, 'searches')
    self._lookups, self._page = Lookups(engine, reasoning, ab_test), Page()
    self._document = schema.encode(openapi.openapi('1', self._guard.has_token))

  def asgi(self) -> Starlette:
    """Return the application. Its lifespan begins and drains the dispatcher."""
    routes = [
      Route('/v1/recommend', self._guarded(self._recommend), methods=['POST']),
      Route('/v1/events', self._guarded(self._events), methods=['POST']),
      Route('/v1/catalogue', self._guarded(self._catalogue), methods=['GET', 'POST']),
      Route('/v1/users', self._guarded(self._users), methods=['POST']),
      Route('/v1/history', self._guarded(self._past), methods=['POST']),
      Route('/v1/items', self._guarded(self._items), methods=['POST']),
      Route('/v1/columns', self._guarded(self._columns), methods=['GET']),
      Route('/v1/run', self._guarded(self._run), methods=['GET']),
      Route('/v1/ab_test', self._guarded(self._ab_test), methods=['GET']),
      *(Route(path, self._guarded(self._file), methods=['GET']) for path in self._page.paths),
      Route('/healthz', self._guarded(self._healthz), methods=['GET']),
      Route('/readyz', self._guarded(self._readyz), methods=['GET']),
      Route('/metrics', self._guarded(self._text), methods=['GET']),
      Route('/openapi.json', self._guarded(self._openapi), methods=['GET']),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
      self.dispatcher.start()
      self.metrics.ready()
      yield
      await self.dispatcher.drain()

    app = Starlette(
      routes=routes, lifespan=lifespan, exception_handlers={HTTPException: self._no_route}
    )
    app.router.redirect_slashes = False  # a redirect has no JSON, and clients drop the body
    return app

  # Routes

  async def _recommend(self, request: Request) -> Response:
    arrived = time.monotonic()
    asked = schema.parse(await _body(request), schema.RecommendRequest)
    deadline = arrived + asked.deadline_ms / 1e3 if asked.deadline_ms else math.inf
    answer = asyncio.create_task(self.dispatcher.answer(self._query(asked, arrived), deadline))
    gone = asyncio.create_task(_disconnected(request))
    try:
      await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
      if not answer.done():
        raise ClientDisconnect
      return _json(await answer)
    finally:
      gone.cancel()
      answer.cancel()

  async def _events(self, request: Request) -> Response:
    asked = schema.parse(await _body(request), schema.EventsRequest)
    events = self._history(asked.events)
    return _json(schema.Appended(self.engine.append(asked.user_id, events)))

  async def _catalogue(self, request: Request) -> Response:
    if request.method != 'POST':
      return _json(self.engine.items.state())
    asked = schema.parse(await _body(request), schema.CatalogueRequest)
    started, items, placer = time.monotonic(), self.engine.items, self._placer
    text = await self._text_of(asked)
    done = await self.dispatcher.on_device(changes.change, items, placer, asked, text)
    self.metrics.observe('change', time.monotonic() - started)
    return _json(done)

  async def _text_of(self, asked: schema.CatalogueRequest) -> np.ndarray:
    """Return the text vectors of the items to add. Raises Refused where they cannot be added."""
    columns = [item.columns for item in asked.add]
    if not columns:  # what only removes and tags waits for nobody's texts
      return self._placer.vectors(columns)
    # Before texts are read, which takes long and lets others wait; `change` looks again.
    await self.dispatcher.on_device(changes.check, self.engine.items, asked)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(self._texts, self._placer.vectors, columns)

  async def _users(self, request: Request) -> Response:
    asked = schema.parse(await _body(request), views.UsersRequest)
    loop = asyncio.get_running_loop()
    return _json(await loop.run_in_executor(self._searches, self._lookups.users, asked))

  async def _past(self, request: Request) -> Response:
    return _json(self._lookups.history(schema.parse(await _body(request), views.HistoryRequest)))

  async def _items(self, request: Request) -> Response:
    return _json(self._lookups.items(schema.parse(await _body(request), views.ItemsRequest)))

  async def _columns(self, request: Request) -> Response:
    return _json(await self.dispatcher.on_device(self._lookups.columns))

  async def _run(self, request: Request) -> Response:
    return _json(self._lookups.run())

  async def _ab_test(self, request: Request) -> Response:
    return _json(self._lookups.ab_test())

  async def _file(self, request: Request) -> Response:
    return self._page.response(request.url.path, request.headers.get('if-none-match'))

  async def _healthz(self, request: Request) -> Response:
    return _json({'alive': True})

  async def _readyz(self, request: Request) -> Response:
    runs = self.dispatcher.is_running and not self.dispatcher.is_draining
    is_ready = self.engine.items.is_whole and runs
    return _json({'ready': is_ready}, 200 if is_ready else 503)

  async def _text(self, request: Request) -> Response:
    engine = self.engine
    text = self.metrics.text(
      queue_requests=self.dispatcher.waiting,
      catalogue_items=len(engine.items),
      catalogue_version=engine.items.version,
      worlds_kept=len(engine.worlds),
      worlds_bytes=engine.worlds.bytes,
      worlds_hits=engine.hits,
      worlds_misses=engine.misses,
      histories_kept=len(engine.encoded),
      events_kept=engine.encoded.events['kept'],
      events_encoded=engine.encoded.events['encoded'],
    )
    return Response(text, media_type='text/plain; version=0.0.4')

  async def _openapi(self, request: Request) -> Response:
    return Response(self._document, media_type='application/json')

  # Requests

  def _query(self, asked: schema.RecommendRequest, arrived: float) -> Query:
    """Return a request as the engine takes it. Raises Refused naming the field that is wrong."""
    engine, user, events = self.engine, None, None
    if asked.user_id is None and asked.events is None:
      raise Refused(422, 'user_id', 'must be there, or `events` in its place')
    if asked.user_id is not None and asked.events is not None:
      raise Refused(422, 'user_id', 'must not be there beside `events`: one of the two')
    if asked.events is not None:
      events = self._history(asked.events)
    else:
      assert asked.user_id is not None
      user = engine.users.index(asked.user_id)
      if user is None:
        raise Refused(404, 'user_id', f'{asked.user_id!r} is an unknown user: no event names them')
    k = min(10, engine.top) if asked.k is None else asked.k
    if k > engine.top:
      raise Refused(422, 'k', f'must be at most {engine.top}, the --top of this server')
    engine.items.columns.check(asked.where)
    reasoning = asked.reasoning or self._reasoning
    if reasoning != 'off' and not engine.reasons:
      raise Refused(422, 'reasoning', "must be 'off', as this server was started without")
    late = asked.reasoning_deadline_ms
    latest = engine.users.latest
    if events is not None and len(events.timestamp):
      latest = max(latest, int(events.timestamp[-1]))
    return Query(
      user=user,
      events=events,
      time=min(latest, MAX_TIMESTAMP) + 1 if asked.time is None else asked.time,
      k=k,
      where=asked.where,
      exclude=engine.items.numbers(asked.exclude, 'exclude[{}]'),
      explain=asked.explain,
      worlds=asked.worlds,
      reasoning=reasoning,  # type: ignore[arg-type]
      reasoning_deadline=None if late is None else arrived + late / 1e3,
    )

  def _history(self, events: list[schema.Event]) -> History:
    """Return events as a history. Raises Refused naming the place of one that cannot be."""
    first, last = self.engine.users.bounds(int(time.time()))
    for i, event in enumerate(events):
      if not first <= event.timestamp <= last:
        right = f'must be from {first} to {last}, a day from now, in seconds UTC'
        raise Refused(422, f'events[{i}].timestamp', right)
    number = self.engine.items.numbers((e.item_id for e in events), 'events[{}].item_id')
    return merged(
      History(
        number.astype(np.int32),
        np.array([EVENT_NAMES.index(event.event) for event in events], np.int8),
        np.array([event.timestamp for event in events], np.int64),
        np.ones(len(events), np.int32),
      )
    )

  # Around every route

  def _guarded(self, handler: Handler) -> Handler:
    async def guarded(request: Request) -> Response:
      try:
        self._check(request)
        response = await handler(request)
      except Refused as refused:
        response = _problem(refused)
      except ClientDisconnect:
        response = Response(status_code=CLOSED_REQUEST)
      except Exception as error:  # whatever we did not think of: one line, and nothing of it told
        what = ' '.join(f'{type(error).__name__}: {error}'.split())
        say(f'{request.method} {request.url.path} failed: {what}')
        response = _problem(Refused(500, 'server', 'failed to answer; try again'))
      return self._counted(request, response)

    return guarded

  async def _no_route(self, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    try:
      self._check(request)
    except Refused as refused:
      return self._counted(request, _problem(refused))
    response = _problem(Refused(error.status_code, 'path', _right_path(request, error)))
    response.headers.update(error.headers or {})
    return self._counted(request, response)

  def _check(self, request: Request) -> None:
    """Raise Refused where a request must not be answered, on whatever path."""
    self._guard.check(request, request.url.path in (*OPEN, *self._page.paths))

  def _counted(self, request: Request, response: Response) -> Response:
    path = request.url.path if request.url.path in PATHS else 'other'
    self.metrics.requests.labels(path, response.status_code).inc()
    return response


async def _body(request: Request) -> bytes:
  """Return the body of a request. Raises Refused where it is too long, or takes too long."""
  parts, size = [], 0
  try:
    async with asyncio.timeout(MOST_SECONDS):
      async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
          raise Refused(413, 'body', f'must be at most {MOST_BYTES} bytes')
        parts.append(part)
  except TimeoutError:
    raise Refused(408, 'body', f'must be sent within {MOST_SECONDS:g} seconds') from None
  return b''.join(parts)


async def _disconnected(request: Request) -> None:
  """Return when whoever asked has gone."""
  while (await request.receive())['type'] != 'http.disconnect':
    pass


def _json(value: Any, status: int = 200) -> Response:
  return Response(schema.encode(value), status, media_type='application/json')


def _problem(refused: Refused) -> Response:
  response = _json(Problem(refused.field, refused.message), refused.status)
  if refused.retry_after:
    response.headers['retry-after'] = str(math.ceil(refused.retry_after))
  if refused.status == 401:
    response.headers['www-authenticate'] = 'Bearer'
  return response


def _right_path(request: Request, error: HTTPException) -> str:
  if error.status_code == 405:
    return f'{request.url.path} is not for {request.method}'
  return f'must be one of {", ".join(sorted(PATHS))}'
