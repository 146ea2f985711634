"""The benchmark of the input pipeline at a tiny size: its log is one of the contract, its measures measure, its picture draws."""

import json
import subprocess
import sys
import time

import pytest

from experiments.benchmarks import input_pipeline_parts as parts
from experiments.benchmarks import input_pipeline_plot
from rolegen_jax.data.events import read_contract

EVENTS = 30_000


@pytest.fixture(scope='module')
def log(tmp_path_factory):
  folder = tmp_path_factory.mktemp('log')
  parts.simulate(folder, EVENTS, files=3)
  return folder


@pytest.fixture(scope='module')
def prepared(log, tmp_path_factory):
  output = tmp_path_factory.mktemp('shards')
  return output, parts.prepare(log, output, '--shards=2')


def test_the_log_is_valid_seeded_and_heavy_tailed(log, tmp_path):
  events, items = read_contract(log)
  assert events.height == EVENTS and items.height == EVENTS // 20
  assert events.n_unique() < EVENTS - 100  # rows that are there twice
  for column, most in (('user_id', 10), ('item_id', 40)):
    counts = events[column].value_counts()['count']
    assert counts.max() > most * counts.mean()
  before = {path: path.stat().st_mtime_ns for path in log.rglob('*.parquet')}
  parts.simulate(log, EVENTS, files=3)
  assert {path: path.stat().st_mtime_ns for path in log.rglob('*.parquet')} == before  # made once
  parts.simulate(tmp_path, EVENTS, files=3)
  assert read_contract(tmp_path)[0].equals(events)


def test_preparing_is_measured_from_nothing(log, prepared, tmp_path):
  output, found = prepared
  assert found['events'] == EVENTS and found['events_per_s'] == pytest.approx(EVENTS / found['seconds'])
  assert set(found['phases_s']) == {'split', 'sort', 'pack'}
  assert found['peak_bytes'] > 100 * 2**20 and found['shard_bytes'] > found['rows'] * found['width'] * 15
  with pytest.raises(RuntimeError, match='no such file'):
    parts.prepare(log / 'none', tmp_path / 'shards')


def test_memory_is_that_of_the_children_too():
  command = 'import subprocess, sys; subprocess.run([sys.executable, "-c", "import time; b = bytearray(200 << 20); time.sleep(60)"])'
  with subprocess.Popen([sys.executable, '-c', command]) as process:
    until = time.monotonic() + 60
    while parts.tree_memory(process.pid) < 200 << 20:
      assert time.monotonic() < until
      time.sleep(0.05)
    for pid in reversed(parts.tree(process.pid)):
      subprocess.run(['kill', '-9', str(pid)], check=True)


def test_reading_counts_the_time_spent_waiting(prepared):
  slow = parts.read(prepared[0], batch=4, steps=5, step_s=0.05, cold=True)
  assert 0 <= slow['wait_share'] < 1 and slow['rows_per_s'] < 5 * 4 / (5 * 0.05)
  assert parts.read(prepared[0], batch=4, steps=5, step_s=0.0, cold=False)['wait_share'] > 0.5  # nothing but waiting


def test_the_picture_draws(prepared, tmp_path):
  loops = [dict(batch=batch, cold=cold, step_s=0.001, wait_share=0.1) for batch in (2, 4) for cold in (True, False)]
  found = json.loads(json.dumps(dict(prepared=[prepared[1]], reading=loops)))
  input_pipeline_plot.draw(found, tmp_path / 'x.svg')
  assert 1000 < (tmp_path / 'x.svg').stat().st_size < 200_000
