"""Several processes as one job: start-up, agreement, and work that one of them does for all.

The invariant of everything that runs in several processes: every process takes the same path to
every collective. What only process 0 may do (write files) goes through `once`, which brings its
result, or its failure, to all.

The exchange goes through jax's coordination service, not through devices: it works before the
first device is touched, and process 0 may take hours.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import pathlib
import pickle
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from rolegen_jax.config import ConfigError
from rolegen_jax.runtime import heartbeat, roll_call

T = TypeVar('T')

# Set by launch/host_entry.py. Without a coordinator jax finds the others itself (TPU, SLURM).
PROCESSES, PROCESS_ID, COORDINATOR, START_S = (
  'ROLEGEN_PROCESSES',
  'ROLEGEN_PROCESS_ID',
  'ROLEGEN_COORDINATOR',
  'ROLEGEN_START_S',
)
HOST_CACHE = 'ROLEGEN_HOST_CACHE'  # set there too: a folder of this host for compiled programs
# Variables by which a cluster says that there are several processes: a number, or host names
# separated by commas.
CLUSTERS = ('SLURM_STEP_NUM_TASKS', 'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES')
DEFAULT_START_S = 1800  # a process that has not come by then is missing; nodes may be made first
LEAVE_S = 60  # how long the others are waited for at the end
POLL_S = 20
# Variables that name a proxy to gRPC, or to the clients of a cluster's metadata server.
PROXIES = tuple(
  spelled
  for kind in ('grpc', 'https', 'http', 'all')
  for spelled in (f'{kind}_proxy', f'{kind}_proxy'.upper())
)
# How the runtime reports a lost peer: status codes, and libraries that lost a connection.
LOST = (
  'UNAVAILABLE',
  'DEADLINE_EXCEEDED',
  'ABORTED',
  'CANCELLED',
  'Gloo',
  'NCCL',
  'Connection closed',
)
# Equal on all processes, which take the same path.
_exchanges, _polls = itertools.count(1), itertools.count(1)


def initialize() -> None:
  """Join the job that the launcher describes in the environment.

  Without a launcher this process is the job. Raises ConfigError when a cluster runs several
  processes that no launcher told of each other, or when fewer or more of them joined than the
  launcher started: each would train alone, and all would write the same files. Raises MissingPeers
  naming processes that do not come in time.
  """
  expected = os.environ.get(PROCESSES)
  if expected is None:
    for name in CLUSTERS:
      value = os.environ.get(name, '')
      if (int(value) if value.isdigit() else len(value.split(','))) > 1:
        raise ConfigError(
          f'{name}={value}: several processes, and none was told of the others; '
          'start them with launch.run or launch.host_entry'
        )
    return
  import jax

  count, start_s = int(expected), int(float(os.environ.get(START_S, DEFAULT_START_S)))
  with without_proxies():
    if count > 1:
      place = _place(count, start_s)
      roll_call.meet(place['coordinator_address'], count, place['process_id'], start_s)
      jax.distributed.initialize(
        **place, initialization_timeout=start_s, shutdown_timeout_seconds=LEAVE_S
      )
    joined = jax.process_count()  # starts the devices' runtime, which may connect hosts too
  if joined != count:
    raise _wrong_count(count, joined)


def _place(count: int, start_s: int) -> dict[str, Any]:
  """Return where this process finds the others, by the launcher or by what jax knows of a cluster.

  As arguments of `jax.distributed.initialize`, which would ask the cluster itself, and not say.
  """
  if COORDINATOR in os.environ:
    return dict(
      coordinator_address=os.environ[COORDINATOR],
      num_processes=count,
      process_id=int(os.environ[PROCESS_ID]),
    )
  from jax._src.clusters import ClusterEnv

  names = ('coordinator_address', 'num_processes', 'process_id', 'local_device_ids')
  found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, start_s)
  place = dict(zip(names, found))
  if place['coordinator_address'] is None:
    raise ConfigError(
      f'--processes={count}: this is no cluster that jax knows; '
      'must be started with --coordinator and --process_id'
    )
  if place['num_processes'] != count:
    raise _wrong_count(count, place['num_processes'])
  return place


def _wrong_count(count: int, joined: Any) -> ConfigError:
  return ConfigError(
    f'--processes={count}: {joined} joined; '
    'must be the number of processes that the launcher starts'
  )


@contextlib.contextmanager
def without_proxies() -> Iterator[None]:
  """Hide the proxies of the environment from what connects inside.

  gRPC decides how to reach an address once, when it opens the channel. It would send the traffic
  between the processes of a job through a proxy, which cannot reach them. Naming the coordinator
  in `no_proxy` would not do: on SLURM and TPUs jax alone knows the address, and gRPC ignores the
  variable beside a `no_grpc_proxy`.
  """
  hidden = {name: os.environ.pop(name) for name in PROXIES if name in os.environ}
  try:
    yield
  finally:
    os.environ.update(hidden)


def several() -> bool:
  """Return whether this process is one of several."""
  return int(os.environ.get(PROCESSES, 1)) > 1


def lost_peer(error: Exception) -> bool:
  """Return whether `error` is how a collective ends when another process died or hangs.

  The same job, started again, may continue.
  """
  return type(error).__name__ == 'JaxRuntimeError' and any(word in str(error) for word in LOST)


def gather(value: Any) -> list[tuple[str, Any]]:
  """Return (host, value) of every process, in their order, on all of them."""
  client, index, count = _client()
  if client is None:
    return [(socket.gethostname(), value)]
  number = next(_exchanges)
  client.key_value_set_bytes(
    f'rolegen/{number}/{index}', pickle.dumps((socket.gethostname(), value))
  )
  return once(lambda: [_get(client, f'rolegen/{number}/{other}') for other in range(count)])


def agree(values: dict[str, str]) -> None:
  """Check that every process holds equal `values`.

  Raises ConfigError on all of them, naming who differs in what.
  """
  (first_host, first), *others = gather(values)
  for other, (host, theirs) in enumerate(others, 1):
    for field in sorted(set(first) | set(theirs)):
      if theirs.get(field) != first.get(field):
        raise ConfigError(
          f'{field}: process {other} ({host}) has {theirs.get(field)}, '
          f'process 0 ({first_host}) has {first.get(field)}; must be the same on all hosts'
        )


def once(work: Callable[[], T]) -> T:
  """Have process 0 do `work`, which has nothing collective in it.

  All processes return its (pickled) result or raise its exception.
  """
  client, index, _ = _client()
  if client is None:
    return work()
  key = f'rolegen/{next(_exchanges)}'
  if index:
    result, error = _get(client, key)
    if error is not None:
      raise error
    return result
  try:
    result = work()
  except Exception as error:
    client.key_value_set_bytes(key, _pickled_failure(error))
    raise
  client.key_value_set_bytes(key, pickle.dumps((result, None)))
  return result


def preempted() -> bool:
  """Return whether to save and leave now.

  That is when a SIGTERM reached some process, and all have come to the same call of this function.
  False in a single process, which looks for its own signal. Call it once a step, on every process.
  """
  if _client()[0] is None:
    return False
  from jax.experimental import multihost_utils

  # The step at which all stop is agreed as a number that must come: steps of a stage begin again
  # at 0, these do not.
  return multihost_utils.reached_preemption_sync_point(next(_polls))


def code_digest() -> str:
  """Return 16 hex digits over the sources of this package, with or without a git checkout."""
  root = pathlib.Path(__file__).parents[1]
  sources = hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    sources.update(path.relative_to(root).as_posix().encode() + b'\0' + path.read_bytes())
  return sources.hexdigest()[:16]


def _client() -> tuple[Any, int, int]:
  """Return (client of the coordination service, process, processes); no client in a single one."""
  if not several():
    return None, 0, 1
  # Not public, and what orbax uses too: jax's public exchanges go through devices, which cannot
  # wait for hours.
  from jax._src import distributed

  state = distributed.global_state
  return state.client, state.process_id, state.num_processes


def _get(client: Any, key: str) -> Any:
  while True:
    # Waiting is not hanging: the watchdog of the process that is waited for decides.
    heartbeat.beat(heartbeat.START)
    try:
      return pickle.loads(client.blocking_key_value_get_bytes(key, POLL_S * 1000))
    except Exception as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise


def _pickled_failure(error: Exception) -> bytes:
  try:
    return pickle.dumps((None, error))
  except Exception:  # an exception that holds what cannot be sent
    return pickle.dumps((None, RuntimeError(f'process 0: {type(error).__name__}: {error}')))
