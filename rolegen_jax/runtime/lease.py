"""Leases: locks of folders in a bucket, where there are no file locks.

A lease is an object that its owner rewrites every few seconds, each time on the condition that
nobody else did. Who wants it watches it: an object that changes has a living owner, one that does
not for `TIME_OUT_S` is taken over, on the same condition. No two clocks are compared. An owner whom
the store does not answer leaves before anybody may take over.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any

from rolegen_jax.fields import ConfigError
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.progress import say

TIME_OUT_S = 60.0
_LOST = 2  # the exit code of another run at work in the same folder


class Lease:
  """The lease on an object, held and renewed by a thread until it is closed."""

  def __init__(self, url: str | os.PathLike, time_out_s: float | None = None):
    """Take the lease, waiting for that of a dead owner to run out.

    Raises BlockingIOError naming a living owner, and ConfigError where nothing can be written.
    """
    import tensorstore

    self._url, self._time_out_s = os.fspath(url), TIME_OUT_S if time_out_s is None else time_out_s
    folder, self._name = os.path.split(self._url)
    self._store = tensorstore.KvStore.open(storage.kvstore(f'{folder}/')).result()
    self._owner = f'process {os.getpid()} on {socket.gethostname()}'
    self._id = secrets.token_hex(8)
    try:
      self._generation = self._take()
    except BlockingIOError:
      raise
    except Exception as error:  # whatever the store says
      reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
      raise ConfigError(
        f'{self._url}: cannot be written ({reason}); must be in a bucket with credentials that may '
        'read and write it'
      ) from error
    self._renewed = time.monotonic()
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._renew, name='lease', daemon=True)
    self._thread.start()
    atexit.register(self.close)

  def close(self) -> None:
    """Give the lease back; where the store does not answer, it runs out by itself."""
    if not self._closed.is_set():
      self._closed.set()
      self._thread.join()
      with contextlib.suppress(Exception):
        given_back = self._store.write(self._name, None, if_equal=self._generation)
        given_back.result(self._time_out_s / 6)
      atexit.unregister(self.close)

  def __enter__(self) -> Lease:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _take(self) -> bytes:
    found = self._read()
    if found.state != 'missing':
      say(
        f'{self._url}: held by {_owner(found.value)}; '
        f'watching for {self._time_out_s:.0f} s whether it is alive'
      )
    watched_since = time.monotonic()
    while True:
      waited = time.monotonic() - watched_since
      if found.state == 'missing' or waited > self._time_out_s:
        generation = self._write(found.stamp.generation) or self._unanswered()
        if generation:
          return generation
      else:
        time.sleep(self._time_out_s / 20)
      previous, found = found, self._read()
      if found.state != 'missing' and found.stamp.generation != previous.stamp.generation:
        raise BlockingIOError(_owner(found.value))

  def _renew(self) -> None:
    period = self._time_out_s / 6  # of waiting, and at most of each of the two requests
    while not self._closed.wait(period):
      try:
        generation = self._write(self._generation, period) or self._unanswered(period)
      except Exception as error:  # the store does not answer; it may in a moment
        silent = time.monotonic() - self._renewed
        if silent + 3 * period < self._time_out_s:
          continue
        _leave(f'{self._url}: could not be renewed for {silent:.0f} s ({error!r})')
      if not generation:
        _leave(f'{self._url}: was taken over by {_owner(self._read().value)}')
      self._generation, self._renewed = generation, time.monotonic()

  def _read(self, within_s: float | None = None) -> Any:
    return self._store.read(self._name).result(within_s)

  def _write(self, generation: bytes, within_s: float | None = None) -> bytes:
    """Write the lease if it still is of that generation; return the new one, b'' = it is not."""
    # A value that was never there before: on S3 a generation is a hash of the value.
    value = json.dumps(dict(owner=self._owner, id=self._id, nonce=secrets.token_hex(8))).encode()
    return self._store.write(self._name, value, if_equal=generation).result(within_s).generation

  def _unanswered(self, within_s: float | None = None) -> bytes:
    """Return the generation of a write of this owner whose answer was lost; b'' = it is another's.

    A store may have written, and the client, who heard nothing, tried again in vain.
    """
    found = self._read(within_s)
    return found.stamp.generation if _field(found.value, 'id') == self._id else b''


def _owner(value: bytes) -> str:
  return _field(value, 'owner') or 'another process'


def _field(value: bytes, name: str) -> str:
  """Return a field of a lease; '' where that is none."""
  try:
    return str(json.loads(value)[name])
  except (ValueError, KeyError, TypeError):
    return ''


def _leave(reason: str) -> None:
  """End the process at once: from here on another one writes to the folder."""
  print(f'{reason}; this run stops', file=sys.stderr, flush=True)
  os._exit(_LOST)
