import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.config import BACKBONE_INPUTS, INTERVENTIONS, ROLE_NAMES
from rolegen_jax.data.batches import Examples
from rolegen_jax.reasoning import frcot
from rolegen_jax.reasoning.likelihood import likelihood
from rolegen_jax.reasoning.worlds import Tree, kinds, world_prompts
from rolegen_jax.runtime.compile import jit
from tests import tiny
from tests.reasoning import chains

LAYOUT = tiny.rolegen().layout
M = LAYOUT.config.role_events
SEEDS = st.integers(0, 10**6)
NONE = -1
COMMON = ('loop.noise=common',)


@settings(max_examples=15, deadline=None)
@given(SEEDS, SEEDS)
def test_without_intervention_every_world_repeats_the_factual_one(key, seed):
  """Bit for bit, where the worlds of a user share their noise."""
  r = chains.reason(tiny.examples(seed), key, intervene=False, settings=COMMON)
  for a in (r.tokens, r.log_prob, r.roles, r.candidates, r.sampled_mask):
    np.testing.assert_array_equal(a, np.broadcast_to(a[:, :1], a.shape))
  assert (
    (r.interventions.role == NONE).all()
    and not r.interventions.removed.any()
    and (r.interventions.intent == NONE).all()
  )


@settings(max_examples=15, deadline=None)
@given(SEEDS, SEEDS)
def test_a_world_differs_through_its_intervention_only(key, seed):
  examples = tiny.examples(seed)
  r = chains.reason(examples, key, settings=COMMON)
  real = examples.history.segment[:, -M:] > 0
  eligible = real & (examples.history.event[:, -M:] != tiny.PURCHASE)
  assert (
    (r.interventions.role[:, 0] == NONE).all()
    and not r.interventions.removed[:, 0].any()
    and (r.interventions.intent[:, 0] == NONE).all()
  )
  first = LAYOUT.intent_slots[0, 0]
  for b in range(tiny.USERS):
    for w in range(1, tiny.WORLDS):
      forced, removed = r.interventions.role[b, w], r.interventions.removed[b, w]
      pivots = np.flatnonzero((forced != NONE) | removed)
      intent = r.interventions.intent[b, w]
      if intent != NONE:
        np.testing.assert_array_equal(r.tokens[b, w, :first], r.tokens[b, 0, :first])
        np.testing.assert_array_equal(r.log_prob[b, w, :first], r.log_prob[b, 0, :first])
        assert (
          r.tokens[b, w, first] == LAYOUT.vocab.sid(np.array([intent, 0, 0]))[0]
          and not r.sampled_mask[b, w, first]
          and r.log_prob[b, w, first] == 0
        )
        assert not len(pivots) and kinds(tiny.WORLDS, INTERVENTIONS)[w - 1] == 'intent'
        continue
      assert r.sampled_mask[b, w, first]
      assert len(pivots) == bool(eligible[b].any()) and eligible[b, pivots].all()
      if not len(pivots):
        np.testing.assert_array_equal(r.tokens[b, w], r.tokens[b, 0])
        continue
      pivot = pivots[0]
      if removed[pivot]:
        assert (
          r.roles[b, w, pivot] == NONE
          and not r.sampled_mask[b, w, pivot]
          and r.log_prob[b, w, pivot] == 0
        )
        assert r.tokens[b, w, pivot] == LAYOUT.vocab.control('UNKNOWN_ROLE')
      else:
        np.testing.assert_array_equal(r.tokens[b, w, :pivot], r.tokens[b, 0, :pivot])
        np.testing.assert_array_equal(r.log_prob[b, w, :pivot], r.log_prob[b, 0, :pivot])
        assert (
          r.tokens[b, w, pivot] == LAYOUT.vocab.role(forced[pivot])
          and r.roles[b, w, pivot] == forced[pivot] < tiny.CONVERT
        )
        assert not r.sampled_mask[b, w, pivot] and r.log_prob[b, w, pivot] == 0
      others = np.arange(M) != pivot
      np.testing.assert_array_equal(r.sampled_mask[b, w, :M][others], real[b][others])


