"""Checkpoints in buckets: the newest two, damage, and what a killed save leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rolegen_jax.data.files import DataError
from rolegen_jax.runtime import storage
from rolegen_jax.training.checkpoint import Checkpoints
from rolegen_jax.training.state import State


def state(step):
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  sharded, whole = NamedSharding(mesh, P('x')), NamedSharding(mesh, P())
  wide = jax.random.normal(jax.random.key(step), (256, 32))
  count = jax.device_put(jnp.int32(step), whole)
  return State(
    count,
    jax.device_put(jnp.zeros(2, jnp.uint32), whole),
    dict(wide=jax.device_put(wide, sharded)),
    dict(count=count),
  )


def abstract():
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
  )


@pytest.fixture
def folder(url):
  checkpoints = Checkpoints(url, {'settings': 'a'})
  for step in (10, 20, 30):
    checkpoints.save(state(step), {'next': step})
  checkpoints.close()
  return storage.path(url)


def restore(folder, **settings):
  checkpoints = Checkpoints(folder, {'settings': 'a'}, **settings)
  try:
    return checkpoints.restore(abstract())
  finally:
    checkpoints.close()


def assert_is(restored, step):
  np.testing.assert_array_equal(restored[0].params['wide'], state(step).params['wide'])
  assert restored[1] == {'next': step}


def test_the_newest_two_are_kept_and_the_newest_comes_back(folder):
  assert sorted(path.name for path in folder.iterdir()) == ['20', '30']
  assert_is(restore(folder), 30)


def test_a_damaged_one_is_set_aside_and_the_one_before_is_taken(folder):
  files = storage.file_system(folder)
  data = [name for name in files.find(str(folder / '30' / 'state')) if '/d/' in name]
  largest = max(data, key=files.size)
  content = bytearray(files.cat_file(largest))
  content[len(content) // 2] ^= 1
  files.pipe_file(largest, bytes(content))
  with pytest.raises(DataError, match=f'{folder}/30: is damaged'):
    restore(folder, may_train=False)
  assert_is(restore(folder), 20)
  assert sorted(path.name for path in folder.iterdir()) == ['20']
  assert (folder.with_name(f'{folder.name}_damaged') / '30.0' / 'meta').is_dir()


def test_a_save_that_was_cut_off_does_not_count(folder):
  (folder / '30' / 'commit_success.txt').unlink()
  assert_is(restore(folder), 20)
  checkpoints = Checkpoints(folder, {'settings': 'a'})
  checkpoints.save(state(30), {'next': 30})
  checkpoints.close()
  assert_is(restore(folder), 30)
