"""The checks of `launch.doctor`: versions, devices, storage, clock, the coordinator's port
and proxies in front of it.

Each check reports what it observed and, unless all is well, what to do about it. None raises.
"""

from __future__ import annotations

import contextlib
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
from typing import Any

from packaging.requirements import Requirement

from rolegen_jax.fields import ConfigError
from rolegen_jax.runtime import storage as stores
from rolegen_jax.runtime.distributed import PROXIES
from rolegen_jax.runtime.lease import Lease

OK, WARNING, FAILED = 'ok', 'warning', 'failed'

REQUIREMENTS = pathlib.Path(__file__).parents[1] / 'requirements.txt'
PROBE = (sys.executable, '-m', 'rolegen_jax', 'probe')
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)  # the project is tested on these and between
STORAGE_TEST_BYTES = 16 << 20
LOW_FREE_BYTES = 10 << 30
MAX_SKEW_S = 2.0  # a larger difference is a wrong clock, not a slow answer
NETWORK_TIMEOUT_S = 10
CONNECT_TIMEOUT_S = 5


@dataclasses.dataclass(frozen=True)
class Check:
  """The result of one check."""

  name: str
  state: str  # ok | warning | failed
  detail: str  # what was observed
  advice: str = ''  # what to do about it


def versions(requirements: pathlib.Path = REQUIREMENTS) -> list[Check]:
  """Check Python and every package of `requirements` against the supported versions."""
  results = [_python_version()]
  for line in requirements.read_text(encoding='utf-8').splitlines():
    if not line.strip() or line.startswith('#'):
      continue
    requirement = Requirement(line)
    if requirement.marker is None or requirement.marker.evaluate():
      results.append(_package_version(requirement))
  return results


def _python_version() -> Check:
  current, version = sys.version_info[:2], platform.python_version()
  tested = '{}.{} to {}.{}'.format(*OLDEST_PYTHON, *NEWEST_PYTHON)
  if current < OLDEST_PYTHON:
    return Check('python', FAILED, version, f'use Python {tested}')
  if current > NEWEST_PYTHON:
    return Check('python', WARNING, version, f'newer than the tested versions, {tested}')
  return Check('python', OK, version)


def _package_version(requirement: Requirement) -> Check:
  advice = 'pip install -r requirements.txt'
  try:
    version = importlib.metadata.version(requirement.name)
  except importlib.metadata.PackageNotFoundError:
    return Check(requirement.name, FAILED, 'not installed', advice)
  if requirement.specifier.contains(version, prereleases=True):
    return Check(requirement.name, OK, version)
  detail = f'{version}, tested with {requirement.specifier}'
  return Check(requirement.name, WARNING, detail, advice)


def devices(timeout_s: float, command: tuple[str, ...] = PROBE) -> list[Check]:
  """Check the accelerators, and a collective along each mesh axis.

  The probe runs in a process of its own, so a hung driver cannot hang this one.
  """
  try:
    probe = subprocess.run(
      command,
      capture_output=True,
      text=True,
      timeout=timeout_s,
      check=False,
      cwd=REQUIREMENTS.parent,
    )
  except subprocess.TimeoutExpired:
    detail = f'no response within {timeout_s:.0f} s'
    advice = 'end any other process that uses the accelerator, or restart the host'
    return [Check('devices', FAILED, detail, advice)]
  if probe.returncode:
    lines = probe.stderr.strip().splitlines() or [f'exit code {probe.returncode}']
    advice = f'run {" ".join(command[1:])} to see the full error'
    return [Check('devices', FAILED, lines[-1], advice)]
  answer = json.loads(probe.stdout.splitlines()[-1])
  return [_device_kind(answer['devices']), *map(_collective, answer['collectives'])]


def _device_kind(info: dict[str, Any]) -> Check:
  memory = f', {info["memory_bytes"] / 2**30:.1f} GiB each' if info['memory_bytes'] else ''
  detail = f'{info["count"]} x {info["kind"]} ({info["platform"]}{memory})'
  advice = _unused_accelerator() if info['platform'] == 'cpu' else ''
  return Check('devices', WARNING if advice else OK, detail, advice)


def _collective(result: dict[str, Any]) -> Check:
  name = f'collective over {result["axis"]}'
  detail = f'sum over {result["devices"]} devices in {result["ms"]} ms'
  if not result['right']:
    advice = 'do not train on this host: check its interconnect and drivers'
    return Check(name, FAILED, f'{detail}, wrong result', advice)
  if result['devices'] == 1:
    detail += ' (one device: the interconnect is not exercised)'
  return Check(name, OK, detail)


