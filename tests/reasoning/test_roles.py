import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, RolesConfig
from rolegen_jax.data.batches import Trajectories
from rolegen_jax.reasoning import roles as lib
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.runtime.compile import jit
from tests import tiny

WITHOUT = jax.jit(lib.without)
LAST = 4  # events that get a role
VIEW, CART = EVENT_NAMES.index('view'), EVENT_NAMES.index('cart')


def delete(history: Trajectories, position: int) -> Trajectories:
  """A column leaves, a column of padding comes in on the left."""

  def drop(field, padding):
    left = np.full((len(field), 1), padding, field.dtype)
    return np.concatenate([left, np.delete(field, position, axis=1)], axis=1)

  return Trajectories(drop(history.item, -1), *(drop(field, 0) for field in history[1:]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, tiny.WIDTH - 1))
def test_without_an_event(seed, position):
  history = tiny.histories(np.random.default_rng(seed))
  shorter, same = (jax.device_get(WITHOUT(history, p)) for p in (position, -1))
  jax.tree.map(np.testing.assert_array_equal, shorter, delete(history, position))
  jax.tree.map(np.testing.assert_array_equal, same, history)


def test_removal_effects_are_those_of_histories_with_the_event_deleted():
  examples, trie, params = tiny.examples(), tiny.trie(), tiny.params('backbone')
  rolegen = tiny.rolegen()

  @jit
  def effects(params, examples, trie):
    return lib.removal_effects(rolegen.bind('backbone', params), examples, trie, LAST)

  @jit
  def log_prob(params, history):
    backbone = rolegen.bind('backbone', params)
    memory = backbone.encode(history, backbone.items(trie))
    query_state = rolegen.query(backbone, memory, examples.timestamp)
    return backbone.log_prob(query_state, examples.target, history.item, trie)

  effect = jax.device_get(effects(params, examples, trie))
  full = np.array(log_prob(params, examples.history))
  for m in range(LAST):
    position = tiny.WIDTH - LAST + m
    expected = full - np.array(log_prob(params, delete(examples.history, position)))
    real = examples.history.segment[:, position] > 0
    np.testing.assert_allclose(effect[:, m], np.where(real, expected, 0.0), atol=5e-5)
  assert np.abs(effect).max() > 1e-3


def test_effects_on_intent_are_those_of_evidence_without_the_event():
  examples, codes, params = tiny.examples(), tiny.codes(), tiny.params('reasoner')
  build = jit(functools.partial(build_prompt, tiny.rolegen().layout))
  prompt = build(examples.history, examples.excites, examples.timestamp, codes)
  evidence = jax.device_get(prompt.evidence)
  positions = range(tiny.WIDTH - LAST, tiny.WIDTH)
  events = {name: x for name, x in evidence._asdict().items() if np.ndim(x) > 1}
  shorter = [
    evidence._replace(**{name: np.delete(x, position, axis=1) for name, x in events.items()})
    for position in positions
  ]

  @jit
  def run(params, evidence, shorter):
    equation = tiny.rolegen().bind('reasoner', params).intent
    effect = lib.intent_effects(equation, evidence, examples.target, codes, LAST)
    return effect, [equation(e) for e in (evidence, *shorter)]

  effect, log_probs = jax.device_get(run(params, evidence, shorter))
  coarse_code = codes[examples.target, :1][None]
  full, *less = np.take_along_axis(np.array(log_probs), coarse_code, axis=2)[..., 0]
  np.testing.assert_allclose(effect, np.stack([full - part for part in less], axis=1), atol=1e-5)
  assert np.abs(effect).max() > 1e-2


