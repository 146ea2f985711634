import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.models.attention import causal
from rolegen_jax.models.backbone import NEG_INF
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
  found = np.array(lib.constrained_log_softmax(logits, allowed, 2.0))
  expected = np.array([0.5, 1.0, 1.5]) - np.log(np.exp([0.5, 1.0, 1.5]).sum())
  np.testing.assert_allclose(found[0, :3], expected, rtol=1e-6)
  assert found[0, 3] == np.float32(NEG_INF) and (found[1] == np.float32(NEG_INF)).all()
  gradient = jax.grad(lambda x: lib.constrained_log_softmax(x, allowed, 2.0)[:, 0].sum())(logits)
  assert np.isfinite(gradient).all() and (gradient[1] == 0).all() and gradient[0, 3] == 0


def prompts(examples):
  return frcot.build_prompt(
    LAYOUT, examples.history, examples.excites, examples.timestamp, jnp.asarray(tiny.codes())
  )


def gradients(loss):
  """(value, gradient) by the tiny reasoner's parameters."""
  of = lambda params: loss(tiny.rolegen().bind('reasoner', params))
  return jit(jax.value_and_grad(of))(tiny.params('reasoner'))


def assert_close(plain, found):
  assert float(found[0]) == pytest.approx(float(plain[0]), rel=1e-5, abs=1e-4)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(plain[1]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5 * largest), plain[1], found[1]
  )


def test_next_event_loss_equals_the_plain_form():
  """Against a softmax over all kinds of tokens at once, of which those of the block are taken, renormalised."""
  prompt = prompts(tiny.examples(3))
  body, per_event = LAYOUT.config.events * LAYOUT.per_event, LAYOUT.per_event
  tokens, valid = prompt.tokens[:, :body], prompt.valid[:, :body]
  names = ['event', 'gap', 'sid0', 'sid1', 'sid2']
  member = np.zeros((per_event, V.size), bool)
  for kind, name in enumerate(names):
    start, size = V.blocks[name]
    member[kind, start : start + size] = True

  def plain(reasoner):
    hidden = reasoner.hidden(tokens, np.arange(body), causal(valid.astype(jnp.int32)))
    log_probs = jax.nn.log_softmax(reasoner.logits(hidden, 0, V.size), axis=-1)[:, :-1]  # [B, T, V]
    own = jax.nn.logsumexp(
      jnp.where(member[np.arange(1, body) % per_event], log_probs, NEG_INF), axis=-1
    )
    found = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0] - own
    weight = valid[:, 1:] & valid[:, :-1]
    return -jnp.sum(found * weight) / weight.sum()

  assert_close(
    gradients(plain), gradients(lambda reasoner: lib.next_event_loss(reasoner, LAYOUT, prompt))
  )


