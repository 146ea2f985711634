"""The command of each host: prepare the environment, start the training process and watch it.

  python -m launch.host_entry --processes=4 --workdir=runs/demo -- \
      python -m rolegen_jax train --experiment=demo --workdir=runs/demo

Exit codes: 0 done; 42 preempted (the same command continues); 2 bad setting or data, 3 diverged
(never retry these two); 134 watchdog, or a lost peer (retry, counted); 128 + N signal N.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping

from absl import app, flags

from launch import xla_flags
from launch.job import GRACE_S
from rolegen_jax.cli.entry import BAD_INPUT, DIVERGED, LOST_PEER, PREEMPTED, parse_flags
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError
from rolegen_jax.runtime import distributed, heartbeat, storage

POLL_S = 0.5
DUMP_S = 5.0  # time for the child to write its stacks
# Where SLURM, the TPU runtime and an indexed Job put the number of this process.
PROCESS_ID_VARIABLES = ('SLURM_PROCID', 'TPU_WORKER_ID', 'JOB_COMPLETION_INDEX')

_PROCESSES = flags.DEFINE_integer(
  'processes', 1, 'Processes of the job; checked when they join.', lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Number of this process; default: taken from SLURM, GKE or the TPU.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0; default: jax finds it (SLURM, TPU).'
)
_DEVICES = flags.DEFINE_integer(
  'devices_per_process', 0, 'CPU devices to run on; 0 = all devices of the machine.', lower_bound=0
)
_WORKDIR = path_flag('workdir', None, 'Run folder; logs go to its logs/.', required=True, urls=True)
_XLA_FLAGS = flags.DEFINE_list(
  'xla_flags', [], 'Names in launch/xla_flags.py, separated by commas.'
)
_WATCHDOG_S = flags.DEFINE_float(
  'watchdog_s', 600, 'Seconds without a heartbeat inside a loop: dump stacks, exit 134.'
)
_FIRST_STEP_S = flags.DEFINE_float(
  'first_step_s', 3600, 'The same limit before the first step of a loop, where programs compile.'
)
_GRACE_S = flags.DEFINE_float('grace_s', GRACE_S, 'Seconds the process has to save after SIGTERM.')
_START_S = flags.DEFINE_float(
  'start_s',
  distributed.DEFAULT_START_S,
  'Seconds for all processes to come; then those that are missing are named, exit 134.',
)
_HOST_CACHE = path_flag(
  'host_cache', '', "Folder of this host for compiled programs, before the run's shared one."
)
_FOLLOW_PARENT = flags.DEFINE_bool(
  'follow_parent', False, 'Stop, as at SIGTERM, when the parent process has ended.'
)


def main(argv: list[str]) -> int:
  command = argv[1:]
  if not command:
    print('host_entry: the command to run must follow after --', file=sys.stderr)
    return BAD_INPUT
  with tempfile.TemporaryDirectory(prefix='rolegen-') as folder:
    heartbeat_path = pathlib.Path(folder) / 'heartbeat'
    try:
      env = environment(heartbeat_path)
      log = Log(storage.path(_WORKDIR.value) / 'logs', process_label())
    except ConfigError as error:
      print(error, file=sys.stderr)
      return BAD_INPUT
    log.write_line(f'{socket.gethostname()}: {" ".join(command)}')
    code = Watch(command, env, heartbeat_path, log).wait()
    log.write_line(f'exit {code}')
    log.send()
  return code


def process_number(environ: Mapping[str, str] = os.environ) -> int | None:
  """Return the number of this process in the job, or None where jax alone finds it: on TPU VMs.

  In a job of several TPU slices the variables of a host count inside its slice.
  """
  if _PROCESS_ID.value is not None:
    return _PROCESS_ID.value
  for name in PROCESS_ID_VARIABLES:
    if environ.get(name):
      hosts = _PROCESSES.value // int(environ.get('MEGASCALE_NUM_SLICES', 1))
      return int(environ.get('MEGASCALE_SLICE_ID', 0)) * hosts + int(environ[name])
  return None


def process_label() -> str:
  """Return the number of this process, or the host's name where it is not known yet."""
  number = process_number()
  return socket.gethostname() if number is None else str(number)


def environment(heartbeat_path: pathlib.Path) -> dict[str, str]:
  """Return the environment of the training process."""
  env = dict(os.environ)
  env[heartbeat.FILE] = str(heartbeat_path)
  env[distributed.PROCESSES] = str(_PROCESSES.value)
  env[distributed.START_S] = str(_START_S.value)
  if _HOST_CACHE.value:
    env[distributed.HOST_CACHE] = _HOST_CACHE.value
  env['PYTHONUNBUFFERED'] = '1'
  env |= xla_flags.environment(_XLA_FLAGS.value, env)
  if _COORDINATOR.value:
    number = process_number()
    if number is None:
      names = ', '.join(PROCESS_ID_VARIABLES)
      raise ConfigError(f'--process_id: must be given with --coordinator, or be in one of {names}')
    env[distributed.COORDINATOR] = _COORDINATOR.value
    env[distributed.PROCESS_ID] = str(number)
  if _DEVICES.value:
    devices = f'--xla_force_host_platform_device_count={_DEVICES.value}'
    env['JAX_PLATFORMS'] = 'cpu'
    env['XLA_FLAGS'] = f'{env.get("XLA_FLAGS", "")} {devices}'.strip()
  return env


