"""This machine: N processes of host_entry that find each other on localhost."""

from __future__ import annotations

import shlex
import socket

from launch.job import Job

EXAMPLE_PORT = 12345


def commands(job: Job, port: int) -> list[list[str]]:
  """Return one command per process; process 0 coordinates at `port`."""
  # A launcher that is killed by SIGKILL cannot stop its processes: they have to notice.
  flags = ['--follow_parent']
  if job.devices_per_process:
    flags.append(f'--devices_per_process={job.devices_per_process}')
  if job.processes > 1:
    flags.insert(0, f'--coordinator=localhost:{port}')
  return [job.host_command(f'--process_id={i}', *flags) for i in range(job.processes)]


def render(job: Job) -> str:
  """Return one attempt of `launch.run --target=local` as a script, on an example port."""
  lines = [
    '#!/usr/bin/env bash',
    f'# {job.name}: {job.processes} processes on this machine.',
    "trap 'kill $(jobs -p)' TERM INT",
    *(f'{shlex.join(command)} &' for command in commands(job, EXAMPLE_PORT)),
    'wait',
  ]
  return '\n'.join(lines) + '\n'


def free_port() -> int:
  """Return a port that nothing listens at."""
  with socket.socket() as listener:
    listener.bind(('localhost', 0))
    port: int = listener.getsockname()[1]
    return port
