"""A connection: uvicorn's, which gives up on who sends a request without end, or never one.

uvicorn bounds how long a connection is idle between two requests, and nothing else.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 64 << 10  # bytes of a request line and its headers
# Without a request, or with one that is not complete; longer than our client leaves a connection.
KEEP_SECONDS = 20


class Protocol(HttpToolsProtocol):
  """HTTP/1.1 on one connection."""

  def __init__(self, *args: Any, **kwargs: Any):
    """Take what uvicorn passes."""
    super().__init__(*args, **kwargs)
    self._head, self._is_in_body = 0, False  # bytes of a head so far
    self._waiting: asyncio.TimerHandle | None = None  # for the rest of a request

  def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
    """Wait for a request."""
    super().connection_made(transport)
    self._wait()

  def connection_lost(self, exc: Exception | None) -> None:
    """Wait no longer."""
    self._stop()
    super().connection_lost(exc)

  def data_received(self, data: bytes) -> None:
    """Read a part of a request."""
    if self._waiting is None:
      self._wait()
    if not self._is_in_body:
      self._head += len(data)
    super().data_received(data)
    if self._head > MOST_HEAD and not self.transport.is_closing():
      if self.cycle is not None and not self.cycle.response_complete:
        self.transport.close()  # a 400 would be taken for the answer that is under way
      else:
        self.send_400_response(f'The headers must be at most {MOST_HEAD} bytes.')

  def on_headers_complete(self) -> None:
    """Take note that what follows is the body."""
    self._head, self._is_in_body = 0, True
    super().on_headers_complete()

  def on_message_complete(self) -> None:
    """Take note that what follows is another request."""
    self._is_in_body = False
    self._stop()
    super().on_message_complete()

  def _wait(self) -> None:
    self._waiting = self.loop.call_later(KEEP_SECONDS, self._give_up)

  def _stop(self) -> None:
    if self._waiting is not None:
      self._waiting.cancel()
      self._waiting = None

  def _give_up(self) -> None:
    if self.cycle is not None and not self.cycle.response_complete:
      self._wait()  # what waits for its body has a time of its own, see app.py
    else:
      self.transport.close()
