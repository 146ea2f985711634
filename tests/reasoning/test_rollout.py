"""Rollouts: worlds differ through their interventions, chains are well formed, nothing leaks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.config import INTERVENTIONS, REASONER_EXPERTS
from rolegen_jax.reasoning import search
from rolegen_jax.reasoning.rolegen import history_keys
from rolegen_jax.reasoning.worlds import kinds
from rolegen_jax.runtime.compile import jit
from tests import tiny
from tests.reasoning import chains

LAYOUT = tiny.rolegen().layout
M = LAYOUT.config.role_events
ROLES = LAYOUT.role_slots
SEEDS = st.integers(0, 10**6)
NONE = -1
COMMON = ('loop.noise=common',)


@settings(max_examples=15, deadline=None)
@given(SEEDS, SEEDS)
def test_without_intervention_every_world_repeats_the_factual_one(key, seed):
  """Bit for bit, where the worlds of a user share their noise."""
  r = chains.rollout(tiny.examples(seed), key, intervene=False, settings=COMMON)
  for a in (r.tokens, r.log_prob, r.roles, r.candidates, r.sampled_mask):
    np.testing.assert_array_equal(a, np.broadcast_to(a[:, :1], a.shape))
  done = r.interventions
  assert (done.role == NONE).all() and not done.removed.any() and (done.intent == NONE).all()


@settings(max_examples=15, deadline=None)
@given(SEEDS, SEEDS)
def test_a_world_differs_through_its_intervention_only(key, seed):
  examples = tiny.examples(seed)
  r = chains.rollout(examples, key, settings=COMMON)
  done, is_event = r.interventions, examples.history.segment[:, -M:] > 0
  eligible = is_event & (examples.history.event[:, -M:] != tiny.PURCHASE)
  assert (done.role[:, 0] == NONE).all() and not done.removed[:, 0].any()
  assert (done.intent[:, 0] == NONE).all()
  for b in range(tiny.USERS):
    for w in range(1, tiny.WORLDS):
      pivots = np.flatnonzero((done.role[b, w] != NONE) | done.removed[b, w])
      if done.intent[b, w] != NONE:
        assert not len(pivots) and kinds(tiny.WORLDS, INTERVENTIONS)[w - 1] == 'intent'
        assert_other_intent(r, b, w)
        continue
      assert r.sampled_mask[b, w, LAYOUT.intent_slots[0, 0]]
      assert len(pivots) == bool(eligible[b].any()) and eligible[b, pivots].all()
      if not len(pivots):
        np.testing.assert_array_equal(r.tokens[b, w], r.tokens[b, 0])
        continue
      pivot = pivots[0]
      if done.removed[b, w, pivot]:
        assert_removed(r, b, w, pivot)
      else:
        assert_other_role(r, b, w, pivot)
      others = np.arange(M) != pivot
      np.testing.assert_array_equal(r.sampled_mask[b, w, ROLES][others], is_event[b][others])


def assert_same_until(r, b: int, w: int, position: int):
  """A world repeats the factual one before a position."""
  for a in (r.tokens, r.log_prob):
    np.testing.assert_array_equal(a[b, w, :position], a[b, 0, :position])


def assert_forced(r, b: int, w: int, position: int, token: int):
  assert r.tokens[b, w, position] == token
  assert not r.sampled_mask[b, w, position] and r.log_prob[b, w, position] == 0


def assert_other_intent(r, b: int, w: int):
  first, intent = LAYOUT.intent_slots[0, 0], r.interventions.intent[b, w]
  assert_same_until(r, b, w, first)
  assert_forced(r, b, w, first, LAYOUT.vocab.sid(np.array([intent, 0, 0]))[0])


def assert_removed(r, b: int, w: int, pivot: int):
  assert r.roles[b, w, pivot] == NONE
  assert_forced(r, b, w, ROLES[pivot], LAYOUT.vocab.control('UNKNOWN_ROLE'))


def assert_other_role(r, b: int, w: int, pivot: int):
  role = r.interventions.role[b, w, pivot]
  assert r.roles[b, w, pivot] == role < tiny.CONVERT
  assert role != r.roles[b, 0, pivot]
  assert_same_until(r, b, w, ROLES[pivot])
  assert_forced(r, b, w, ROLES[pivot], LAYOUT.vocab.role(role))


@settings(max_examples=15, deadline=None)
@given(SEEDS, SEEDS, st.integers(1, 60))
def test_chains_are_well_formed(key, seed, items):
  """Candidates are allowed items, CONVERT stands exactly on purchases, delimiters in place."""
  allowed = np.random.default_rng(seed).random(items) < 0.6
  allowed[0] = True
  examples, codes = tiny.examples(seed, items=items), tiny.codes(items, seed)
  r = chains.rollout(examples, key, trie=tiny.trie(items, seed, allowed))
  assert (r.candidates >= 0).all() and allowed[r.candidates].all()
  path = r.tokens[..., LAYOUT.path_slots]
  np.testing.assert_array_equal(path, LAYOUT.vocab.sid(codes[r.candidates]))
  first_codes = LAYOUT.vocab.sid(codes[allowed][:, :1])
  assert np.isin(r.tokens[..., LAYOUT.intent_slots[:, 0]], first_codes).all()
  delimiters = LAYOUT.start[LAYOUT.is_delimiter]
  assert (r.tokens[..., LAYOUT.is_delimiter] == delimiters).all()
  has_role = r.roles != NONE
  is_event = examples.history.segment[:, None, -M:] > 0
  np.testing.assert_array_equal(has_role, is_event & ~r.interventions.removed)
  is_purchase = (examples.history.event == tiny.PURCHASE)[:, None, -M:]
  is_purchase = np.broadcast_to(is_purchase, has_role.shape)
  np.testing.assert_array_equal((r.roles == tiny.CONVERT)[has_role], is_purchase[has_role])
  assert (r.log_prob <= 0).all() and np.isfinite(r.log_prob).all()
  assert (r.log_prob[~r.sampled_mask] == 0).all()
  assert not r.sampled_mask[..., LAYOUT.is_delimiter].any()
  assert r.sampled_mask[..., LAYOUT.path_slots].all()


def test_outcomes_cannot_reach_the_chains():
  """Whatever target, hindsight roles and path are, the rollout is the same, bit for bit."""
  examples = tiny.examples(3)
  unknown = {
    name: np.full_like(getattr(examples, name), -1) for name in ('target', 'roles', 'path')
  }
  blind = examples._replace(**unknown)
  jax.tree.map(np.testing.assert_array_equal, chains.rollout(examples), chains.rollout(blind))


def assert_likelihood_agrees(examples, rollout, settings: tuple[str, ...] = ()):
  log_prob, _ = chains.likelihoods(examples, rollout, settings)
  np.testing.assert_allclose(log_prob, rollout.log_prob, atol=1e-4)


def test_likelihood_agrees_with_the_rollout():
  for seed in range(3):
    examples = tiny.examples(seed)
    assert_likelihood_agrees(examples, chains.rollout(examples, seed))


@pytest.mark.slow
def test_likelihood_agrees_where_worlds_share_nothing_of_their_prompt():
  """Where every event of the prompt gets a role, a removal reaches all of it."""
  settings, examples = ('reasoner.events=4',), tiny.examples(8)
  r = chains.rollout(examples, 8, settings=settings)
  assert r.interventions.removed.any()
  assert_likelihood_agrees(examples, r, settings)


def test_sampled_frequencies_follow_the_softmax():
  """The first intent of one example: 8 rows x 150 draws against the probabilities of what came."""
  one = jax.tree.map(lambda x: np.repeat(x[:1], tiny.USERS, axis=0), tiny.examples(5))
  slot, counts, probability = LAYOUT.intent_slots[0, 0], {}, {}
  for key in range(150):
    r = chains.rollout(one, key, intervene=False)
    for token, log_prob in zip(r.tokens[:, 0, slot].tolist(), r.log_prob[:, 0, slot]):
      counts[token] = counts.get(token, 0) + 1
      probability.setdefault(token, float(np.exp(log_prob)))
  assert 0.3 < max(probability.values()) < 0.95
  share = {token: count / (150 * tiny.USERS) for token, count in counts.items()}
  assert 0.5 * sum(abs(share[token] - p) for token, p in probability.items()) < 0.06
  assert sum(probability.values()) == pytest.approx(1, abs=0.02)


def test_roles_are_towards_the_intent():
  """Another first intent is followed by other probabilities of roles, for the same events."""
  examples = tiny.examples(4)
  r = chains.rollout(examples, intervene=False)
  codes = r.tokens[..., LAYOUT.intent_slots[0, 0]] - LAYOUT.vocab.blocks['sid0'][0]
  other = r.tokens.copy()
  moved = (codes + 1) % LAYOUT.vocab.codes
  other[..., LAYOUT.intent_slots[0, 0]] = LAYOUT.vocab.blocks['sid0'][0] + moved
  _, role_log_prob = chains.likelihoods(examples, r)
  _, towards_other = chains.likelihoods(examples, r._replace(tokens=other))
  has_choice = (r.roles != NONE) & (r.roles != tiny.CONVERT)
  changed = np.abs(np.exp(role_log_prob) - np.exp(towards_other)).max(-1)
  assert (changed[has_choice] > 1e-6).mean() > 0.9


def test_roles_can_be_asked_for_towards_any_intent():
  """Chances sum to 1 and differ by intent; many draws of the history's own intents average them."""

  @functools.partial(jit, static_argnums=4)
  def chances(params, examples, trie, intent, draws):
    return tiny.rolegen().role_chances(params, examples, trie, intent, draws)

  examples = tiny.examples(4)
  args = tiny.params('reasoner'), examples, tiny.trie()
  codes = np.arange(LAYOUT.vocab.codes, dtype=np.int32)
  told = np.stack([chances(*args, np.full(tiny.USERS, k), 4) for k in codes])
  last = LAYOUT.config.role_events
  event = examples.history.event[:, -last:]
  real = examples.history.segment[:, -last:] > 0
  np.testing.assert_allclose(told.sum(-1), np.broadcast_to(real, told.shape[:-1]), atol=1e-5)
  is_purchase = real & (event == tiny.PURCHASE)
  np.testing.assert_allclose(told[..., tiny.CONVERT], [is_purchase] * len(codes), atol=1e-5)
  assert np.abs(told - told[:1]).max() > 0.01
  alone = np.asarray(chances(*args, np.full(tiny.USERS, -1), 64))
  low, high = told.min(0), told.max(0)
  assert ((alone > low - 0.1) & (alone < high + 0.1)).all()


