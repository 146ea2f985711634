"""What each host of a job runs: prepares its environment, starts the training process, and watches over it.

  python -m launch.host_entry --processes=4 --workdir=runs/demo -- python -m rolegen_jax.train --experiment=demo --workdir=runs/demo

Exit codes: 0 done; 42 preempted (the same command continues); 2 bad setting or data; 3 diverged (2 and 3: never retry); 134 the
watchdog's, or a lost peer (retry, counted); 128 + N when the process died of signal N.
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

from absl import app, flags

from launch import xla_flags
from launch.job import GRACE_S
from rolegen_jax import distributed, heartbeat
from rolegen_jax.commands import BAD_INPUT, DIVERGED, LOST_PEER, PREEMPTED
from rolegen_jax.config import ConfigError

POLL_S = 0.5
DUMP_S = 5.0  # for the child to write its stacks

_PROCESSES = flags.DEFINE_integer('processes', 1, 'Processes of the job. Asserted at start-up.', lower_bound=1)
_PROCESS = flags.DEFINE_integer('process_id', None, 'Number of this process; default: what SLURM, GKE or the TPU says.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'host:port of process 0; default: jax finds it (SLURM, TPU).')
_DEVICES = flags.DEFINE_integer('devices_per_process', 0, 'Run on so many CPU devices; 0 = on what the machine has.', lower_bound=0)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder; logs go to its logs/.', required=True)
_XLA_FLAGS = flags.DEFINE_list('xla_flags', [], 'Names in launch/xla_flags.py.')
_WATCHDOG = flags.DEFINE_float('watchdog_s', 600, 'No sign of life for so long inside a loop: dump stacks, exit 134.')
_FIRST = flags.DEFINE_float('first_step_s', 3600, 'The same before the first step of a loop, where programs compile.')
_GRACE = flags.DEFINE_float('grace_s', GRACE_S, 'After SIGTERM the process has so long to save.')
_FOLLOW = flags.DEFINE_bool('follow_parent', False, 'Stop, as at SIGTERM, when the process that started this one is gone.')


def process_number(given: int | None, environ=os.environ) -> str:
  """Number of this process, or the host's name where nothing says it before jax starts (TPU VMs)."""
  if given is not None:
    return str(given)
  found = (environ.get(name) for name in ('SLURM_PROCID', 'TPU_WORKER_ID', 'JOB_COMPLETION_INDEX'))
  return next((number for number in found if number), socket.gethostname())


def environment(beat: pathlib.Path) -> dict[str, str]:
  """The child's environment."""
  env = dict(os.environ) | {heartbeat.FILE: str(beat), distributed.PROCESSES: str(_PROCESSES.value), 'PYTHONUNBUFFERED': '1'}
  env |= xla_flags.environment(_XLA_FLAGS.value, env)
  if _COORDINATOR.value:
    if _PROCESS.value is None:
      raise ConfigError('--process_id: must be given with --coordinator')
    env |= {distributed.COORDINATOR: _COORDINATOR.value, distributed.PROCESS_ID: str(_PROCESS.value)}
  if _DEVICES.value:
    devices = f'--xla_force_host_platform_device_count={_DEVICES.value}'
    env |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'{env.get("XLA_FLAGS", "")} {devices}'.strip()}
  return env


class Log:
  """Whole lines, each with the number of the process, to a file of this host and to stdout for as long as somebody reads it."""

  def __init__(self, folder: pathlib.Path, number: str):
    folder.mkdir(parents=True, exist_ok=True)
    self._prefix, self._file = f'[{number}] ', (folder / f'process_{number}.log').open('a', encoding='utf-8')
    self._lock = threading.Lock()

  def line(self, text: str) -> None:
    with self._lock:
      whole = f'{self._prefix}{text.rstrip()}\n'
      self._file.write(whole)
      self._file.flush()
      with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(whole)  # in one piece: hosts share a terminal
        sys.stdout.flush()

  def copy(self, stream) -> None:
    for text in stream:
      self.line(text)