def _unused_accelerator() -> str:
  """Return advice when the host has an accelerator that jax does not use, else ''."""
  if shutil.which('nvidia-smi'):
    return 'an NVIDIA driver is present but jax runs on the CPU: install the extra jax[cuda12]'
  if pathlib.Path('/dev/accel0').exists():
    return 'a TPU is present but jax runs on the CPU: install the extra jax[tpu]'
  return ''


def storage(workdir: str) -> list[Check]:
  """Check that `workdir` supports write, atomic rename and read back; its free space and clock.

  In a bucket, that an object can be written, read and leased.
  """
  if stores.is_remote(workdir):
    return _bucket(workdir)
  folder = pathlib.Path(workdir).absolute()
  stem = f'.doctor.{socket.gethostname()}.{os.getpid()}'
  temporary, target = folder / f'{stem}.tmp', folder / f'{stem}.bin'
  try:
    return _use_storage(folder, temporary, target)
  except OSError as error:
    advice = f'name a writable folder with at least {STORAGE_TEST_BYTES >> 20} MiB free'
    return [Check('storage', FAILED, f'{folder}: {error.strerror}', advice)]
  finally:
    for path in (temporary, target):
      with contextlib.suppress(OSError):  # the check has reported a folder that is not writable
        path.unlink(missing_ok=True)


def _use_storage(
  folder: pathlib.Path, temporary: pathlib.Path, target: pathlib.Path
) -> list[Check]:
  content = os.urandom(STORAGE_TEST_BYTES)
  folder.mkdir(parents=True, exist_ok=True)
  target.write_bytes(b'old')
  before, started = time.time(), time.perf_counter()
  with temporary.open('wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  after, seconds = time.time(), time.perf_counter() - started
  modified = temporary.stat().st_mtime
  os.replace(temporary, target)
  if target.read_bytes() != content or temporary.exists():
    detail = f'{folder}: the content read back differs from the content renamed'
    return [Check('storage', FAILED, detail, 'use storage whose renames are atomic')]
  speed = STORAGE_TEST_BYTES / seconds / 1e6
  written = Check('storage', OK, f'{folder}: write, rename and read; {speed:.0f} MB/s to disk')
  skew = max(before - modified, modified - after, 0.0)
  return [written, _free_space(folder), _storage_clock(skew)]


def _bucket(url: str) -> list[Check]:
  stem = f'.doctor.{socket.gethostname()}.{os.getpid()}'
  try:
    target = stores.path(url) / f'{stem}.bin'
    content, here = os.urandom(STORAGE_TEST_BYTES), stores.scratch('content')
    here.write_bytes(content)
    before, started = time.time(), time.perf_counter()
    stores.put(here, target)
    after, seconds = time.time(), time.perf_counter() - started
    modified, found = stores.changed_at(target), target.read_bytes()
    target.unlink()
    if found != content:
      return [Check('storage', FAILED, f'{url}: another content came back', 'use another bucket')]
    # Checkpoints and leases go through TensorStore, which has credentials of its own.
    Lease(f'{url}/{stem}.lock').close()
  except ConfigError as error:
    return [Check('storage', FAILED, str(error), 'see docs/on_a_pod.md')]
  except Exception as error:  # whatever the clients of stores raise
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    advice = 'this host must be allowed to create, read and delete objects there'
    return [Check('storage', FAILED, f'{url}: {reason}', advice)]
  speed = STORAGE_TEST_BYTES / seconds / 1e6
  written = Check('storage', OK, f'{url}: write, read and lease; {speed:.0f} MB/s to the bucket')
  # Times of objects are in whole seconds.
  return [written, _storage_clock(max(before - modified - 1, modified - after, 0.0))]


def _free_space(folder: pathlib.Path) -> Check:
  free = shutil.disk_usage(folder).free
  detail = f'{free / 2**30:.1f} GiB'
  if free < LOW_FREE_BYTES:
    return Check('free space', WARNING, detail, 'free some: each stage keeps two checkpoints')
  return Check('free space', OK, detail)


def _storage_clock(skew_s: float) -> Check:
  name, detail = 'storage clock', f"{skew_s:.1f} s from this host's clock"
  if skew_s > MAX_SKEW_S:
    advice = 'the file server and this host disagree on the time: synchronize both (NTP)'
    return Check(name, WARNING, detail, advice)
  return Check(name, OK, detail)


def clock(reference: str) -> Check:
  """Check this host's clock against the server `reference`, or, if '', its NTP status."""
  return _clock_of_server(reference) if reference else _clock_of_system()


def _clock_of_server(reference: str) -> Check:
  request = urllib.request.Request(reference, method='HEAD')
  try:
    with urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_S) as answer:
      reference_time = email.utils.parsedate_to_datetime(answer.headers['Date']).timestamp()
  except (OSError, ValueError, TypeError) as error:
    detail = f'no reference: {reference} returned no date ({error})'
    return Check('clock', WARNING, detail, 'name another --clock_reference')
  skew = time.time() - reference_time - 0.5  # the header is cut to whole seconds
  detail = f'{skew:+.1f} s from {reference}'
  if abs(skew) > MAX_SKEW_S:
    return Check('clock', FAILED, detail, 'synchronize this host (NTP)')
  return Check('clock', OK, detail)


