"""The checks of `launch.doctor`. Each returns what it found and, unless that is well, what to do. Nothing here raises."""

from __future__ import annotations

import dataclasses
import email.utils
import errno
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

from packaging.requirements import Requirement

OK, WARNING, FAILED = 'ok', 'warning', 'failed'
REQUIREMENTS = pathlib.Path(__file__).parents[1] / 'requirements.txt'
PYTHONS = ((3, 11), (3, 13))  # oldest and newest that the project is tested on
STORED_BYTES = 16 << 20
LITTLE_FREE = 10 << 30  # bytes
SKEW_S = 2.0  # more than this tells a wrong clock from a slow answer


@dataclasses.dataclass(frozen=True)
class Check:
  name: str
  state: str  # ok | warning | failed
  found: str
  advice: str = ''  # what to do


def versions(requirements: pathlib.Path = REQUIREMENTS) -> list[Check]:
  """Python, and every package of requirements.txt against its bounds."""
  here, found = sys.version_info[:2], platform.python_version()
  oldest, newest = ('.'.join(map(str, version)) for version in PYTHONS)
  if here < PYTHONS[0]:
    out = [Check('python', FAILED, found, f'use Python {oldest} to {newest}')]
  elif here > PYTHONS[1]:
    out = [Check('python', WARNING, found, f'newer than what is tested; {oldest} to {newest} are')]
  else:
    out = [Check('python', OK, found)]
  lines = [line for line in requirements.read_text(encoding='utf-8').splitlines() if line.strip() and not line.startswith('#')]
  for wanted in map(Requirement, lines):
    if wanted.marker is None or wanted.marker.evaluate():
      out.append(_package(wanted))
  return out


def _package(wanted: Requirement) -> Check:
  try:
    version = importlib.metadata.version(wanted.name)
  except importlib.metadata.PackageNotFoundError:
    return Check(wanted.name, FAILED, 'not installed', 'pip install -r requirements.txt')
  if wanted.specifier.contains(version, prereleases=True):
    return Check(wanted.name, OK, version)
  return Check(wanted.name, WARNING, f'{version}, tested with {wanted.specifier}', 'pip install -r requirements.txt')


def devices(timeout_s: float, command: tuple[str, ...] = (sys.executable, '-m', 'rolegen_jax.probe')) -> list[Check]:
  """The accelerators and a collective along each mesh axis, asked in a process of its own: a hung driver hangs only that."""
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=REQUIREMENTS.parent)
  except subprocess.TimeoutExpired:
    return [Check('devices', FAILED, f'no answer in {timeout_s:.0f} s', 'is another process using the accelerator? end it, or start the host again')]
  if done.returncode:
    said = (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]
    return [Check('devices', FAILED, said, f'run {" ".join(command[1:])} to see all of it')]
  answer = json.loads(done.stdout.splitlines()[-1])
  seen = answer['devices']
  memory = f', {seen["memory_bytes"] / 2**30:.1f} GiB each' if seen['memory_bytes'] else ''
  text = f'{seen["count"]} x {seen["kind"]} ({seen["platform"]}{memory})'
  unused = _unused_accelerator() if seen['platform'] == 'cpu' else ''
  out = [Check('devices', WARNING if unused else OK, text, unused)]
  for one in answer['collectives']:
    name, text = f'collective over {one["axis"]}', f'sum over {one["devices"]} devices in {one["ms"]} ms'
    if not one['right']:
      out.append(Check(name, FAILED, f'{text}, and it is wrong', 'do not train here: check links and drivers of this host'))
    else:
      out.append(Check(name, OK, text + (': nothing crosses a link' if one['devices'] == 1 else '')))
  return out


def _unused_accelerator() -> str:
  if shutil.which('nvidia-smi'):
    return 'there is an NVIDIA driver but jax runs on the CPU: install "jax[cuda12]" of the same version'
  if pathlib.Path('/dev/accel0').exists():
    return 'there is a TPU but jax runs on the CPU: install "jax[tpu]" of the same version'
  return ''