class Watch:
  """One run of the child, from its start to its exit code."""

  def __init__(self, command: list[str], env: dict[str, str], beat: pathlib.Path, log: Log):
    self._beat, self._log, self._told_at, self._parent = beat, log, None, os.getppid()
    signal.signal(signal.SIGTERM, self._tell)
    beat.write_text(heartbeat.START, encoding='utf-8')
    self._child = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', bufsize=1)
    self._copier = threading.Thread(target=log.copy, args=(self._child.stdout,), daemon=True)
    self._copier.start()

  def _tell(self, *_) -> None:
    """SIGTERM came: hand it on, once, to a child that answers by saving; any other has nothing to save."""
    if self._told_at is None:
      self._told_at = time.monotonic()
      self._child.send_signal(signal.SIGTERM if self._beat.with_name(heartbeat.SAVES).exists() else signal.SIGKILL)

  def exit_code(self) -> int:
    while self._child.poll() is None:
      time.sleep(POLL_S)
      if _FOLLOW.value and self._told_at is None and os.getppid() != self._parent:
        self._log.line('the launcher is gone: stopping')
        self._tell()
      if self._told_at is not None:
        if time.monotonic() - self._told_at > _GRACE.value:
          self._log.line(f'still running {_GRACE.value:g} s after SIGTERM: killed')
          self._child.kill()
          self._child.wait()
      elif (silent := self._silent_for()) is not None:
        return self._hung(*silent)
    self._copier.join(timeout=DUMP_S)
    code = self._child.returncode
    code = 128 - code if code < 0 else code
    # Told to stop, it stopped. What was not saved by then continues from the save before.
    return PREEMPTED if self._told_at is not None and code not in (0, BAD_INPUT, DIVERGED) else code

  def _silent_for(self) -> tuple[float, float, str] | None:
    """(seconds without a sign of life, limit, phase) when that is too long."""
    phase = self._beat.read_text(encoding='utf-8')
    limit = _WATCHDOG.value if phase == heartbeat.STEP else _FIRST.value
    silent = time.time() - self._beat.stat().st_mtime
    return (silent, limit, phase) if silent > limit else None

  def _hung(self, silent: float, limit: float, phase: str) -> int:
    where = 'inside a loop' if phase == heartbeat.STEP else 'before the first step of a loop'
    self._log.line(f'watchdog: no sign of life for {silent:.0f} s {where} (limit {limit:g} s); stacks of all threads follow')
    if _state(self._child.pid) == 'T':
      self._log.line('watchdog: the process is stopped (SIGSTOP) and cannot dump its stacks')
    else:
      self._child.send_signal(heartbeat.DUMP_SIGNAL)
      time.sleep(DUMP_S)
    self._child.kill()
    self._child.wait()
    self._copier.join(timeout=DUMP_S)
    self._log.line(f'watchdog: killed, exit {LOST_PEER}')
    return LOST_PEER


def _state(pid: int) -> str:
  """The kernel's letter for the state of a process, T = stopped; '' where there is no /proc."""
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()[0]
  except OSError:
    return ''


def main(argv: list[str]) -> int:
  command = argv[1:]
  if not command:
    print('host_entry: the command to run must follow after --', file=sys.stderr)
    return BAD_INPUT
  with tempfile.TemporaryDirectory(prefix='rolegen-') as folder:
    beat = pathlib.Path(folder) / 'heartbeat'
    try:
      env = environment(beat)
    except ConfigError as error:
      print(error, file=sys.stderr)
      return BAD_INPUT
    log = Log(pathlib.Path(_WORKDIR.value) / 'logs', process_number(_PROCESS.value))
    log.line(f'{socket.gethostname()}: {" ".join(command)}')
    code = Watch(command, env, beat, log).exit_code()
    log.line(f'exit {code}')
  return code


if __name__ == '__main__':
  app.run(main)
