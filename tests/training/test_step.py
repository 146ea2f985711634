"""The joint train step on eight CPU devices (data 2 x fsdp 2 x tensor 2) and on one.

One step on both is compared, then many steps on each.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig, OptimizerConfig
from rolegen_jax.reasoning import rolegen as rolegen_lib
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit
from rolegen_jax.training import losses
from rolegen_jax.training import state as state_lib
from rolegen_jax.training import steps as lib
from tests import tiny
from tests.perf.aot import hlo

RATE = 0.3
NAMES = ('backbone', 'reasoner')
# The first update is -RATE * gradient.
OPTIMIZERS = {name: optax.sgd(RATE, momentum=0.5) for name in NAMES}
# Without an intervention, worlds are then the factual one.
PLAIN = ('backbone.dropout=0.0', 'backbone.row_dropout=0.0', 'loop.noise=common')


class Setup(NamedTuple):
  rolegen: RoleGen
  mesh: jax.sharding.Mesh
  model_fns: dict
  step: object  # jitted
  state: state_lib.State  # donated by the first call


def make_mesh(devices: int) -> jax.sharding.Mesh:
  sizes = {1: (1, 1, 1), 8: (2, 2, 2)}[devices]
  return sharding.make_mesh(MeshConfig(*sizes), jax.devices()[:devices])


def on(mesh, tree, *axes):
  return jax.device_put(tree, sharding.sharding(mesh, *axes))


def set_up(devices: int, *assignments: str) -> Setup:
  rolegen, mesh = tiny.rolegen(*PLAIN, *assignments), make_mesh(devices)
  model_fns = rolegen.model_fns | {'reference': rolegen.model_fns['reasoner']}
  given = {name: tiny.params(name) for name in NAMES} | {'reference': tiny.params('reasoner')}
  with jax.set_mesh(mesh):
    state = state_lib.create(model_fns, OPTIMIZERS, mesh, jax.random.key(0), given)
    shardings = state_lib.shardings(model_fns, OPTIMIZERS, mesh)
    step = jit(
      functools.partial(lib.joint_train_step, rolegen, OPTIMIZERS),
      donate_argnums=0,
      out_shardings=(shardings, None),
    )
  return Setup(rolegen, mesh, model_fns, step, state)


def call(setup: Setup, state, switches=lib.Switches()):
  with jax.set_mesh(setup.mesh):
    return setup.step(
      state, on(setup.mesh, tiny.examples(), 'batch'), on(setup.mesh, tiny.trie()), switches
    )


@pytest.fixture(scope='module')
def eight():
  """(setup, metrics and parameters after one step, state after it)."""
  setup = set_up(8)
  state, metrics = call(setup, setup.state)
  return setup, jax.device_get(metrics), jax.device_get(state.params), [state]


@pytest.fixture(scope='module')
def one():
  """On one device, reflecting on every second step: the first does."""
  setup = set_up(1, 'loop.reflect_every=2')
  state, metrics = call(setup, setup.state)
  return setup, jax.device_get(metrics), jax.device_get(state.params), [state]


def imitation(metrics) -> float:
  """The imitation loss, from its parts."""
  return sum(
    float(metrics[name])
    for name in ('frcot_nll', 'intent_nll', 'by_role_nll', 'retrieved_nll', 'roles_nll')
  )


def test_eight_devices_compute_what_one_does(one, eight):
  """Every metric, and every gradient of both models, as the first update has them."""
  assert set(one[1]) == set(eight[1])
  for name, value in one[1].items():
    np.testing.assert_allclose(eight[1][name], value, rtol=1e-4, atol=2e-5, err_msg=name)

  def gradient(params, name):
    def of_update(new, old):
      return (old - new) / RATE

    return jax.tree.map(of_update, params[name], tiny.params(name))

  for name in NAMES:
    alone, spread = gradient(one[2], name), gradient(eight[2], name)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(alone))
    assert largest > 1e-2
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(b, a, atol=1e-4 * max(largest, 1.0)), alone, spread
    )
  reference = jax.tree.map(
    lambda old, new: 0.99 * old + 0.01 * new, tiny.params('reasoner'), eight[2]['reasoner']
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), reference, eight[2]['reference']
  )


def keys(seed: int):
  return jax.random.split(jax.random.key(seed), tiny.USERS)


def sampled(params, examples, trie, search: bool, *assignments: str):
  with jax.named_scope('search' if search else 'sample'):
    return tiny.rolegen(*assignments).rollout(params, examples, trie, keys(3), search=search)


def rollout(devices: int, *assignments: str):
  """((the rollout, that of a search), the compiled program of both as text)."""
  mesh = make_mesh(devices)
  with jax.set_mesh(mesh):
    params = jax.device_put(
      tiny.params('reasoner'),
      state_lib.shardings(tiny.rolegen().model_fns, {}, mesh).params['reasoner'],
    )
    arguments = params, on(mesh, tiny.examples(), 'batch'), on(mesh, tiny.trie())
    compiled = (
      jit(lambda *of: [sampled(*of, search, *assignments) for search in (False, True)])
      .lower(*arguments)
      .compile()
    )
    return jax.device_get(compiled(*arguments)), compiled.as_text()


def in_rollout(text: str) -> list[str]:
  return [
    kind for loop in hlo.loops(text) if '/rollout/' in loop.scope for kind in loop.collectives
  ]


@pytest.fixture(scope='module')
def rollouts_on_one():
  return rollout(1)[0]


def assert_same_rollouts(spread, one):
  for of_spread, of_one in zip(spread, one, strict=True):
    assert_same_rollout(of_spread, of_one)


def assert_same_rollout(spread, one):
  # Of a token: the rounding of logits, divided by the temperature.
  atol = 5e-6 / tiny.config().reasoner.temperature
  np.testing.assert_allclose(spread.log_prob, one.log_prob, atol=atol)
  # Sums over the codes of an item.
  np.testing.assert_allclose(
    spread.candidate_log_prob, one.candidate_log_prob, atol=tiny.LEVELS * atol
  )
  for name in ('tokens', 'sampled_mask', 'roles', 'candidates', 'interventions'):
    jax.tree.map(np.testing.assert_array_equal, getattr(spread, name), getattr(one, name))


def test_rollouts_are_the_same_on_eight_devices(rollouts_on_one):
  """Parameters are gathered before the decoding loop, so that it has no collectives."""
  spread, text = rollout(8)
  assert_same_rollouts(spread, rollouts_on_one)
  assert not in_rollout(text)


@pytest.mark.slow
def test_rollouts_over_tensor_are_the_same_on_eight_devices(rollouts_on_one):
  spread, text = rollout(8, 'mesh.rollout=tensor')
  assert_same_rollouts(spread, rollouts_on_one)
  assert set(in_rollout(text)) == {'all-reduce'}  # of activations: no weight travels in the loop


@pytest.mark.slow
def test_the_decoding_loop_has_collectives_where_parameters_are_not_gathered(monkeypatch):
  monkeypatch.setattr(rolegen_lib, 'rollout_layout', lambda params, *_: params)
  assert 'all-gather' in in_rollout(rollout(8)[1])


def test_one_program_for_twenty_steps_and_all_switches(eight):
  setup, first, _, box = eight
  state, curve = box.pop(), [float(first['loss'])]
  for _ in range(20):
    previous = state
    state, metrics = call(setup, previous)
    curve.append(float(metrics['loss']))
  assert all(x.is_deleted() for x in jax.tree.leaves(previous))  # donated
  assert int(state.step) == 21 and np.isfinite(curve).all()
  assert np.mean(curve[-5:]) < 0.9 * np.mean(curve[:3])
  loss = {}
  for intervene, reflect in ((False, 1.0), (True, 0.0), (True, 1.0)):
    state, metrics = call(setup, state, lib.Switches(intervene, reflect))
    loss[reflect] = float(metrics['reasoner_loss'])
    assert (float(metrics['world_distance']) == 0.0) == (not intervene)
    supervised = setup.rolegen.config.loop.imitation * imitation(metrics)
    assert loss[reflect] == pytest.approx(
      supervised + reflect * float(metrics['reflection_loss']), rel=1e-5
    )
  assert setup.step._cache_size() == 1
  box.append(state)


def test_between_reflections_the_reasoner_rests(one):
  setup, first, before, box = one
  state, metrics = call(setup, box.pop())
  after = jax.device_get(state.params)
  for name in ('reasoner', 'reference'):
    jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
  assert float(metrics['reasoner_grad_norm']) == 0.0 < float(first['reasoner_grad_norm'])
  assert (
    float(metrics['backbone_grad_norm']) > 0
    and np.abs(after['backbone']['tokens'] - before['backbone']['tokens']).max() > 0
  )
  state, metrics = call(setup, state)
  assert float(metrics['reasoner_grad_norm']) > 0 and setup.step._cache_size() == 1
  box.append(state)


def test_the_equations_have_a_learning_rate_of_their_own():
  """Adam's first step is as long as the learning rate, whatever the gradient."""
  config = OptimizerConfig(
    learning_rate=1e-2, warmup_steps=0, weight_decay=0.0, equation_lr_multiplier=7.0
  )
  tx = state_lib.optimizer(config, 100)
  params = {'intent': {'focus': np.ones(1, np.float32)}, 'scale': np.ones(3, np.float32)}
  updates, _ = tx.update(jax.tree.map(np.ones_like, params), tx.init(params), params)
  np.testing.assert_allclose(updates['scale'], -1e-2, rtol=1e-3)
  np.testing.assert_allclose(updates['intent']['focus'], -7e-2, rtol=1e-3)


