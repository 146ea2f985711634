import json

import pytest

from experiments.benchmarks import ceiling, harness
from rolegen_jax.cli import entry

RESULTS = json.loads((harness.FOLDER / 'ceiling.json').read_text(encoding='utf-8'))


def test_the_page_has_the_table_of_the_results():
  page = (harness.ROOT / 'docs' / 'context_simulator.md').read_text(encoding='utf-8')
  assert ceiling.table(RESULTS) in page


def test_the_context_simulator_leaves_room_beyond_counting():
  """Of three seeds and two strengths; less than 8 points and it would test nothing."""
  points = RESULTS['points']
  assert len(points) >= 6
  for point in points.values():
    best = ceiling.best_counting(point['hits'])
    assert point['hits']['bayes'][1] >= point['hits'][best][1] + 8
    assert point['hits']['truth'][1] > point['hits']['bayes'][1] - 1


@pytest.mark.slow
def test_a_small_log_is_measured():
  fields = ['kind=context', 'users=300', 'items=200', 'categories=8']
  config = entry.experiment('demo', [f'simulator.{field}' for field in fields])
  point = ceiling.measure_log(config)
  assert point['targets'] > 20 and set(ceiling.SYSTEMS) == set(point['hits'])
  assert point['hits']['truth'][1] > point['hits']['popularity'][1]
