import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.models import functional
from rolegen_jax.models.attention import causal
from rolegen_jax.models.intent import EQUATIONS
from rolegen_jax.models.numerics import NEG_INF, is_possible
from rolegen_jax.reasoning import frcot
from rolegen_jax.reasoning import likelihood as lib
from rolegen_jax.reasoning.worlds import Interventions, Tree, world_prompts
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids.trie import children_mask, descend
from tests import tiny

V = tiny.rolegen().vocab
LAYOUT = tiny.rolegen().layout
M = LAYOUT.config.role_events


def test_constrained_log_softmax():
  logits = jnp.array([[1.0, 2.0, 3.0, 50.0]] * 2)
  allowed = jnp.array([[True, True, True, False], [False] * 4])
  log_probs = np.array(lib.constrained_log_softmax(logits, allowed, 2.0))
  halved = np.array([0.5, 1.0, 1.5])
  np.testing.assert_allclose(log_probs[0, :3], halved - np.log(np.exp(halved).sum()), rtol=1e-6)
  assert log_probs[0, 3] == np.float32(NEG_INF) and (log_probs[1] == np.float32(NEG_INF)).all()
  gradient = jax.grad(lambda x: lib.constrained_log_softmax(x, allowed, 2.0)[:, 0].sum())(logits)
  assert np.isfinite(gradient).all() and (gradient[1] == 0).all() and gradient[0, 3] == 0


def build_prompt(examples, codes):
  return frcot.build_prompt(LAYOUT, examples.history, examples.excites, examples.timestamp, codes)


def prompts(examples):
  return jit(build_prompt)(examples, tiny.codes())


@jit
def demonstration(examples, codes):
  return frcot.demonstration(LAYOUT, examples, codes)


def demonstrated(examples) -> np.ndarray:
  """Completions [B, T] with a full path."""
  examples = examples._replace(path=np.abs(examples.path))
  return np.array(demonstration(examples, tiny.codes()).tokens)


def value_and_gradient(loss):
  """Of a function of the reasoner, by the tiny reasoner's parameters."""

  @jit
  @jax.value_and_grad
  def run(params):
    return loss(tiny.rolegen().bind('reasoner', params))

  return run(tiny.params('reasoner'))


def assert_same(loss, plain):
  """Values and gradients of two losses agree."""
  (value, gradient), (expected, expected_gradient) = map(value_and_gradient, (loss, plain))
  assert float(value) == pytest.approx(float(expected), rel=1e-5, abs=1e-4)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(expected_gradient))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest),
    gradient,
    expected_gradient,
  )


def test_next_event_loss_equals_the_plain_form():
  """The plain form takes a softmax over tokens of all kinds and renormalizes within the block."""
  prompt, per_event = prompts(tiny.examples(3)), LAYOUT.per_event
  length = LAYOUT.config.events * per_event
  tokens, valid = prompt.tokens[:, :length], prompt.valid[:, :length]
  in_block = np.zeros((per_event, V.size), bool)
  for kind, name in enumerate(['event', 'gap', 'sid0', 'sid1', 'sid2']):
    start, size = V.blocks[name]
    in_block[kind, start : start + size] = True

  def plain(reasoner):
    hidden = reasoner.hidden(tokens, np.arange(length), causal(valid.astype(jnp.int32)))
    log_probs = jax.nn.log_softmax(reasoner.logits(hidden, 0, V.size), axis=-1)[:, :-1]  # [B, T, V]
    of_block = jnp.where(in_block[np.arange(1, length) % per_event], log_probs, NEG_INF)
    own = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
    weight = valid[:, 1:] & valid[:, :-1]
    return -jnp.sum((own - jax.nn.logsumexp(of_block, axis=-1)) * weight) / weight.sum()

  assert_same(lambda reasoner: lib.next_event_loss(reasoner, LAYOUT, prompt), plain)


