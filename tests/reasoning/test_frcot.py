import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.compile import jit
from rolegen_jax.data.rows import Excites, Trajectories
from rolegen_jax.models.backbone import NEVER
from rolegen_jax.reasoning import frcot
from rolegen_jax.vocab import Vocabulary
from tests import tiny

V = tiny.rolegen().vocab
LAYOUT = tiny.rolegen().layout
NOTHING = Excites(np.zeros((1, tiny.WIDTH, 3), np.int32), np.zeros((1, tiny.WIDTH, 3), np.float32))


def test_positions_of_a_completion():
  """4 roles, INTENT, 2 prefixes of one code, PATH, 4 items of three codes, END."""
  assert LAYOUT.length == 4 + 1 + 2 + 1 + 12 + 1
  np.testing.assert_array_equal(LAYOUT.level, [-1] * 4 + [-1] + [0, 0] + [-1] + [0, 1, 2] * 4 + [-1])
  np.testing.assert_array_equal(np.flatnonzero(LAYOUT.is_mark), [4, 7, 20])
  np.testing.assert_array_equal(np.flatnonzero(LAYOUT.is_role), range(4))
  np.testing.assert_array_equal(LAYOUT.intent_slots, [[5], [6]])
  np.testing.assert_array_equal(LAYOUT.path_slots, np.arange(8, 20).reshape(4, 3))
  assert LAYOUT.start[[4, 7, 20]].tolist() == [V.control('INTENT'), V.control('PATH'), V.control('END')]
  assert (LAYOUT.start[:4] == V.role(0)).all() and LAYOUT.start[5] == LAYOUT.start[8] == V.blocks['sid0'][0]
  assert LAYOUT.start[9] == V.blocks['sid1'][0] and LAYOUT.start[10] == V.blocks['sid2'][0]


def test_a_prompt_token_by_token():
  """Two events, one minute apart, the last a purchase an hour before now; four slots of padding before them."""
  row = lambda a, b, fill: np.array([[fill] * (tiny.WIDTH - 2) + [a, b]], np.int32)
  history = Trajectories(row(7, 9, -1), row(1, tiny.PURCHASE, 0), row(1, 1, 0), row(tiny.NOW - 3660, tiny.NOW - 3600, 0), row(1, 1, 0))
  prompt = frcot.build_prompt(LAYOUT, history, NOTHING, jnp.array([tiny.NOW]), tiny.codes())
  sid = lambda item: V.sid(tiny.codes()[item]).tolist()
  expected = [V.control('PAD')] * 20 + [V.event(1), V.gap(0), *sid(7), V.event(5), V.gap(3), *sid(9), V.gap(17), V.control('REASON')]
  assert prompt.tokens[0].tolist() == expected and LAYOUT.prompt_length == len(expected)
  assert prompt.valid[0].tolist() == [False] * 20 + [True] * 12
  allowed = np.array(prompt.role_allowed[0])
  assert not allowed[:2].any()  # no event, no role
  assert np.flatnonzero(~allowed[2]).tolist() == [tiny.CONVERT] and np.flatnonzero(allowed[3]).tolist() == [tiny.CONVERT]


def test_a_demonstration_token_by_token():
  case = jax.tree.map(lambda x: x[:1], tiny.cases())
  codes = tiny.codes()
  first = 11
  near = int(np.flatnonzero(codes[:, 0] == codes[first, 0])[np.flatnonzero(codes[:, 0] == codes[first, 0]) != first][0])
  far = int(np.flatnonzero(codes[:, 0] != codes[first, 0])[0])
  events = np.array([[1] * (tiny.WIDTH - 2) + [tiny.PURCHASE, 1]], np.int32)
  case = case._replace(history=case.history._replace(event=events))
  case = case._replace(roles=np.array([[-1, 2, 7, 0]], np.int32), path=np.array([[first, near, far, -1]], np.int32))
  demo = frcot.demonstration(LAYOUT, case, codes)
  sid = lambda item: V.sid(codes[item]).tolist()
  expected = [V.control('UNKNOWN_ROLE'), V.role(2), V.role(7), V.role(0), V.control('INTENT'), sid(first)[0], sid(far)[0], V.control('PATH')]
  expected += sid(first) + sid(near) + sid(far)
  assert demo.tokens[0, :17].tolist() == expected and demo.tokens[0, -1] == V.control('END')
  assert demo.weight[0].tolist() == [0, 1, 1, 1, 0, 1, 1, 0] + [1] * 9 + [0] * 4


def test_an_imported_role_that_no_chain_can_hold_is_none():
  cases = tiny.cases()
  purchase = cases.history.event[:, -4:] == tiny.PURCHASE
  missing, wrong = (cases._replace(roles=np.where(purchase, role, cases.roles)) for role in (-1, 0))
  jax.tree.map(np.testing.assert_array_equal, *(frcot.demonstration(LAYOUT, c, tiny.codes()) for c in (missing, wrong)))


def test_an_intent_that_the_path_does_not_have_weighs_nothing():
  case = jax.tree.map(lambda x: x[:1], tiny.cases())._replace(path=np.array([[3, -1, -1, -1]], np.int32))
  assert frcot.demonstration(LAYOUT, case, tiny.codes()).weight[0, 5:7].tolist() == [1, 0]


