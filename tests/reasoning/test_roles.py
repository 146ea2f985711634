import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, RolesConfig
from rolegen_jax.data.batches import Trajectories
from rolegen_jax.models.intent import Evidence
from rolegen_jax.reasoning import roles as lib
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.runtime.compile import jit
from tests import tiny

WITHOUT = jax.jit(lib.without)


def delete(history: Trajectories, position: int) -> Trajectories:
  """By hand: the column leaves, a column of padding comes in on the left."""
  drop = lambda a, fill: np.concatenate(
    [np.full((len(a), 1), fill, a.dtype), np.delete(a, position, axis=1)], axis=1
  )
  return Trajectories(drop(history.item, -1), *(drop(a, 0) for a in history[1:]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, tiny.WIDTH - 1))
def test_without_an_event(seed, position):
  history = tiny.histories(np.random.default_rng(seed))
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get(WITHOUT(history, position)),
    delete(history, position),
  )
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(WITHOUT(history, -1)), history)


def test_removal_effects_are_those_of_histories_with_the_event_deleted():
  examples, codes, params = tiny.examples(), tiny.codes(), tiny.params('backbone')
  bind = functools.partial(tiny.rolegen().bind, 'backbone')
  effect = jax.device_get(
    jit(lambda p, c, t: lib.removal_effects(bind(p), c, t, 4))(params, examples, codes)
  )

  @jit
  def alone(params, history):
    backbone = bind(params)
    memory = backbone.encode(history, codes)
    query_state = tiny.rolegen().ask(backbone, memory, examples.timestamp)
    return backbone.log_prob(query_state, memory, examples.target[:, None], codes)[0][:, 0]

  full = np.array(alone(params, examples.history))
  for m in range(4):
    expected = full - np.array(alone(params, delete(examples.history, tiny.WIDTH - 4 + m)))
    real = examples.history.segment[:, tiny.WIDTH - 4 + m] > 0
    np.testing.assert_allclose(effect[:, m], np.where(real, expected, 0.0), atol=2e-5)
  assert np.abs(effect).max() > 1e-3


def test_effects_on_intent_are_those_of_evidence_without_the_event():
  examples, codes, params = tiny.examples(), tiny.codes(), tiny.params('reasoner')
  evidence = build_prompt(
    tiny.rolegen().layout, examples.history, examples.excites, examples.timestamp, codes
  ).evidence
  without = [
    Evidence(*(np.delete(x, tiny.WIDTH - 4 + m, axis=1) for x in evidence[:-1]), evidence.intent)
    for m in range(4)
  ]

  @jit
  def run(params, evidence, without):
    equation = tiny.rolegen().bind('reasoner', params).intent
    return lib.intent_effects(equation, evidence, examples.target, codes, 4), [
      equation(e) for e in (evidence, *without)
    ]

  effect, log_probs = jax.device_get(run(params, evidence, without))
  full, *less = np.take_along_axis(np.array(log_probs), codes[examples.target, :1][None], axis=2)[
    ..., 0
  ]
  np.testing.assert_allclose(effect, np.stack([full - part for part in less], axis=1), atol=1e-5)
  assert np.abs(effect).max() > 1e-2


class Counted:
  """Items 0 and 1 are in the target's coarse code 0 (the target is item 0), item 2 in coarse code 1, which its purchases complement.
  Of the others, contact with item 4 raises interest in coarse code 0, with item 5 lowers it, item 3 leaves it as it is."""

  coarse = np.array([0, 0, 1, 2, 3, 2], np.int32)
  complement_KxK = np.where(np.arange(64).reshape(8, 8) == 8, 0.03, 0.0)

  @staticmethod
  def z(item, coarse_code):
    return np.where(coarse_code == 0, np.array([9.0, -9.0, 3.9, -2.9, 4.0, -3.0])[item], 0.0)


VIEW, CART = EVENT_NAMES.index('view'), EVENT_NAMES.index('cart')


@pytest.mark.parametrize(
  'before, item, event, role',
  [
    (
      [(3, VIEW, 1)],
      0,
      tiny.PURCHASE,
      'CONVERT',
    ),  # a purchase is a conversion, whatever else it is
    (
      [(1, VIEW, 1)],
      1,
      VIEW,
      'REINFORCE',
    ),  # the same item of y's coarse code again, whatever it does at large
    ([(0, VIEW, 1)], 0, CART, 'REINFORCE'),
    ([(3, VIEW, 1)], 1, VIEW, 'ANCHOR'),  # first contact with the coarse code
    ([(1, VIEW, 1)], 0, VIEW, 'ANCHOR'),  # first contact with y itself
    ([(1, tiny.PURCHASE, 1)], 1, VIEW, 'ANCHOR'),  # a purchase ended the intent: a new one begins
    ([(1, VIEW, -5)], 1, VIEW, 'ANCHOR'),  # so did 14 days of silence
    ([(1, VIEW, -4)], 1, VIEW, 'REINFORCE'),  # 14 days are not yet more than 14
    ([(0, VIEW, 1)], 1, VIEW, 'COMPARE'),  # an alternative within the intent
    ([(3, VIEW, 1)], 2, VIEW, 'COMPLEMENT'),
    ([(3, VIEW, 1)], 4, VIEW, 'TRIGGER'),
    ([(4, VIEW, 1)], 4, VIEW, 'TRIGGER'),
    ([(3, VIEW, 1)], 5, VIEW, 'DISTRACT'),
    ([(4, VIEW, 1)], 3, VIEW, 'EXPLORE'),
    ([], 3, VIEW, 'EXPLORE'),
  ],
)
def test_label_rules(before, item, event, role):
  items, events, days = zip(*before, (item, event, 10))
  pad = lambda values, fill: np.array([[fill] * (4 - len(values)) + [*values]], np.int32)
  time = [tiny.NOW + day * tiny.DAY for day in days]
  history = Trajectories(
    pad(items, -1), pad(events, 0), pad([1] * len(items), 0), pad(time, 0), pad([1] * len(items), 0)
  )
  label = lambda target: lib.label_roles(
    history, np.array([target], np.int32), 2, Counted, RolesConfig()
  )
  assert ROLE_NAMES[label(0)[0, 1]] == role
  assert (label(0)[0, 0] == -1) == (len(before) == 0)
  assert label(-1).tolist() == [[-1, -1]]  # without a conversion there is no hindsight
