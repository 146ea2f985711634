"""This machine: N processes of host_entry, on M CPU devices each, that find each other on localhost."""

from __future__ import annotations

import socket

from launch.job import Job, shell

EXAMPLE_PORT = 12345


def commands(job: Job, port: int) -> list[list[str]]:
  """One command a process."""
  # Killed outright, the launcher can stop nobody: its processes see that it is gone.
  own = ['--follow_parent', *([f'--devices_per_process={job.devices_per_process}'] if job.devices_per_process else [])]
  one = lambda i: job.host_command(f'--process_id={i}', *([f'--coordinator=localhost:{port}'] if job.processes > 1 else []), *own)
  return [one(i) for i in range(job.processes)]


def render(job: Job) -> str:
  """What `launch.run --target=local` starts, on a free port and with restarts, as a shell script of one attempt."""
  started = ''.join(f'{shell(command)} &\n' for command in commands(job, EXAMPLE_PORT))
  return f'#!/usr/bin/env bash\n# {job.name}: {job.processes} processes on this machine.\ntrap \'kill $(jobs -p)\' TERM INT\n{started}wait\n'


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]