def _clock_of_system() -> Check:
  command = ['timedatectl', 'show', '--property=NTPSynchronized', '--value']
  try:
    answer = subprocess.run(
      command, capture_output=True, text=True, timeout=NETWORK_TIMEOUT_S, check=True
    )
  except (OSError, subprocess.SubprocessError):
    detail = 'no reference: this system does not report its synchronization'
    return Check('clock', WARNING, detail, 'name a server: --clock_reference=URL')
  if answer.stdout.strip() == 'yes':
    return Check('clock', OK, 'synchronized (NTP)')
  advice = 'enable NTP, or compare with a server: --clock_reference=URL'
  return Check('clock', WARNING, 'not synchronized', advice)


def port(coordinator: str) -> Check:
  """Check that `coordinator` (HOST:PORT) can be listened on, or reached if it is another host."""
  name = 'coordinator'
  host, _, number = coordinator.rpartition(':')
  host = host.strip('[]')  # around an IPv6 address
  if not host or not number.isdigit() or not 0 < int(number) < 65536:
    advice = 'must be HOST:PORT, with a port from 1 to 65535'
    return Check(name, FAILED, f'--coordinator={coordinator}', advice)
  try:
    address = socket.getaddrinfo(host, int(number), type=socket.SOCK_STREAM)[0]
  except OSError as error:
    return Check(name, FAILED, f'{host}: {error.strerror}', 'name a host that this one can resolve')
  return _listen(coordinator, address) or _connect(coordinator, address)


def proxy(coordinator: str) -> Check:
  """Check that no proxy of the environment stands before the host of `coordinator` (HOST:PORT).

  A job's own processes pass it by (`distributed.without_proxies`), other programs do not.
  """
  name, host = 'proxy', coordinator.rpartition(':')[0].strip('[]')
  found = [variable for variable in PROXIES if os.environ.get(variable)]
  if not found:
    return Check(name, OK, 'none in the environment')
  if urllib.request.proxy_bypass(host):
    return Check(name, OK, f'no_proxy names {host}')
  exempt = ','.join(filter(None, [os.environ.get('no_proxy') or os.environ.get('NO_PROXY'), host]))
  return Check(
    name,
    WARNING,
    f'{", ".join(found)}: set, and no_proxy does not name the coordinator {host}',
    f'export no_proxy={exempt} NO_PROXY={exempt} on every host: '
    'the processes of a job pass the proxy by, other gRPC programs would wait for it',
  )


def _listen(coordinator: str, address: tuple[Any, ...]) -> Check | None:
  """Try to listen at the address; return None when it is not one of this host."""
  name, (family, *_, socket_address) = 'coordinator', address
  with socket.socket(family, socket.SOCK_STREAM) as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      listener.bind(socket_address)
      listener.listen(1)
      with socket.create_connection(socket_address[:2], timeout=CONNECT_TIMEOUT_S):
        return Check(name, OK, f'{coordinator} is free and reachable from this host')
    except OSError as error:
      if error.errno == errno.EADDRINUSE:
        advice = 'choose another port, or end the process that listens there (ss -ltnp)'
        return Check(name, FAILED, f'{coordinator} is in use', advice)
      if error.errno == errno.EACCES:
        detail = f'no permission to listen at {coordinator}'
        return Check(name, FAILED, detail, 'choose a port above 1023')
  return None


def _connect(coordinator: str, address: tuple[Any, ...]) -> Check:
  name = 'coordinator'
  try:
    socket.create_connection(address[4][:2], timeout=CONNECT_TIMEOUT_S).close()
  except ConnectionRefusedError:
    return Check(name, OK, f'the host of {coordinator} is reachable; nothing listens there yet')
  except OSError as error:
    detail = f'{coordinator} cannot be reached: {error}'
    return Check(name, FAILED, detail, 'open the port between the hosts of the job')
  return Check(name, OK, f'{coordinator} accepts connections')