def test_constrained_log_softmax():
  logits = jnp.array([[1.0, 2.0, 3.0, 50.0]] * 2)
  allowed = jnp.array([[True, True, True, False], [False] * 4])
  found = np.array(frcot.constrained_log_softmax(logits, allowed, 2.0))
  expected = np.array([0.5, 1.0, 1.5]) - np.log(np.exp([0.5, 1.0, 1.5]).sum())
  np.testing.assert_allclose(found[0, :3], expected, rtol=1e-6)
  assert found[0, 3] == np.float32(NEVER) and (found[1] == np.float32(NEVER)).all()
  gradient = jax.grad(lambda x: frcot.constrained_log_softmax(x, allowed, 2.0)[:, 0].sum())(logits)
  assert np.isfinite(gradient).all() and (gradient[1] == 0).all() and gradient[0, 3] == 0


@functools.cache
def teacher():

  @jit
  def run(params, cases, tokens, trie):
    prompt = frcot.build_prompt(LAYOUT, cases.history, cases.excites, cases.timestamp, trie.item_codes)
    reasoner = tiny.rolegen().bind('reasoner', params)
    return frcot.likelihood(reasoner, LAYOUT, prompt, tokens, trie), frcot.next_event_loss(reasoner, LAYOUT, prompt)

  return run


def test_without_preferences_every_choice_is_uniform_over_what_may_come():
  """Token embeddings (and so the readout) of zeros, intent without focus: log-prob -log(choices) and entropy log(choices) at every choice, by counting the catalogue."""
  cases, codes = tiny.cases(), tiny.codes()
  blank = tiny.params('reasoner') | jax.tree.map(np.zeros_like, {name: tiny.params('reasoner')[name] for name in ('tokens', 'intent')})
  tokens = np.array(frcot.demonstration(LAYOUT, cases._replace(path=np.abs(cases.path)), codes).tokens)
  found, next_event = jax.device_get(teacher()(blank, cases, tokens, tiny.trie()))
  np.testing.assert_allclose(found.entropy, -found.log_prob, atol=1e-5)
  events, real = cases.history.event[:, -4:], cases.history.segment[:, -4:] > 0
  np.testing.assert_allclose(found.log_prob[:, :4], np.where(real & (events != tiny.PURCHASE), -np.log(7), 0.0), atol=1e-5)
  assert (found.log_prob[:, LAYOUT.is_mark] == 0).all()
  path = tokens[:, LAYOUT.path_slots] - V.sid(np.zeros(3, np.int32))
  for chains, log_probs in zip(path, found.log_prob[:, LAYOUT.path_slots]):
    for item, log_prob in zip(chains, log_probs):
      count = [len(set(codes[(codes[:, :level] == item[:level]).all(1), level])) for level in range(3)]
      np.testing.assert_allclose(log_prob, -np.log(count), atol=1e-5)
  # Next event: a token's loss is the log of its block's size; every event but the first has all of them, the first has no event token.
  events = np.minimum((cases.history.segment > 0).sum(1), 6)
  sizes = np.log([V.blocks[name][1] for name in ('event', 'gap', 'sid0', 'sid1', 'sid2')])
  total = (events * sizes[1:].sum() + (events - 1) * sizes[0]).sum()
  assert next_event == pytest.approx(total / (events * 5 - 1).sum(), rel=1e-5)


def test_intents_of_two_codes():
  layout = frcot.Layout(tiny.config('reasoner.intent_levels=2').reasoner, Vocabulary(levels=3, codes=8))
  np.testing.assert_array_equal(layout.intent_slots, [[5, 6], [7, 8]])
  np.testing.assert_array_equal(layout.level[5:9], [0, 1, 0, 1])


def test_evidence_moves_the_first_code_of_intents_only():
  """The same tokens with and without evidence: log-probs of roles and candidates stay, those of intents change."""
  cases = tiny.cases(1)
  tokens = np.array(frcot.demonstration(LAYOUT, cases._replace(path=np.abs(cases.path)), tiny.codes()).tokens)
  none = cases._replace(excites=cases.excites._replace(weight=np.zeros_like(cases.excites.weight)))
  params = tiny.params('reasoner') | {'intent': tiny.params('reasoner')['intent'] | {'focus': np.ones(1, np.float32)}}
  with_it, without = (np.array(teacher()(params, c, tokens, tiny.trie())[0].log_prob) for c in (cases, none))
  same = np.isclose(with_it, without, atol=1e-6).all(0)
  assert same[~LAYOUT.opens_intent].all() and not same[LAYOUT.opens_intent].any()


def test_hindsight_roles_teach_the_gains_of_roles_and_nothing_else():
  cases = tiny.cases(2)

  def losses(intent):
    reasoner = tiny.rolegen().bind('reasoner', tiny.params('reasoner') | {'intent': intent})
    prompt = frcot.build_prompt(LAYOUT, cases.history, cases.excites, cases.timestamp, tiny.codes())
    return jnp.stack(frcot.intent_loss(reasoner, prompt, cases, jnp.asarray(tiny.codes())))

  factual, told = (jax.tree.map(lambda g: np.abs(g[i]).max() > 0, jax.jacrev(losses)(tiny.params('reasoner')['intent'])) for i in range(2))
  assert factual == dict(base=True, fade=True, event_gain=True, focus=True, role_gain=False)
  assert told == dict(base=False, fade=False, event_gain=False, focus=False, role_gain=True)