class Shift:
  """An interest shift in which the target is item 0.

  Items 0 and 1 are in the target's coarse code 0, item 2 in coarse code 1, which its purchases
  complement. Contact with item 4 raises interest in coarse code 0, with item 5 lowers it, and with
  item 3 leaves it as it is.
  """

  coarse = np.array([0, 0, 1, 2, 3, 2], np.int32)
  complement_KxK = np.where(np.arange(64).reshape(8, 8) == 8, 0.03, 0.0)

  @staticmethod
  def z(item, coarse_code):
    of_item = np.array([9.0, -9.0, 3.9, -2.9, 4.0, -3.0])[item]
    return np.where(coarse_code == 0, of_item, 0.0)


@pytest.mark.parametrize(
  'before, item, event, role',
  [
    # A purchase is a conversion, whatever else it is.
    ([(3, VIEW, 1)], 0, tiny.PURCHASE, 'CONVERT'),
    # The same item of the target's coarse code again, whatever it does at large.
    ([(1, VIEW, 1)], 1, VIEW, 'REINFORCE'),
    ([(0, VIEW, 1)], 0, CART, 'REINFORCE'),
    # First contact with the coarse code, and with the target itself.
    ([(3, VIEW, 1)], 1, VIEW, 'ANCHOR'),
    ([(1, VIEW, 1)], 0, VIEW, 'ANCHOR'),
    # A purchase ended the intent, and a new one begins; so does more than 14 days of silence.
    ([(1, tiny.PURCHASE, 1)], 1, VIEW, 'ANCHOR'),
    ([(1, VIEW, -5)], 1, VIEW, 'ANCHOR'),
    ([(1, VIEW, -4)], 1, VIEW, 'REINFORCE'),
    # An alternative within the intent.
    ([(0, VIEW, 1)], 1, VIEW, 'COMPARE'),
    ([(3, VIEW, 1)], 2, VIEW, 'COMPLEMENT'),
    ([(3, VIEW, 1)], 4, VIEW, 'TRIGGER'),
    ([(4, VIEW, 1)], 4, VIEW, 'TRIGGER'),
    ([(3, VIEW, 1)], 5, VIEW, 'DISTRACT'),
    ([(4, VIEW, 1)], 3, VIEW, 'EXPLORE'),
    ([], 3, VIEW, 'EXPLORE'),
  ],
)
def test_label_rules(before, item, event, role):
  """Events are (item, event, day); the one to label is on day 10."""
  items, events, days = zip(*before, (item, event, 10))

  def row(values, padding):
    return np.array([[padding] * (4 - len(values)) + [*values]], np.int32)

  ones = [1] * len(items)
  times = [tiny.NOW + day * tiny.DAY for day in days]
  history = Trajectories(row(items, -1), row(events, 0), row(ones, 0), row(times, 0), row(ones, 0))

  def label(target: int) -> np.ndarray:
    return lib.label_roles(history, np.array([target], np.int32), 2, Shift, RolesConfig())

  assert ROLE_NAMES[label(0)[0, 1]] == role
  assert (label(0)[0, 0] == -1) == (len(before) == 0)
  assert label(-1).tolist() == [[-1, -1]]  # without a conversion there is no hindsight


@pytest.mark.parametrize(
  'in_all, before, item, role',
  [
    (0.5, 0.1, 3, 'TRIGGER'),
    (0.5, 0.3, 3, 'COMPLEMENT'),
    (0.3, 0.3, 3, 'EXPLORE'),
    (-0.5, 0.0, 3, 'DISTRACT'),
    (0.0, 0.0, 4, 'EXPLORE'),  # what an item does at large is not asked
    (0.5, 0.1, 0, 'ANCHOR'),  # contact with the target's own code has its roles by place
  ],
)
def test_where_kinds_are_known_roles_follow_from_effects(in_all, before, item, role):
  one = np.ones((1, 1), np.int32)
  history = Trajectories(item * one, VIEW * one, one, tiny.NOW * one, one)
  effects = np.full((1, 1), in_all), np.full((1, 1), before)
  config = RolesConfig(effect=0.4)
  label = lib.label_roles(history, np.zeros(1, np.int32), 1, Shift, config, effects)
  assert ROLE_NAMES[label[0, 0]] == role
