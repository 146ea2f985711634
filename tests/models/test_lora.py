"""What trains under each `reasoner.train`, and what adapters and increments compute.

They change nothing at first, and then what weights with their products added would.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import ConfigError, LoraConfig, MeshConfig
from rolegen_jax.models import functional, lora
from rolegen_jax.models.attention import causal
from rolegen_jax.models.intent import EQUATIONS
from rolegen_jax.runtime.compile import jit
from tests import tiny

UNTIED = 'reasoner.transformer.tied=False'


def rolegen(train: str, *assignments: str):
  return tiny.rolegen(
    f'reasoner.train={train}',
    'reasoner.lora.rank=2',
    'reasoner.lora.alpha=6.0',
    'reasoner.text_pieces=40',
    *assignments,
  )


def paths(model_fn) -> set[str]:
  return set(functional.flatten(functional.abstract(model_fn)[1]))


@functools.cache
def program(train: str, *assignments: str):
  """params -> logits of some tokens: all, the text's, and some from a start known at run time.

  The last are those of the last level of codes and of what follows it.
  """
  r = rolegen(train, *assignments)

  @jit
  def run(params, start):
    reasoner = r.bind('reasoner', params)
    tokens = jnp.arange(4 * 12).reshape(4, 12) * 7 % r.vocab.size
    hidden = reasoner.hidden(tokens, np.arange(12), causal(jnp.ones((4, 12), jnp.int32)))
    return (
      reasoner.logits(hidden, 0, r.vocab.size),
      reasoner.logits(hidden, *r.vocab.blocks['text']),
      reasoner.logits(hidden, start, 2 * tiny.CODES),
    )

  return lambda params: jax.device_get(run(params, r.vocab.blocks['sid2'][0]))


@functools.cache
def base(*assignments: str):
  return tiny.random_params(rolegen('all', *assignments).model_fns['reasoner'])


def with_base(r, trained):
  """The parameters of a reasoner whose frozen part is that of `base`."""
  params = base() if r.config.reasoner.transformer.tied else base(UNTIED)
  return functional.join(functional.part(r.frozen['reasoner'], params), trained)


def merged(params: dict) -> dict:
  """The sums of weights and what is added to them, as a reasoner without adapters has them."""
  sums = {}
  for name, leaf in params.items():
    if name.endswith(('_lora', '_delta')):
      continue
    adapter, increments = params.get(f'{name}_lora'), params.get(f'{name}_delta')
    if isinstance(leaf, dict):
      leaf = merged(leaf)
    elif adapter is not None:
      a, b = adapter['a'], adapter['b']  # of stacked layers
      a, b = a.reshape(len(a), -1, 2), b.reshape(len(b), 2, -1)
      leaf = leaf + 3.0 * np.einsum('lir,lro->lio', a, b).reshape(leaf.shape)
    elif increments is not None:
      leaf = leaf + np.pad(increments, ((0, len(leaf) - len(increments)), (0, 0)))
    sums[name] = leaf
  return sums


@pytest.mark.parametrize(
  'train, assignments',
  [('lora', ()), pytest.param('frozen', (UNTIED,), marks=pytest.mark.slow)],
)
def test_nothing_changes_at_first_and_then_what_the_sums_would(train, assignments):
  r = rolegen(train, *assignments)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  fresh = jax.device_get(functional.init(r.trained['reasoner'], jax.random.key(1), mesh)[1])
  fresh |= {name: base(*assignments)[name] for name in EQUATIONS}
  run, run_plain = program(train, *assignments), program('all', *assignments)
  plain = run_plain(base(*assignments))
  jax.tree.map(np.testing.assert_array_equal, run(with_base(r, fresh)), plain)
  first, size = r.vocab.blocks['text']
  # Sums of another order.
  np.testing.assert_allclose(plain[1], plain[0][..., first : first + size], atol=1e-5)

  moved = tiny.random_params(r.trained['reasoner'], seed=5) | {
    name: fresh[name] for name in EQUATIONS
  }
  params = with_base(r, moved)
  logits = run(params)
  for actual, expected in zip(logits, run_plain(merged(params))):
    np.testing.assert_allclose(actual, expected, atol=2e-4 * np.abs(expected).max())
  assert np.abs(logits[0] - plain[0]).max() > 0.1


def test_what_trains():
  targets = {'attention': ('wq', 'wk', 'wv', 'wo'), 'mlp': ('gate', 'up', 'down')}
  weights = [f'{layer}.{name}' for layer, names in targets.items() for name in names]
  adapters = {f'transformer.blocks.{weight}_lora.{factor}' for weight in weights for factor in 'ab'}
  increments = {'tokens_delta', 'readout_delta'}
  equations = {f'{of}.{name}' for of in EQUATIONS for name in base()[of]}
  frozen, adapted = rolegen('frozen', UNTIED), rolegen('lora', UNTIED)
  assert paths(frozen.trained['reasoner']) == increments | equations
  assert paths(adapted.trained['reasoner']) == increments | equations | adapters
  two = rolegen('lora', UNTIED, "reasoner.lora.targets=('wq', 'down')")
  adapters_of_two = {path for path in adapters if '.wq_' in path or '.down_' in path}
  assert paths(two.trained['reasoner']) == increments | equations | adapters_of_two
  everything = paths(rolegen('all', UNTIED).model_fns['reasoner'])
  for r in (frozen, adapted):
    assert paths(r.frozen['reasoner']) == everything - equations
  assert rolegen('all').frozen == {} and rolegen('all').trained == rolegen('all').model_fns


def test_the_base_is_drawn_as_without_adapters_and_parts_join_to_the_whole():
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

  def init(model_fn):
    return functional.init(model_fn, jax.random.key(3), mesh)[1]

  r, plain = rolegen('lora'), init(rolegen('all').model_fns['reasoner'])
  trained, frozen = init(r.trained['reasoner']), init(r.frozen['reasoner'])
  whole = init(r.model_fns['reasoner'])
  jax.tree.map(np.testing.assert_array_equal, functional.join(trained, frozen), whole)
  for name in EQUATIONS:  # which always train
    plain.pop(name)
  jax.tree.map(np.testing.assert_array_equal, frozen, plain)
  adapter = trained['transformer']['blocks']['attention']['wq_lora']
  assert adapter['a'].shape == (2, 32, 2)
  assert adapter['a'].sharding.spec[1] == 'fsdp' and adapter['b'].sharding.spec[2] == 'tensor'
  assert 0.5 < np.std(adapter['a']) * 32**0.5 < 1.2 and not np.asarray(adapter['b']).any()


@pytest.mark.parametrize(
  'assignment, message',
  [
    ('reasoner.train=adapters', "one of 'all', 'lora', 'frozen'"),
    ('reasoner.lora.rank=0', 'at least 1'),
    ("reasoner.lora.targets=('wq','q')", 'must be different ones of wq, wk'),
    ('reasoner.lora.alpha=0.0', 'positive'),
  ],
)
def test_wrong_settings_are_refused(assignment, message):
  with pytest.raises(ConfigError, match=message):
    tiny.config(assignment).validated()


def test_scale():
  assert lora.scale(LoraConfig(rank=4, alpha=2.0)) == 0.5