@settings(max_examples=15, deadline=None)
@given(SEEDS, SEEDS, st.integers(1, 60))
def test_chains_are_well_formed(key, seed, items):
  """Every candidate is an allowed item and its codes are in the chain; CONVERT stands exactly on purchases; marks are in place."""
  allowed = np.random.default_rng(seed).random(items) < 0.6
  allowed[0] = True
  examples, codes = tiny.examples(seed, items=items), tiny.codes(items, seed)
  r = chains.reason(examples, key, trie=tiny.trie(items, seed, allowed))
  assert (r.candidates >= 0).all() and allowed[r.candidates].all()
  np.testing.assert_array_equal(
    r.tokens[..., LAYOUT.path_slots], LAYOUT.vocab.sid(codes[r.candidates])
  )
  assert np.isin(
    r.tokens[..., LAYOUT.intent_slots[:, 0]], LAYOUT.vocab.sid(codes[allowed][:, :1])
  ).all()
  np.testing.assert_array_equal(
    r.tokens[..., LAYOUT.is_delimiter],
    np.broadcast_to(LAYOUT.start[LAYOUT.is_delimiter], (*r.tokens.shape[:2], 3)),
  )
  has_role = r.roles != NONE
  np.testing.assert_array_equal(
    has_role, (examples.history.segment[:, None, -M:] > 0) & ~r.interventions.removed
  )
  purchase = np.broadcast_to(
    (examples.history.event == tiny.PURCHASE)[:, None, -M:], has_role.shape
  )
  np.testing.assert_array_equal((r.roles == tiny.CONVERT)[has_role], purchase[has_role])
  assert (
    (r.log_prob <= 0).all()
    and (r.log_prob[~r.sampled_mask] == 0).all()
    and np.isfinite(r.log_prob).all()
  )
  assert (
    not r.sampled_mask[..., LAYOUT.is_delimiter].any()
    and r.sampled_mask[..., LAYOUT.path_slots].all()
  )


def test_what_is_bought_cannot_reach_the_chains():
  """Target, hindsight roles and path are anything else: the same rollout, bit for bit."""
  examples = tiny.examples(3)
  blind = examples._replace(
    target=np.full_like(examples.target, -1),
    roles=np.full_like(examples.roles, -1),
    path=np.full_like(examples.path, -1),
  )
  jax.tree.map(np.testing.assert_array_equal, chains.reason(examples), chains.reason(blind))


@functools.cache
def teacher(*settings):
  rolegen = tiny.rolegen(*settings)

  @jit
  def run(params, examples, rollout, trie):
    prompt = frcot.build_prompt(
      rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
    )
    prompt = world_prompts(rolegen.layout, prompt, rollout.interventions)
    tokens = jnp.reshape(rollout.tokens, (-1, rolegen.layout.length))
    return likelihood(rolegen.bind('reasoner', params), Tree(rolegen.layout), prompt, tokens, trie)

  return run


def test_likelihood_agrees_with_the_rollout():
  for seed in range(3):
    examples = tiny.examples(seed)
    r = chains.reason(examples, seed)
    found = np.array(teacher()(tiny.params('reasoner'), examples, r, tiny.trie()).log_prob).reshape(
      r.log_prob.shape
    )
    np.testing.assert_allclose(np.where(r.sampled_mask, found, 0.0), r.log_prob, atol=1e-4)


def test_worlds_that_share_no_position_of_their_prompt():
  """Where every event of the prompt gets a role, a removal reaches all of it."""
  settings, examples = ('reasoner.events=4',), tiny.examples(8)
  r = chains.reason(examples, 8, settings=settings)
  assert r.interventions.removed.any()
  found = np.array(
    teacher(*settings)(tiny.params('reasoner'), examples, r, tiny.trie()).log_prob
  ).reshape(r.log_prob.shape)
  np.testing.assert_allclose(np.where(r.sampled_mask, found, 0.0), r.log_prob, atol=1e-4)


