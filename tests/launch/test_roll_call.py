"""Start-up of several processes: who does not come is named, on every process that came."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

from launch.targets import local
from rolegen_jax.config import ConfigError
from rolegen_jax.runtime import roll_call
from rolegen_jax.runtime.roll_call import MissingPeers

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = str(pathlib.Path(__file__).parent / 'tiny_train.py')


def meet(arrivals, count, timeout_s=20, port=None):
  """Let (number, of) come, each in a thread; return what each raised, in their order."""
  port = port or local.free_port()

  def come(number, of):
    try:
      roll_call.meet(f'localhost:{port}', of, number, timeout_s)
    except (MissingPeers, ConfigError) as error:
      return error
    return None

  with concurrent.futures.ThreadPoolExecutor(max(len(arrivals), 1)) as pool:
    futures = [
      pool.submit(come, *a) if isinstance(a, tuple) else pool.submit(come, a, count)
      for a in arrivals
    ]
    return [future.result() for future in futures]


def test_all_come_whichever_is_first():
  assert meet([3, 1, 2, 0], 4) == [None] * 4


def test_who_is_missing_is_named_everywhere():
  errors = meet([0, 1, 4], 9, timeout_s=1.5)
  assert [type(error) for error in errors] == [MissingPeers] * 3
  assert {str(error) for error in errors} == {'processes 2-3, 5-8 of 9: not here within 1.5 s'}


def test_without_process_0_the_others_name_it():
  (error,) = meet([2], 3, timeout_s=1)
  assert 'process 0 of 3, at localhost:' in str(error) and 'has not come within 1 s' in str(error)


def test_two_processes_of_one_number_are_named():
  errors = meet([0, 1, 1], 3)
  assert all('process 1 came twice, from' in str(error) for error in errors)
  assert [type(error) for error in errors] == [ConfigError] * 3


def test_a_process_that_was_told_of_another_number_is_named():
  errors = meet([0, (1, 4)], 3)
  assert all('process 1 of 4' in str(e) and 'must be one of 3' in str(e) for e in errors)


def test_strangers_and_processes_that_start_again_do_no_harm():
  port = local.free_port()

  def disturb():
    """A process 1 that dies before all are there, a port scanner, a client of another protocol."""
    greeting = json.dumps(dict(process=1, of=3, host='a')).encode() + b'\n'
    for content in (greeting, b'', b'PRI * HTTP/2.0\r\n\r\n', b'[1]\n', b'x' * 5000):
      deadline = time.monotonic() + 20
      while time.monotonic() < deadline:
        with (
          contextlib.suppress(ConnectionError),
          socket.create_connection(('localhost', port)) as s,
        ):
          s.sendall(content)
          time.sleep(0.1)
          break
        time.sleep(0.05)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(meet, [0], 3, 30, port)
    pool.submit(disturb).result()
    assert meet([1, 2], 3, 30, port) == [None, None]
    assert first.result() == [None]


def test_a_port_that_stays_taken_is_one_error():
  with socket.create_server(('', 0)) as taken:
    (error,) = meet([0], 2, timeout_s=1, port=taken.getsockname()[1])
  assert isinstance(error, ConfigError) and 'of process 0' in str(error)
  assert 'must be free' in str(error)


def start(folder, number, port, start_s):
  job = [
    f'--workdir={folder}',
    '--processes=3',
    f'--start_s={start_s}',
    '--first_step_s=300',
  ]
  job += [f'--coordinator=localhost:{port}', '--devices_per_process=1', f'--process_id={number}']
  train = [sys.executable, TRAIN, f'--workdir={folder}', '--differ']
  return subprocess.Popen(
    [sys.executable, '-m', 'launch.host_entry', *job, '--', *train],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def ends(processes):
  outputs = [process.communicate()[0] for process in processes]
  return [process.returncode for process in processes], outputs


def test_a_real_process_that_never_starts_is_named_by_the_others(tmp_path):
  """The time-out begins when a process has imported what it needs."""
  port = local.free_port()
  codes, outputs = ends([start(tmp_path, number, port, start_s=12) for number in (0, 2)])
  assert codes == [134, 134], outputs
  for output in outputs:
    assert 'process 1 of 3: not here within 12 s' in output
    assert 'Traceback' not in output and 'Check failure' not in output


CACHED = """
import sys, jax
from rolegen_jax.runtime import compilation_cache
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
events = []
jax.monitoring.register_event_listener(lambda name, **kwargs: events.append(name.split('/')[-1]))
jax.jit(lambda x: x * 3 + 1)(2.0)  # opens the cache that the environment names, if it names one
compilation_cache.use(sys.argv[1])
jax.jit(lambda x: x * 5 + 1)(2.0)
print(events.count('cache_hits'), events.count('cache_misses'))
"""


def compiled(shared, host):
  """Return (programs found, programs compiled) of a process of `host`."""
  env = os.environ | {'PYTHONPATH': str(ROOT), 'ROLEGEN_HOST_CACHE': str(host)}
  env.pop('JAX_COMPILATION_CACHE_DIR', None)
  done = subprocess.run(
    [sys.executable, '-c', CACHED, str(shared)], env=env, capture_output=True, text=True, check=True
  )
  return tuple(map(int, done.stdout.split()))


def test_a_host_reads_a_program_from_the_shared_cache_once(tmp_path):
  shared, first, second = (tmp_path / name for name in ('shared', 'first', 'second'))

  def programs(folder):
    return sorted(path.name.removesuffix('-cache') for path in folder.iterdir())

  found, made = compiled(shared, first)
  assert (found, made) == (0, made) and made > 0
  assert programs(first) == programs(shared) and len(programs(first)) == made
  assert compiled(shared, second) == (made, 0)  # from the shared folder, which fills its own
  assert programs(second) == programs(first)
  for path in shared.iterdir():
    path.unlink()
  assert compiled(shared, second) == (made, 0)  # from its own alone
  assert not list(shared.iterdir())
