"""Which requests wait, which are answered next and together: pure, its clock is an argument.

Requests of one kind make a batch: those that the backbone answers alone, and those that are
reasoned about. A batch goes when it is full or its oldest request has waited long enough; the kind
whose oldest has waited longest goes first. Times are seconds of any monotonic clock.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any

_SMOOTHING = 0.1  # weight of the latest batch in the mean time that a request takes


class Full(Exception):
  """There is no room; try again after `retry_after` seconds."""

  def __init__(self, retry_after: float):
    super().__init__(f'the queue is full for some {retry_after:.3f} s')
    self.retry_after = retry_after


@dataclasses.dataclass(eq=False)
class Ticket:
  """A request that waits."""

  kind: str
  payload: Any
  arrived: float
  deadline: float = math.inf  # when nobody waits for the answer any more


class Batcher:
  """The queue."""

  def __init__(self, max_batch: int, max_wait: float, room: int):
    """Wait at most `max_wait` seconds for `max_batch` requests; hold at most `room` of them."""
    self._max_batch, self._max_wait, self._room = max_batch, max_wait, room
    self._waiting: dict[str, collections.deque[Ticket]] = {}
    self._seconds_each = 0.0
    self.is_closed = False

  def __len__(self) -> int:
    return sum(map(len, self._waiting.values()))

  def offer(self, ticket: Ticket) -> None:
    """Let a request wait. Raises Full."""
    if len(self) >= self._room:
      raise Full(max(len(self) * self._seconds_each, self._max_wait))
    self._waiting.setdefault(ticket.kind, collections.deque()).append(ticket)

  def cancel(self, ticket: Ticket) -> bool:
    """Take a request out; return whether it still waited."""
    queue = self._waiting.get(ticket.kind, ())
    if ticket not in queue:
      return False
    self._waiting[ticket.kind].remove(ticket)
    return True

  def expire(self, now: float) -> list[Ticket]:
    """Take out and return the requests whose deadline has passed."""
    return self._take_out(lambda ticket: ticket.deadline <= now)

  def take(self, now: float) -> list[Ticket]:
    """Take out and return the batch to answer now; [] while it is better to wait."""
    ready = [queue for queue in self._waiting.values() if queue and self._is_due(queue, now)]
    if not ready:
      return []
    queue = min(ready, key=lambda queue: queue[0].arrived)
    return [queue.popleft() for _ in range(min(self._max_batch, len(queue)))]

  def next_time(self) -> float:
    """Return when `take` or `expire` will have something to return; inf while nobody waits."""
    times = [math.inf]
    for queue in self._waiting.values():
      if queue:
        is_due = self._is_due(queue, -math.inf)
        times.append(-math.inf if is_due else queue[0].arrived + self._max_wait)
        times.append(min(ticket.deadline for ticket in queue))
    return min(times)

  def answered(self, requests: int, seconds: float) -> None:
    """Take note of how long a batch took; `Full` says by that when there will be room."""
    each = seconds / max(requests, 1)
    old = self._seconds_each or each
    self._seconds_each = old + _SMOOTHING * (each - old)

  def close(self) -> None:
    """Wait for no more requests: what is there goes at once."""
    self.is_closed = True

  def _is_due(self, queue: collections.deque[Ticket], now: float) -> bool:
    is_full = len(queue) >= self._max_batch or self.is_closed
    return is_full or now >= queue[0].arrived + self._max_wait

  def _take_out(self, chosen: Callable[[Ticket], bool]) -> list[Ticket]:
    taken = [ticket for queue in self._waiting.values() for ticket in queue if chosen(ticket)]
    for ticket in taken:
      self._waiting[ticket.kind].remove(ticket)
    return taken
