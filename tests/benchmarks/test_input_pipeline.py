"""The input pipeline benchmark at a tiny size: its log is valid, its results plot and tabulate."""

import json
import subprocess
import sys
import time

import pytest

from experiments.benchmarks import harness, input_pipeline
from rolegen_jax.data.contract import read_contract

EVENTS = 30_000


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('pipeline')


@pytest.fixture(scope='module')
def measured(folder) -> dict:
  sizes = dict(events=(EVENTS,), files=3, steps=3)
  results = input_pipeline.measure(harness.Store(), folder=str(folder), **sizes)
  return json.loads(json.dumps(results))


def test_the_log_is_valid_seeded_and_heavy_tailed(measured, folder, tmp_path):
  log = folder / f'log{EVENTS}'
  events, items = read_contract(log)
  assert events.height == EVENTS and items.height == EVENTS // 20
  assert events.n_unique() < EVENTS - 100  # some rows are there twice
  for column, most in (('user_id', 10), ('item_id', 40)):
    counts = events[column].value_counts()['count']
    assert counts.max() > most * counts.mean()
  input_pipeline.simulate(tmp_path, EVENTS, files=3)
  assert read_contract(tmp_path)[0].equals(events)


def test_preparing_and_reading_are_measured(measured):
  prepared = measured['points'][f'prepare {EVENTS}']
  assert prepared['events'] == EVENTS and prepared['peak_bytes'] > 100 * 2**20
  assert prepared['shard_bytes'] > prepared['rows'] * prepared['width'] * 15
  loops = measured['points']['read']['loops']
  assert len(loops) == 16
  for loop in loops:
    assert 0 <= loop['wait_share'] < 1
    assert not loop['step_s'] or loop['rows_per_s'] < loop['batch'] / loop['step_s']


def test_a_failure_shows_the_messages_of_the_command(tmp_path):
  with pytest.raises(RuntimeError, match='no such file'):
    input_pipeline.prepare(tmp_path / 'none', tmp_path / 'shards')


def test_memory_counts_the_children_too():
  child = 'import time; b = bytearray(200 << 20); time.sleep(60)'
  parent = f'import subprocess, sys; subprocess.run([sys.executable, "-c", "{child}"])'
  with subprocess.Popen([sys.executable, '-c', parent]) as process:
    deadline = time.monotonic() + 60
    while input_pipeline.tree_memory(process.pid) < 200 << 20:
      assert time.monotonic() < deadline
      time.sleep(0.05)
    for pid in reversed(input_pipeline.process_tree(process.pid)):
      subprocess.run(['kill', '-9', str(pid)], check=True)


def test_results_plot_and_tabulate(measured, tmp_path):
  committed = json.loads((harness.FOLDER / 'input_pipeline.json').read_text())
  for results in (measured, committed):
    assert len(input_pipeline.table(results).splitlines()) == 1 + len(results['points']) + 8
    path = tmp_path / 'input_pipeline.png'
    input_pipeline.plot(results, path)
    assert 10_000 < path.stat().st_size < harness.MAX_FIGURE_BYTES
