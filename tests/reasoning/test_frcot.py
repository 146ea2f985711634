import functools

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.data.batches import Excites, Trajectories
from rolegen_jax.reasoning import frcot
from rolegen_jax.runtime.compile import jit
from rolegen_jax.vocab import Vocabulary
from tests import tiny

V = tiny.rolegen().vocab
LAYOUT = tiny.rolegen().layout
build_prompt, demonstration = (
  jit(functools.partial(build, LAYOUT)) for build in (frcot.build_prompt, frcot.demonstration)
)


def sid(item: int) -> list[int]:
  return V.sid(tiny.codes()[item]).tolist()


def test_positions_of_a_completion():
  """INTENT, 2 prefixes of one code, 4 roles, PATH, 4 items of three codes, END."""
  assert LAYOUT.length == 1 + 2 + 4 + 1 + 12 + 1
  levels = [-1] + [0, 0] + [-1] * 4 + [-1] + [0, 1, 2] * 4 + [-1]
  np.testing.assert_array_equal(LAYOUT.level, levels)
  np.testing.assert_array_equal(np.flatnonzero(LAYOUT.is_delimiter), [0, 7, 20])
  np.testing.assert_array_equal(np.flatnonzero(LAYOUT.is_role), range(3, 7))
  np.testing.assert_array_equal(LAYOUT.intent_slots, [[1], [2]])
  np.testing.assert_array_equal(LAYOUT.path_slots, np.arange(8, 20).reshape(4, 3))
  delimiters = [V.control(name) for name in ('INTENT', 'PATH', 'END')]
  assert LAYOUT.start[[0, 7, 20]].tolist() == delimiters
  assert (LAYOUT.start[3:7] == V.role(0)).all()
  firsts = [V.blocks[f'sid{level}'][0] for level in (0, 0, 1, 2)]
  assert LAYOUT.start[[1, 8, 9, 10]].tolist() == firsts


def test_a_prompt_token_by_token():
  """Four slots of padding, then two events: a view, and a purchase a minute later, an hour ago."""

  def row(first, second, padding):
    return np.array([[padding] * (tiny.WIDTH - 2) + [first, second]], np.int32)

  history = Trajectories(
    item=row(7, 9, -1),
    event=row(1, tiny.PURCHASE, 0),
    count=row(1, 1, 0),
    timestamp=row(tiny.NOW - 3660, tiny.NOW - 3600, 0),
    segment=row(1, 1, 0),
  )
  share, number = np.zeros((1, tiny.WIDTH, 3), np.float32), np.zeros((1, tiny.WIDTH, 3), np.int32)
  excites = Excites(number, share, share, number, share)
  prompt = build_prompt(history, excites, jnp.array([tiny.NOW]), tiny.codes())
  view = [V.event(1), V.gap(0), *sid(7)]
  purchase = [V.event(tiny.PURCHASE), V.gap(3), *sid(9)]
  expected = [V.control('PAD')] * 20 + view + purchase + [V.gap(17), V.control('REASON')]
  assert prompt.tokens[0].tolist() == expected and LAYOUT.prompt_length == len(expected)
  assert prompt.valid[0].tolist() == [False] * 20 + [True] * 12
  allowed = np.array(prompt.role_allowed[0])
  assert not allowed[:2].any()  # no event, no role
  assert np.flatnonzero(~allowed[2]).tolist() == [tiny.CONVERT]
  assert np.flatnonzero(allowed[3]).tolist() == [tiny.CONVERT]


def test_a_demonstration_token_by_token():
  """The path's second item shares the first one's intent, so the third one names the second."""
  codes, first = tiny.codes(), 11
  same_code = np.flatnonzero(codes[:, 0] == codes[first, 0])
  near = int(same_code[same_code != first][0])
  far = int(np.flatnonzero(codes[:, 0] != codes[first, 0])[0])
  events = np.array([[1] * (tiny.WIDTH - 2) + [tiny.PURCHASE, 1]], np.int32)
  example = jax.tree.map(lambda x: x[:1], tiny.examples())
  example = example._replace(
    history=example.history._replace(event=events),
    roles=np.array([[-1, 2, 7, 0]], np.int32),
    path=np.array([[first, near, far, -1]], np.int32),
  )
  demo = demonstration(example, codes)
  roles = [V.control('UNKNOWN_ROLE'), V.role(2), V.role(7), V.role(0)]
  intents = [V.control('INTENT'), sid(first)[0], sid(far)[0]]
  path = [V.control('PATH'), *sid(first), *sid(near), *sid(far)]
  assert demo.tokens[0, :17].tolist() == intents + roles + path
  assert demo.tokens[0, -1] == V.control('END')
  assert demo.weight[0].tolist() == [0, 1, 1, 0, 1, 1, 1, 0] + [1] * 9 + [0] * 4


def test_an_imported_role_that_no_chain_can_hold_is_none():
  examples = tiny.examples()
  is_purchase = examples.history.event[:, -4:] == tiny.PURCHASE
  missing, wrong = (
    examples._replace(roles=np.where(is_purchase, role, examples.roles)) for role in (-1, 0)
  )
  demos = [demonstration(e, tiny.codes()) for e in (missing, wrong)]
  jax.tree.map(np.testing.assert_array_equal, *demos)


def test_an_intent_that_the_path_does_not_have_weighs_nothing():
  example = jax.tree.map(lambda x: x[:1], tiny.examples())
  example = example._replace(path=np.array([[3, -1, -1, -1]], np.int32))
  demo = demonstration(example, tiny.codes())
  assert demo.weight[0, 1:3].tolist() == [1, 0]


def test_intents_of_two_codes():
  config = tiny.config('reasoner.intent_levels=2').reasoner
  layout = frcot.Layout(config, Vocabulary(levels=3, codes=8))
  np.testing.assert_array_equal(layout.intent_slots, [[1, 2], [3, 4]])
  np.testing.assert_array_equal(layout.level[1:5], [0, 1, 0, 1])


def test_without_roles_a_demonstration_tells_none():
  """They know the target: a path must not be taught to follow what no rollout will have."""
  layout = tiny.rolegen('reasoner.roles=false').layout
  without = jit(functools.partial(frcot.demonstration, layout))
  examples = tiny.examples(2)
  demo, told = without(examples, tiny.codes()), demonstration(examples, tiny.codes())
  assert (demo.tokens[:, layout.role_slots] == V.control('UNKNOWN_ROLE')).all()
  assert (np.asarray(told.weight)[:, layout.role_slots] > 0).any()
  assert (np.asarray(demo.weight)[:, layout.role_slots] == 0).all()
  others = np.setdiff1d(np.arange(layout.length), layout.role_slots)
  np.testing.assert_array_equal(demo.tokens[:, others], told.tokens[:, others])