def plain_likelihood(reasoner, prompt, tokens, trie, temperature):
  """[2, N, T] log-probs and entropies, every chain a sequence of its own, token by token."""
  n, config = tokens.shape[0], LAYOUT.config
  sequence = jnp.concatenate([prompt.tokens, tokens], axis=1)
  valid = jnp.concatenate([prompt.valid, jnp.ones(tokens.shape, bool)], axis=1)
  positions = np.arange(sequence.shape[1])
  hidden = reasoner.hidden(sequence, positions, causal(valid.astype(jnp.int32)))
  hidden = hidden[:, LAYOUT.prompt_length - 1 : -1]
  priors = reasoner.intent.priors(prompt.evidence, config.retrieved, trie.item_codes, V.levels)
  language = jax.lax.stop_gradient(reasoner.intent.language[...])
  node = jnp.zeros(n, jnp.int32)
  matches = unused = jnp.ones(priors.retrieved.weight.shape, bool)
  scores = []
  for at, (start, level) in enumerate(zip(LAYOUT.start.tolist(), LAYOUT.level.tolist())):
    if LAYOUT.is_delimiter[at]:
      scores.append(jnp.zeros((2, n)))
      continue
    size = len(frcot.ROLE_NAMES) if level < 0 else tiny.CODES
    if level <= 0:
      node, matches = jnp.zeros_like(node), unused
    role = max(at - LAYOUT.role_slots[0], 0)
    allowed = prompt.role_allowed[:, role] if level < 0 else children_mask(trie, level, node)[0]
    logits = reasoner.logits(hidden[:, at], start, size)
    if level < 0:
      code = tokens[:, LAYOUT.intent_slots[0, 0]] - V.blocks['sid0'][0]
      logits += reasoner.roles(prompt.evidence, code, config.role_events)[:, role]
    elif at in LAYOUT.intent_slots:
      assert level == 0
      logits = language * logits + priors.intent
    else:
      logits = language * logits
      logits += reasoner.intent.next_code(level, priors.retrieved, matches[:, None])[:, 0]
      logits += priors.intent if level == 0 else 0.0
    log_probs = jax.nn.log_softmax(jnp.where(allowed, logits / temperature, NEG_INF), axis=-1)
    choice = jnp.clip(tokens[:, at] - start, 0, size - 1)
    picked = jnp.take_along_axis(log_probs, choice[:, None], axis=1)[:, 0]
    entropy = -jnp.sum(jnp.where(allowed, jnp.exp(log_probs) * log_probs, 0.0), axis=1)
    scores.append(jnp.where(allowed.any(-1), jnp.stack([picked, entropy]), 0.0))
    if level >= 0:
      node = jnp.maximum(descend(trie, level, node, choice), 0)
    matches = matches & (priors.retrieved.codes[..., max(level, 0)] == choice[:, None])
    if level == tiny.LEVELS - 1:
      unused = unused & ~matches
  return jnp.stack(scores, axis=-1)


def test_likelihood_equals_the_plain_form():
  examples, trie, temperature = tiny.examples(2), tiny.trie(), 0.7
  prompt, tokens = prompts(examples), demonstrated(examples)
  weight = np.random.default_rng(0).normal(size=(2, *tokens.shape)).astype(np.float32)

  def plain(reasoner):
    return jnp.sum(plain_likelihood(reasoner, prompt, tokens, trie, temperature) * weight)

  def loss(reasoner):
    scores = lib.likelihood(reasoner, Tree(LAYOUT), prompt, tokens, trie, temperature)
    return jnp.sum(jnp.stack([scores.log_prob, scores.entropy]) * weight)

  assert_same(loss, plain)


@pytest.mark.slow
def test_chains_that_share_their_prompt_are_as_likely_as_alone():
  """Four chains a user, two of which remove an event: together, and as sequences of their own."""
  examples, trie, rng = tiny.examples(5), tiny.trie(), np.random.default_rng(1)
  chains, may_remove = 4, (1, 3)
  role = np.full((tiny.USERS, chains, M), -1, np.int32)
  removed = np.zeros((tiny.USERS, chains, M), bool)
  removed[:, 1, 0], removed[:, 3, 2], role[:, 2, 1] = True, True, 4
  interventions = Interventions(jnp.asarray(role), jnp.asarray(removed), jnp.asarray(role[..., 0]))
  prompt = jit(functools.partial(world_prompts, LAYOUT))(prompts(examples), interventions)
  # Completions are the same in all chains: only prompts differ.
  tokens = jnp.repeat(demonstrated(examples), chains, axis=0)
  temperature = jnp.asarray(rng.uniform(0.5, 1.0, len(tokens)), jnp.float32)
  weight = jnp.asarray(rng.normal(size=(2, *tokens.shape)), jnp.float32)

  def loss(reasoner, tree):
    scores = lib.likelihood(reasoner, tree, prompt, tokens, trie, temperature)
    stacked = jnp.stack([scores.log_prob, scores.entropy])
    return jnp.sum(jnp.where(is_possible(scores.log_prob), stacked, 0.0) * weight)

  assert_same(
    functools.partial(loss, tree=Tree(LAYOUT, chains, may_remove)),
    functools.partial(loss, tree=Tree(LAYOUT)),
  )


