"""Any application, served by a thread of this process."""

import contextlib
import threading

from starlette.applications import Starlette

from rolegen_jax.serving.http.server import bound, server


@contextlib.contextmanager
def served(app: Starlette):
  """The port at which an application is served while this is open."""
  listener, running = bound('127.0.0.1', 0), server(app)
  thread = threading.Thread(target=running.run, kwargs=dict(sockets=[listener]))
  thread.start()
  while not running.started:
    thread.join(0.01)
  try:
    yield listener.getsockname()[1]
  finally:
    running.should_exit = True
    thread.join()