def test_likelihood_equals_the_plain_form():
  """Every chain as a sequence of its own, every distribution kept: log-probs, entropies and the gradient of a mixture of both."""
  examples, trie = tiny.examples(2), tiny.trie()
  prompt, temperature, rng = prompts(examples), 0.7, np.random.default_rng(0)
  tokens = frcot.demonstration(
    LAYOUT, examples._replace(path=np.abs(examples.path)), tiny.codes()
  ).tokens
  weight = jnp.asarray(rng.normal(size=(2, *tokens.shape)), jnp.float32)

  def plain(reasoner):
    sequence = jnp.concatenate([prompt.tokens, tokens], axis=1)
    segment = jnp.concatenate([prompt.valid, jnp.ones(tokens.shape, bool)], axis=1).astype(
      jnp.int32
    )
    hidden = reasoner.hidden(sequence, np.arange(sequence.shape[1]), causal(segment))[
      :, LAYOUT.prompt_length - 1 : -1
    ]
    intent, found, node = (
      reasoner.intent(prompt.evidence),
      [],
      jnp.zeros(tokens.shape[0], jnp.int32),
    )
    retrieved = reasoner.intent.retrieve(prompt.evidence, LAYOUT.config.retrieved, trie.item_codes)
    below = ahead = jnp.ones(retrieved.weight.shape, bool)
    for at, (start, level) in enumerate(zip(LAYOUT.start.tolist(), LAYOUT.level.tolist())):
      if LAYOUT.is_delimiter[at]:
        found.append(jnp.zeros((2, tokens.shape[0])))
        continue
      size = len(frcot.ROLE_NAMES) if level < 0 else tiny.CODES
      node, below = (node, below) if level > 0 else (jnp.zeros_like(node), ahead)
      allowed = prompt.role_allowed[:, at] if level < 0 else children_mask(trie, level, node)[0]
      logits = reasoner.logits(hidden[:, at], start, size) + (
        0.0
        if level < 0
        else intent
        if level == 0
        else reasoner.intent.next_code(level, retrieved, below[:, None])[:, 0]
      )
      log_probs = jax.nn.log_softmax(jnp.where(allowed, logits / temperature, NEG_INF), axis=-1)
      choice = jnp.clip(tokens[:, at] - start, 0, size - 1)
      picked = jnp.take_along_axis(log_probs, choice[:, None], axis=1)[:, 0]
      entropy = -jnp.sum(jnp.where(allowed, jnp.exp(log_probs) * log_probs, 0.0), axis=1)
      found.append(jnp.where(allowed.any(-1), jnp.stack([picked, entropy]), 0.0))
      node = jnp.maximum(descend(trie, level, node, choice), 0) if level >= 0 else node
      below = below & (retrieved.codes[..., max(level, 0)] == choice[:, None])
      ahead = ahead & ~below if level == tiny.LEVELS - 1 else ahead
    return jnp.sum(jnp.stack(found, axis=-1) * weight)

  def used(reasoner):
    found = lib.likelihood(reasoner, Tree(LAYOUT), prompt, tokens, trie, temperature)
    return jnp.sum(jnp.stack([found.log_prob, found.entropy]) * weight)

  assert_close(gradients(plain), gradients(used))


def test_chains_that_share_their_prompt_are_as_likely_as_alone():
  """Four chains a user, two of which remove an event: together, and each as a sequence of its own; values and gradients."""
  examples, trie, rng = tiny.examples(5), tiny.trie(), np.random.default_rng(1)
  chains, may_remove = 4, (1, 3)
  role, removed = (
    np.full((tiny.USERS, chains, M), -1, np.int32),
    np.zeros((tiny.USERS, chains, M), bool),
  )
  removed[:, 1, 0], removed[:, 3, 2], role[:, 2, 1] = True, True, 4
  prompt = world_prompts(
    LAYOUT,
    prompts(examples),
    Interventions(jnp.asarray(role), jnp.asarray(removed), jnp.asarray(role[..., 0])),
  )
  demo = frcot.demonstration(
    LAYOUT, examples._replace(path=np.abs(examples.path)), tiny.codes()
  ).tokens
  tokens = jnp.repeat(demo, chains, axis=0)  # the same in all chains: only prompts differ
  temperature = jnp.asarray(rng.uniform(0.5, 1.0, len(tokens)), jnp.float32)
  weight = jnp.asarray(rng.normal(size=(2, *tokens.shape)), jnp.float32)

  def loss(tree):
    def of(reasoner):
      found = lib.likelihood(reasoner, tree, prompt, tokens, trie, temperature)
      return jnp.sum(
        jnp.where(found.log_prob > NEG_INF / 2, jnp.stack([found.log_prob, found.entropy]), 0.0)
        * weight
      )

    return of

  assert_close(gradients(loss(Tree(LAYOUT))), gradients(loss(Tree(LAYOUT, chains, may_remove))))


@functools.cache
def teacher():

  @jit
  def run(params, examples, tokens, trie):
    prompt = frcot.build_prompt(
      LAYOUT, examples.history, examples.excites, examples.timestamp, trie.item_codes
    )
    reasoner = tiny.rolegen().bind('reasoner', params)
    return lib.likelihood(reasoner, Tree(LAYOUT), prompt, tokens, trie), lib.next_event_loss(
      reasoner, LAYOUT, prompt
    )

  return run