def test_optimizer_moments_lie_where_their_parameters_lie():
  rolegen, mesh = tiny.rolegen(), make_mesh(8)
  optimizers = {'reasoner': state_lib.optimizer(OptimizerConfig(), 100)}
  model_fns = {'reasoner': rolegen.model_fns['reasoner']}
  state = state_lib.create(
    model_fns, optimizers, mesh, jax.random.key(0), {'reasoner': tiny.params('reasoner')}
  )
  adam = next(
    s for s in jax.tree.leaves(state.opt, is_leaf=lambda s: hasattr(s, 'mu')) if hasattr(s, 'mu')
  )

  def specs(tree):
    return jax.tree.map(lambda x: x.sharding.spec, tree)

  assert specs(adam.mu) == specs(adam.nu) == specs(state.params['reasoner'])
  assert not state.params['reasoner']['tokens'].sharding.is_fully_replicated
  same = jax.tree.map(
    lambda a, x: (a.shape, a.dtype, a.sharding) == (x.shape, x.dtype, x.sharding),
    state_lib.abstract(model_fns, optimizers, mesh),
    state,
  )
  assert all(jax.tree.leaves(same))


LOSSES = {
  'warmup': ('backbone', losses.warmup_loss),
  'align': ('reasoner', losses.align_loss),
  'reason': ('reasoner', losses.reason_loss),
}


