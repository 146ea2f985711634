import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from rolegen_jax.config import ConfigError, MeshConfig
from rolegen_jax.models import functional
from rolegen_jax.models.transformer import Transformer
from rolegen_jax.sharding import make_mesh
from tests import tiny

MODELS = ['backbone', 'reasoner']


@pytest.mark.parametrize('name', MODELS)
def test_every_array_has_one_logical_axis_per_dimension(name):
  _, shapes, axes = functional.abstract(tiny.rolegen().model_fns[name])
  flat = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
  assert [len(a) for a in flat] == [s.ndim for s in jax.tree.leaves(shapes)]
  assert {s.dtype for s in jax.tree.leaves(shapes)} == {np.dtype('float32')}


def test_stacked_layers_get_the_layers_axis():
  _, shapes, axes = functional.abstract(tiny.rolegen().model_fns['backbone'])
  block, block_axes = shapes['temporal']['blocks'], axes['temporal']['blocks']
  assert block['attention']['wq'].shape == (2, 32, 4, 8)
  assert block_axes['attention']['wq'] == ('layers', 'embed', 'heads', 'head_dim')
  assert block['mlp_norm']['scale'].shape == (2, 32)
  assert block_axes['mlp_norm']['scale'] == ('layers', None)
  assert axes['tokens'] == ('vocab', 'embed')


def test_a_mesh_that_does_not_divide_an_array_names_it():
  mesh = make_mesh(MeshConfig(2, 1, 4), jax.devices())
  message = (
    r"\['depth'\]\['blocks'\]\['attention'\]\['wk'\]: dimension kv_heads=2 "
    'cannot be divided over 4 devices'
  )
  with pytest.raises(ConfigError, match=message):
    functional.shardings(tiny.rolegen().model_fns['backbone'], mesh)


def test_parameters_are_born_sharded_and_the_same_on_every_mesh():
  one = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
  eight = make_mesh(MeshConfig(2, 2, 2), jax.devices())

  def model_fn(rngs):
    return Transformer(tiny.config().reasoner.transformer, rngs=rngs)

  alone, sharded = (functional.init(model_fn, jax.random.key(0), mesh)[1] for mesh in (one, eight))
  jax.tree.map(np.testing.assert_array_equal, alone, sharded)
  wq = sharded['blocks']['attention']['wq']
  assert wq.sharding.spec == P(None, 'fsdp', 'tensor', None)
  assert wq.addressable_shards[0].data.shape == (2, 16, 2, 8)


@pytest.mark.parametrize('name', MODELS)
def test_a_bound_module_holds_the_same_arrays(name):
  params = tiny.params(name)
  _, state = nnx.split(tiny.rolegen().bind(name, params), nnx.Param)
  bound = nnx.to_pure_dict(state)
  assert jax.tree.structure(bound) == jax.tree.structure(params)
  assert all(a is b for a, b in zip(jax.tree.leaves(bound), jax.tree.leaves(params)))


def test_leaves_by_path_and_back():
  params = tiny.params('backbone')
  leaves = functional.flatten(params)
  assert leaves['experts.log_weight'] is params['experts']['log_weight']
  assert functional.unflatten(leaves) == params
