"""Training only a part of the reasoner, on eight devices: what the state holds, that gradients are those of the whole, and the joint train step."""

import functools

import jax
import numpy as np
import optax
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig, OptimizerConfig
from rolegen_jax.models import functional
from rolegen_jax.runtime.compile import jit
from rolegen_jax.training import checkpoint, losses
from rolegen_jax.training import state as state_lib
from rolegen_jax.training import steps as lib
from tests import tiny

MESH = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
RATE = 0.3


def on(tree, *axes):
  return jax.device_put(tree, sharding.sharding(MESH, *axes))


def parts(train: str):
  """(rolegen, what trains, what does not) over the tiny reasoner's parameters; adapters and rows are still zero."""
  r = tiny.rolegen(f'reasoner.train={train}')
  if train == 'all':
    return r, tiny.params('reasoner'), {}
  fresh = jax.device_get(functional.init(r.trained['reasoner'], jax.random.key(1), MESH)[1])
  frozen = jax.device_put(
    functional.part(r.frozen['reasoner'], tiny.params('reasoner')),
    functional.shardings(r.frozen['reasoner'], MESH),
  )
  return r, fresh | {'intent': tiny.params('reasoner')['intent']}, {'reasoner': frozen}


@functools.cache
def after_one_step(train: str) -> dict:
  """The gradient of the reason stage by what trains: a step of plain descent."""
  r, trained, frozen = parts(train)
  tx = optax.sgd(RATE)
  model_fns = {'reasoner': r.trained['reasoner']}
  with jax.set_mesh(MESH):
    state = state_lib.create(
      model_fns, {'reasoner': tx}, MESH, jax.random.key(0), {'reasoner': trained}
    )
    step = jit(functools.partial(lib.supervised_step, r, 'reasoner', losses.reason_loss, tx))
    new, metrics = step(
      state, on(tiny.examples(), 'batch'), on(tiny.trie()), *[frozen] * bool(frozen)
    )
  gradient = jax.tree.map(
    lambda a, b: (a - b) / RATE, trained, jax.device_get(new.params['reasoner'])
  )
  return gradient | {'loss': float(metrics['loss'])}


@pytest.mark.parametrize('train', ['lora', 'frozen'])
def test_gradients_are_those_of_the_whole(train):
  """Rows and the equation of intent get what they would get in the whole; adapters what the chain rule makes of their weights'."""
  whole, found = after_one_step('all'), after_one_step(train)
  assert found['loss'] == pytest.approx(whole['loss'], rel=1e-6)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(np.abs(b).max(), 1e-3))
  close(found['tokens_delta'], whole['tokens'][: len(found['tokens_delta'])])
  jax.tree.map(close, found['intent'], whole['intent'])
  if train == 'lora':
    r, trained, _ = parts('lora')
    of = lambda tree: tree['transformer']['blocks']['mlp']
    a, scale = (
      of(trained)['up_lora']['a'],
      r.config.reasoner.lora.alpha / r.config.reasoner.lora.rank,
    )
    close(of(found)['up_lora']['b'], scale * np.einsum('lir,lio->lro', a, of(whole)['up']))
    assert not of(found)['up_lora']['a'].any()  # B is still zero


def test_the_step_trains_adapters_and_holds_nothing_else():
  r, trained, frozen = parts('lora')
  model_fns, _ = lib.joint_parts(r)
  optimizers = {
    name: state_lib.optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=1), 40)
    for name in ('backbone', 'reasoner')
  }
  given = {'backbone': tiny.params('backbone'), 'reasoner': trained, 'reference': trained}
  with jax.set_mesh(MESH):
    state = state_lib.create(model_fns, optimizers, MESH, jax.random.key(0), given)
    layout = state_lib.shardings(model_fns, optimizers, MESH)
    step = jit(
      functools.partial(lib.joint_train_step, r, optimizers),
      donate_argnums=0,
      out_shardings=(layout, None),
    )
    for _ in range(3):
      state, metrics = step(
        state, on(tiny.examples(), 'batch'), on(tiny.trie()), lib.Switches(), frozen
      )
  assert step._cache_size() == 1 and all(np.isfinite(jax.tree.leaves(jax.device_get(metrics))))
  shapes = lambda tree: sorted(x.shape for x in jax.tree.leaves(tree))
  held = state.params['reasoner']
  adam = next(
    s
    for s in jax.tree.leaves(state.opt['reasoner'], is_leaf=lambda s: hasattr(s, 'mu'))
    if hasattr(s, 'mu')
  )
  assert shapes(adam.mu) == shapes(held) == shapes(state.params['reference']) == shapes(trained)
  assert sum(x.size for x in jax.tree.leaves(held)) < sum(
    x.size for x in jax.tree.leaves(tiny.params('reasoner'))
  )
  moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), held, trained)
  assert all(jax.tree.leaves(moved))  # every adapter, rows and intent
  # A frozen base is what the checkpoint's hash names: the same on another layout, another with one number changed.
  host = jax.device_get(frozen)
  assert checkpoint.fingerprint(frozen) == checkpoint.fingerprint(
    jax.tree.map(jax.numpy.asarray, host)
  )
  host['reasoner']['tokens'] = np.nextafter(
    host['reasoner']['tokens'], 9.0, where=np.arange(32) == 3, out=host['reasoner']['tokens'].copy()
  )
  assert checkpoint.fingerprint(frozen) != checkpoint.fingerprint(
    jax.tree.map(jax.numpy.asarray, host)
  )