def test_without_preferences_every_choice_is_uniform_over_what_may_come():
  """Token embeddings (and so the readout) of zeros, intent without focus: log-prob -log(choices) and entropy log(choices) at every choice, by counting the catalogue."""
  examples, codes = tiny.examples(), tiny.codes()
  blank = tiny.params('reasoner') | jax.tree.map(
    np.zeros_like, {name: tiny.params('reasoner')[name] for name in ('tokens', 'intent')}
  )
  tokens = np.array(
    frcot.demonstration(LAYOUT, examples._replace(path=np.abs(examples.path)), codes).tokens
  )
  found, next_event = jax.device_get(teacher()(blank, examples, tokens, tiny.trie()))
  np.testing.assert_allclose(found.entropy, -found.log_prob, atol=1e-5)
  events, real = examples.history.event[:, -4:], examples.history.segment[:, -4:] > 0
  np.testing.assert_allclose(
    found.log_prob[:, :4], np.where(real & (events != tiny.PURCHASE), -np.log(7), 0.0), atol=1e-5
  )
  assert (found.log_prob[:, LAYOUT.is_delimiter] == 0).all()
  path = tokens[:, LAYOUT.path_slots] - V.sid(np.zeros(3, np.int32))
  for chains, log_probs in zip(path, found.log_prob[:, LAYOUT.path_slots]):
    for item, log_prob in zip(chains, log_probs):
      count = [
        len(set(codes[(codes[:, :level] == item[:level]).all(1), level])) for level in range(3)
      ]
      np.testing.assert_allclose(log_prob, -np.log(count), atol=1e-5)
  # Next event: a token's loss is the log of its block's size; every event but the first has all of them, the first has no event token.
  events = np.minimum((examples.history.segment > 0).sum(1), 6)
  sizes = np.log([V.blocks[name][1] for name in ('event', 'gap', 'sid0', 'sid1', 'sid2')])
  total = (events * sizes[1:].sum() + (events - 1) * sizes[0]).sum()
  assert next_event == pytest.approx(total / (events * 5 - 1).sum(), rel=1e-5)


def test_evidence_moves_the_first_codes_of_intents_and_items_only():
  """The same tokens with and without evidence: log-probs of first codes change, all others stay."""
  examples = tiny.examples(1)
  tokens = np.array(
    frcot.demonstration(LAYOUT, examples._replace(path=np.abs(examples.path)), tiny.codes()).tokens
  )
  none = examples._replace(
    excites=examples.excites._replace(
      weight=np.zeros_like(examples.excites.weight), shift=np.zeros_like(examples.excites.shift)
    )
  )
  params = tiny.params('reasoner') | {
    'intent': tiny.params('reasoner')['intent'] | {'focus': np.ones(1, np.float32)}
  }
  with_it, without = (
    np.array(teacher()(params, c, tokens, tiny.trie())[0].log_prob) for c in (examples, none)
  )
  same = np.isclose(with_it, without, atol=1e-6).all(0)
  np.testing.assert_array_equal(same, LAYOUT.level != 0)


def test_calls_move_the_further_codes_of_items_only():
  examples = tiny.examples(1)
  tokens = np.array(
    frcot.demonstration(LAYOUT, examples._replace(path=np.abs(examples.path)), tiny.codes()).tokens
  )
  none = examples._replace(
    excites=examples.excites._replace(share=np.zeros_like(examples.excites.share))
  )
  with_it, without = (
    np.array(teacher()(tiny.params('reasoner'), c, tokens, tiny.trie())[0].log_prob)
    for c in (examples, none)
  )
  moved = ~np.isclose(with_it, without, atol=1e-6)
  assert (
    not moved[:, LAYOUT.level <= 0].any()
    and moved[:, LAYOUT.level == 1].any()
    and moved[:, LAYOUT.level == 2].any()
  )