def storage(workdir: str) -> list[Check]:
  """Write, rename over an existing file, read back; free space; and the storage's own clock."""
  folder = pathlib.Path(workdir).absolute()
  temporary, real = (folder / f'.doctor.{socket.gethostname()}.{os.getpid()}.{end}' for end in ('tmp', 'bin'))
  content = os.urandom(STORED_BYTES)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    real.write_bytes(b'old')
    before, started = time.time(), time.perf_counter()
    with temporary.open('wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    after, took = time.time(), time.perf_counter() - started
    changed = temporary.stat().st_mtime
    os.replace(temporary, real)
    same = real.read_bytes() == content and not temporary.exists()
  except OSError as error:
    advice = f'name a folder that this user may write to, with {STORED_BYTES >> 20} MiB and more free'
    return [Check('storage', FAILED, f'{folder}: {error.strerror}', advice)]
  finally:
    for path in (temporary, real):
      try:
        path.unlink(missing_ok=True)
      except OSError:
        pass  # of a folder that cannot be written to
  if not same:
    return [Check('storage', FAILED, f'{folder}: what was renamed is not what is read', 'use storage whose renames are atomic')]
  out = [Check('storage', OK, f'{folder}: write, rename and read; {STORED_BYTES / took / 1e6:.0f} MB/s to disk')]
  free = shutil.disk_usage(folder).free
  little = free < LITTLE_FREE
  out.append(Check('free space', WARNING if little else OK, f'{free / 2**30:.1f} GiB', 'checkpoints need room: two per stage' if little else ''))
  skew = max(before - changed, changed - after, 0.0)
  wrong = skew > SKEW_S
  advice = 'the file server and this host disagree on the time: synchronise both (NTP)' if wrong else ''
  out.append(Check('clock of the storage', WARNING if wrong else OK, f'{skew:.1f} s from this host\'s', advice))
  return out


def clock(reference: str) -> Check:
  """This host's clock against a server's, or what the system says of its own synchronisation; says when there is neither."""
  name = 'clock'
  if reference:
    try:
      with urllib.request.urlopen(urllib.request.Request(reference, method='HEAD'), timeout=10) as answer:
        theirs = email.utils.parsedate_to_datetime(answer.headers['Date']).timestamp()
    except (OSError, ValueError, TypeError) as error:
      return Check(name, WARNING, f'no reference: {reference} did not tell the time ({error})', 'name another --clock_reference')
    skew = time.time() - theirs - 0.5  # the header is cut to whole seconds
    wrong = abs(skew) > SKEW_S
    return Check(name, FAILED if wrong else OK, f'{skew:+.1f} s from {reference}', 'synchronise this host (NTP)' if wrong else '')
  try:
    said = subprocess.run(['timedatectl', 'show', '--property=NTPSynchronized', '--value'], capture_output=True, text=True, timeout=10, check=True)
  except (OSError, subprocess.SubprocessError):
    return Check(name, WARNING, 'no reference: nothing here tells whether it is right', 'name a server: --clock_reference=URL')
  synchronised = said.stdout.strip() == 'yes'
  advice = '' if synchronised else 'switch on NTP, or compare with a server: --clock_reference=URL'
  return Check(name, OK if synchronised else WARNING, 'synchronised (NTP)' if synchronised else 'not synchronised', advice)


def port(coordinator: str) -> Check:
  """On the coordinator's own host: its port can be listened on. Elsewhere: the host can be reached."""
  name = 'coordinator'
  host, _, number = coordinator.rpartition(':')
  if not host or not number.isdigit() or not 0 < int(number) < 65536:
    return Check(name, FAILED, f'--coordinator={coordinator}', 'must be HOST:PORT, with a port from 1 to 65535')
  try:
    address = socket.getaddrinfo(host, int(number), type=socket.SOCK_STREAM)[0]
  except OSError as error:
    return Check(name, FAILED, f'{host}: {error.strerror}', 'name a host that this one can resolve')
  with socket.socket(address[0], socket.SOCK_STREAM) as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      listener.bind(address[4])
      listener.listen(1)
      with socket.create_connection(address[4][:2], timeout=5):
        return Check(name, OK, f'{coordinator} is free, and reached from here')
    except OSError as error:
      if error.errno == errno.EADDRINUSE:
        return Check(name, FAILED, f'{coordinator} is in use', 'choose another port, or end what listens there (ss -ltnp)')
      if error.errno == errno.EACCES:
        return Check(name, FAILED, f'{coordinator} may not be listened on', 'choose a port above 1023')
  try:  # not an address of this host
    socket.create_connection(address[4][:2], timeout=5).close()
    return Check(name, OK, f'{coordinator} answers')
  except ConnectionRefusedError:
    return Check(name, OK, f'{host} is reached; nothing listens at port {number} yet')
  except OSError as error:
    return Check(name, FAILED, f'{coordinator} cannot be reached: {error}', 'open the port between the hosts of the job')
