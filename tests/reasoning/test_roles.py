import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rolegen_jax.compile import jit
from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, RolesConfig
from rolegen_jax.data.cases import CaseTable
from rolegen_jax.data.rows import Trajectories
from rolegen_jax.reasoning import roles as lib
from tests import tiny
from tests.evaluation import tiny_log

WITHOUT = jax.jit(lib.without)


def delete(history: Trajectories, position: int) -> Trajectories:
  """By hand: the column leaves, a column of padding comes in on the left."""
  drop = lambda a, fill: np.concatenate([np.full((len(a), 1), fill, a.dtype), np.delete(a, position, axis=1)], axis=1)
  return Trajectories(drop(history.item, -1), *(drop(a, 0) for a in history[1:]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, tiny.WIDTH - 1))
def test_without_an_event(seed, position):
  history = tiny.histories(np.random.default_rng(seed))
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(WITHOUT(history, position)), delete(history, position))
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(WITHOUT(history, -1)), history)


def test_removal_effects_are_those_of_histories_with_the_event_deleted():
  cases, codes, params = tiny.cases(), tiny.codes(), tiny.params('backbone')
  bind = functools.partial(tiny.rolegen().bind, 'backbone')
  effect, log_prob = jax.device_get(jit(lambda p, c, t: lib.removal_effects(bind(p), c, t, 4))(params, cases, codes))

  @jit
  def alone(params, history):
    backbone = bind(params)
    memory = backbone.encode(history, codes)
    recall = tiny.rolegen().ask(backbone, memory, cases.timestamp)
    return backbone.log_prob(recall, memory, cases.target[:, None], codes)[0][:, 0]

  full = np.array(alone(params, cases.history))
  np.testing.assert_allclose(log_prob, full, atol=1e-5)
  for m in range(4):
    expected = full - np.array(alone(params, delete(cases.history, tiny.WIDTH - 4 + m)))
    real = cases.history.segment[:, tiny.WIDTH - 4 + m] > 0
    np.testing.assert_allclose(effect[:, m], np.where(real, expected, 0.0), atol=2e-5)
  assert np.abs(effect).max() > 1e-3


# Items 0 and 1 are in the target's neighbourhood 0 (the target is item 0), item 2 in the complementary neighbourhood 1.
# Of the others, conversions in neighbourhood 0 follow item 4 in 10 of 10 cases, item 5 in none of 40, item 3 as often as by chance.
COARSE = np.array([0, 0, 1, 2, 3, 2], np.int32)
LIFT = np.ones((8, 8))
LIFT[1, 0] = 1.4
FOUND = lib.Associations(
    COARSE, pair=np.array([3 * 8, 4 * 8]), count=np.array([2.0, 10.0]), item_total=np.array([0.0, 0, 0, 20, 10, 40]),
    target_share=np.full(8, 0.1), lift_KxK=LIFT,
)
VIEW, CART = EVENT_NAMES.index('view'), EVENT_NAMES.index('cart')