@functools.cache
def scorer():

  @jit
  def score(params, examples, tokens, trie):
    prompt = build_prompt(examples, trie.item_codes)
    reasoner = tiny.rolegen().bind('reasoner', params)
    scores = lib.likelihood(reasoner, Tree(LAYOUT), prompt, tokens, trie)
    return scores, lib.next_event_loss(reasoner, LAYOUT, prompt)

  return score


def log_probs(examples, tokens, params=None) -> np.ndarray:
  params = tiny.params('reasoner') if params is None else params
  return np.array(scorer()(params, examples, tokens, tiny.trie())[0].log_prob)


def without_preferences():
  """Token embeddings, and so the readout, of zeros, and equations without focus."""
  params = tiny.params('reasoner')
  zeros = jax.tree.map(
    np.zeros_like, {name: params[name] for name in ('tokens', 'intent', 'roles')}
  )
  return params | zeros


def test_without_preferences_choices_are_uniform_over_what_may_come():
  """Log-prob is -log(choices) and entropy log(choices), by counting the catalogue."""
  examples, codes = tiny.examples(), tiny.codes()
  tokens = demonstrated(examples)
  scores, _ = jax.device_get(scorer()(without_preferences(), examples, tokens, tiny.trie()))
  np.testing.assert_allclose(scores.entropy, -scores.log_prob, atol=1e-5)
  events, real = examples.history.event[:, -4:], examples.history.segment[:, -4:] > 0
  of_roles = np.where(real & (events != tiny.PURCHASE), -np.log(7), 0.0)
  np.testing.assert_allclose(scores.log_prob[:, LAYOUT.role_slots], of_roles, atol=1e-5)
  assert (scores.log_prob[:, LAYOUT.is_delimiter] == 0).all()
  paths = tokens[:, LAYOUT.path_slots] - V.sid(np.zeros(3, np.int32))
  for item, of_codes in zip(
    paths.reshape(-1, 3), scores.log_prob[:, LAYOUT.path_slots].reshape(-1, 3)
  ):
    below = [codes[(codes[:, :level] == item[:level]).all(1), level] for level in range(3)]
    expected = [-np.log(len(set(next_codes))) for next_codes in below]
    np.testing.assert_allclose(of_codes, expected, atol=1e-5)


def test_without_preferences_the_next_event_is_uniform_over_its_blocks():
  """Every event has all five tokens but the first, which has no event token."""
  examples = tiny.examples()
  tokens = demonstrated(examples)
  _, loss = jax.device_get(scorer()(without_preferences(), examples, tokens, tiny.trie()))
  events = np.minimum((examples.history.segment > 0).sum(1), 6)
  sizes = np.log([V.blocks[name][1] for name in ('event', 'gap', 'sid0', 'sid1', 'sid2')])
  total = (events * sizes[1:].sum() + (events - 1) * sizes[0]).sum()
  assert loss == pytest.approx(total / (events * 5 - 1).sum(), rel=1e-5)


def replace_excites(examples, **fields):
  return examples._replace(excites=examples.excites._replace(**fields))


def test_evidence_of_intent_moves_first_codes_and_roles_only():
  examples = tiny.examples(1)
  tokens, excites = demonstrated(examples), examples.excites
  none = replace_excites(
    examples, weight=np.zeros_like(excites.weight), shift=np.zeros_like(excites.shift)
  )
  params = tiny.params('reasoner')
  params = params | {'intent': params['intent'] | {'focus': np.ones(1, np.float32)}}
  with_evidence, without = (log_probs(e, tokens, params) for e in (examples, none))
  same = np.isclose(with_evidence, without, atol=1e-6).all(0)
  np.testing.assert_array_equal(same[~LAYOUT.is_role], LAYOUT.level[~LAYOUT.is_role] != 0)
  assert not same[LAYOUT.is_role].all()