def set_up_stage(stage: str, *assignments: str):
  """(jitted step, its arguments: state, batch and trie), on one device."""
  model, loss_fn = LOSSES[stage]
  rolegen, mesh = tiny.rolegen(*assignments), make_mesh(1)
  model_fns = {model: rolegen.model_fns[model]}
  optimizers = {model: state_lib.optimizer(OptimizerConfig(learning_rate=1e-2), 40)}
  state = state_lib.create(
    model_fns, optimizers, mesh, jax.random.key(rolegen.config.seed), {model: tiny.params(model)}
  )
  shardings = state_lib.shardings(model_fns, optimizers, mesh)
  step = jit(
    functools.partial(lib.supervised_step, rolegen, model, loss_fn, optimizers[model]),
    donate_argnums=0,
    out_shardings=(shardings, None),
  )
  batch = tiny.examples().history if stage == 'warmup' else tiny.examples()
  return step, (state, on(mesh, batch, 'batch'), on(mesh, tiny.trie()))


@pytest.mark.parametrize(
  'stage',
  [
    pytest.param('warmup', marks=pytest.mark.slow),
    'align',
    pytest.param('reason', marks=pytest.mark.slow),
  ],
)
def test_a_stage_learns_its_batch(stage):
  curve = []
  with jax.set_mesh(make_mesh(1)):
    step, (state, batch, trie) = set_up_stage(stage)
    for _ in range(30):
      state, metrics = step(state, batch, trie)
      curve.append(float(metrics['loss']))
  assert np.isfinite(curve).all() and step._cache_size() == 1
  assert np.mean(curve[-3:]) < 0.75 * curve[0]


