"""Analytic counts against XLA's own, on a small model.

Every loop is unrolled, because XLA counts a loop's body once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax import overrides
from rolegen_jax.config import Config, MeshConfig
from rolegen_jax.models import decode, functional
from rolegen_jax.perf import flops
from rolegen_jax.perf.aot import programs
from rolegen_jax.reasoning.feedback import Feedback
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.prefill import prefill as prefill_prompt
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.reasoning.rollout import Rollout
from rolegen_jax.reasoning.worlds import Interventions, Tree
from rolegen_jax.semantic_ids.trie import default_capacity
from rolegen_jax.sharding import make_mesh
from rolegen_jax.training import losses

USERS = 2
SIZES = ('layers=2', 'width=256', 'heads=4', 'kv_heads=2', 'head_dim=64', 'mlp=1024')
CONFIG = overrides.apply(
  Config(),
  [f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in SIZES]
  + [
    'backbone.context=32',
    'backbone.dropout=0',
    'reasoner.events=8',
    'reasoner.role_events=4',
    'reasoner.candidates=2',
    'loop.worlds=4',
    'semantic_ids.codes=64',
    f'loop_stage.batch={USERS}',
    f'warmup.batch={USERS}',
    f'align.batch={USERS}',
    f'reason.batch={USERS}',
    f'evaluation.batch={USERS}',
    'backbone.beam=4',
    'evaluation.ks=(1,4)',
  ],
)
ITEMS = 1000
ROOM = default_capacity(ITEMS)
ROLEGEN = RoleGen(CONFIG, ROOM)
OURS = flops.Flops(CONFIG, ROOM)


@pytest.fixture(autouse=True)
def unrolled(monkeypatch):
  scan = jax.lax.scan
  monkeypatch.setattr(jax.lax, 'scan', functools.partial(scan, unroll=True))
  monkeypatch.setattr(jax.lax, 'map', mapped)


def mapped(function, xs):
  """`jax.lax.map` without a loop."""
  each = [jax.tree.map(lambda x: x[i], xs) for i in range(len(jax.tree.leaves(xs)[0]))]
  return jnp.stack([function(x) for x in each])


def plain(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@functools.cache
def examples():
  return plain(programs.examples_like(CONFIG, USERS, make_mesh(MeshConfig(), jax.devices()[:1])))


@functools.cache
def trie():
  return plain(programs.trie_like(CONFIG, ITEMS, make_mesh(MeshConfig(), jax.devices()[:1])))


def key():
  return jax.eval_shape(lambda: jax.random.key(0))


def shapes(name):
  return functional.abstract(ROLEGEN.model_fns[name])[1]


def counted(function, *args) -> float:
  """XLA's count for a program that is lowered, not compiled."""
  return jax.jit(function).lower(*args).cost_analysis()['flops']


