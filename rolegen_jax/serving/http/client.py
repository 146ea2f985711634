"""A client of `rolegen serve` that tries again: `Client('http://127.0.0.1:8080').recommend(7)`.

It needs the standard library alone. What only reads is tried again whatever happened; what changes
something only where the server surely did not do it, as it could not be reached or said 429 or 503.
What reads goes to one address, and each further try to the next, so a replica that is gone is
passed over. What changes something goes to all of them, as replicas do not tell each other.
"""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.parse
from typing import Any

RETRIED = (429, 503)  # statuses that say: not now
READ_AGAIN = (*RETRIED, 502)  # and that of a proxy whose server is gone, which may have done it
IDLE_SECONDS = 5.0  # after which a connection is not used again: the server may be closing it


class Failure(Exception):
  """The server refused: HTTP status, the field that is wrong, and what would be right."""

  def __init__(self, status: int, field: str, message: str):
    super().__init__(f'{status} {field}: {message}')
    self.status, self.field, self.message = status, field, message


class Incomplete(Exception):
  """Some servers did what was asked for and some did not, by URL: `answers` and `errors`.

  `Client(*incomplete.errors)` writes to those that did not; the others would count events twice.
  """

  def __init__(self, answers: dict[str, dict[str, Any]], errors: dict[str, Exception]):
    said = '; '.join(f'{url}: {type(e).__name__}: {e}' for url, e in errors.items())
    super().__init__(f'{len(errors)} of {len(answers) + len(errors)} servers did not do it: {said}')
    self.answers, self.errors = answers, errors


class Client:
  """Talks to one server, or to replicas of it; one thread at a time."""

  def __init__(
    self,
    *urls: str,
    token: str = '',
    timeout: float = 30.0,
    tries: int = 5,
    wait: float = 0.05,
  ):
    """urls: http://HOST:PORT, or with a path before those of the API, which a proxy may have.

    timeout: seconds of a try. wait: seconds after the first, doubled after each further one.
    """
    self._urls = urls
    self._addresses = [urllib.parse.urlsplit(url) for url in urls]
    wrong = [url for url, at in zip(urls, self._addresses) if at.scheme not in ('http', 'https')]
    if wrong or not urls:
      raise ValueError(f'{wrong[0] if wrong else urls}: must be http://HOST:PORT')
    self._token, self._timeout, self._tries, self._wait = token, timeout, tries, wait
    self._connections: dict[int, http.client.HTTPConnection] = {}
    self._used = [0.0] * len(urls)  # when each connection was, by `time.monotonic`
    self._next = 0

  def recommend(self, user_id: int | str | None = None, **fields: Any) -> dict[str, Any]:
    """Return an answer; fields are those of POST /v1/recommend. Raises Failure, OSError."""
    named = {} if user_id is None else {'user_id': user_id}
    return self._ask('POST', '/v1/recommend', named | fields)

  def append(self, user_id: int | str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Append events to a user's history on every server; return the answer of each.

    Raises Failure or OSError where no server did it, Incomplete where some did.
    """
    return self._write('/v1/events', dict(user_id=user_id, events=events))

  def change(self, **fields: Any) -> list[dict[str, Any]]:
    """Change the catalogue of every server; fields are those of POST /v1/catalogue.

    Returns and raises what `append` does.
    """
    return self._write('/v1/catalogue', fields)

  def catalogue(self) -> dict[str, Any]:
    """Return version and size of the catalogue. Raises Failure, OSError."""
    return self._ask('GET', '/v1/catalogue', None)

  def close(self) -> None:
    """Close the connections."""
    for connection in self._connections.values():
      connection.close()
    self._connections.clear()

  def _write(self, path: str, fields: Any) -> list[dict[str, Any]]:
    answers: dict[str, dict[str, Any]] = {}
    errors: dict[str, Exception] = {}
    for place, url in enumerate(self._urls):
      try:
        answers[url] = self._ask('POST', path, fields, place)
      except (Failure, OSError, http.client.HTTPException) as error:
        errors[url] = error
    if errors and not answers:
      raise next(iter(errors.values()))
    if errors:
      raise Incomplete(answers, errors)
    return [*answers.values()]

  def _ask(
    self, method: str, path: str, fields: Any, write_to: int | None = None
  ) -> dict[str, Any]:
    """Return an answer. write_to: place of the one address to change; None = any, to read."""
    body = None if fields is None else json.dumps(fields).encode()
    for attempt in range(self._tries):
      is_last, place = attempt == self._tries - 1, self._next if write_to is None else write_to
      pause = self._wait * 2**attempt * random.uniform(0.5, 1.0)
      try:
        status, headers, content = self._try(place, method, path, body)
      except (OSError, http.client.HTTPException) as error:
        self._drop(place)
        never_arrived = isinstance(error, ConnectionRefusedError)
        if is_last or not (write_to is None or never_arrived):
          raise
      else:
        if status == 200:
          return json.loads(content)
        if is_last or status not in (READ_AGAIN if write_to is None else RETRIED):
          raise _failure(status, content)
        if write_to is not None or len(self._addresses) == 1:
          pause = max(pause, float(headers.get('retry-after') or 0))
      if write_to is None:
        self._next = (place + 1) % len(self._addresses)
      time.sleep(pause)
    raise AssertionError('the last try returns or raises')

  def _try(self, place: int, method: str, path: str, body: bytes | None) -> tuple[int, Any, bytes]:
    if time.monotonic() - self._used[place] > IDLE_SECONDS:
      self._drop(place)
    connection = self._connections.get(place)
    if connection is None:
      connection = self._connections[place] = self._connect(self._addresses[place])
    headers = {'content-type': 'application/json'}
    if self._token:
      headers['authorization'] = f'Bearer {self._token}'
    below = self._addresses[place].path.rstrip('/')
    connection.request(method, below + path, body, headers)
    response = connection.getresponse()
    content = response.read()
    self._used[place] = time.monotonic()
    return response.status, response.headers, content

  def _connect(self, at: urllib.parse.SplitResult) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if at.scheme == 'https' else http.client.HTTPConnection
    return kind(at.hostname or '', at.port, timeout=self._timeout)

  def _drop(self, place: int) -> None:
    connection = self._connections.pop(place, None)
    if connection:
      connection.close()


def _failure(status: int, content: bytes) -> Failure:
  try:
    problem = json.loads(content)
    return Failure(status, problem['field'], problem['message'])
  except (ValueError, KeyError, TypeError):  # from whatever stands before the server
    return Failure(status, 'server', content[:200].decode('utf-8', 'replace'))