@functools.cache
def reason_loss():
  return jit(functools.partial(losses.reason_loss, tiny.rolegen()))


def test_a_demonstration_counts_the_same_in_the_loop_and_in_its_own_stage(one):
  """Both fit the hindsight chains at temperature 1, from the same parameters."""
  loss, _ = reason_loss()(tiny.params('reasoner'), tiny.examples(), tiny.trie(), None)
  assert imitation(one[1]) == pytest.approx(float(loss), rel=1e-5)


def test_path_items_outside_the_catalogue_teach_nothing():
  """Half the items are left out of the tree: codes without probability must not be the loss."""
  trie = tiny.trie(allowed=np.arange(tiny.ITEMS) < 30)
  loss, _ = reason_loss()(tiny.params('reasoner'), tiny.examples(), trie, None)
  assert 0 < float(loss) < 20


def test_ties_at_the_first_timestamp_are_not_targets():
  """What happened first has nothing before it: rows of one day have no loss."""
  history = tiny.examples().history
  flat = history._replace(timestamp=np.where(history.segment > 0, tiny.NOW, 0).astype(np.int32))
  loss, metrics = jit(functools.partial(losses.warmup_loss, tiny.rolegen()))(
    tiny.params('backbone'), flat, tiny.trie(), jax.random.key(0)
  )
  assert float(loss) == 0.0
  assert set(metrics) == {'sequence_generative_nll', 'sequence_choice_nll', 'purchase_nll'}
  assert not any(float(x) for x in metrics.values())


def test_no_gradient_flows_from_the_rewards_or_into_the_candidates():
  """The execution loss of one model has no gradient in the other: rollouts and gains are fixed."""
  rolegen = tiny.rolegen(*PLAIN)

  def execution(reasoner):
    rollout = rolegen.rollout(reasoner, tiny.examples(), tiny.trie(), keys(0))
    loss, (gain, _) = losses.execution_loss(
      rolegen, tiny.params('backbone'), tiny.examples(), rollout, tiny.trie(), jax.random.key(1)
    )
    return loss + gain.sum()

  gradient = jit(jax.grad(execution))(tiny.params('reasoner'))
  assert all(not jnp.any(g) for g in jax.tree.leaves(gradient))


def test_reasoning_teaches_the_backbone_nothing_but_its_experts(rollouts_on_one):
  """Hence the ablation no_reasoner needs no training."""
  rolegen = tiny.rolegen(*PLAIN)

  def execution(backbone, rollout):
    examples, trie = tiny.examples(), tiny.trie()
    return losses.execution_loss(rolegen, backbone, examples, rollout, trie, jax.random.key(1))[0]

  sampled_on_one = rollouts_on_one[0]
  reversed_ = jax.tree.map(lambda x: x[::-1], sampled_on_one)
  gradient = jit(jax.grad(execution))
  one, other = (gradient(tiny.params('backbone'), r) for r in (sampled_on_one, reversed_))
  assert not np.array_equal(*(grads.pop('experts')['log_weight'] for grads in (one, other)))
  jax.tree.map(np.testing.assert_array_equal, one, other)


def lowered(stage: str, *assignments: str) -> str:
  """The program of a stage before XLA."""
  with jax.set_mesh(make_mesh(1)):
    if stage != 'loop':
      step, arguments = set_up_stage(stage, *assignments)
      return step.lower(*arguments).as_text()
    setup = set_up(1, *assignments)
    batch, trie = on(setup.mesh, tiny.examples(), 'batch'), on(setup.mesh, tiny.trie())
    return setup.step.lower(setup.state, batch, trie, lib.Switches()).as_text()


@pytest.mark.parametrize('stage', ['align', pytest.param('loop', marks=pytest.mark.slow)])
def test_seeds_share_a_program(stage):
  """The seed is in the state: a sweep over seeds compiles once."""
  assert lowered(stage, 'seed=0') == lowered(stage, 'seed=5')
