"""The benchmark of scale: memory counts for its stage, and a tiny run has every stage."""

import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from experiments.benchmarks import harness, scale

MIB = 2**20


def measured_stages() -> dict:
  """Measure three stages: one that holds nothing, one of memory of its own, one of a file."""

  def allocate() -> None:
    held = np.ones(200 * MIB, np.uint8)
    time.sleep(0.5)
    del held

  def map_file() -> None:
    with tempfile.TemporaryFile() as file:
      file.write(bytes(200 * MIB))
      file.flush()
      mapped = np.memmap(file, np.uint8, 'r')
      assert mapped.sum() == 0
      time.sleep(0.5)

  with scale.Meter() as meter:
    for name, stage in (('none', lambda: time.sleep(0.5)), ('own', allocate), ('file', map_file)):
      meter.timed(name, stage)()
  return meter.stages()


def test_memory_is_told_apart_by_stage_and_kind():
  # A process of its own: memory that other tests left here would be used again, or given back.
  context = multiprocessing.get_context('spawn')
  with ProcessPoolExecutor(1, mp_context=context) as pool:
    stages = pool.submit(measured_stages).result()
  none, own, file = (stages[name] for name in ('none', 'own', 'file'))
  assert none['seconds'] >= 0.5 and none['allocated'] > 50 * MIB
  # Half of what a stage holds: a busy system takes some of the rest back meanwhile.
  assert own['allocated'] > none['allocated'] + 100 * MIB > own['mapped'] + 100 * MIB
  assert file['mapped'] > none['mapped'] + 100 * MIB


@pytest.mark.slow  # runs the benchmark
def test_a_tiny_run_has_every_stage_and_is_drawn(tmp_path):
  sizes = dict(users=200, items=300, events=6000, largest=(), occasions=20)
  measured = scale.measure(harness.Store(), folder=str(tmp_path), **sizes)
  results = json.loads(json.dumps(measured))
  assert len(results['points']) == 7
  for point in results['points'].values():
    assert list(point['stages']) == [
      'data',
      'semantic IDs',
      'choices',
      'features',
      'trie',
      'baselines',
    ]
    assert all(used['seconds'] > 0 for used in point['stages'].values())
    assert point['stages']['features']['allocated'] > 100 * MIB
    assert point['device_table_bytes'] > 300 * 12
  assert len(scale.table(results).splitlines()) == 2 + 7
  scale.plot(results, tmp_path / 'scale.png')
  assert (tmp_path / 'scale.png').stat().st_size > 10_000


def test_the_page_has_the_table_of_the_stored_results():
  results = json.loads((harness.FOLDER / 'scale.json').read_text())
  assert scale.table(results) in (harness.ROOT / 'docs/scale.md').read_text()
