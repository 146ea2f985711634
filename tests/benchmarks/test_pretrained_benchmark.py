"""Loading of a one-layer checkpoint both ways, each in a process of its own, and the picture."""

import json

import pytest

from experiments.benchmarks import harness, pretrained


@pytest.mark.slow
def test_both_ways_are_measured_and_drawn(tmp_path):
  results = pretrained.measure(harness.Store(), rounds=1, layers=1)
  results = json.loads(json.dumps(results))
  assert list(results['points']) == ['streamed 0', 'at_once 0']
  assert results['points']['streamed 0']['within']
  assert min(point['arrays_bytes'] for point in results['points'].values()) > 1e8
  pretrained.plot(results, tmp_path / 'pretrained.png')
  assert (tmp_path / 'pretrained.png').read_bytes().startswith(b'\x89PNG')
  assert 'within' in pretrained.table(results)