def test_drawn_roles_reach_the_path_and_not_the_score():
  """Other draws of roles, without an intervention: the same intent and retrieved items."""
  examples = tiny.examples(4)
  one, other = (chains.rollout(examples, key, intervene=False) for key in (1, 2))
  assert (one.roles != other.roles).any()
  for name in ('intent', 'retrieved', 'retrieved_share'):
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
  tokens = one.tokens.copy()
  views = (one.roles >= 0) & (one.roles != tiny.CONVERT)
  changed = np.where(views, (one.roles + 1) % tiny.CONVERT, one.roles)
  tokens[..., ROLES] = np.where(views, LAYOUT.vocab.role(changed), tokens[..., ROLES])
  as_drawn, _ = chains.likelihoods(examples, one)
  with_others, _ = chains.likelihoods(examples, one._replace(tokens=tokens))
  moved = np.abs(as_drawn - with_others).max((0, 1)) > 1e-5
  assert moved[LAYOUT.path_slots].any() and not moved[LAYOUT.intent_slots].any()


def test_without_roles_no_chain_says_one_and_worlds_still_remove_events():
  settings = ('reasoner.roles=false', "loop.interventions=('intent', 'remove')")
  examples = tiny.examples(4)
  r = chains.rollout(examples, settings=settings)
  assert (r.roles == NONE).all() and (r.interventions.role == NONE).all()
  unknown = LAYOUT.vocab.control('UNKNOWN_ROLE')
  assert (r.tokens[..., ROLES] == unknown).all() and not r.sampled_mask[..., ROLES].any()
  assert r.interventions.removed.any() and (r.candidates >= 0).all()
  log_prob, role_log_prob = chains.likelihoods(examples, r, settings)
  np.testing.assert_allclose(log_prob, r.log_prob, atol=1e-4)
  assert (role_log_prob < -1e5).all()


