"""The process that serves: its socket, its signals, its token."""

from __future__ import annotations

import contextlib
import gc
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import DataError
from rolegen_jax.data.lines import read_text
from rolegen_jax.runtime.progress import say
from rolegen_jax.serving.http.protocol import KEEP_SECONDS, Protocol

DRAIN_SECONDS = 30  # that requests have to end in after a signal
SHORTEST_TOKEN = 16  # characters


class Server(uvicorn.Server):
  """uvicorn, which answers what it has taken on before it leaves, and leaves in peace."""

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    """Begin to listen, and say so."""
    await super().startup(sockets)
    if self.started and sockets:
      host, port, *_ = sockets[0].getsockname()
      say(f'ready: http://{f"[{host}]" if ":" in host else host}:{port}')

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """Drain on SIGTERM and SIGINT. uvicorn would raise them again: a drained server is done."""
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, self.handle_exit) for number in signals}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


def server(app: Starlette) -> Server:
  """Return a server of the application, to `run` on bound sockets."""
  config = uvicorn.Config(
    app,
    log_level='warning',
    access_log=False,
    server_header=False,
    http=Protocol,
    timeout_keep_alive=KEEP_SECONDS,
    timeout_graceful_shutdown=DRAIN_SECONDS,
  )
  return Server(config)


def serve(app: Starlette, listener: socket.socket) -> None:
  """Serve on a bound socket until a signal, then answer what is under way.

  Raises ConfigError where somebody listens at its address by now.
  """
  # What is there by now stays: looking for garbage in it would stop all answers for a while.
  gc.collect()
  try:
    listener.listen()
  except OSError as error:
    host, port, *_ = listener.getsockname()
    raise _no_place(host, port, error) from error
  gc.freeze()
  server(app).run(sockets=[listener])
  say('drained')


def bound(host: str, port: int) -> socket.socket:
  """Return a socket that has an address but refuses connections until `serve` listens on it.

  Raises ConfigError where the address cannot be had.
  """
  try:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    if port:
      _claim(f'{address[0]}:{port}')
    return listener
  except (OSError, UnicodeError) as error:
    raise _no_place(host, port, error) from error


def _no_place(host: str, port: int, error: Exception) -> ConfigError:
  reason = getattr(error, 'strerror', None) or error
  return ConfigError(
    f'--host={host} --port={port}: cannot be served at ({reason}); must be a free port of an '
    'address of this machine'
  )


def _claim(address: str) -> None:
  """Have an address to oneself before anybody listens at it. Raises OSError.

  Under Linux two processes may bind one port until one of them listens: the other would find out
  once it has compiled everything.
  """
  if sys.platform == 'linux':
    name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
      name.bind(f'\0rolegen serve {address}')  # in no file system; others see it as taken
    except OSError:
      name.close()
      raise
    name.detach()  # until the process ends


def read_token(path: str) -> str:
  """Return the token that a file holds. Raises DataError."""
  right = f'one line: a token of {SHORTEST_TOKEN} printable ASCII characters or more'
  token = read_text(pathlib.Path(path), f'--auth_token_file={right}').strip()
  if len(token) < SHORTEST_TOKEN or not all(33 <= ord(c) <= 126 for c in token):
    raise DataError(f'{path}: must be {right}, without spaces')
  return token
