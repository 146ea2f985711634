import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import INTERVENTIONS
from rolegen_jax.models.evidence import Evidence
from rolegen_jax.reasoning import frcot
from rolegen_jax.reasoning import worlds as lib
from rolegen_jax.runtime.compile import jit
from tests import tiny


def choose(is_purchase, pivotal, intent, worlds: int) -> lib.Choice:
  """What is done to users whose last events are purchases or views."""
  nothing: dict = dict.fromkeys(Evidence._fields)

  @jit
  def run(is_purchase, pivotal, intent, keys):
    event = jnp.where(is_purchase, tiny.PURCHASE, 1)
    evidence = Evidence(**nothing | dict(event=event, present=event > 0))
    prompt = frcot.Prompt(None, None, None, evidence)
    return lib.choose_interventions(prompt, pivotal, intent, worlds, INTERVENTIONS, keys)

  keys = jax.random.split(jax.random.key(0), len(is_purchase))
  return jax.device_get(run(is_purchase, pivotal, intent, keys))


def test_worlds_take_turns_and_pivots_are_the_most_pivotal_events():
  """The second user has one event that is no purchase."""
  worlds, is_purchase = 8, np.array([[False] * 4, [False, True, True, True]])
  pivotal = jnp.array([[0.1, 0.4, 0.2, 0.3], [0.1, 0.5, 0, 0]])
  intent = jnp.log(jnp.array([[0.1, 0.2, 0.4, 0.3], [0.4, 0.3, 0.2, 0.1]]))
  kinds = ['intent', 'role', 'intent', 'role', 'intent', 'remove', 'remove']
  assert lib.kinds(worlds, INTERVENTIONS) == kinds
  done = choose(is_purchase, pivotal, intent, worlds)
  at_pivot = (done.role_shift > 0) | done.removed
  pivots = [[np.flatnonzero(world).tolist() for world in user] for user in at_pivot]
  assert pivots[0] == [[], [], [1], [], [3], [], [2], [0]]
  assert pivots[1] == [[], [], [0], [], [0], [], [0], [0]]
  assert done.removed.any(-1).tolist() == [[False] * 6 + [True] * 2] * 2
  assert (done.role_shift < tiny.CONVERT).all()
  # The factual world starts from the likeliest intent; the others follow in order.
  assert done.intent.tolist() == [[-1, 3, -1, 1, -1, 0, -1, -1], [-1, 1, -1, 2, -1, 3, -1, -1]]


def test_a_user_without_eligible_events_gets_another_intent_at_most():
  done = choose(np.ones((1, 4), bool), jnp.zeros((1, 4)), jnp.zeros((1, 5)), worlds=4)
  assert (done.role_shift == 0).all() and not done.removed.any()
  assert (done.intent >= 0).tolist() == [[False, True, False, False]]


def test_an_event_is_as_pivotal_as_the_intent_that_it_moves():
  p = np.array([[[0.5, 0.5, 0.0]], [[0.5, 0.5, 0.0]], [[0.2, 0.5, 0.3]], [[0.0, 0.0, 1.0]]])
  log_probs = jnp.log(jnp.maximum(p, 1e-30))
  np.testing.assert_allclose(lib.pivotal(log_probs), [[0.0, 0.3, 1.0]], atol=1e-6)


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


def visible(tree: lib.Tree) -> np.ndarray:
  """Which place of the row sees which, bool [length, length], from the parts of the mask."""
  mask = tree.mask(jnp.zeros((1, tree.length), jnp.int32))
  sees = np.zeros((tree.length,) * 2, bool)
  a, z = len(mask.trunk), len(mask.branch)
  sees[:a, :a] = mask.trunk
  for start in range(a, tree.length, z):
    branch = slice(start, start + z)
    sees[branch, : mask.shared], sees[branch, branch] = True, mask.branch
  return sees


# With 6 role events all events may be removed, and nothing before them is shared.
@pytest.mark.parametrize('role_events', [1, 4, 6])
@pytest.mark.parametrize('chains, may_remove', [(1, ()), (3, ()), (5, (2, 3))])
def test_every_position_of_a_tree_sees_its_own_chain_once(role_events, chains, may_remove):
  config = tiny.config(f'reasoner.role_events={role_events}').reasoner
  layout = frcot.Layout(config, tiny.rolegen().vocab)
  tree, r = lib.Tree(layout, chains, may_remove), layout.prompt_length
  # Each place holds its position in its chain, completions also 1000 times their chain.
  prompt = np.broadcast_to(np.arange(r), (chains, r))
  positions = np.arange(r, r + layout.length)
  completion = positions + 1000 * np.arange(chains)[:, None]
  row = np.array(tree.lay(jnp.asarray(prompt)[None], jnp.asarray(completion)[None])[0])
  np.testing.assert_array_equal(row % 1000, tree.positions)
  assert tree.length == len(row)
  sees = visible(tree)
  assert sees.diagonal().all() and not np.triu(sees, 1).any()
  for seen, position in zip(sees, tree.positions):
    np.testing.assert_array_equal(np.sort(tree.positions[seen]), np.arange(position + 1))
  for chain, (end, own) in enumerate(zip(tree.ends, tree.completions)):
    np.testing.assert_array_equal(row[own], completion[chain])
    assert tree.positions[end] == r - 1 and sees[own.start, end]
    others = np.flatnonzero((row >= r) & (row // 1000 != chain))
    assert not sees[own][:, others].any()
