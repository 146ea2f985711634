import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import INTERVENTIONS
from rolegen_jax.reasoning import frcot
from rolegen_jax.reasoning import worlds as lib
from tests import tiny

LAYOUT = tiny.rolegen().layout
NONE = -1


def test_worlds_take_turns_and_pivots_are_the_most_pivotal_events():
  b, m, worlds = 2, 4, 8
  allowed = np.ones((b, m, 8), bool)
  allowed[1, 1:] = np.arange(8) == tiny.CONVERT  # row 1: one event that is no purchase
  moved = jnp.array([[0.1, 0.4, 0.2, 0.3], [0.1, 0.5, 0, 0]])
  intent = np.log(np.array([[0.1, 0.2, 0.4, 0.3], [0.4, 0.3, 0.2, 0.1]]))
  prompt = frcot.Prompt(None, None, jnp.asarray(allowed), None)
  found = jax.device_get(
    lib.choose_interventions(
      prompt, moved, jnp.asarray(intent), worlds, INTERVENTIONS, jax.random.key(0)
    )
  )
  assert lib.kinds(worlds, INTERVENTIONS) == [
    'intent',
    'role',
    'intent',
    'role',
    'intent',
    'remove',
    'remove',
  ]
  at = (found.role != NONE) | found.removed
  assert [np.flatnonzero(row).tolist() for row in at[0]] == [[], [], [1], [], [3], [], [2], [0]]
  assert [np.flatnonzero(row).tolist() for row in at[1]] == [[], [], [0], [], [0], [], [0], [0]]
  assert found.removed.any(-1).tolist() == [[False] * 6 + [True] * 2] * 2
  assert (found.role < tiny.CONVERT).all()
  # The likeliest intent is where the factual world sets out from; the others follow in order.
  assert found.intent.tolist() == [[-1, 3, -1, 1, -1, 0, -1, -1], [-1, 1, -1, 2, -1, 3, -1, -1]]


def test_a_user_without_eligible_events_gets_another_intent_at_most():
  allowed = jnp.zeros((1, 4, 8), bool).at[..., tiny.CONVERT].set(True)
  found = lib.choose_interventions(
    frcot.Prompt(None, None, allowed, None),
    jnp.zeros((1, 4)),
    jnp.zeros((1, 5)),
    4,
    INTERVENTIONS,
    jax.random.key(0),
  )
  assert (
    (found.role == NONE).all()
    and not found.removed.any()
    and (found.intent >= 0).tolist() == [[False, True, False, False]]
  )


def test_an_event_is_as_pivotal_as_the_intent_that_it_moves():
  p = np.array([[[0.5, 0.5, 0.0]], [[0.5, 0.5, 0.0]], [[0.2, 0.5, 0.3]], [[0.0, 0.0, 1.0]]])
  np.testing.assert_allclose(
    lib.pivotal(jnp.log(jnp.maximum(p, 1e-30))), [[0.0, 0.3, 1.0]], atol=1e-6
  )


@pytest.mark.parametrize(
  'worlds, interventions, expected',
  [
    (2, INTERVENTIONS, ()),
    (4, INTERVENTIONS, (3,)),
    (3, ('remove', 'role'), (2,)),
    (4, ('remove',), (1, 2, 3)),
    (8, ('role',), ()),
  ],
)
def test_which_worlds_remove(worlds, interventions, expected):
  assert lib.removing(worlds, interventions) == expected


@pytest.mark.parametrize(
  'role_events', [1, 4, 6]
)  # 6: all events may be removed, nothing before them is shared
@pytest.mark.parametrize('chains, may_remove', [(1, ()), (3, ()), (5, (2, 3))])
def test_every_position_of_a_tree_sees_its_own_chain_once(role_events, chains, may_remove):
  layout = frcot.Layout(
    tiny.config(f'reasoner.role_events={role_events}').reasoner, tiny.rolegen().vocab
  )
  tree, r = lib.Tree(layout, chains, may_remove), layout.prompt_length
  # What stands where, by chain: the prompt's positions, then the completion's; -1: somebody else's copy.
  prompt = np.broadcast_to(np.arange(r), (chains, r))
  completion = (
    r
    + np.broadcast_to(np.arange(layout.length), (chains, layout.length))
    + 1000 * np.arange(chains)[:, None]
  )
  row = np.array(tree.lay(jnp.asarray(prompt)[None], jnp.asarray(completion)[None])[0])
  np.testing.assert_array_equal(row % 1000, tree.positions)
  assert tree.length == len(row)
  seen = attention_of(tree)
  assert seen.diagonal().all() and not np.triu(seen, 1).any()
  for sees, position in zip(seen, tree.positions):
    np.testing.assert_array_equal(np.sort(tree.positions[sees]), np.arange(position + 1))
  for chain, (end, own) in enumerate(zip(tree.ends, tree.completions)):
    np.testing.assert_array_equal(row[own], completion[chain])
    assert tree.positions[end] == r - 1 and seen[own.start, end]
    others = np.flatnonzero((row >= r) & (row // 1000 != chain))
    assert not seen[own][:, others].any()


def attention_of(tree: lib.Tree) -> np.ndarray:
  """bool [length, length], who sees whom, from the parts of the mask."""
  mask, seen = tree.mask(jnp.zeros((1, tree.length), jnp.int32)), np.zeros((tree.length,) * 2, bool)
  a, z = len(mask.trunk), len(mask.branch)
  seen[:a, :a] = mask.trunk
  for start in range(a, tree.length, z):
    seen[start : start + z, : mask.shared] = True
    seen[start : start + z, start : start + z] = mask.branch
  return seen
