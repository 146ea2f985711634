"""Leases of real processes: living, killed and suspended ones."""

import signal
import subprocess
import sys
import time

import pytest

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
