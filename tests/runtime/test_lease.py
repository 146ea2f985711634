"""Leases of real processes: living, killed and suspended ones."""

import concurrent.futures
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

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


@pytest.fixture
def left(monkeypatch):
  """Why an owner stopped, in place of stopping."""
  reasons = []

  def leave(reason):
    reasons.append(reason)
    raise SystemExit  # ends the thread that renews

  monkeypatch.setattr(lease_lib, '_leave', leave)
  return reasons


@pytest.mark.parametrize('url', ['s3'], indirect=True)
def test_a_write_whose_answer_is_lost_is_no_loss_of_the_lease(url, left, monkeypatch):
  write, values = Lease._write, []

  def unanswered(self, *arguments):
    values.append(write(self, *arguments))
    return b''

  monkeypatch.setattr(Lease, '_write', unanswered)
  with Lease(f'{url}/.run.lock', 0.3):
    time.sleep(0.2)
  assert len(values) > 2 and all(values) and not left
  assert not (storage.path(url) / '.run.lock').exists()  # given back, as what it was last


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
@pytest.mark.parametrize('url', ['s3'], indirect=True)
def test_an_owner_who_hears_nothing_leaves_before_another_may_come(url, left, monkeypatch):
  def silent(*_):
    raise TimeoutError('no answer')

  started = time.monotonic()
  held = Lease(f'{url}/.run.lock', 0.6)
  monkeypatch.setattr(Lease, '_write', silent)
  held._thread.join(5)
  assert time.monotonic() - started < 0.6
  assert re.search(r'could not be renewed for \d+ s .*no answer', left[0])
  held.close()


@pytest.mark.parametrize('url', ['s3'], indirect=True)
def test_one_of_many_who_come_at_once_gets_it(url, left):
  come = threading.Barrier(8)

  def take(_):
    come.wait()
    try:
      return Lease(f'{url}/.run.lock', 5.0)
    except BlockingIOError:
      return None

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    held = list(filter(None, pool.map(take, range(8))))
  assert len(held) == 1 and not left
  held[0].close()
