"""Between requests and the device: who waits, what runs, who is told.

The event loop does everything but the engine's work, which one thread does, a batch or a change of
the catalogue at a time. Times are of `time.monotonic`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from rolegen_jax.runtime.progress import say
from rolegen_jax.serving.http.batcher import Batcher, Full, Ticket
from rolegen_jax.serving.http.engine import Engine, Query
from rolegen_jax.serving.http.metrics import Metrics
from rolegen_jax.serving.http.schema import Answer, Refused

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class _Asked:
  """A request that waits: the answer, and one without reasons that may come before."""

  query: Query
  answer: asyncio.Future[Answer]
  without_reasons: asyncio.Future[Answer]


class Dispatcher:
  """Runs from `start` to `drain`."""

  def __init__(self, engine: Engine, batcher: Batcher, metrics: Metrics):
    self._engine, self._batcher, self._metrics = engine, batcher, metrics
    self._device = concurrent.futures.ThreadPoolExecutor(1, 'device')
    self._changed: asyncio.Event | None = None
    self._running: asyncio.Task | None = None

  @property
  def waiting(self) -> int:
    """How many requests wait."""
    return len(self._batcher)

  @property
  def is_running(self) -> bool:
    """Whether requests are answered."""
    return self._running is not None and not self._running.done()

  @property
  def is_draining(self) -> bool:
    """Whether no more requests are taken."""
    return self._batcher.is_closed

  def start(self) -> None:
    """Begin to answer, in the event loop that runs."""
    self._changed = asyncio.Event()
    self._running = asyncio.create_task(self._run())

  async def drain(self) -> None:
    """Take no more requests, answer those that wait, and end."""
    self._batcher.close()
    self._wake()
    if self._running:
      await self._running
    self._device.shutdown()

  async def answer(self, query: Query, deadline: float = math.inf) -> Answer:
    """Return the answer. Raises Refused: 429 when too many wait, 503 when draining, 504 too late.

    When it is cancelled, the request leaves the queue.
    """
    if self.is_draining:
      raise Refused(503, 'server', 'is shutting down; ask another', retry_after=1.0)
    loop, arrived = asyncio.get_running_loop(), time.monotonic()
    asked = _Asked(query, loop.create_future(), loop.create_future())
    ticket = Ticket(query.kind, asked, arrived, deadline)
    try:
      self._batcher.offer(ticket)
    except Full as full:
      message = f'{len(self._batcher)} requests wait already; try again later'
      raise Refused(429, 'server', message, full.retry_after) from None
    self._wake()
    try:
      left = None if deadline == math.inf else deadline - arrived
      found = await asyncio.wait_for(self._first(asked), left)
    except TimeoutError:
      raise Refused(504, 'deadline_ms', 'has passed before there was an answer') from None
    finally:
      self._batcher.cancel(ticket)
    self._metrics.observe('total', time.monotonic() - arrived)
    self._metrics.answers.labels(found.reasoning).inc()
    return found

  async def _first(self, asked: _Asked) -> Answer:
    """Return the answer, or from the deadline of reasons on whichever is there."""
    if asked.query.reasoning_deadline is None:
      return await asked.answer
    left = max(asked.query.reasoning_deadline - time.monotonic(), 0.0)
    await asyncio.wait([asked.answer], timeout=left)
    both = [asked.answer, asked.without_reasons]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    return await (asked.answer if asked.answer.done() else asked.without_reasons)

  async def on_device(self, work: Callable[..., T], *args: Any) -> T:
    """Return `work(*args)`, done between two batches."""
    if self.is_draining:
      raise Refused(503, 'server', 'is shutting down; ask another', retry_after=1.0)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(self._device, functools.partial(work, *args))

  def _wake(self) -> None:
    if self._changed:
      self._changed.set()

  async def _run(self) -> None:
    assert self._changed
    while len(self._batcher) or not self.is_draining:
      self._changed.clear()
      now = time.monotonic()
      self._batcher.expire(now)  # those who asked know by their own clocks
      batch = self._batcher.take(now)
      if batch:
        await self._answer_batch(batch)
        continue
      left = self._batcher.next_time() - now
      try:
        await asyncio.wait_for(self._changed.wait(), None if left == math.inf else max(left, 0.0))
      except TimeoutError:
        pass

  async def _answer_batch(self, batch: list[Ticket]) -> None:
    loop, started = asyncio.get_running_loop(), time.monotonic()
    for ticket in batch:
      self._metrics.observe('queue', started - ticket.arrived)
    self._metrics.batch_rows.labels(batch[0].kind).observe(len(batch))

    def report(row: int, found: Answer | Exception, is_last: bool) -> None:
      loop.call_soon_threadsafe(_tell, batch[row].payload, found, is_last)

    queries = [ticket.payload.query for ticket in batch]
    try:
      await loop.run_in_executor(self._device, self._engine.run, queries, report)
    except Exception as error:  # whatever the device does wrong: these requests alone fail
      say(f'a batch of {len(batch)} failed: {type(error).__name__}: {" ".join(str(error).split())}')
      for ticket in batch:
        _tell(ticket.payload, error, True)
    self._batcher.answered(len(batch), time.monotonic() - started)


def _tell(asked: _Asked, found: Answer | Exception, is_last: bool) -> None:
  future = asked.answer if is_last else asked.without_reasons
  if future.done():  # told before, or nobody waits any more
    return
  if isinstance(found, Exception):
    problem = Refused(500, 'server', f'failed to answer ({type(found).__name__}); try again')
    future.set_exception(problem)
    future.exception()  # looked at: nobody may wait for it
  else:
    future.set_result(found)