def test_sampled_frequencies_follow_the_softmax():
  """First role and first intent of one case, 8 rows x 150 draws, against the likelihood's probabilities (total variation)."""
  one = jax.tree.map(lambda x: np.repeat(x[:1], tiny.USERS, axis=0), tiny.examples(2))
  one = Examples(
    one.history._replace(event=np.where(one.history.segment > 0, 1, 0).astype(np.int32)), *one[1:]
  )
  draws = [chains.reason(one, key, intervene=False).tokens[:, 0, 0] for key in range(150)]
  counts = np.bincount(np.concatenate(draws) - LAYOUT.vocab.role(0), minlength=len(ROLE_NAMES))
  r = chains.reason(one, 0, intervene=False)
  probability = np.exp(
    np.array(teacher()(tiny.params('reasoner'), one, r, tiny.trie()).role_log_prob)[0, 0]
  )
  assert probability.max() < 0.9
  assert 0.5 * np.abs(counts / counts.sum() - probability).sum() < 0.06


def test_worlds_differ_by_chance_without_an_intervention():
  examples = tiny.examples(6)
  r = chains.reason(examples, 2, intervene=False)
  assert (r.tokens[:, 1:] != r.tokens[:, :1]).any(-1).all()
  found = np.array(teacher()(tiny.params('reasoner'), examples, r, tiny.trie()).log_prob).reshape(
    r.log_prob.shape
  )
  np.testing.assert_allclose(np.where(r.sampled_mask, found, 0.0), r.log_prob, atol=1e-4)


@pytest.mark.parametrize('part', BACKBONE_INPUTS)
def test_the_backbone_reads_what_the_settings_let_it(part):
  """Roles, intent, candidates or calls alone: the others may say anything."""
  rolegen, examples, key = tiny.rolegen(f"loop.backbone_inputs=('{part}',)"), tiny.examples(7), 3
  rollout = chains.reason(examples, key)
  said = dict(
    roles=np.where(rollout.roles >= 0, 1, NONE),
    intent=rollout.intent[:, :, ::-1],
    candidates=(rollout.candidates + 1) % tiny.ITEMS,
    retrieved=np.where(rollout.retrieved >= 0, (rollout.retrieved + 1) % tiny.ITEMS, NONE),
  )
  own = 'retrieved' if part == 'retrieved' else part

  @jit
  def answer(params, examples, rollout, trie):
    backbone = rolegen.bind('backbone', params)
    memory = rolegen.add_reasoning(
      backbone,
      backbone.encode(examples.history, trie.item_codes),
      rollout,
      np.ones(tiny.USERS, bool),
      trie,
    )
    return backbone.log_prob(
      rolegen.query(backbone, memory, examples.timestamp),
      memory,
      examples.target[:, None],
      trie.item_codes,
    )[0]

  ask = lambda r: np.array(answer(tiny.params('backbone'), examples, r, tiny.trie()))
  np.testing.assert_array_equal(
    ask(rollout),
    ask(rollout._replace(**{name: other for name, other in said.items() if name != own})),
  )
  assert (ask(rollout) != ask(rollout._replace(**{own: said[own]}))).any()


def test_without_noise_the_chain_is_the_greedy_one():
  examples = tiny.examples(5)
  greedy = chains.reason(examples, 0, intervene=False, noise=0.0)
  jax.tree.map(
    np.testing.assert_array_equal, greedy, chains.reason(examples, 1, intervene=False, noise=0.0)
  )
  best = np.array(
    teacher()(tiny.params('reasoner'), examples, greedy, tiny.trie()).role_log_prob
  ).reshape(tiny.USERS, tiny.WORLDS, M, -1)
  has_role = greedy.roles[:, 0] != NONE
  np.testing.assert_array_equal(greedy.roles[:, 0][has_role], best[:, 0].argmax(-1)[has_role])


def test_an_empty_history_gets_a_chain_of_candidates():
  """A user with no event at all: no roles, still real items."""
  examples = tiny.examples()
  empty = Examples(
    jax.tree.map(np.zeros_like, examples.history)._replace(
      item=np.full_like(examples.history.item, -1)
    ),
    *examples[1:],
  )
  r = chains.reason(empty)
  assert (r.roles == NONE).all() and (r.candidates >= 0).all() and np.isfinite(r.log_prob).all()
