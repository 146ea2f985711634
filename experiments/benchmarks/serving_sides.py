"""Servers as processes, and callers that wait for answers: what `serving.py` measures with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence

import numpy as np

from experiments.benchmarks.harness import ROOT
from rolegen_jax.config import ConfigError

START_S = 900  # that a server has to be ready, with nothing in the compilation cache


class Server:
  """A server of this machine, ready to be asked."""

  def __init__(self, command: Sequence[str], port: int):
    self.url, self.ready = f'http://127.0.0.1:{port}', {}  # what it says when it is ready
    self._lines: list[str] = []
    self.ready_s, self._started = 0.0, time.monotonic()
    self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    threading.Thread(target=self._read, daemon=True).start()

  def _read(self) -> None:
    assert self.process.stderr
    self._lines.extend(self.process.stderr)

  def wait_ready(self) -> None:
    """Wait for /readyz. Raises ConfigError where it fails."""
    while time.monotonic() - self._started < START_S:
      self.ready = readiness(self.url)
      if self.ready:
        self.ready_s = time.monotonic() - self._started
        return
      if self.process.poll() is not None:
        break
      time.sleep(0.05)
    self.stop()
    raise ConfigError(f'{self.url} did not get ready: {"".join(self._lines[-3:]).strip()}')

  def stop(self) -> None:
    """End it."""
    self.process.terminate()
    try:
      self.process.wait(60)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()


def readiness(url: str) -> dict:
  """Return what a server says at /readyz when it is ready, {} when it is not."""
  try:
    with urllib.request.urlopen(f'{url}/readyz', timeout=2) as response:
      return json.loads(response.read())
  except OSError:
    return {}


def free_port() -> int:
  """Return a port of the loopback that nothing listens on."""
  with socket.create_server(('127.0.0.1', 0)) as listener:
    return listener.getsockname()[1]


@contextlib.contextmanager
def served(module: Sequence[str], *flags: str) -> Iterator[Server]:
  """Run a server of a module and wait until it is ready."""
  port = free_port()
  server = Server([sys.executable, '-m', *module, f'--port={port}', *flags], port)
  try:
    server.wait_ready()
    yield server
  finally:
    server.stop()


def ours(workdir: str, *flags: str) -> contextlib.AbstractContextManager[Server]:
  """Run `rolegen serve`."""
  return served(['rolegen_jax', 'serve'], f'--workdir={workdir}', *flags)


def supervised(workdir: str, *flags: str) -> contextlib.AbstractContextManager[Server]:
  """Run `rolegen serve` under its supervisor."""
  return served(['launch.serve'], f'--workdir={workdir}', *flags)


def child_of(pid: int) -> int:
  """Return the process that a supervisor started last; 0 = none."""
  children = pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
  return int(children[-1]) if children else 0


def cpu_seconds(pid: int) -> float:
  """Return the CPU time that a process has used, all of its threads."""
  stat = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  return (int(stat[11]) + int(stat[12])) / os.sysconf('SC_CLK_TCK')


def kill_9(pid: int) -> None:
  """End a process at once."""
  os.kill(pid, signal.SIGKILL)


def closed_loop(
  url: str, users: Sequence, callers: int, seconds: float, **fields
) -> tuple[float, list[float]]:
  """Let so many callers ask for lists, each again as soon as it is answered.

  Returns answers a second and the seconds of each. Raises RuntimeError at an answer that is none.
  """
  return asyncio.run(_closed_loop(url, users, callers, seconds, fields))


async def _closed_loop(url, users, callers, seconds, fields):
  import aiohttp

  latencies: list[float] = []
  async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
    started = time.monotonic()

    async def call(caller: int) -> None:
      rng = np.random.default_rng(caller)
      while time.monotonic() - started < seconds:
        body, asked = dict(user_id=users[int(rng.integers(len(users)))]) | fields, time.monotonic()
        async with session.post(f'{url}/v1/recommend', json=body) as response:
          answer = await response.json()
        if response.status != 200 or not answer['items']:
          raise RuntimeError(f'{url}: {response.status} {answer}')
        latencies.append(time.monotonic() - asked)

    await asyncio.gather(*(call(caller) for caller in range(callers)))
    return len(latencies) / (time.monotonic() - started), latencies


def together(url: str, users: Sequence, **fields) -> float:
  """Ask for the lists of some users at once; return the seconds until all are answered."""
  return asyncio.run(_together(url, users, fields))


async def _together(url, users, fields):
  import aiohttp

  async with aiohttp.ClientSession() as session:

    async def ask(user) -> None:
      async with session.post(f'{url}/v1/recommend', json=dict(user_id=user) | fields) as response:
        answer = await response.json()
      if response.status != 200 or answer['reasoning'] not in (fields['reasoning'], 'online'):
        raise RuntimeError(f'{url}: {response.status} {answer}')

    async with session.get(f'{url}/healthz'):
      pass
    started = time.monotonic()
    await asyncio.gather(*(ask(user) for user in users))
    return time.monotonic() - started