def test_an_item_on_the_path_is_called_for_no_more():
  """A catalogue called for as a whole: a path's second item is as likely as when the first one's calls had never been."""
  examples = tiny.examples(4)
  path = np.tile(np.array([7, 9, 11, 13], np.int32), (tiny.USERS, 1))
  tokens = np.array(frcot.demonstration(LAYOUT, examples._replace(path=path), tiny.codes()).tokens)
  next_item = np.where(
    np.arange(examples.excites.next_item.size).reshape(examples.excites.next_item.shape) % 2, 7, 9
  ).astype(np.int32)
  share = np.where(examples.history.segment[..., None] > 0, 1.0, 0.0) * np.ones(next_item.shape)
  both = examples._replace(
    excites=examples.excites._replace(next_item=next_item, share=share.astype(np.float32))
  )
  second = examples._replace(
    excites=examples.excites._replace(
      next_item=next_item, share=np.where(next_item == 9, share, 0.0).astype(np.float32)
    )
  )
  a, b = (
    np.array(teacher()(tiny.params('reasoner'), c, tokens, tiny.trie())[0].log_prob)[
      :, LAYOUT.path_slots
    ]
    for c in (both, second)
  )
  assert (np.abs(a[:, 0, 1:] - b[:, 0, 1:]) > 1e-3).any()
  np.testing.assert_allclose(a[:, 1:], b[:, 1:], atol=1e-5)


def test_hindsight_roles_teach_the_gains_of_roles_and_nothing_else():
  examples = tiny.examples(2)

  def losses(intent):
    reasoner = tiny.rolegen().bind('reasoner', tiny.params('reasoner') | {'intent': intent})
    prompt = frcot.build_prompt(
      LAYOUT, examples.history, examples.excites, examples.timestamp, tiny.codes()
    )
    return jnp.stack(lib.equation_loss(reasoner, LAYOUT, prompt, examples, tiny.trie()))

  intent, by_role, retrieved = (
    jax.tree.map(
      lambda g: np.abs(g[i]).max() > 0, jax.jacrev(losses)(tiny.params('reasoner')['intent'])
    )
    for i in range(3)
  )
  none, of_retrieved = (
    dict.fromkeys(intent, False),
    dict.fromkeys(('counted_fade', 'counted_focus', 'counted_prior', 'stays'), True),
  )
  assert intent == dict.fromkeys(intent, True) | dict(role_gain=False) | dict.fromkeys(
    of_retrieved, False
  )
  assert by_role == none | dict(role_gain=True)
  assert retrieved == none | of_retrieved | dict(event_gain=True)


def test_calls_alone_name_the_target_by_its_codes():
  """Against every item's probability by the calls: the sum over the tree of what its codes say is one, and the target's is the loss."""
  examples = tiny.examples(5, users=1)
  codes, trie = tiny.codes(), tiny.trie()

  @jit
  def nll(params, examples, trie):
    reasoner = tiny.rolegen().bind('reasoner', params)
    prompt = frcot.build_prompt(
      LAYOUT, examples.history, examples.excites, examples.timestamp, trie.item_codes
    )
    return lib.equation_loss(reasoner, LAYOUT, prompt, examples, trie).retrieved

  of = lambda item: float(
    nll(tiny.params('reasoner'), examples._replace(target=np.array([item], np.int32)), trie)
  )
  for first in np.unique(codes[:, 0]):
    assert sum(np.exp(-of(item)) for item in np.flatnonzero(codes[:, 0] == first)) == pytest.approx(
      1.0, abs=1e-4
    )
  retrieved = np.flatnonzero(
    np.isin(np.arange(tiny.ITEMS), examples.excites.next_item[examples.history.segment > 0])
  )
  assert np.mean([of(item) for item in retrieved]) < np.mean(
    [of(item) for item in np.setdiff1d(np.arange(tiny.ITEMS), retrieved)]
  )
