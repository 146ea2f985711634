"""Checkpoints: every damage that storage can do is noticed, and the last good one is taken."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rolegen_jax.data.files import DataError
from rolegen_jax.training.checkpoint import ArtifactMismatch, Checkpoints
from rolegen_jax.training.state import State


def state(step: int, mesh) -> State:
  sharded, whole = NamedSharding(mesh, P('x')), NamedSharding(mesh, P())

  def draw(seed, *shape):
    return jax.device_put(jax.random.normal(jax.random.key(seed + step), shape), sharded)

  params = dict(
    wide=draw(1, 256, 32),
    half=draw(2, 64, 8).astype(jnp.bfloat16),
    zeros=jax.device_put(jnp.zeros((64, 8)), sharded),
  )
  return State(
    jax.device_put(jnp.int32(step), whole),
    jax.device_put(jnp.zeros(2, jnp.uint32), whole),
    params,
    dict(count=jax.device_put(jnp.int32(step), whole)),
  )


def like(saved: State) -> State:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved)


def mesh(devices: int):
  return jax.make_mesh(
    (devices,), ('x',), devices=jax.devices()[:devices], axis_types=(jax.sharding.AxisType.Auto,)
  )


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Two checkpoints on eight devices."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  checkpoints = Checkpoints(folder, {'settings': 'a'})
  for step in (10, 20):
    checkpoints.save(state(step, mesh(8)), {'next': step})
  checkpoints.close()
  return folder


def restore(folder, devices: int = 8, abstract: State | None = None):
  checkpoints = Checkpoints(folder, {'settings': 'a'})
  found = checkpoints.restore(abstract or like(state(0, mesh(devices))))
  checkpoints.close()
  return found


def rewrite(path, change):
  path.write_bytes(change(path.read_bytes()))


def arrays(checkpoint):
  """The file that holds the greatest array."""
  return max(
    (path for path in checkpoint.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size
  )


def flip_a_bit(data: bytes) -> bytes:
  middle = len(data) // 2
  return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = {
  'a bit of an array': lambda at: rewrite(arrays(at), flip_a_bit),
  'arrays cut': lambda at: rewrite(arrays(at), lambda data: data[: len(data) // 2]),
  'arrays gone': lambda at: arrays(at).unlink(),
  'index of arrays': lambda at: rewrite(
    at / 'state' / 'manifest.ocdbt', lambda data: data[:20] + b'?' + data[21:]
  ),
  'state gone': lambda at: shutil.rmtree(at / 'state'),
  'data position': lambda at: rewrite(
    at / 'meta' / 'metadata', lambda data: data.replace(b'20', b'21', 1)
  ),
  'meta cut': lambda at: rewrite(at / 'meta' / 'metadata', lambda data: data[:40]),
  'meta gone': lambda at: shutil.rmtree(at / 'meta'),
  'all gone': lambda at: [
    shutil.rmtree(path) if path.is_dir() else path.unlink() for path in at.iterdir()
  ],
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(
  kind, saved, tmp_path, capfd
):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  DAMAGE[kind](folder / '20')
  found, position = restore(folder)
  assert position == {'next': 10}
  jax.tree.map(np.testing.assert_array_equal, found, state(10, mesh(8)))
  said = capfd.readouterr().err
  assert 'checkpoint 20 is damaged: ' in said
  # Reading it gave no error: the storage library returned another number.
  assert ('the values of 1 of 6 arrays are not those that were saved' in said) == (
    kind == 'a bit of an array'
  )
  assert (tmp_path / 'checkpoints_damaged' / '20.0').is_dir() and not (folder / '20').exists()
  again = Checkpoints(folder, {'settings': 'a'})  # the number is free again
  again.save(state(20, mesh(8)), {'next': 20})
  again.close()
  assert restore(folder)[1] == {'next': 20}


def test_a_damaged_one_stays_where_nothing_is_trained(saved, tmp_path):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  DAMAGE['meta cut'](folder / '20')
  checkpoints = Checkpoints(folder, {'settings': 'a'}, may_train=False)
  with pytest.raises(DataError, match='checkpoints/20: is damaged .*; --retrain trains again'):
    checkpoints.restore(like(state(0, mesh(8))))
  assert (folder / '20').is_dir() and not (tmp_path / 'checkpoints_damaged').exists()


def test_one_that_was_never_finished_does_not_count(saved, tmp_path):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  (folder / '20').rename(folder / '20.orbax-checkpoint-tmp-1')
  assert restore(folder)[1] == {'next': 10}
  assert not (tmp_path / 'checkpoints_damaged').exists()


@pytest.mark.parametrize('devices', [1, 2, 8])
def test_the_fingerprint_is_the_same_on_every_mesh(devices, saved):
  found, position = restore(saved, devices)
  assert position == {'next': 20}
  jax.tree.map(np.testing.assert_array_equal, found, state(20, mesh(8)))
  assert len(found.params['wide'].sharding.device_set) == devices


def test_another_model_is_refused_and_nothing_is_set_aside(saved):
  wide = like(state(0, mesh(8)))
  wide.params['wide'] = jax.ShapeDtypeStruct(
    (256, 64), jnp.float32, sharding=wide.params['wide'].sharding
  )
  with pytest.raises(
    ArtifactMismatch, match='its layout is .*, this run has .*; use another --workdir'
  ):
    restore(saved, abstract=wide)
  assert (saved / '20').is_dir()


def test_what_stands_beside_the_arrays_is_plain(saved):
  meta = json.loads((saved / '20' / 'meta' / 'metadata').read_text())
  assert meta['position'] == {'next': 20} and set(meta['hashes']) == {'settings', 'layout'}
  assert len(meta['arrays']) == 6
