"""Which requests are answered together and when, on a clock that the test turns."""

import math

import numpy as np
import pytest

from rolegen_jax.serving.http.batcher import Batcher, Full, Ticket


def offered(batcher: Batcher, *times: float, kind: str = 'alone', deadline=math.inf):
  tickets = [Ticket(kind, i, time, deadline) for i, time in enumerate(times)]
  for ticket in tickets:
    batcher.offer(ticket)
  return tickets


def test_a_full_batch_goes_at_once_and_the_rest_waits():
  batcher = Batcher(max_batch=3, max_wait=1.0, room=10)
  tickets = offered(batcher, 0.0, 0.1, 0.2, 0.3)
  assert batcher.next_time() == -math.inf
  assert batcher.take(0.3) == tickets[:3]
  assert batcher.take(0.3) == [] and batcher.next_time() == 1.3
  assert batcher.take(1.29) == [] and batcher.take(1.3) == tickets[3:]
  assert batcher.next_time() == math.inf and len(batcher) == 0


def test_kinds_do_not_mix_and_who_waited_longest_goes_first():
  batcher = Batcher(2, 1.0, 10)
  reasoned = offered(batcher, 0.5, kind='reasoned')
  alone = offered(batcher, 0.6, 0.7)
  assert batcher.take(0.7) == alone  # full, though the other waits longer
  more = offered(batcher, 0.8, 0.9)
  assert batcher.take(1.5) == reasoned and batcher.take(1.5) == more
  alone = offered(batcher, 2.0)
  reasoned = offered(batcher, 2.1, kind='reasoned')  # the kind that ever came first is no older
  assert batcher.take(4.0) == alone and batcher.take(4.0) == reasoned


def test_no_room_says_when_there_will_be():
  batcher = Batcher(2, 0.25, 3)
  offered(batcher, 0.0, 0.0, 0.0)
  with pytest.raises(Full) as full:
    batcher.offer(Ticket('alone', None, 0.0))
  assert full.value.retry_after == 0.25  # nothing was measured yet
  batcher.answered(2, 4.0)
  with pytest.raises(Full) as full:
    batcher.offer(Ticket('reasoned', None, 0.0))
  assert full.value.retry_after == 6.0  # three wait, two seconds each
  assert len(batcher) == 3


def test_cancelled_and_expired_requests_leave():
  batcher = Batcher(8, 10.0, 10)
  stays, leaves = offered(batcher, 0.0, 0.0)
  late = offered(batcher, 1.0, deadline=2.0)
  assert batcher.cancel(leaves) and not batcher.cancel(leaves)
  assert batcher.next_time() == 2.0
  assert batcher.expire(1.9) == [] and batcher.expire(2.0) == late
  assert batcher.take(10.0) == [stays] and not batcher.cancel(stays)


def test_what_waits_goes_at_once_when_closed():
  batcher = Batcher(2, 10.0, 10)
  tickets = offered(batcher, 0.0, 0.0, 0.0)
  batcher.close()
  assert [batcher.take(0.0) for _ in range(3)] == [tickets[:2], tickets[2:], []]


@pytest.mark.parametrize('seed', range(20))
def test_any_traffic_is_answered_once_in_order_and_in_time(seed):
  """Against what must hold of any queue, on a device that is busy for random times."""
  rng = np.random.default_rng(seed)
  most, wait = int(rng.integers(1, 6)), float(rng.uniform(0, 2))
  batcher, now, came, gone = Batcher(most, wait, 8), 0.0, [], []
  for number in range(200):
    now += float(rng.exponential(0.4))
    ticket = Ticket(str(rng.choice(['alone', 'reasoned'])), number, now)
    try:
      batcher.offer(ticket)
      came.append(ticket)
    except Full:
      assert len(batcher) == 8
    while batcher.next_time() <= now and (batch := batcher.take(now)):
      assert len(batch) <= most and len({t.kind for t in batch}) == 1
      assert len(batch) == most or now >= batch[0].arrived + wait
      now += float(rng.exponential(0.5))
      gone += batch
  batcher.close()
  while batch := batcher.take(now):
    gone += batch
  assert sorted(t.payload for t in gone) == [t.payload for t in came]
  for kind in ('alone', 'reasoned'):
    numbers = [t.payload for t in gone if t.kind == kind]
    assert numbers == sorted(numbers)
