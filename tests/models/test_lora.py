"""What trains by `reasoner.train`: adapters and rows of our tokens that change nothing at first, and then what weights of their sum would."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import ConfigError, LoraConfig, MeshConfig
from rolegen_jax.models import functional, lora
from rolegen_jax.models.attention import causal
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


def names(tree) -> set[str]:
  return {
    '.'.join(p.key for p in path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


@functools.cache
def program(train: str, *assignments: str):
  """All logits of some tokens, those of the text, and those of the last level of codes and what follows it, from a place known at run time."""
  r = rolegen(train, *assignments)

  def run(params, start):
    reasoner = r.bind('reasoner', params)
    tokens = jnp.arange(4 * 12).reshape(4, 12) * 7 % r.vocab.size
    hidden = reasoner.hidden(tokens, np.arange(12), causal(jnp.ones((4, 12), jnp.int32)))
    return (
      reasoner.logits(hidden, 0, r.vocab.size),
      reasoner.logits(hidden, *r.vocab.blocks['text']),
      reasoner.logits(hidden, start, 2 * tiny.CODES),
    )

  compiled = jit(run)
  return lambda params: jax.device_get(compiled(params, r.vocab.blocks['sid2'][0]))


@functools.cache
def base(*assignments: str):
  return tiny.random_params(rolegen('all', *assignments).model_fns['reasoner'])


def with_base(r, trained):
  """Parameters of a reasoner whose frozen part is that of `base`."""
  held = base(*(UNTIED,) * (not r.config.reasoner.transformer.tied))
  return functional.join(functional.part(r.frozen['reasoner'], held), trained)


def merged(params) -> dict:
  """The sums, as the reasoner without adapters has them."""
  found = {}
  for name, leaf in params.items():
    if isinstance(leaf, dict):
      leaf = merged(leaf)
    elif adapter := params.get(f'{name}_lora'):
      a, b = adapter['a'], adapter['b']
      leaf = leaf + 3.0 * np.einsum(
        'lir,lro->lio', a.reshape(len(a), -1, 2), b.reshape(len(b), 2, -1)
      ).reshape(leaf.shape)
    elif (delta := params.get(f'{name}_delta')) is not None:
      leaf = leaf + np.pad(delta, ((0, len(leaf) - len(delta)), (0, 0)))
    found[name] = leaf
  return {name: leaf for name, leaf in found.items() if not name.endswith(('_lora', '_delta'))}


@pytest.mark.parametrize('train, assignments', [('lora', ()), ('frozen', (UNTIED,))])
def test_nothing_changes_at_first_and_then_what_the_sums_would(train, assignments):
  r = rolegen(train, *assignments)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  fresh = jax.device_get(functional.init(r.trained['reasoner'], jax.random.key(1), mesh)[1])
  fresh['intent'] = base(*assignments)['intent']
  run, plain = program(train, *assignments), program('all', *assignments)
  without = plain(base(*assignments))
  jax.tree.map(np.testing.assert_array_equal, run(with_base(r, fresh)), without)
  first, size = r.vocab.blocks['text']
  np.testing.assert_allclose(
    without[1], without[0][..., first : first + size], atol=1e-5
  )  # sums of another order

  moved = tiny.random_params(r.trained['reasoner'], seed=5) | {'intent': fresh['intent']}
  found = run(with_base(r, moved))
  for a, b in zip(found, plain(merged(with_base(r, moved)))):
    np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(b).max())
  assert np.abs(found[0] - without[0]).max() > 0.1


def test_what_trains():
  targets = {'attention': ('wq', 'wk', 'wv', 'wo'), 'mlp': ('gate', 'up', 'down')}
  rows, intent = {'tokens_delta', 'readout_delta'}, {f'intent.{n}' for n in base()['intent']}
  adapters = {
    f'transformer.blocks.{layer}.{w}_lora.{x}'
    for layer, ws in targets.items()
    for w in ws
    for x in 'ab'
  }
  shapes = lambda train, part, *more: functional.abstract(
    getattr(rolegen(train, UNTIED, *more), part)['reasoner']
  )[1]
  assert names(shapes('frozen', 'trained')) == rows | intent
  assert names(shapes('lora', 'trained')) == rows | intent | adapters
  some = names(shapes('lora', 'trained', "reasoner.lora.targets=('wq', 'down')"))
  assert some == rows | intent | {n for n in adapters if '.wq_' in n or '.down_' in n}
  whole = names(functional.abstract(rolegen('all', UNTIED).model_fns['reasoner'])[1])
  assert names(shapes('lora', 'frozen')) == names(shapes('frozen', 'frozen')) == whole - intent
  assert rolegen('all').frozen == {} and rolegen('all').trained == rolegen('all').model_fns


def test_the_base_is_drawn_as_without_adapters_and_parts_join_to_the_whole():
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  plain = functional.init(rolegen('all').model_fns['reasoner'], jax.random.key(3), mesh)[1]
  r = rolegen('lora')
  whole = functional.init(r.model_fns['reasoner'], jax.random.key(3), mesh)[1]
  parts = [
    functional.init(part['reasoner'], jax.random.key(3), mesh)[1] for part in (r.trained, r.frozen)
  ]
  jax.tree.map(np.testing.assert_array_equal, functional.join(*parts), whole)
  jax.tree.map(
    np.testing.assert_array_equal, parts[1], {n: p for n, p in plain.items() if n != 'intent'}
  )
  adapter = parts[0]['transformer']['blocks']['attention']['wq_lora']
  spec = lambda x: tuple(x.sharding.spec)
  assert (
    adapter['a'].shape == (2, 32, 2)
    and spec(adapter['a'])[1] == 'fsdp'
    and spec(adapter['b'])[2] == 'tensor'
  )
  assert 0.5 < np.std(adapter['a']) * 32**0.5 < 1.2 and not np.asarray(adapter['b']).any()


@pytest.mark.parametrize(
  'assignment, says',
  [
    ('reasoner.train=adapters', "one of 'all', 'lora', 'frozen'"),
    ('reasoner.lora.rank=0', 'at least 1'),
    ("reasoner.lora.targets=('wq','q')", 'some of wq, wk'),
    ('reasoner.lora.alpha=0.0', 'positive'),
  ],
)
def test_wrong_settings(assignment, says):
  with pytest.raises(ConfigError, match=says):
    tiny.config(assignment).validated()


def test_scale():
  assert lora.scale(LoraConfig(rank=4, alpha=2.0)) == 0.5
