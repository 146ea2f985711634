"""`rolegen serve` as a process: what it refuses, what it answers, how it leaves."""

import concurrent.futures
import signal
import socket
import subprocess
import sys

import polars as pl
import pytest

from rolegen_jax.cli import entry
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.serving.http.client import Client
from tests.cli.test_commands import SMALL

COMMAND = [sys.executable, '-m', 'rolegen_jax']


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
  """A run folder with settings and nothing trained."""
  folder = tmp_path_factory.mktemp('begun')
  open_run(entry.experiment('demo', SMALL), folder)
  return folder


def serve(folder, *flags: str) -> list[str]:
  return [*COMMAND, 'serve', f'--workdir={folder}', *flags]


def test_what_cannot_be_served_is_one_line(begun, tmp_path):
  short, taken = tmp_path / 'token', socket.create_server(('127.0.0.1', 0))
  short.write_text('secret')
  port = taken.getsockname()[1]
  wrong = {
    '--top=21': '--top=21: must be at most backbone.beam=20',
    f'--port={port}': f'--port={port}: cannot be served at',
    f'--auth_token_file={short}': 'token: must be one line: a token of 16 printable',
    f'--auth_token_file={tmp_path}/none': 'none: cannot be read',
    '--allowed_hosts=http://a': "--allowed_hosts: 'http://a' must be one of names without scheme",
    '--max_batch=33': 'max_batch',
    '--reasoning=much': 'reasoning',
    '--port=0': 'its stage data is not complete',
  }
  with taken, concurrent.futures.ThreadPoolExecutor(2) as pool:
    run = lambda flag: subprocess.run(  # noqa: E731
      serve(begun, flag), capture_output=True, text=True, check=False
    )
    for (flag, message), done in zip(wrong.items(), pool.map(run, wrong)):
      assert done.returncode == entry.BAD_INPUT, (flag, done.stderr)
      assert message in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr


def test_what_must_be_installed_is_named(begun):
  code = (
    'import sys; from rolegen_jax.cli import entry, serve; '
    f'serve.NEEDED += ("not_installed",); sys.argv = ["x", "--workdir={begun}"]; '
    'entry.run(serve.main)'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert done.returncode == entry.BAD_INPUT
  assert done.stderr.strip() == (
    'serve: not_installed must be installed: pip install -r requirements-serve.txt'
  )


@pytest.mark.slow
def test_a_server_answers_as_recommend_does_and_drains(tmp_path):
  folder, output = tmp_path / 'run', tmp_path / 'out.parquet'
  settings = [f'--set={each}' for each in (*SMALL, 'evaluation.occasions=20')]
  place = f'--workdir={folder}'
  subprocess.run([*COMMAND, 'train', '--experiment=demo', place, *settings], check=True)
  subprocess.run([*COMMAND, 'recommend', place, '--users=all', f'--output={output}'], check=True)
  table = pl.read_parquet(output)
  server = subprocess.Popen(
    serve(folder, '--port=0', '--max_batch=2'), stderr=subprocess.PIPE, text=True
  )
  try:
    ready = next(line for line in server.stderr if line.startswith('ready: '))
    url = ready.removeprefix('ready: ').strip()
    client = Client(url)
    users = table['user_id'].unique().sort().to_list()[:20]

    def listed(user):
      return [item['item_id'] for item in Client(url).recommend(user)['items']]

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      for user, items in zip(users, pool.map(listed, users)):
        assert items == table.filter(user_id=user).sort('rank')['item_id'].to_list()
      under_way = [pool.submit(listed, user) for user in users[:3]]
      client.catalogue()
      server.send_signal(signal.SIGTERM)
      ended = [each.exception() or each.result() for each in under_way]
    # What was taken on is answered; what came after is refused, so that another is asked.
    assert all(isinstance(end, (list, OSError)) for end in ended)
    rest = server.stderr.read()
    assert server.wait(60) == 0
    assert rest.splitlines()[-1] == 'drained' and 'Traceback' not in rest
  finally:
    server.kill()
