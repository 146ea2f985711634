"""Servers that are kept alive: the supervisor, and the compose file of two replicas and a proxy."""

import contextlib
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import crossplane
import pytest
import yaml

from rolegen_jax.serving.http.client import Client, Failure
from tests.launch.test_container import read_stages

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'launch' / 'serving'
COMPOSE = yaml.safe_load((FOLDER / 'compose.yaml').read_text(encoding='utf-8'))
REPLICAS = {'replica1': 1, 'replica2': 2}


def directives(block: list[dict], name: str) -> list[dict]:
  return [each for each in block if each['directive'] == name]


@pytest.fixture(scope='module')
def proxy() -> list[dict]:
  """The directives of nginx's block `http`."""
  parsed = crossplane.parse(str(FOLDER / 'nginx.conf'))
  assert parsed['status'] == 'ok', parsed['errors']
  [block] = directives(parsed['config'][0]['parsed'], 'http')
  return block['block']


def test_the_replicas_run_the_image_of_the_dockerfile_with_flags_that_there_are(tmp_path):
  assert set(COMPOSE['services']) == {*REPLICAS, 'proxy'}
  for name in REPLICAS:
    replica = COMPOSE['services'][name]
    context = FOLDER / replica['build']['context']
    assert context.resolve() == ROOT and replica['build']['target'] in read_stages()
    command, *given = replica['command']
    flags = [*given, f'--workdir={tmp_path}']  # where there is no run: then flags were understood
    ended = subprocess.run(
      [sys.executable, '-m', 'rolegen_jax', command, *flags], capture_output=True, text=True
    )
    assert command == 'serve' and 'no config.json there' in ended.stderr
    assert '--auth_token_file=/run/secrets/token' in given and replica['secrets'] == ['token']
    assert replica['restart'] == 'always'
    mounts = dict(
      volume.rsplit(':', 2)[-2:] for volume in replica['volumes'] if volume.endswith(':ro')
    )
    assert mounts == {'/rolegen/run': 'ro'} and '--workdir=/rolegen/run' in given
    cache = replica['environment']['JAX_COMPILATION_CACHE_DIR']
    assert f'programs:{cache}' in replica['volumes'] and 'programs' in COMPOSE['volumes']
    owned = next(line for line in read_stages()['base'][1] if 'chown' in line)
    assert pathlib.PurePath(cache).name in owned.split('chown')[1].split()
    compile(replica['healthcheck']['test'][-1], 'healthcheck', 'exec')


def test_only_the_proxy_has_a_port_and_it_is_of_the_loopback():
  services = COMPOSE['services']
  assert services['proxy']['ports'] == ['127.0.0.1:8080:8080']
  assert all('ports' not in services[name] for name in REPLICAS)
  assert set(services['proxy']['depends_on']) == set(REPLICAS)


def test_the_proxy_knows_the_replicas(proxy):
  places = {
    block['args'][0]: [server['args'][0] for server in directives(block['block'], 'server')]
    for block in directives(proxy, 'upstream')
  }
  both = [f'{name}:8080' for name in REPLICAS]
  assert places['replicas'] == both
  assert {name: places[name] for name in ('replica_1', 'replica_2')} == {
    f'replica_{number}': [f'{name}:8080'] for name, number in REPLICAS.items()
  }


class Replica(http.server.BaseHTTPRequestHandler):
  """Answers with its name, its path and how it was asked."""

  protocol_version = 'HTTP/1.1'

  def do_POST(self):
    self.rfile.read(int(self.headers['content-length']))
    self.do_GET()

  def do_GET(self):
    said = json.dumps(dict(name=self.server.server_port, path=self.path)).encode()
    self.send_response(200)
    self.send_header('content-length', str(len(said)))
    self.send_header('connection', 'close')  # nothing is left when the server has gone
    self.end_headers()
    self.wfile.write(said)

  def log_message(self, *args):
    pass


