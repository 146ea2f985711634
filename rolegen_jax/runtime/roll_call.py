"""The processes of a job meet at process 0 before jax joins them, so that who is missing is named.

jax waits for all of them as well, and when one does not come it aborts without a word about which.
Here every process tells process 0 its number, at the address where jax's own service starts once
all are there: no further port has to be open. A message is a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Iterable
from typing import Any

from rolegen_jax.config import ConfigError
from rolegen_jax.runtime import heartbeat
from rolegen_jax.runtime.progress import say

POLL_S = 0.5
SAY_EVERY_S = 30.0
LINE_BYTES = 1024  # who sends more than this without an end of line is not of the job


class MissingPeers(RuntimeError):
  """Processes of the job did not come in time; the same job, started again, may continue."""


def meet(address: str, count: int, index: int, timeout_s: float) -> None:
  """Wait until all `count` processes have come to `address`, HOST:PORT of process 0.

  Raises, on every process that came, MissingPeers naming those that have not after `timeout_s`
  seconds, or ConfigError when two have one number or they disagree on `count`.
  """
  host, _, port = address.rpartition(':')
  deadline = time.monotonic() + timeout_s
  outcome: dict[str, Any] | None
  if index == 0:
    outcome = _Host(int(port), count, deadline).collect(timeout_s)
  else:
    outcome = _Guest((host.strip('[]'), int(port)), count, index, timeout_s).wait()
  if outcome is None:
    raise MissingPeers(f'process 0 of {count}, at {address}, has not come within {timeout_s:g} s')
  if 'missing' in outcome:
    raise MissingPeers(outcome['missing'])
  if 'wrong' in outcome:
    raise ConfigError(outcome['wrong'])


class _Host:
  """Process 0: takes the numbers of the others and tells all how it ended."""

  def __init__(self, port: int, count: int, deadline: float):
    self._port, self._count, self._deadline = port, count, deadline
    self._waiting = selectors.DefaultSelector()
    self._read: dict[socket.socket, bytes] = {}
    self._here: dict[int, tuple[socket.socket | None, str]] = {0: (None, socket.gethostname())}
    self._wrong = ''

  def collect(self, timeout_s: float) -> dict[str, Any]:
    """Return the outcome, which all that came know too."""
    said = time.monotonic()
    with _listener(self._port, self._deadline) as listener, self._waiting:
      listener.settimeout(POLL_S)
      self._waiting.register(listener, selectors.EVENT_READ)
      while len(self._here) < self._count and not self._wrong and time.monotonic() < self._deadline:
        heartbeat.beat(heartbeat.START)
        for key, _ in self._waiting.select(POLL_S):
          self._accept(listener) if key.fileobj is listener else self._receive(key.fileobj)
        if time.monotonic() - said > SAY_EVERY_S:
          said = time.monotonic()
          say(f'waiting for {self._missing()}')
      outcome: dict[str, Any] = {}
      if self._wrong:
        outcome = dict(wrong=self._wrong)
      elif len(self._here) < self._count:
        outcome = dict(missing=f'{self._missing()}: not here within {timeout_s:g} s')
      for guest in self._read:
        _send(guest, outcome)
        guest.close()
    return outcome

  def _missing(self) -> str:
    numbers = [number for number in range(self._count) if number not in self._here]
    return f'process{"es" if len(numbers) > 1 else ""} {ranges(numbers)} of {self._count}'

  def _accept(self, listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has gone again
      guest, _ = listener.accept()
      guest.setblocking(False)
      self._read[guest] = b''
      self._waiting.register(guest, selectors.EVENT_READ)

  def _receive(self, guest: Any) -> None:
    try:
      received = guest.recv(LINE_BYTES)
    except OSError:
      received = b''
    self._read[guest] += received
    line, end, _ = self._read[guest].partition(b'\n')
    if not received or (not end and len(line) > LINE_BYTES):
      self._forget(guest)  # it ended, and may come again; or it is somebody else
    elif end:
      self._enter(guest, line)

  def _forget(self, guest: socket.socket) -> None:
    self._waiting.unregister(guest)
    del self._read[guest]
    self._here = {i: (one, name) for i, (one, name) in self._here.items() if one is not guest}
    guest.close()

  def _enter(self, guest: socket.socket, line: bytes) -> None:
    try:
      said = json.loads(line)
      index, count, name = int(said['process']), int(said['of']), str(said['host'])
    except (ValueError, KeyError, TypeError, OverflowError):
      self._forget(guest)
      return
    if count != self._count or not 0 <= index < count:
      right = f'must be one of {self._count}, as process 0 was told'
      self._wrong = f'process {index} of {count} ({name}): {right}'
    elif index in self._here and self._here[index][0] is not guest:
      other = self._here[index][1]
      self._wrong = f'process {index} came twice, from {other} and {name}; numbers must differ'
    else:
      self._here[index] = guest, name


class _Guest:
  """Any other process: tells process 0 its number and waits for what becomes of the job."""

  def __init__(self, address: tuple[str, int], count: int, index: int, timeout_s: float):
    self._address, self._timeout_s = address, timeout_s
    self._name = {'process': index, 'of': count, 'host': socket.gethostname()}

  def wait(self) -> dict[str, Any] | None:
    """Return the outcome; None when process 0 never answered."""
    deadline = time.monotonic() + self._timeout_s
    while time.monotonic() < deadline:
      with contextlib.suppress(OSError, ValueError):
        with socket.create_connection(self._address, timeout=POLL_S) as host:
          _send(host, self._name)
          return self._answer(host)
      heartbeat.beat(heartbeat.START)
      time.sleep(POLL_S)
    return None

  def _answer(self, host: socket.socket) -> dict[str, Any]:
    """Raise OSError or ValueError when process 0 ends without an answer; it may come again."""
    content = b''
    # Process 0 may have come last: its time-out counts from then on.
    deadline = time.monotonic() + self._timeout_s + 10 * POLL_S
    while not content.endswith(b'\n'):
      heartbeat.beat(heartbeat.START)
      if time.monotonic() > deadline:
        raise OSError('process 0 does not answer')
      try:
        received = host.recv(LINE_BYTES)
      except TimeoutError:
        continue
      if not received:
        raise OSError('process 0 has ended')
      content += received
    return json.loads(content)


def _listener(port: int, deadline: float) -> socket.socket:
  """Listen at all addresses of this host. Raises ConfigError when the port stays taken.

  A process of an attempt that failed may hold it for a moment.
  """
  while True:
    try:
      if socket.has_dualstack_ipv6():
        return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
      return socket.create_server(('', port))
    except OSError as error:
      if time.monotonic() > deadline:
        raise ConfigError(f'port {port} of process 0: {error.strerror}; must be free') from error
    heartbeat.beat(heartbeat.START)
    time.sleep(POLL_S)


def _send(to: socket.socket, message: dict[str, Any]) -> None:
  with contextlib.suppress(OSError):  # it has gone
    to.setblocking(True)
    to.settimeout(POLL_S)
    to.sendall(json.dumps(message).encode() + b'\n')


def ranges(numbers: Iterable[int]) -> str:
  """Return ascending numbers as text, those in a row by their ends: `2, 5-9`."""
  parts: list[list[int]] = []
  for number in numbers:
    if parts and parts[-1][-1] == number - 1:
      parts[-1] = [parts[-1][0], number]
    else:
      parts.append([number])
  return ', '.join('-'.join(map(str, part)) for part in parts)
