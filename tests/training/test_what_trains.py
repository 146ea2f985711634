"""Training only a part of the reasoner, on eight devices.

What the state holds, that gradients are those of the whole, and the joint train step.
"""

import functools

import jax
import numpy as np
import optax
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig, OptimizerConfig
from rolegen_jax.models import functional
from rolegen_jax.models.intent import EQUATIONS
from rolegen_jax.runtime.compile import jit
from rolegen_jax.training import checkpoint, losses
from rolegen_jax.training import state as state_lib
from rolegen_jax.training import steps as lib
from tests import tiny

MESH = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
RATE = 0.3


def on(tree, *axes):
  return jax.device_put(tree, sharding.sharding(MESH, *axes))


@functools.cache
def parts(train: str):
  """(rolegen, what trains, what does not) of the tiny reasoner; adapters and rows are zero."""
  r = tiny.rolegen(f'reasoner.train={train}')
  if train == 'all':
    return r, tiny.params('reasoner'), {}
  fresh = jax.device_get(functional.init(r.trained['reasoner'], jax.random.key(1), MESH)[1])
  frozen = jax.device_put(
    functional.part(r.frozen['reasoner'], tiny.params('reasoner')),
    functional.shardings(r.frozen['reasoner'], MESH),
  )
  equations = {name: tiny.params('reasoner')[name] for name in EQUATIONS}
  return r, fresh | equations, {'reasoner': frozen}


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


@pytest.mark.slow
@pytest.mark.parametrize('train', ['lora', 'frozen'])
def test_gradients_are_those_of_the_whole(train):
  """Rows and equations get their gradients; adapters what the chain rule makes of theirs."""
  whole, part = after_one_step('all'), after_one_step(train)
  assert part['loss'] == pytest.approx(whole['loss'], rel=1e-6)

  def assert_close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-5 * max(np.abs(b).max(), 1e-3))

  assert_close(part['tokens_delta'], whole['tokens'][: len(part['tokens_delta'])])
  for name in EQUATIONS:
    jax.tree.map(assert_close, part[name], whole[name])
  if train == 'lora':
    r, trained, _ = parts('lora')
    initial, gradient, of_whole = (
      tree['transformer']['blocks']['mlp'] for tree in (trained, part, whole)
    )
    scale = r.config.reasoner.lora.alpha / r.config.reasoner.lora.rank
    expected = scale * np.einsum('lir,lio->lro', initial['up_lora']['a'], of_whole['up'])
    assert_close(gradient['up_lora']['b'], expected)
    assert not gradient['up_lora']['a'].any()  # B is still zero


def joint_state(trained):
  """(state, optimizers, shardings) of the joint train step with adapters."""
  model_fns, _ = lib.joint_parts(parts('lora')[0])
  config = OptimizerConfig(learning_rate=1e-2, warmup_steps=1)
  optimizers = {name: state_lib.optimizer(config, 40) for name in ('backbone', 'reasoner')}
  given = {'backbone': tiny.params('backbone'), 'reasoner': trained, 'reference': trained}
  state = state_lib.create(model_fns, optimizers, MESH, jax.random.key(0), given)
  return state, optimizers, state_lib.shardings(model_fns, optimizers, MESH)


def assert_holds_only(state, trained):
  """Parameters, moments and reference are of the shapes of what trains."""

  def shapes(tree):
    return sorted(x.shape for x in jax.tree.leaves(tree))

  moments = jax.tree.leaves(state.opt['reasoner'], is_leaf=lambda s: hasattr(s, 'mu'))
  adam = next(s for s in moments if hasattr(s, 'mu'))
  for held in (adam.mu, state.params['reasoner'], state.params['reference']):
    assert shapes(held) == shapes(trained)


def test_the_state_holds_what_trains_and_nothing_else():
  _, trained, _ = parts('lora')
  with jax.set_mesh(MESH):
    state, _, _ = joint_state(trained)
  assert_holds_only(state, trained)
  held, whole = (
    sum(x.size for x in jax.tree.leaves(tree))
    for tree in (state.params['reasoner'], tiny.params('reasoner'))
  )
  assert held < whole


@pytest.mark.slow
def test_the_joint_train_step_trains_every_adapter():
  r, trained, frozen = parts('lora')
  with jax.set_mesh(MESH):
    state, optimizers, shardings = joint_state(trained)
    step = jit(
      functools.partial(lib.joint_train_step, r, optimizers),
      donate_argnums=0,
      out_shardings=(shardings, None),
    )
    arguments = on(tiny.examples(), 'batch'), on(tiny.trie()), lib.Switches(), frozen
    for _ in range(3):
      state, metrics = step(state, *arguments)
  assert step._cache_size() == 1 and all(np.isfinite(jax.tree.leaves(jax.device_get(metrics))))
  assert_holds_only(state, trained)
  moved = jax.tree.map(
    lambda a, b: np.abs(np.asarray(a) - b).max(), state.params['reasoner'], trained
  )
  assert all(jax.tree.leaves(moved))  # every adapter, rows and intent


def test_the_fingerprint_of_a_frozen_base_is_that_of_its_numbers():
  """The same on another layout, another with one number changed."""
  _, _, frozen = parts('lora')
  host = jax.device_get(frozen)

  def on_one(tree):
    return checkpoint.fingerprint(jax.tree.map(jax.numpy.asarray, tree))

  assert checkpoint.fingerprint(frozen) == on_one(host)
  tokens = host['reasoner']['tokens'].copy()
  host['reasoner']['tokens'] = np.nextafter(tokens, 9.0, where=np.arange(32) == 3, out=tokens)
  assert checkpoint.fingerprint(frozen) != on_one(host)
