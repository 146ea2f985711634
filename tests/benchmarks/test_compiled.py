"""The benchmarks that compile for TPUs without one, at the tiny size, and their pictures."""

import importlib.util
import json

import numpy as np
import pytest

from experiments.benchmarks import harness, train_modes, weak_scaling
from rolegen_jax.config import ConfigError
from tests import tiny

COMPILES = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason='libtpu, the TPU compiler, is not installed (requirements-test.txt)',
  ),
]


def small_models(*sizes: str) -> tuple[str, ...]:
  models = ('backbone.temporal', 'reasoner.transformer')
  rest = ('backbone.context=16', 'reasoner.events=6', 'reasoner.role_events=4')
  return (*(f'{model}.{size}' for model in models for size in sizes), *rest)


class TestWeakScaling:
  pytestmark = COMPILES

  def test_points_are_compiled_and_drawn(self, tmp_path):
    sizes = ('layers=1', 'width=256', 'heads=8', 'kv_heads=8', 'head_dim=32', 'mlp=256')
    settings = dict(chips=(16,), assignments=small_models(*sizes))
    results = json.loads(json.dumps(weak_scaling.measure(harness.Store(), **settings)))
    point = results['points']['16']
    assert point['users'] == 64 and point['mesh'] == dict(data=1, fsdp=2, tensor=8)
    assert sum(point['roofline'].values()) == pytest.approx(point['seconds'])
    assert sum(point['sent'].values()) > 0
    weak_scaling.plot(results, tmp_path / 'weak_scaling.png')
    assert (tmp_path / 'weak_scaling.png').read_bytes().startswith(b'\x89PNG')
    assert '1 x 2 x 8' in weak_scaling.table(results)


class TestTrainModes:
  pytestmark = COMPILES

  def test_a_mode_is_compiled_and_drawn(self, tmp_path, monkeypatch):
    monkeypatch.setattr(train_modes, 'MODES', ('lora',))
    settings = dict(experiment='demo', topology='tpu:v5e:2x2', items=1000)
    results = train_modes.measure(
      harness.Store(), assignments=small_models(*tiny.SIZES), **settings
    )
    results = json.loads(json.dumps(results))
    point = results['points']['lora']
    assert 0 < point['trained'] < point['frozen'] and point['users'] > 0
    assert 0 < point['memory']['total'] < point['memory']['hbm']
    train_modes.plot(results, tmp_path / 'train_modes.png')
    assert (tmp_path / 'train_modes.png').read_bytes().startswith(b'\x89PNG')
    assert 'lora' in train_modes.table(results)


def test_parameter_counts_are_those_of_the_models():
  counts = {
    mode: train_modes.parameter_counts(
      tiny.config(f'reasoner.train={mode}', 'reasoner.lora.rank=2')
    )
    for mode in train_modes.MODES
  }
  # wq and wo 32 to 32, wk and wv 32 to 16, gate, up and down between 32 and 48.
  adapters = 2 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
  assert counts['lora']['trained'] == counts['frozen']['trained'] + adapters
  assert counts['lora']['frozen'] == counts['frozen']['frozen'] and counts['all']['frozen'] == 0
  saved = counts['all']['checkpoint_bytes'] - counts['lora']['checkpoint_bytes']
  assert saved == 16 * (counts['all']['trained'] - counts['lora']['trained'])


def test_meshes_are_of_whole_dimensions_and_users_per_chip_constant():
  for chips, (torus, *mesh) in weak_scaling.MESHES.items():
    sizes = [int(n) for n in torus.split('x')]
    assert np.prod(sizes) == np.prod(mesh) == chips
    assert lies(sizes, mesh), chips
    batch = f'--set=loop_stage.batch={weak_scaling.USERS_PER_CHIP * chips}'
    assert batch in weak_scaling.check_flags(chips)
  with pytest.raises(ConfigError, match='--chips=17: must be some of 16, 64'):
    weak_scaling.measure(harness.Store(), chips=(17,))


def lies(dimensions: list[int], mesh: list[int]) -> bool:
  """Return whether each mesh axis can be a product of whole dimensions, each used once."""
  if not dimensions:
    return all(n == 1 for n in mesh)
  first, *rest = dimensions
  return any(
    n % first == 0 and lies(rest, [*mesh[:i], n // first, *mesh[i + 1 :]])
    for i, n in enumerate(mesh)
  )
