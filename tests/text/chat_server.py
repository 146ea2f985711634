"""A small real server in the chat-completions format, which answers as a test says."""

import contextlib
import dataclasses
import http.client
import http.server
import json
import sys
import threading
import time

import pytest


@dataclasses.dataclass
class Request:
  """What a client sent, and when (seconds)."""

  path: str
  headers: http.client.HTTPMessage
  body: dict
  at_s: float

  @property
  def prompt(self) -> str:
    return self.body['messages'][0]['content']


def completion(content, finish_reason='stop', usage=(100, 10)) -> dict:
  """The body of a good reply."""
  message = {'role': 'assistant', 'content': content}
  body = {'object': 'chat.completion', 'choices': [{'index': 0, 'message': message}]}
  body['choices'][0]['finish_reason'] = finish_reason
  if usage:
    body['usage'] = dict(zip(('prompt_tokens', 'completion_tokens'), usage))
  return body


class Server(http.server.ThreadingHTTPServer):
  """Answers with `reply(request)`: a body, or (status, headers, body); a body is JSON or text."""

  daemon_threads = True

  def __init__(self, reply):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.reply = reply
    self.requests: list[Request] = []
    self.under_way = self.most_under_way = 0
    self.counts = threading.Lock()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_port}/v1'

  @property
  def prompts(self) -> list[str]:
    """The prompts that were asked, in order, as often as they were."""
    return [request.prompt for request in self.requests]

  def handle_error(self, request, client_address):
    """A client that was killed, or waits no longer, is no news."""
    if not isinstance(sys.exc_info()[1], ConnectionError):
      super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def do_POST(self):
    arrived = time.monotonic()
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    request = Request(self.path, self.headers, body, arrived)
    with self.server.counts:
      self.server.requests.append(request)
      self.server.under_way += 1
      self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
    try:
      reply = self.server.reply(request)
    finally:
      with self.server.counts:
        self.server.under_way -= 1
    status, headers, body = reply if isinstance(reply, tuple) else (200, {}, reply)
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    kind = 'text/html' if isinstance(body, str) else 'application/json'
    self.send_response(status)
    for name, value in {'Content-Type': kind, 'Content-Length': len(content), **headers}.items():
      self.send_header(name, str(value))
    self.end_headers()
    self.wfile.write(content)

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serving(reply):
  """A server that runs, and is reached past all proxies, while this is open."""
  server = Server(reply)
  thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.02))
  thread.start()
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()
      server.server_close()