def test_worlds_differ_by_chance_without_an_intervention():
  examples = tiny.examples(6)
  r = chains.rollout(examples, 2, intervene=False)
  assert (r.tokens[:, 1:] != r.tokens[:, :1]).any(-1).mean() > 0.8  # at a low temperature
  assert_likelihood_agrees(examples, r)


@jit
def as_at_inference(params, examples, trie):
  """What recommends, and the rollout of the same keys as in training: by independent, common."""
  both = []
  for assignments in ((), COMMON):
    rolegen = tiny.rolegen(*assignments)
    keys = history_keys(rolegen.config.seed, examples)
    plain = rolegen.rollout(params, examples, trie, keys)
    both.append((rolegen.reason(params, examples, trie)[0], plain))
  return both


def test_at_inference_worlds_name_their_likeliest_items_that_none_before_has(monkeypatch):
  """All items of the catalogue, scored by the likelihood at temperature 1 after the same roles."""
  monkeypatch.setattr(search, 'BEAMS', tiny.CODES**2)  # as many as there are prefixes: exact
  args = tiny.params('reasoner'), tiny.examples(6), tiny.trie()
  searched, common = jax.device_get(as_at_inference(*args))
  jax.tree.map(np.testing.assert_array_equal, *common)  # worlds that share noise draw paths
  searched, plain = searched
  upto = searched.tokens.shape[-1]
  np.testing.assert_array_equal(searched.tokens, plain.tokens[..., :upto])
  codes, slots = tiny.trie().item_codes[: tiny.ITEMS], LAYOUT.path_slots[0]
  blocks = [LAYOUT.vocab.blocks[f'sid{level}'][0] for level in range(tiny.LEVELS)]
  scores = np.zeros((*plain.roles.shape[:2], tiny.ITEMS))
  for item, code in enumerate(codes):
    tokens = plain.tokens.copy()
    tokens[..., slots] = code + blocks
    log_prob, _ = chains.likelihoods(
      tiny.examples(6), plain._replace(tokens=tokens), ('reasoner.temperature=1.0',)
    )
    scores[..., item] = log_prob[..., slots].sum(-1)
  named = np.take_along_axis(scores, searched.candidates, axis=-1)
  np.testing.assert_allclose(named, searched.candidate_log_prob, atol=1e-4)
  for user, worlds in enumerate(searched.candidates):
    free = np.ones(tiny.ITEMS, bool)
    for world, items in enumerate(worlds):
      best = np.sort(scores[user, world][free])[::-1][: len(items)]
      np.testing.assert_allclose(named[user, world], best, atol=1e-4)
      free[items] = False
    assert free.sum() == tiny.ITEMS - worlds.size