def rollout_like() -> Rollout:
  w, t, m, p, k, a = CONFIG.loop.worlds, ROLEGEN.layout.length, 4, 2, 64, CONFIG.reasoner.retrieved

  def like(shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct((USERS, w, *shape), dtype)

  def real(*shape):
    return like(shape, jnp.float32)

  done = Interventions(like((m,)), like((m,), bool), like(()))
  return Rollout(
    like((t,)),
    real(t),
    like((t,), bool),
    like((m,)),
    like((p,)),
    real(p),
    real(k),
    like((a,)),
    real(a),
    done,
  )


def gradient(loss, params, *args):
  """XLA's count for the loss and its gradient: a loss that nobody asks for is not computed."""
  return counted(lambda p, *a: jax.value_and_grad(lambda p: loss(p, *a)[0])(p), params, *args)


@pytest.mark.slow
def test_execution_and_feedback():
  step = jax.value_and_grad(functools.partial(losses.execution_loss, ROLEGEN), has_aux=True)
  xla = counted(step, shapes('backbone'), examples(), rollout_like(), trie(), key())
  phases = OURS.phases()
  assert (phases['execution'] + phases['feedback']).hardware == pytest.approx(xla, rel=0.02)


@pytest.mark.slow
def test_reflection():
  worth = Feedback(*[jax.ShapeDtypeStruct((USERS, CONFIG.loop.worlds), jnp.float32)] * 2)

  def loss(p, reference, examples, rollout, worth, trie):
    return losses.reflection_loss(ROLEGEN, p, reference, examples, rollout, worth, trie, 1.0)

  xla = gradient(
    loss, shapes('reasoner'), shapes('reasoner'), examples(), rollout_like(), worth, trie()
  )
  assert OURS.phases()['reflection'].hardware == pytest.approx(xla, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize('train', ['lora', 'frozen'])
def test_no_gradient_of_what_is_frozen_is_computed(train):
  config = overrides.apply(CONFIG, [f'reasoner.train={train}', 'reasoner.lora.rank=32'])
  rolegen, ours = RoleGen(config, ROOM), flops.Flops(config, ROOM)
  trained, frozen = (
    functional.abstract(part['reasoner'])[1] for part in (rolegen.trained, rolegen.frozen)
  )

  def loss(p, frozen, reference, examples, rollout, worth, trie):
    policy, fixed = (functional.join(part, frozen) for part in (p, reference))
    return losses.reflection_loss(rolegen, policy, fixed, examples, rollout, worth, trie, 1.0)

  worth = Feedback(*[jax.ShapeDtypeStruct((USERS, CONFIG.loop.worlds), jnp.float32)] * 2)
  xla = gradient(loss, trained, frozen, trained, examples(), rollout_like(), worth, trie())
  assert ours.phases()['reflection'].hardware == pytest.approx(xla, rel=0.02)
  assert (
    xla < (0.95 if train == 'lora' else 0.8) * OURS.phases()['reflection'].hardware
  )  # adapters cost something themselves
  assert flops.trained(config, ROOM)['reasoner'] == pytest.approx(
    sum(np.prod(x.shape) for x in jax.tree.leaves(trained)), rel=0.01
  )


def test_rollout():
  xla = counted(
    lambda p, examples, trie, key: ROLEGEN.rollout(
      p, examples, trie, jax.random.split(key, len(examples.target))
    ),
    shapes('reasoner'),
    examples(),
    trie(),
    key(),
  )
  phases = OURS.phases()
  assert (phases['rollout prefill'] + phases['rollout decode']).model == pytest.approx(
    xla, rel=0.02
  )


def test_prefill():
  def prefill(params, examples, trie):
    prompt = build_prompt(
      ROLEGEN.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
    )
    return prefill_prompt(ROLEGEN.bind('reasoner', params), Tree(ROLEGEN.layout), prompt)

  assert OURS.prefill().times(USERS).model == pytest.approx(
    counted(prefill, shapes('reasoner'), examples(), trie()), rel=0.02
  )


@pytest.mark.parametrize(
  'stage, model, loss',
  [
    ('align', 'reasoner', losses.align_loss),
    ('reason', 'reasoner', losses.reason_loss),
    ('warmup', 'backbone', losses.warmup_loss),
  ],
)
def test_supervised_stages(stage, model, loss):
  batch = examples().history if stage == 'warmup' else examples()
  xla = gradient(
    lambda p, batch, trie, key: loss(ROLEGEN, p, batch, trie, key),
    shapes(model),
    batch,
    trie(),
    key(),
  )
  assert OURS.stages()[stage].hardware == pytest.approx(xla, rel=0.02)


@pytest.mark.slow
def test_recommend(monkeypatch):
  # All that other experts find, in one part: the beams are read already.
  said = CONFIG.reasoner.retrieved + OURS.candidates
  monkeypatch.setattr(decode, 'PART', OURS.history + CONFIG.backbone.beam + said)
  params = {name: shapes(name) for name in ('backbone', 'reasoner')}
  xla = counted(
    lambda p, examples, trie: ROLEGEN.recommend(p, examples, trie, CONFIG.backbone.beam).ranking,
    params,
    examples(),
    trie(),
  )
  assert OURS.stages()['recommend'].model == pytest.approx(xla, rel=0.02)


@pytest.mark.parametrize('remat, again', [('none', 0.0), ('full', 1.0)])
def test_rematerialization_repeats_the_forward_of_the_stack(remat, again):
  config = overrides.apply(CONFIG, [f'reasoner.transformer.remat={remat}'])
  tree = Tree(ROLEGEN.layout)
  stack = flops.stack(
    CONFIG.reasoner.transformer, ROLEGEN.layout.prompt_length + ROLEGEN.layout.length
  ).forward
  remat_flops, default_flops = (
    flops.Flops(c, ROOM).likelihood(tree).recompute for c in (config, CONFIG)
  )
  assert remat_flops - default_flops == pytest.approx(again * stack)


@pytest.mark.parametrize('kinds', [0, 8])
def test_parameters_are_those_of_the_models(kinds):
  config = overrides.apply(CONFIG, [f'reasoner.kinds={kinds}'])
  model_fns = RoleGen(config, ROOM).model_fns
  for name, count in flops.parameters(config, ROOM).items():
    made = jax.tree.leaves(functional.abstract(model_fns[name])[1])
    assert count == pytest.approx(sum(np.prod(x.shape) for x in made), rel=0.01)
