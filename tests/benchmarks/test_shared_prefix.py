"""Both sides at the tiny size: equal samples, as training scores them, and the picture."""

import copy
import json

import pytest

from experiments.benchmarks import harness, shared_prefix
from rolegen_jax.config import ConfigError
from tests import tiny

TINY = (
  *(f'backbone.temporal.{size}' for size in tiny.SIZES),
  *(f'reasoner.transformer.{size}' for size in tiny.SIZES),
  'semantic_ids.codes=8',
  'backbone.context=16',
  'reasoner.role_events=4',
  'loop_stage.batch=8',
)


@pytest.mark.slow
def test_both_sides_sample_what_training_scores(tmp_path):
  settings = dict(dtypes=('float32',), events=(6,), worlds=(2, 4), items=60, repeats=3)
  results = shared_prefix.measure(harness.Store(), assignments=TINY, **settings)
  results = json.loads(json.dumps(results))
  assert list(results['points']) == ['float32 6 2', 'float32 6 4']
  for point in results['points'].values():
    assert point['tokens_equal'] == 1 and point['users'] == 8
    for side in point['sides'].values():
      assert side['off_training']['max'] < 1e-4 and side['off_training']['tokens'] > 100
  four_worlds = results['points']['float32 6 4']['sides']
  assert four_worlds['shared']['temporaries'] < four_worlds['naive']['temporaries']
  shared_prefix.plot(results, tmp_path / 'shared_prefix.png')
  assert (tmp_path / 'shared_prefix.png').read_bytes().startswith(b'\x89PNG')
  assert '100.00 %' in shared_prefix.table(results)

  wrong = copy.deepcopy(point)
  wrong['sides']['naive']['off_training']['max'] = 0.5
  with pytest.raises(ConfigError, match='nats off the training forward'):
    shared_prefix.check(wrong)
  with pytest.raises(ConfigError, match='50.00 % of the tokens'):
    shared_prefix.check(point | dict(tokens_equal=0.5))