@functools.cache
def answers():
  """What every item gets with one of the reasoner's experts alone, by expert, compiled once."""
  rolegens = {part: tiny.rolegen(f"loop.experts=('{part}',)") for part in REASONER_EXPERTS}

  def answer(rolegen, params, examples, rollout, trie):
    backbone, keep = rolegen.bind('backbone', params), np.arange(tiny.USERS) > 0
    items = backbone.items(trie)
    memory = backbone.encode(examples.history, items)
    query_state = rolegen.query(backbone, memory, examples.timestamp)
    every = jnp.broadcast_to(jnp.arange(tiny.ITEMS), (tiny.USERS, tiny.ITEMS))
    said = rolegen.reasoning(rollout, keep)
    members = backbone.members(query_state, every, jnp.zeros(every.shape), said, items)
    return backbone.experts.terms(members)[..., -len(REASONER_EXPERTS) :]

  @jit
  def run(*arguments):
    return {part: answer(rolegen, *arguments) for part, rolegen in rolegens.items()}

  return run


@pytest.mark.parametrize('part', REASONER_EXPERTS)
def test_the_backbone_hears_what_the_settings_let_it(part):
  """With one expert alone, other parts of a rollout make no difference; row 0 is told nothing."""
  examples = tiny.examples(7)
  rollout = chains.rollout(examples, 3)
  retrieved = rollout.retrieved
  others = dict(
    intent=rollout.intent[:, :, ::-1],
    candidates=(rollout.candidates + 1) % tiny.ITEMS,
    retrieved=np.where(retrieved >= 0, (retrieved + 1) % tiny.ITEMS, NONE),
  )
  own = {part: others.pop(part)}

  def terms(rollout) -> np.ndarray:
    return np.array(answers()(tiny.params('backbone'), examples, rollout, tiny.trie())[part])

  found = terms(rollout)
  assert (found.any((0, 1)) == [name == part for name in REASONER_EXPERTS]).all()
  assert not found[0].any() and found[1:].any((1, 2)).all()
  roles = np.where(rollout.roles >= 0, 1, NONE)
  np.testing.assert_array_equal(found, terms(rollout._replace(**others, roles=roles)))
  assert (found != terms(rollout._replace(**own))).any()


def test_without_noise_the_chain_is_the_greedy_one():
  examples = tiny.examples(5)
  greedy, again = (chains.rollout(examples, key, intervene=False, noise=0.0) for key in (0, 1))
  jax.tree.map(np.testing.assert_array_equal, greedy, again)
  _, role_log_prob = chains.likelihoods(examples, greedy)
  has_role = greedy.roles[:, 0] != NONE
  best = role_log_prob[:, 0].argmax(-1)
  np.testing.assert_array_equal(greedy.roles[:, 0][has_role], best[has_role])


def test_an_empty_history_gets_a_chain_of_candidates():
  """A user with no event at all: no roles, still real items."""
  examples = tiny.examples()
  nothing = jax.tree.map(np.zeros_like, examples.history)
  nothing = nothing._replace(item=np.full_like(nothing.item, -1))
  r = chains.rollout(examples._replace(history=nothing))
  assert (r.roles == NONE).all() and (r.candidates >= 0).all() and np.isfinite(r.log_prob).all()