@contextlib.contextmanager
def replica():
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Replica)
  server.daemon_threads = True
  threading.Thread(target=server.serve_forever).start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def nginx(folder, ports):
  """Run nginx with the configuration of the compose file over ports of this machine."""
  with socket.create_server(('127.0.0.1', 0)) as free:
    port = free.getsockname()[1]
  text = (FOLDER / 'nginx.conf').read_text(encoding='utf-8')
  for name, at in zip(REPLICAS, ports):
    text = text.replace(f'{name}:8080', f'127.0.0.1:{at}')
  text = text.replace('listen 8080', f'listen 127.0.0.1:{port}')
  (folder / 'nginx.conf').write_text(text)
  here = f'daemon off; pid {folder}/pid;'
  command = ['nginx', '-c', f'{folder}/nginx.conf', '-e', f'{folder}/log', '-g', here]
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
  try:
    for _ in range(100):
      with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), 1):
        break
      time.sleep(0.05)
    yield f'http://127.0.0.1:{port}'
  finally:
    process.terminate()
    process.wait(10)


@pytest.mark.skipif(shutil.which('nginx') is None, reason='there is no nginx')
def test_the_proxy_reads_from_either_replica_and_passes_over_one_that_is_gone(tmp_path):
  with replica() as first, contextlib.ExitStack() as until_gone:
    second = until_gone.enter_context(replica())
    ports = first.server_port, second.server_port
    with nginx(tmp_path, ports) as url:
      client = Client(url, tries=1)
      assert {client.recommend(1)['name'] for _ in range(8)} == set(ports)
      both = Client(f'{url}/replica/1', f'{url}/replica/2', tries=1)
      assert both.append(1, []) == [dict(name=port, path='/v1/events') for port in ports]
      for path, body in (('/v1/events', b'{}'), ('/v1/catalogue', b'{}')):
        with pytest.raises(urllib.error.HTTPError) as refused:
          urllib.request.urlopen(f'{url}{path}', body)
        assert refused.value.code == 421
        assert 'tell both' in json.loads(refused.value.read())['message']
      assert client.catalogue()['path'] == '/v1/catalogue'
      until_gone.close()
      assert {client.recommend(1)['name'] for _ in range(8)} == {ports[0]}
      with pytest.raises(Failure, match='502'):
        Client(f'{url}/replica/2', tries=2, wait=0.001).append(1, [])
      # What reads is asked for again, of the next address.
      assert Client(f'{url}/replica/2', url, wait=0.001).recommend(1)['name'] == ports[0]


def test_the_supervisor_passes_the_flags_of_serve_on_and_a_wrong_one_ends_it(tmp_path):
  command = [sys.executable, '-m', 'launch.serve', f'--workdir={tmp_path}', '--port=0']
  ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert ended.returncode == 2 and 'restart' not in ended.stderr
  assert ended.stderr.strip() == (
    f'--workdir={tmp_path}: no config.json there; must be the folder of a run of `rolegen train`'
  )
  ended = subprocess.run([*command, '--ports=1'], cwd=ROOT, capture_output=True, text=True)
  assert ended.returncode == 2 and 'ports' in ended.stderr


def test_a_server_that_is_killed_is_started_again(tmp_path):
  """The supervisor is that of real servers; what it runs here stands for one."""
  stand_in = tmp_path / 'stand_in.py'
  stand_in.write_text(
    'import sys, time\n'
    'from launch import supervise\n'
    'child = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]\n'
    'sys.exit(supervise.run(lambda: [child], 5, 1.0))\n'
  )
  environment = os.environ | dict(PYTHONPATH=str(ROOT))
  supervisor = subprocess.Popen(
    [sys.executable, stand_in], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
  )
  try:
    for _ in range(3):
      assert supervisor.stdout.readline()
      children = pathlib.Path(f'/proc/{supervisor.pid}/task/{supervisor.pid}/children').read_text()
      os.kill(int(children.split()[-1]), signal.SIGKILL)
    assert supervisor.stdout.readline()
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(30) > 128
    said = supervisor.stderr.read().decode()
    assert re.findall(r'restart (\d) of 5', said) == ['1', '2', '3']
  finally:
    supervisor.kill()