def test_retrieved_items_move_codes_of_the_path_only():
  examples = tiny.examples(1)
  tokens = demonstrated(examples)
  none = replace_excites(examples, share=np.zeros_like(examples.excites.share))
  with_evidence, without = (log_probs(e, tokens) for e in (examples, none))
  moved = ~np.isclose(with_evidence, without, atol=1e-6)
  on_path = np.isin(np.arange(LAYOUT.length), LAYOUT.path_slots)
  assert not moved[:, ~on_path].any()
  assert moved[:, on_path & (LAYOUT.level == 0)].any()
  assert all(moved[:, LAYOUT.level == level].any() for level in (1, 2))


def test_an_item_on_the_path_is_retrieved_no_more():
  """A path's second item is as likely as if the first one had never been retrieved."""
  examples = tiny.examples(4)
  path = np.tile(np.array([7, 9, 11, 13], np.int32), (tiny.USERS, 1))
  tokens = demonstrated(examples._replace(path=path))
  shape = examples.excites.next_item.shape
  next_item = np.where(np.arange(np.prod(shape)).reshape(shape) % 2, 7, 9).astype(np.int32)
  is_event = (examples.history.segment > 0)[..., None] & np.ones(shape, bool)

  def scored(retrieved: np.ndarray) -> np.ndarray:
    share = (is_event & retrieved).astype(np.float32)
    return log_probs(replace_excites(examples, next_item=next_item, share=share), tokens)

  both = scored(np.ones(shape, bool))[:, LAYOUT.path_slots]
  second = scored(next_item == 9)[:, LAYOUT.path_slots]
  assert (np.abs(both[:, 0, 1:] - second[:, 0, 1:]) > 1e-3).any()
  np.testing.assert_allclose(both[:, 1:], second[:, 1:], atol=1e-5)


def test_each_equation_loss_trains_its_own_parameters():
  """Hindsight roles teach the gains of roles and nothing else."""
  examples, params = tiny.examples(2), tiny.params('reasoner')

  def losses(equations):
    reasoner = tiny.rolegen().bind('reasoner', params | equations)
    prompt = build_prompt(examples, tiny.codes())
    return lib.equation_loss(reasoner, LAYOUT, prompt, examples, tiny.trie())

  equations = {name: params[name] for name in EQUATIONS}
  jacobians = jit(jax.jacrev(losses))(equations)
  intent, by_role, retrieved, roles = (
    {name for name, gradient in functional.flatten(jacobian).items() if np.abs(gradient).max() > 0}
    for jacobian in jacobians
  )
  counted = {'counted_fade', 'counted_focus', 'counted_prior', 'self_transition'}
  others = counted | {'role_gain', 'language'}
  assert intent == {f'intent.{name}' for name in set(params['intent']) - others}
  assert by_role == {'intent.role_gain'}
  assert retrieved == {f'intent.{name}' for name in counted | {'event_gain'}}
  assert roles == {f'roles.{name}' for name in params['roles']}


def test_both_equations_together_are_a_distribution_over_items():
  """Retrieved items are likelier than the others."""
  example, trie = tiny.examples(5, users=1), tiny.trie()

  @jit
  def retrieved_nll(params, example, trie):
    reasoner = tiny.rolegen().bind('reasoner', params)
    prompt = build_prompt(example, trie.item_codes)
    return lib.equation_loss(reasoner, LAYOUT, prompt, example, trie).retrieved

  def nll(item: int) -> float:
    target = np.array([item], np.int32)
    return float(retrieved_nll(tiny.params('reasoner'), example._replace(target=target), trie))

  nlls = np.array([nll(item) for item in range(tiny.ITEMS)])
  assert np.exp(-nlls).sum() == pytest.approx(1.0, abs=1e-4)
  next_items = example.excites.next_item[example.history.segment > 0]
  is_retrieved = np.isin(np.arange(tiny.ITEMS), next_items)
  assert nlls[is_retrieved].mean() < nlls[~is_retrieved].mean()
