"""Cost growth at the tiny size: what a point holds, that it is measured once, and the picture."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.benchmarks import growth, harness
from rolegen_jax import overrides
from rolegen_jax.config import Config
from tests import tiny

TINY = (
  *(f'backbone.temporal.{size}' for size in tiny.SIZES),
  *(f'reasoner.transformer.{size}' for size in tiny.SIZES),
  'semantic_ids.codes=8',
  'backbone.context=16',
  'reasoner.events=6',
  'reasoner.role_events=4',
  'loop_stage.batch=8',
  'mesh.data=8',
)


@pytest.mark.slow
def test_a_point_is_measured_once_and_drawn(tmp_path, monkeypatch):
  # The eight devices of the tests do not share half a batch.
  batch = dataclasses.replace(growth.AXES['batch'], factors=(2,))
  monkeypatch.setitem(growth.AXES, 'batch', batch)
  settings = dict(axes=('batch',), items=60, repeats=3, assignments=TINY)
  store = harness.Store()
  results = json.loads(json.dumps(growth.measure(store, **settings)))
  base, point = results['points']['base'], results['points']['batch 16']
  assert results['base_values']['batch'] == 8 and len(results['points']) == 2
  assert point['flops'] == {phase: 2 * flops for phase, flops in base['flops'].items()}
  assert point['memory']['temporaries'] > 1.3 * base['memory']['temporaries']
  assert point['step']['n'] == 3 and point['ratio']['median'] > 0

  monkeypatch.setattr(growth, 'compile_step', pytest.fail)
  assert json.loads(json.dumps(growth.measure(store, **settings))) == results
  growth.plot(results, tmp_path / 'growth.png')
  assert (tmp_path / 'growth.png').read_bytes().startswith(b'\x89PNG')
  assert growth.table(results).splitlines()[1].startswith('batch        8, 16')


def test_an_axis_scales_its_fields():
  base = overrides.apply(Config(), ['semantic_ids.codes=128', 'reasoner.role_events=8'])
  for axis in growth.AXES.values():
    for factor in axis.factors:
      config, items = growth.scale(axis, factor, base, 1000)
      expected = round(factor * growth.position(axis, base, 1000))
      assert growth.position(axis, config, items) == expected


def test_a_slope_is_the_exponent():
  x = np.array([8, 16, 32, 64])
  assert growth.slope(x, 3.0 * x**1.5) == pytest.approx(1.5)
