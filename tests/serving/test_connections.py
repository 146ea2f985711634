"""Sockets of the server: whose an address is, and how long who sends no whole request is heard."""

import contextlib
import socket
import time

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from rolegen_jax.config import ConfigError
from rolegen_jax.serving.http import protocol
from rolegen_jax.serving.http.server import bound, serve
from tests.serving.served import served


def hello():
  """The port of a server that says hello, whatever the body."""
  routes = [Route('/', lambda request: PlainTextResponse('hello'), methods=['GET', 'POST'])]
  return served(Starlette(routes=routes))


def received(connection: socket.socket) -> bytes:
  """All that comes until the connection is closed."""
  content = b''
  with contextlib.suppress(ConnectionError):
    while part := connection.recv(1 << 16):
      content += part
  return content


def test_a_connection_without_a_whole_request_is_closed(monkeypatch):
  monkeypatch.setattr(protocol, 'KEEP_SECONDS', 0.2)
  post = b'POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n'
  with hello() as port:
    with contextlib.ExitStack() as stack:
      start, waiting = time.monotonic(), {}
      for begun in (b'', b'\r\n', b'GET / HTT', b'GET / HTTP/1.1\r\nhost: x\r\n', post + b'1'):
        slow = socket.create_connection(('127.0.0.1', port), timeout=10)
        waiting[begun] = stack.enter_context(slow)
        slow.sendall(begun)
      for begun, slow in waiting.items():
        assert (b'hello' in received(slow)) == begun.startswith(b'POST')
        assert 0.1 < time.monotonic() - start < 5
    with socket.create_connection(('127.0.0.1', port), timeout=10) as good:
      for _ in range(3):  # each has its own time
        time.sleep(0.12)
        good.sendall(b'GET / HTTP/1.1\r\nhost: x\r\n\r\n')
        assert good.recv(1000).endswith(b'hello')


def test_headers_have_a_size(monkeypatch):
  monkeypatch.setattr(protocol, 'MOST_HEAD', 2000)
  with hello() as port:
    for head in (b'GET / HTTP/1.1\r\n' + b'x: y\r\n' * 500, b'GET /' + b'x' * 3000):
      with socket.create_connection(('127.0.0.1', port), timeout=10) as large:
        large.sendall(head)
        assert received(large).startswith(b'HTTP/1.1 400 ')
    with socket.create_connection(('127.0.0.1', port), timeout=10) as good:
      good.sendall(b'POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n')
      for _ in range(9):  # a body is no head
        good.sendall(b'x' * 1000)
      good.sendall(b'GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n')
      assert received(good).count(b'hello') == 2


def test_an_address_is_taken_before_anybody_listens_at_it():
  with socket.create_server(('127.0.0.1', 0)) as free:
    port = free.getsockname()[1]
  with bound('127.0.0.1', port):
    with pytest.raises(ConfigError, match=r'cannot be served at \(Address already in use\)'):
      bound('127.0.0.1', port)
    with pytest.raises(ConnectionRefusedError):  # until all is compiled
      socket.create_connection(('127.0.0.1', port), timeout=10)


def test_who_listens_at_a_part_of_the_address_by_now_is_told_in_one_line():
  with socket.create_server(('127.0.0.1', 0)) as free:
    port = free.getsockname()[1]
  with bound('127.0.0.1', port) as other, bound('0.0.0.0', port) as late:
    other.listen()
    with pytest.raises(ConfigError, match=r'cannot be served at \(Address already in use\)'):
      serve(Starlette(), late)