class Log:
  """Complete lines, prefixed with the process, in a file of this host and on stdout."""

  SEND_EVERY_S = 30.0  # to a bucket, which gets the file anew each time

  def __init__(self, folder: pathlib.Path, label: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    self._prefix = f'[{label}] '
    self._spool = storage.Spool(folder / f'process_{label}.log')
    self._file = self._spool.here.open('a', encoding='utf-8')
    self._sent = time.monotonic()
    self._lock = threading.Lock()

  def write_line(self, text: str) -> None:
    with self._lock:
      line = f'{self._prefix}{text.rstrip()}\n'
      self._file.write(line)
      self._file.flush()
      with contextlib.suppress(BrokenPipeError):  # stdout is optional: its reader may have gone
        sys.stdout.write(line)  # in one piece: the hosts may share a terminal
        sys.stdout.flush()
      if time.monotonic() - self._sent > self.SEND_EVERY_S:
        self.send()

  def send(self) -> None:
    """Have all lines in the run folder, where that is in a bucket that answers."""
    self._sent = time.monotonic()
    with contextlib.suppress(Exception):  # stdout has the lines, and the next call sends them
      self._spool.flush()

  def copy_lines(self, stream: Iterable[str]) -> None:
    for text in stream:
      self.write_line(text)


class Watch:
  """One run of the training process, from its start to its exit code."""

  def __init__(
    self, command: list[str], env: dict[str, str], heartbeat_path: pathlib.Path, log: Log
  ) -> None:
    self._heartbeat_path, self._log = heartbeat_path, log
    self._parent = os.getppid()
    self._stopped_at: float | None = None  # when the child was told to stop
    signal.signal(signal.SIGTERM, self._stop)
    heartbeat_path.write_text(heartbeat.START, encoding='utf-8')
    self._child = subprocess.Popen(
      command,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      encoding='utf-8',
      errors='replace',
      bufsize=1,
    )
    assert self._child.stdout is not None
    self._copier = threading.Thread(target=log.copy_lines, args=(self._child.stdout,), daemon=True)
    self._copier.start()

  def wait(self) -> int:
    """Wait for the child, kill it if it hangs, and return the exit code of this host."""
    while self._child.poll() is None:
      time.sleep(POLL_S)
      if _FOLLOW_PARENT.value and self._stopped_at is None and os.getppid() != self._parent:
        self._log.write_line('the launcher has ended: stopping')
        self._stop()
      if self._stopped_at is not None:
        self._enforce_grace(self._stopped_at)
      else:
        hang = self._describe_hang()
        if hang:
          return self._kill_hung(hang)
    self._copier.join(timeout=DUMP_S)
    code = self._child.returncode
    code = 128 - code if code < 0 else code
    if self._stopped_at is not None and code not in (0, BAD_INPUT, DIVERGED):
      return PREEMPTED  # it stopped as told; the next start continues from the last checkpoint
    return code

  def _stop(self, *_: object) -> None:
    """Pass SIGTERM on, once, to a child that will save; kill one that has nothing to save."""
    if self._stopped_at is None:
      self._stopped_at = time.monotonic()
      saves = self._heartbeat_path.with_name(heartbeat.SAVES).exists()
      self._child.send_signal(signal.SIGTERM if saves else signal.SIGKILL)

  def _enforce_grace(self, stopped_at: float) -> None:
    if time.monotonic() - stopped_at > _GRACE_S.value:
      self._log.write_line(f'still running {_GRACE_S.value:g} s after SIGTERM: killed')
      self._child.kill()
      self._child.wait()

  def _describe_hang(self) -> str:
    """Return how long the child has been silent if that is too long, else ''."""
    in_loop = self._heartbeat_path.read_text(encoding='utf-8') == heartbeat.STEP
    limit_s = _WATCHDOG_S.value if in_loop else _FIRST_STEP_S.value
    silent_s = time.time() - self._heartbeat_path.stat().st_mtime
    if silent_s <= limit_s:
      return ''
    where = 'inside a loop' if in_loop else 'before the first step of a loop'
    return f'no heartbeat for {silent_s:.0f} s {where} (limit {limit_s:g} s)'

  def _kill_hung(self, hang: str) -> int:
    self._log.write_line(f'watchdog: {hang}; stacks of all threads follow')
    if _process_state(self._child.pid) == 'T':
      self._log.write_line('watchdog: the process is stopped (SIGSTOP) and cannot dump its stacks')
    else:
      self._child.send_signal(heartbeat.DUMP_SIGNAL)
      time.sleep(DUMP_S)
    self._child.kill()
    self._child.wait()
    self._copier.join(timeout=DUMP_S)
    self._log.write_line(f'watchdog: killed, exit {LOST_PEER}')
    return LOST_PEER


def _process_state(pid: int) -> str:
  """Return the kernel's letter for the state of a process (T = stopped), '' without /proc."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text(encoding='utf-8')
  except OSError:
    return ''
  return stat.rpartition(')')[2].split()[0]


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
