"""A trained run served for minutes under load, killed, and exported, by the commands of users.

The soak takes five minutes; ROLEGEN_SOAK_MINUTES=60 makes it an hour.
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.serving.http.client import Client
from tests.cli.test_commands import SMALL

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, '-m', 'rolegen_jax']
MINUTES = float(os.environ.get('ROLEGEN_SOAK_MINUTES', '5'))
START_S = 600  # that a server has to be ready

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run folder, everything trained."""
  place = tmp_path_factory.mktemp('soak') / 'run'
  settings = [f'--set={each}' for each in (*SMALL, 'evaluation.occasions=20')]
  command = [*COMMAND, 'train', '--experiment=demo', f'--workdir={place}', *settings]
  subprocess.run(command, check=True)
  return place


def is_ready(url: str) -> bool:
  with contextlib.suppress(OSError), urllib.request.urlopen(f'{url}/readyz', timeout=2) as response:
    return response.status == 200
  return False


def wait_ready(url: str) -> None:
  for _ in range(10 * START_S):
    if is_ready(url):
      return
    time.sleep(0.1)
  raise AssertionError(f'{url} is not ready')


@contextlib.contextmanager
def started(module: list[str], folder):
  """Run a server, or its supervisor, on a port that is free."""
  with socket.create_server(('127.0.0.1', 0)) as free:
    port = free.getsockname()[1]
  flags = [f'--workdir={folder}', f'--port={port}', '--max_batch=4', '--reasoning=off']
  process = subprocess.Popen([sys.executable, '-m', *module, *flags], cwd=ROOT)
  try:
    wait_ready(f'http://127.0.0.1:{port}')
    yield f'http://127.0.0.1:{port}', process
  finally:
    process.terminate()
    process.wait(90)


def test_nothing_fails_and_nothing_grows_while_users_act_and_items_come_and_go(folder, tmp_path):
  figures, picture = tmp_path / 'load.json', tmp_path / 'load.png'
  with started(['rolegen_jax', 'serve'], folder) as (url, _):
    load = [f'--url={url}', f'--workdir={folder}', '--rps=10', f'--duration={60 * MINUTES}']
    load += ['--appends=0.1', '--malformed=0.01', '--changes_per_minute=1000']
    load += [f'--json={figures}', f'--plot={picture}']
    subprocess.run([*COMMAND, 'loadtest', *load], check=True)
  found = json.loads(figures.read_text())
  assert found['failed'] == found['wrong'] == 0, found
  assert found['kinds']['change']['ok'] > 900 * MINUTES
  assert found['server']['compilations']['most'] == 0
  assert found['server']['catalogue_version']['last'] > 900 * MINUTES
  memory = found['server']['memory_bytes']
  # Rows that are appended, items that are new and versions to return to take some.
  assert memory['last'] < 1.2 * memory['first'] + 32 * 2**20, memory
  assert picture.stat().st_size > 10_000


def test_no_request_is_lost_with_a_replica_that_is_killed(folder):
  supervised = ['launch.serve']
  with (
    started(supervised, folder) as (first, supervisor),
    started(supervised, folder) as (second, _),
  ):
    users = pl.read_parquet(folder / 'data' / 'log_users.parquet')['user_id'].to_list()
    answered, lost, stop = [], [], threading.Event()

    def ask(place: int) -> None:
      client = Client(*((first, second) if place % 2 else (second, first)))
      while not stop.is_set():
        try:
          answered.append(client.recommend(users[place])['items'])
        except Exception as error:  # whatever is lost
          lost.append(error)
        time.sleep(0.2)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(6)]
    for thread in threads:
      thread.start()
    time.sleep(3)
    children = f'/proc/{supervisor.pid}/task/{supervisor.pid}/children'
    os.kill(int(pathlib.Path(children).read_text().split()[-1]), signal.SIGKILL)
    while is_ready(first):
      time.sleep(0.01)
    wait_ready(first)
    time.sleep(3)
    stop.set()
    for thread in threads:
      thread.join()
    assert not lost and len(answered) > 60 and all(answered)
    assert Client(first, tries=1).recommend(users[0])['items']


def test_the_decoder_recommends_without_the_package_as_with_it(folder, tmp_path):
  place = f'--workdir={folder}'
  export = [*COMMAND, 'export', place, '--what=decoder', f'--output={tmp_path / "decoder"}']
  subprocess.run([*export, '--platforms=cpu,cuda,tpu', '--batch_sizes=1,4'], check=True)
  programs = json.loads((tmp_path / 'decoder' / 'manifest.json').read_text())['programs']
  assert {(each['platform'], each['batch']) for each in programs} == {
    (platform, batch) for platform in ('cpu', 'cuda', 'tpu') for batch in (1, 4)
  }
  for flag, said in (('--platforms=gpu', 'cpu, cuda, tpu'), ('--batch_sizes=0', 'from 1 to 4096')):
    refused = subprocess.run([*export, flag], capture_output=True, text=True)
    assert refused.returncode == 2 and said in refused.stderr.splitlines()[-1]
  output = tmp_path / 'out.parquet'
  plain = ['--set=serving.exploration_weight=0', '--set=serving.filter_history=allow']
  recommend = [*COMMAND, 'recommend', place, '--users=all', f'--output={output}', '--top=20']
  subprocess.run([*recommend, *plain], check=True)
  table = pl.read_parquet(output)
  log = {name: pl.read_parquet(folder / f'data/log_{name}.parquet') for name in ('items', 'events')}
  item_ids, time = log['items']['item_id'].to_list(), int(log['events']['timestamp'].max()) + 1
  for user in (3, 17):
    events = [
      dict(
        item_id=item_ids[row['item']],
        event=EVENT_NAMES[row['event']],
        timestamp=row['timestamp'],
      )
      for row in log['events'].filter(user=user).to_dicts()
      for _ in range(row['count'])
    ]
    folds = json.loads((tmp_path / 'decoder' / 'manifest.json').read_text())['folds']
    example = [sys.executable, '-P', ROOT / 'docs' / 'run_decoder.py', tmp_path / 'decoder', 'cpu']
    ended = subprocess.run(
      example,
      input=json.dumps(dict(events=events, time=time, fold=user % folds)),
      stdout=subprocess.PIPE,
      text=True,
      check=True,
      cwd=tmp_path,
      env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'},
    )
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    expected = table.filter(user_id=user).sort('rank')
    assert [each['item_id'] for each in found] == expected['item_id'].to_list()
    scores = [each['log_prob'] for each in found]
    np.testing.assert_allclose(scores, expected['log_prob'], atol=1e-4)