@pytest.mark.parametrize('before, item, event, effect, role', [
    ([(3, VIEW, 1)], 0, tiny.PURCHASE, 9.0, 'CONVERT'),  # a purchase is a conversion, whatever else it is
    ([(1, VIEW, 1)], 1, VIEW, -9.0, 'REINFORCE'),  # the same item of y's neighbourhood again, whatever its effect
    ([(0, VIEW, 1)], 0, CART, 0.0, 'REINFORCE'),
    ([(3, VIEW, 1)], 1, VIEW, 0.0, 'ANCHOR'),  # first contact with the neighbourhood
    ([(1, VIEW, 1)], 0, VIEW, 0.0, 'ANCHOR'),  # first contact with y itself
    ([(1, tiny.PURCHASE, 1)], 1, VIEW, 0.0, 'ANCHOR'),  # a purchase ended the intent: a new one begins
    ([(1, VIEW, -5)], 1, VIEW, 0.0, 'ANCHOR'),  # so did 14 days of silence
    ([(1, VIEW, -4)], 1, VIEW, 0.0, 'REINFORCE'),  # 14 days are not yet more than 14
    ([(0, VIEW, 1)], 1, VIEW, 9.0, 'COMPARE'),  # an alternative within the intent
    ([(3, VIEW, 1)], 2, VIEW, 9.0, 'COMPLEMENT'),
    ([(3, VIEW, 1)], 4, VIEW, 0.01, 'TRIGGER'),
    ([(4, VIEW, 1)], 4, VIEW, 0.01, 'TRIGGER'),
    ([(3, VIEW, 1)], 4, VIEW, -0.01, 'EXPLORE'),  # the statistics alone are not enough
    ([(3, VIEW, 1)], 5, VIEW, -0.01, 'DISTRACT'),
    ([(3, VIEW, 1)], 5, VIEW, 0.01, 'EXPLORE'),
    ([(3, VIEW, 1)], 3, VIEW, 9.0, 'EXPLORE'),  # neither is the effect
    ([], 3, VIEW, 0.0, 'EXPLORE'),
])
def test_label_rules(before, item, event, effect, role):
  items, events, days = zip(*before, (item, event, 10))
  pad = lambda values, fill: np.array([[fill] * (4 - len(values)) + [*values]], np.int32)
  time = [tiny.NOW + day * tiny.DAY for day in days]
  history = Trajectories(pad(items, -1), pad(events, 0), pad([1] * len(items), 0), pad(time, 0), pad([1] * len(items), 0))
  label = lambda target: lib.label_roles(history, np.array([target], np.int32), np.array([[0.0, effect]]), FOUND, RolesConfig())
  assert ROLE_NAMES[label(0)[0, 1]] == role
  assert (label(0)[0, 0] == -1) == (len(before) == 0)
  assert label(-1).tolist() == [[-1, -1]]  # without a conversion there is no hindsight


def test_standard_scores_of_items_and_conversions():
  z = FOUND.z(np.array([3, 4, 5, 0]), np.zeros(4, int))
  np.testing.assert_allclose(z, [0.0, 9 / 2**0.5, -4 / 5**0.5, 0.0])
  nothing = dataclasses.replace(FOUND, pair=np.zeros(0, np.int64), count=np.zeros(0))
  np.testing.assert_allclose(nothing.z(np.array([5]), np.array([0])), -4 / 5**0.5)


def test_associations_count_contacts_before_conversions():
  """Users 0 and 1 view item 2, then buy item 0; user 2 views items 3 and 4, then buys item 3. Purchases are no contacts."""
  rows = [(0, 2, 'view', 0), (0, 0, 'purchase', 1), (1, 2, 'view', 0), (1, 0, 'purchase', 1), (2, 3, 'view', 0), (2, 4, 'view', 1), (2, 3, 'purchase', 2)]
  log, _ = tiny_log.make(rows, 6)
  codes = COARSE[:, None].repeat(3, axis=1)
  bought = np.flatnonzero(log.event == tiny.PURCHASE)
  user = (np.searchsorted(log.offsets, bought, side='right') - 1).astype(np.int32)
  none = np.full((3, 4), -1, np.int32)
  found = lib.Associations.of(CaseTable(log, user, bought, log.timestamp[bought], log.item[bought], none, none, None), codes, 8, last=4)
  assert dict(zip(found.pair.tolist(), found.count.tolist())) == {2 * 8: 2, 3 * 8 + 2: 1, 4 * 8 + 2: 1}
  assert found.item_total.tolist() == [0, 0, 2, 1, 1, 0]
  np.testing.assert_allclose(found.target_share, np.bincount([0, 0, 2], minlength=8) / 3)
  assert found.lift_KxK[1, 0] == pytest.approx(2 / (2 * 2 / 3)) and found.lift_KxK[3, 2] == pytest.approx(1.0)  # expected at least one
