"""The doctor reports a healthy host as ok, and names each fault with what to do about it."""

import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from launch import checks

ROOT = pathlib.Path(__file__).parents[2]


def test_all_checks_on_eight_devices(tmp_path):
  with socket.create_server(('localhost', 0)) as server:
    free_port = server.getsockname()[1]
  workdir = tmp_path / 'new'
  flags = ['--json', f'--workdir={workdir}', f'--coordinator=localhost:{free_port}']
  result = subprocess.run(
    [sys.executable, '-m', 'launch.doctor', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '8'},
    check=False,
  )
  answer = json.loads(result.stdout)
  details = {check['name']: check['detail'] for check in answer['checks']}
  assert result.returncode == 0 and answer['ok'], result.stdout
  assert details['devices'].startswith('8 x cpu')
  for axis in ('data', 'fsdp', 'tensor'):
    assert details[f'collective over {axis}'].startswith('sum over 8 devices')
  expected = {'python', 'jax', 'flax', 'storage', 'free space', 'storage clock', 'clock'}
  assert expected | {'coordinator'} <= set(details)
  assert list(workdir.iterdir()) == []


def test_a_port_in_use_and_malformed_addresses():
  with socket.create_server(('localhost', 0)) as server:
    check = checks.port(f'localhost:{server.getsockname()[1]}')
  assert check.state == checks.FAILED
  assert 'in use' in check.detail and 'another port' in check.advice
  assert checks.port('8476').state == checks.FAILED
  assert 'HOST:PORT' in checks.port('localhost:99999').advice
  assert checks.port('no-such-host.invalid:8476').state == checks.FAILED


def test_packages_that_are_missing_or_too_new(tmp_path):
  path = tmp_path / 'requirements.txt'
  lines = [
    '# comment',
    'no-such-package-here>=1,<2',
    'numpy>=0.1,<0.2',
    'jinja2>=3,<99',
    'jinja2>=98,<99; python_version < "3"',
  ]
  path.write_text('\n'.join(lines) + '\n')
  by_name = {check.name: check for check in checks.versions(path)}
  missing = by_name['no-such-package-here']
  assert missing.state == checks.FAILED and 'pip install' in missing.advice
  assert by_name['numpy'].state == checks.WARNING
  assert by_name['jinja2'].state == checks.OK


def test_storage_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  (check,) = checks.storage(str(tmp_path / 'file' / 'folder'))
  assert check.state == checks.FAILED and 'writable folder' in check.advice


WRONG_SUM = dict(
  devices=dict(platform='gpu', kind='X', count=2, memory_bytes=None),
  collectives=[dict(axis='data', devices=2, right=False, ms=1)],
)


@pytest.mark.parametrize(
  ('code', 'timeout_s', 'detail'),
  [
    ("raise SystemExit('no TPU here')", 60.0, 'no TPU here'),
    ('import time; time.sleep(60)', 1.0, 'no response within 1 s'),
    (f'print({json.dumps(WRONG_SUM)!r})', 60.0, 'wrong result'),
  ],
)
def test_devices_that_fail_hang_or_sum_wrongly(code, timeout_s, detail):
  check = checks.devices(timeout_s, (sys.executable, '-c', code))[-1]
  assert check.state == checks.FAILED and detail in check.detail and check.advice


class WrongClock(http.server.BaseHTTPRequestHandler):
  """A server whose Date header is years behind."""

  def do_HEAD(self):
    self.send_response_only(200)
    self.send_header('Date', 'Mon, 01 Jan 2024 00:00:00 GMT')
    self.end_headers()

  def log_message(self, *_):
    pass


def test_the_clock_against_a_reference():
  with http.server.HTTPServer(('localhost', 0), WrongClock) as server:
    threading.Thread(target=server.handle_request, daemon=True).start()
    check = checks.clock(f'http://localhost:{server.server_port}')
  assert check.state == checks.FAILED and 'NTP' in check.advice
  unreachable = checks.clock('http://no-such-host.invalid')
  assert unreachable.state == checks.WARNING and unreachable.detail.startswith('no reference')
