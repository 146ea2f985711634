import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.data.batches import Excites, Trajectories
from rolegen_jax.reasoning import frcot
from rolegen_jax.vocab import Vocabulary
from tests import tiny

V = tiny.rolegen().vocab
LAYOUT = tiny.rolegen().layout
NONE = np.zeros((1, tiny.WIDTH, 3), np.float32)
NOTHING = Excites(NONE.astype(np.int32), NONE, NONE, NONE.astype(np.int32), NONE)


def test_positions_of_a_completion():
  """4 roles, INTENT, 2 prefixes of one code, PATH, 4 items of three codes, END."""
  assert LAYOUT.length == 4 + 1 + 2 + 1 + 12 + 1
  np.testing.assert_array_equal(
    LAYOUT.level, [-1] * 4 + [-1] + [0, 0] + [-1] + [0, 1, 2] * 4 + [-1]
  )
  np.testing.assert_array_equal(np.flatnonzero(LAYOUT.is_delimiter), [4, 7, 20])
  np.testing.assert_array_equal(np.flatnonzero(LAYOUT.is_role), range(4))
  np.testing.assert_array_equal(LAYOUT.intent_slots, [[5], [6]])
  np.testing.assert_array_equal(LAYOUT.path_slots, np.arange(8, 20).reshape(4, 3))
  assert LAYOUT.start[[4, 7, 20]].tolist() == [
    V.control('INTENT'),
    V.control('PATH'),
    V.control('END'),
  ]
  assert (LAYOUT.start[:4] == V.role(0)).all() and LAYOUT.start[5] == LAYOUT.start[8] == V.blocks[
    'sid0'
  ][0]
  assert LAYOUT.start[9] == V.blocks['sid1'][0] and LAYOUT.start[10] == V.blocks['sid2'][0]


def test_a_prompt_token_by_token():
  """Two events, one minute apart, the last a purchase an hour before now; four slots of padding before them."""
  row = lambda a, b, fill: np.array([[fill] * (tiny.WIDTH - 2) + [a, b]], np.int32)
  history = Trajectories(
    row(7, 9, -1),
    row(1, tiny.PURCHASE, 0),
    row(1, 1, 0),
    row(tiny.NOW - 3660, tiny.NOW - 3600, 0),
    row(1, 1, 0),
  )
  prompt = frcot.build_prompt(LAYOUT, history, NOTHING, jnp.array([tiny.NOW]), tiny.codes())
  sid = lambda item: V.sid(tiny.codes()[item]).tolist()
  expected = [V.control('PAD')] * 20 + [
    V.event(1),
    V.gap(0),
    *sid(7),
    V.event(5),
    V.gap(3),
    *sid(9),
    V.gap(17),
    V.control('REASON'),
  ]
  assert prompt.tokens[0].tolist() == expected and LAYOUT.prompt_length == len(expected)
  assert prompt.valid[0].tolist() == [False] * 20 + [True] * 12
  allowed = np.array(prompt.role_allowed[0])
  assert not allowed[:2].any()  # no event, no role
  assert np.flatnonzero(~allowed[2]).tolist() == [tiny.CONVERT] and np.flatnonzero(
    allowed[3]
  ).tolist() == [tiny.CONVERT]


def test_a_demonstration_token_by_token():
  example = jax.tree.map(lambda x: x[:1], tiny.examples())
  codes = tiny.codes()
  first = 11
  near = int(
    np.flatnonzero(codes[:, 0] == codes[first, 0])[
      np.flatnonzero(codes[:, 0] == codes[first, 0]) != first
    ][0]
  )
  far = int(np.flatnonzero(codes[:, 0] != codes[first, 0])[0])
  events = np.array([[1] * (tiny.WIDTH - 2) + [tiny.PURCHASE, 1]], np.int32)
  example = example._replace(history=example.history._replace(event=events))
  example = example._replace(
    roles=np.array([[-1, 2, 7, 0]], np.int32), path=np.array([[first, near, far, -1]], np.int32)
  )
  demo = frcot.demonstration(LAYOUT, example, codes)
  sid = lambda item: V.sid(codes[item]).tolist()
  expected = [
    V.control('UNKNOWN_ROLE'),
    V.role(2),
    V.role(7),
    V.role(0),
    V.control('INTENT'),
    sid(first)[0],
    sid(far)[0],
    V.control('PATH'),
  ]
  expected += sid(first) + sid(near) + sid(far)
  assert demo.tokens[0, :17].tolist() == expected and demo.tokens[0, -1] == V.control('END')
  assert demo.weight[0].tolist() == [0, 1, 1, 1, 0, 1, 1, 0] + [1] * 9 + [0] * 4


def test_an_imported_role_that_no_chain_can_hold_is_none():
  examples = tiny.examples()
  purchase = examples.history.event[:, -4:] == tiny.PURCHASE
  missing, wrong = (
    examples._replace(roles=np.where(purchase, role, examples.roles)) for role in (-1, 0)
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    *(frcot.demonstration(LAYOUT, c, tiny.codes()) for c in (missing, wrong)),
  )


def test_an_intent_that_the_path_does_not_have_weighs_nothing():
  example = jax.tree.map(lambda x: x[:1], tiny.examples())._replace(
    path=np.array([[3, -1, -1, -1]], np.int32)
  )
  assert frcot.demonstration(LAYOUT, example, tiny.codes()).weight[0, 5:7].tolist() == [1, 0]


def test_intents_of_two_codes():
  layout = frcot.Layout(
    tiny.config('reasoner.intent_levels=2').reasoner, Vocabulary(levels=3, codes=8)
  )
  np.testing.assert_array_equal(layout.intent_slots, [[5, 6], [7, 8]])
  np.testing.assert_array_equal(layout.level[5:9], [0, 1, 0, 1])
