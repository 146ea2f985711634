"""An open-loop client: every request goes out when it is due, however many are unanswered.

Latency counts from the time a request was due, not from when it was sent: a server that stalls is
charged with everybody who came meanwhile, and so is a client that cannot keep up. So the client has
nothing that its garbage collector would stop for: what is there at the start is frozen, and what is
noted of requests are plain tuples, which it does not track.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import ipaddress
import json
import socket
import time
import urllib.parse
from typing import Any, NamedTuple

import aiohttp

from rolegen_jax.config import ConfigError
from rolegen_jax.serving.load.plan import (
  APPEND,
  CHANGE,
  MALFORMED,
  RECOMMEND,
  Arrival,
  Id,
  Mix,
  Shop,
)
from rolegen_jax.serving.load.shelf import Shelf

SAMPLE_S = 1.0  # between two looks at the server's metrics
SAMPLED = {  # metrics without labels, and what they are called here
  'process_resident_memory_bytes': 'memory_bytes',
  'rolegen_queue_requests': 'queue',
  'rolegen_compilations_since_ready': 'compilations',
  'rolegen_catalogue_version': 'catalogue_version',
}
OK, BUSY = 'ok', 'not sent: every item to change is being changed'


class Sent(NamedTuple):
  """A request and what became of it; times in seconds since the start."""

  kind: str
  due: float
  sent: float
  answered: float
  outcome: str  # OK, BUSY, a status, the name of an error, or `wrong: ...`


@dataclasses.dataclass
class Outcome:
  """What a load test saw."""

  requests: list[Sent]
  samples: list[dict[str, float]]  # `at` in seconds since the start, and SAMPLED


def require_loopback(url: str) -> None:
  """Raise ConfigError unless a URL is one of this machine alone."""
  host, port = _place(url)
  try:
    addresses = {info[4][0] for info in socket.getaddrinfo(host, port)}
  except OSError as error:
    raise ConfigError(f'--url={url}: {host} is unknown ({error.strerror})') from None
  if not all(ipaddress.ip_address(str(a).partition('%')[0]).is_loopback for a in addresses):
    raise ConfigError(
      f'--url={url}: must be an address of this machine, e.g. http://127.0.0.1:8080; a load test '
      'of another takes --remote, and the consent of whoever runs it'
    )


def _place(url: str) -> tuple[str, int]:
  try:
    parts = urllib.parse.urlsplit(url)
    usual = {'http': 80, 'https': 443}[parts.scheme]
    if parts.hostname:
      return parts.hostname, parts.port or usual
  except (ValueError, KeyError):
    pass
  raise ConfigError(f'--url={url}: must be http://HOST:PORT')


def drive(
  url: str, arrivals: list[Arrival], shop: Shop, mix: Mix, token: str = '', timeout: float = 30.0
) -> Outcome:
  """Send all arrivals to a server and return what became of them.

  timeout: seconds of a request. Raises ConfigError where the server is not ready.
  """
  gc.collect()
  gc.freeze()
  try:
    return asyncio.run(_Driver(url, shop, mix, token, timeout).run(arrivals))
  finally:
    gc.unfreeze()


class _Driver:
  def __init__(self, url: str, shop: Shop, mix: Mix, token: str, timeout: float):
    self._url, self._mix, self._timeout = url.rstrip('/'), mix, timeout
    self._shelf = Shelf(shop, mix.seed)
    self._headers = {'content-type': 'application/json'}
    if token:
      self._headers['authorization'] = f'Bearer {token}'
    self._requests: list[tuple[str, float, float, float, str]] = []  # as Sent
    self._samples: list[dict[str, float]] = []

  async def run(self, arrivals: list[Arrival]) -> Outcome:
    session = aiohttp.ClientSession(
      connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=10),
      timeout=aiohttp.ClientTimeout(total=self._timeout),
      headers=self._headers,
    )
    async with session:
      await self._begin(session)
      self._start = time.monotonic()
      sampling = asyncio.create_task(self._sample(session))
      under_way: set[asyncio.Task] = set()
      for arrival in arrivals:
        left = arrival.at - self._now()
        if left > 0:
          await asyncio.sleep(left)
        task = asyncio.create_task(self._send(session, arrival))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
      await asyncio.gather(*under_way)
      await asyncio.sleep(max(0.0, self._mix.duration - self._now()))
      sampling.cancel()
    return Outcome([Sent(*request) for request in self._requests], self._samples)

  def _now(self) -> float:
    return time.monotonic() - self._start

  async def _begin(self, session: aiohttp.ClientSession) -> None:
    """Raise ConfigError unless the server is ready, and look at what it lists."""
    try:
      async with session.get(f'{self._url}/readyz', allow_redirects=False) as response:
        said = f'/readyz says {response.status}'
      if response.status == 200:
        return await self._look_around(session)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
      said = f'cannot be asked ({type(error).__name__})'
    raise ConfigError(f'--url={self._url}: {said}; must be a server that is ready')

  async def _look_around(self, session: aiohttp.ClientSession) -> None:
    """Tell the shelf which items are listed: others may have changed the server before."""
    listed: dict[Id, bool] = {}
    for items in (self._shelf.of_run, *([item] for item in self._shelf.new)):
      data, url = json.dumps(dict(item_ids=items)), f'{self._url}/v1/items'
      async with session.post(url, data=data, allow_redirects=False) as response:
        if response.status == 200:  # 422: it knows no such item
          rows = json.loads(await response.read())['items']
          listed |= {row['item_id']: row['listed'] for row in rows}
    self._shelf.start(listed)

  async def _send(self, session: aiohttp.ClientSession, arrival: Arrival) -> None:
    sent, body, change = self._now(), arrival.body, None
    if arrival.kind == CHANGE:
      change = self._shelf.draw(sent)
      if change is None:
        self._requests.append((CHANGE, arrival.at, sent, sent, BUSY))
        return
      body = change.body
    content, status = b'', 0
    try:
      data = body if isinstance(body, bytes) else json.dumps(body).encode()
      url = self._url + arrival.path
      async with session.post(url, data=data, allow_redirects=False) as response:
        content, status = await response.read(), response.status
      outcome = ''
    except TimeoutError:
      outcome = 'timeout'
    except (aiohttp.ClientError, OSError) as error:
      outcome = type(error).__name__
    answered = self._now()
    if change is not None:
      self._shelf.settle(change, answered, status == 200)
    outcome = outcome or self._judge(arrival, status, content, sent, answered)
    self._requests.append((arrival.kind, arrival.at, sent, answered, outcome))

  def _judge(
    self, arrival: Arrival, status: int, content: bytes, sent: float, answered: float
  ) -> str:
    """Return OK, the status, or what is wrong with an answer."""
    try:
      answer = json.loads(content)
    except ValueError:
      return f'wrong: {status} without JSON'
    if arrival.kind == MALFORMED:
      names = isinstance(answer, dict) and answer.get('field') and answer.get('message')
      return OK if 400 <= status < 500 and names else f'wrong: {status} to a malformed request'
    if status != 200:
      return str(status)
    if arrival.kind == RECOMMEND:
      return self._judge_list(answer, sent, answered)
    right = 'events' if arrival.kind == APPEND else 'version'
    return OK if isinstance(answer.get(right), int) else f'wrong: no {right}'

  def _judge_list(self, answer: Any, sent: float, answered: float) -> str:
    try:
      items = [item['item_id'] for item in answer['items']]
    except (TypeError, KeyError):
      return 'wrong: no items'
    fault = self._shelf.fault(items, self._mix.k, sent, answered)
    return f'wrong: {fault}' if fault else OK

  async def _sample(self, session: aiohttp.ClientSession) -> None:
    """Look at the server's metrics now and then; a look that fails says nothing."""
    while True:
      at = self._now()
      try:
        async with session.get(f'{self._url}/metrics', allow_redirects=False) as response:
          lines = (await response.text()).splitlines() if response.status == 200 else []
        values = [line.split() for line in lines if line.partition(' ')[0] in SAMPLED]
        if values:
          self._samples.append({'at': at} | {SAMPLED[name]: float(x) for name, x in values})
      except (aiohttp.ClientError, OSError, TimeoutError):
        pass
      await asyncio.sleep(SAMPLE_S)
