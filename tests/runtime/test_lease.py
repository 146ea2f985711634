"""Leases of real processes: living, killed and suspended ones."""

import signal
import subprocess
import sys
import time
import types

import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.runtime import lease as lease_lib
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.lease import Lease

TIME_OUT_S = 1.5
HOLD = """
import sys, time
from rolegen_jax.runtime.lease import Lease
lease = Lease(sys.argv[1], float(sys.argv[2]))
print('held', flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(url):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, f'{url}/.run.lock', str(TIME_OUT_S)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.wait()


def test_a_living_owner_keeps_it_and_a_killed_one_loses_it(url, holder):
  with pytest.raises(BlockingIOError, match=f'process {holder.pid} on '):
    Lease(f'{url}/.run.lock', TIME_OUT_S)
  holder.kill()
  started = time.monotonic()
  with Lease(f'{url}/.run.lock', TIME_OUT_S):
    assert time.monotonic() - started > TIME_OUT_S
  started = time.monotonic()
  Lease(f'{url}/.run.lock', TIME_OUT_S).close()  # it was given back: nobody waits for it
  assert time.monotonic() - started < TIME_OUT_S


# Not on gs://: fake-gcs-server ignores the conditions of the uploads that TensorStore makes.
@pytest.mark.parametrize('url', ['s3'], indirect=True)
def test_an_owner_that_slept_too_long_stops(url, holder):
  holder.send_signal(signal.SIGSTOP)
  with Lease(f'{url}/.run.lock', TIME_OUT_S) as lease:
    holder.send_signal(signal.SIGCONT)
    assert holder.wait(timeout=20) == 2
    assert 'was taken over by process' in holder.stderr.read()
    assert lease._thread.is_alive()


class Ticks:
  """In place of the event that ends renewals: so many periods pass, on a clock of their own."""

  def __init__(self, periods, monkeypatch):
    self.left, self.now = periods, time.monotonic()
    clock = types.SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep)
    monkeypatch.setattr(lease_lib, 'time', clock)

  def wait(self, seconds):
    self.now += seconds
    self.left -= 1
    return self.left < 0


@pytest.fixture
def held(url, monkeypatch):
  """A lease, to be renewed by this thread; where its owner would stop, AssertionError is raised."""

  def leave(reason):
    raise AssertionError(reason)

  monkeypatch.setattr(lease_lib, '_leave', leave)
  with Lease(f'{url}/.run.lock', 60.0) as lease:
    closed = lease._closed
    yield lease
    lease._closed = closed


ON_S3 = pytest.mark.parametrize('url', ['s3'], indirect=True)


@ON_S3
def test_a_write_whose_answer_is_lost_is_no_loss_of_the_lease(held, url, monkeypatch):
  write, values = Lease._write, []

  def unanswered(self, *arguments):
    values.append(write(self, *arguments))
    return b''

  monkeypatch.setattr(Lease, '_write', unanswered)
  held._closed = Ticks(2, monkeypatch)
  held._renew()
  assert len(values) == 2 and all(values)
  Lease(f'{url}/another.lock', 60.0).close()  # likewise when it is taken
  assert not (storage.path(url) / 'another.lock').exists()
  monkeypatch.undo()


@ON_S3
def test_an_owner_who_hears_nothing_leaves_before_another_may_come(held, monkeypatch):
  held._closed = clock = Ticks(99, monkeypatch)
  started = clock.now

  def silent(self, generation, within_s):
    clock.now += 2 * within_s  # and the question what is there, which is not answered either
    raise TimeoutError('no answer')

  monkeypatch.setattr(Lease, '_write', silent)
  with pytest.raises(AssertionError, match=r'could not be renewed for \d+ s .*no answer'):
    held._renew()
  assert 30 <= clock.now - started < 60
  monkeypatch.undo()


@ON_S3
def test_a_bucket_that_may_only_be_read_is_told_in_one_line(url, monkeypatch):
  def refused(*_):
    raise ValueError('PERMISSION_DENIED: 403\n{"error": 403}')

  monkeypatch.setattr(Lease, '_write', refused)
  with pytest.raises(
    ConfigError, match=rf'^{url}/.run.lock: cannot be written .*403.*may read'
  ) as e:
    Lease(f'{url}/.run.lock', 1.0)
  assert '\n' not in str(e.value)
