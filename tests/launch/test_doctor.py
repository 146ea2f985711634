"""The doctor: what is well is ok, and each thing that is not is named with what to do."""

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


def test_the_whole_of_it_on_eight_devices(tmp_path):
  with socket.create_server(('localhost', 0)) as free:
    port = free.getsockname()[1]
  command = [sys.executable, '-m', 'launch.doctor', '--json', f'--workdir={tmp_path / "new"}', f'--coordinator=localhost:{port}']
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '8'}
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
  answer = json.loads(done.stdout)
  found = {check['name']: check for check in answer['checks']}
  assert done.returncode == 0 and answer['ok'], done.stdout
  assert found['devices']['found'].startswith('8 x cpu')
  for axis in ('data', 'fsdp', 'tensor'):
    assert found[f'collective over {axis}']['found'].startswith('sum over 8 devices')
  assert {'python', 'jax', 'flax', 'storage', 'free space', 'clock of the storage', 'clock', 'coordinator'} <= set(found)
  assert list((tmp_path / 'new').iterdir()) == []


def test_a_port_in_use_and_an_address_that_is_none():
  with socket.create_server(('localhost', 0)) as taken:
    found = checks.port(f'localhost:{taken.getsockname()[1]}')
  assert found.state == checks.FAILED and 'in use' in found.found and 'another port' in found.advice
  assert checks.port('8476').state == checks.FAILED and 'HOST:PORT' in checks.port('localhost:99999').advice
  assert checks.port('no-such-host.invalid:8476').state == checks.FAILED


def test_packages_that_are_missing_or_too_new(tmp_path):
  path = tmp_path / 'requirements.txt'
  path.write_text('# comment\nno-such-package-here>=1,<2\nnumpy>=0.1,<0.2\njinja2>=3,<99\njinja2>=98,<99; python_version < "3"\n')
  found = {check.name: check for check in checks.versions(path)}
  assert found['no-such-package-here'].state == checks.FAILED and 'pip install' in found['no-such-package-here'].advice
  assert found['numpy'].state == checks.WARNING and found['jinja2'].state == checks.OK


def test_storage_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  found = checks.storage(str(tmp_path / 'file' / 'folder'))
  assert [check.state for check in found] == [checks.FAILED] and 'may write' in found[0].advice


@pytest.mark.parametrize(('code', 'found'), [
    ("raise SystemExit('no TPU here')", 'no TPU here'), ('import time; time.sleep(60)', 'no answer in 1 s'),
    ('''print('{"devices": {"platform": "gpu", "kind": "X", "count": 2, "memory_bytes": null}, "collectives": [{"axis": "data", "devices": 2, "right": false, "ms": 1}]}')''', 'wrong'),
])
def test_devices_that_fail_hang_or_add_wrongly(code, found):
  last = checks.devices(1.0 if 'sleep' in code else 60.0, (sys.executable, '-c', code))[-1]
  assert last.state == checks.FAILED and found in last.found and last.advice


def test_the_clock_against_a_reference():
  class Wrong(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
      self.send_response_only(200)
      self.send_header('Date', 'Mon, 01 Jan 2024 00:00:00 GMT')
      self.end_headers()

    def log_message(self, *_):
      pass

  with http.server.HTTPServer(('localhost', 0), Wrong) as server:
    threading.Thread(target=server.handle_request, daemon=True).start()
    found = checks.clock(f'http://localhost:{server.server_port}')
  assert found.state == checks.FAILED and 'NTP' in found.advice
  unreachable = checks.clock('http://no-such-host.invalid')
  assert unreachable.state == checks.WARNING and unreachable.found.startswith('no reference')
