"""Explanations against histories in which the event never was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.reasoning import explain as lib
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.roles import without
from rolegen_jax.runtime.compile import jit
from tests import tiny

FIRST = 2
M = tiny.rolegen().config.reasoner.role_events


@pytest.fixture(scope='module')
def examples():
  return tiny.examples(6)


@pytest.fixture(scope='module')
def listed() -> np.ndarray:
  """Five different items for each user, and an empty slot."""
  rng = np.random.default_rng(0)
  item = np.stack([rng.permutation(tiny.ITEMS)[:6] for _ in range(tiny.USERS)]).astype(np.int32)
  item[:, -1] = -1
  return item


@functools.partial(jit, static_argnums=4)
def explain(params, examples, item, trie, first):
  return lib.explain(tiny.rolegen(), params, examples, item, trie, first)


@jit
def log_probs(params, examples, item, trie):
  """log p of the listed items by the backbone and what the equations say."""
  rolegen = tiny.rolegen()
  backbone, reasoner = (rolegen.bind(name, params[name]) for name in ('backbone', 'reasoner'))
  items = backbone.items(trie)
  prompt = build_prompt(
    rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
  )
  said = rolegen.equations_say(reasoner, prompt.evidence, trie)
  query_state = rolegen.query(
    backbone, backbone.encode(examples.history, items), examples.timestamp
  )
  weight = jnp.where(item >= 0, 0.0, NEG_INF)
  return backbone.experts.log_probs(backbone.members(query_state, item, weight, said, items))


@jit
def likeliest(reasoner, examples, code, trie):
  """The likeliest role of each event towards a coarse code, of those that fit it."""
  prompt = build_prompt(
    tiny.rolegen().layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
  )
  logits = tiny.rolegen().bind('reasoner', reasoner).roles(prompt.evidence, code, M)
  return jnp.where(prompt.role_allowed, logits, NEG_INF).argmax(-1)


def params() -> dict:
  return {name: tiny.params(name) for name in ('backbone', 'reasoner')}


def test_effects_are_those_of_histories_without_the_event(examples, listed):
  found = explain(params(), examples, listed, tiny.trie(), FIRST)
  whole = log_probs(params(), examples, listed, tiny.trie())
  width = examples.history.item.shape[1]
  real = examples.history.segment[:, -M:] > 0
  for m in range(M):
    position = width - M + m
    order = np.arange(width)
    order = np.where(order <= position, order - 1, order)
    excites = jax.tree.map(lambda x: x[:, np.maximum(order, 0)], examples.excites)
    shorter = examples._replace(history=without(examples.history, position), excites=excites)
    lost = (whole - log_probs(params(), shorter, listed, tiny.trie()))[:, :FIRST]
    expected = np.where(real[:, None, m], lost, 0.0)
    np.testing.assert_allclose(found.effect[..., m], expected, atol=2e-4)
  assert np.abs(found.effect).max() > 0.01


def test_roles_fit_events_and_differ_by_item(examples, listed):
  found = explain(params(), examples, listed, tiny.trie(), FIRST)
  real = (examples.history.segment[:, -M:] > 0)[:, None]
  is_purchase = real & (examples.history.event[:, -M:] == tiny.PURCHASE)[:, None]
  np.testing.assert_array_equal(found.role >= 0, np.broadcast_to(real, found.role.shape))
  np.testing.assert_array_equal(
    found.role == tiny.CONVERT, is_purchase & np.ones(FIRST, bool)[:, None]
  )
  assert (found.role[:, 0] != found.role[:, 1]).any()
  rng = np.random.default_rng(1)
  moved = params()['reasoner']['roles'] | {
    name: rng.normal(size=x.shape).astype(np.float32)
    for name, x in params()['reasoner']['roles'].items()
  }
  reasoner = params()['reasoner'] | {'roles': moved}
  found = explain(params() | {'reasoner': reasoner}, examples, listed, tiny.trie(), FIRST)
  for place in range(FIRST):
    code = tiny.codes()[listed[:, place], 0]
    expected = likeliest(reasoner, examples, code, tiny.trie())
    np.testing.assert_array_equal(found.role[:, place], np.where(real[:, 0], expected, -1))


def test_an_empty_place_has_no_reason(examples, listed):
  found = explain(params(), examples, listed[:, ::-1].copy(), tiny.trie(), FIRST)
  assert (found.effect[:, 0] == 0).all() and (found.role[:, 0] == -1).all()
  assert (found.role[:, 1] >= 0).any()
