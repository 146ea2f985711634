"""How likely the reasoner finds what it reads and writes, and the losses made of that.

Sampling (`sampling.py`) and likelihood use the same constrained softmax over the block of the
vocabulary that a position holds, so their log-probs agree up to rounding. No logits are kept for
the backward pass.

Shapes: B users, N = B * chains sequences, M role events, R prompt length, I intents, P candidates,
L levels, A retrieved items, T completion length, K codes, D width.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rolegen_jax.data.batches import Examples
from rolegen_jax.models import functional
from rolegen_jax.models.attention import causal
from rolegen_jax.models.evidence import Evidence
from rolegen_jax.models.intent import Priors, Retrieved
from rolegen_jax.models.numerics import NEG_INF, is_possible
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import Layout, Prompt, at_slots, first_intent
from rolegen_jax.reasoning.worlds import Tree
from rolegen_jax.semantic_ids.trie import Trie, children_mask, descend
from rolegen_jax.sharding import constrain_rows


def constrained_log_softmax(
  logits: jax.Array, allowed: jax.Array, temperature: ArrayLike
) -> jax.Array:
  """Return the log-softmax over allowed entries at a temperature, NEG_INF elsewhere.

  Where nothing is allowed, all entries are NEG_INF.
  """
  masked = jnp.where(allowed, logits / temperature, NEG_INF)
  return jnp.where(allowed, jax.nn.log_softmax(masked, axis=-1), NEG_INF)


class Likelihood(NamedTuple):
  """Of N completions; values are 0 at delimiters and at slots without an event."""

  log_prob: jax.Array  # fp32 [N, T]
  entropy: jax.Array  # fp32 [N, T], nats
  role_log_prob: jax.Array  # fp32 [N, M, roles]


class Choice(NamedTuple):
  """What a chain chose at some positions."""

  log_prob: jax.Array  # fp32 [N, positions]; 0 where nothing is chosen
  entropy: jax.Array  # fp32 [N, positions], of the distribution it was chosen from


def likelihood(
  reasoner: Reasoner,
  tree: Tree,
  prompt: Prompt,
  tokens_NxT: jax.Array,
  trie: Trie,
  temperature: ArrayLike | None = None,
) -> Likelihood:
  """Return teacher-forced log-probs of the completions of all chains, in one forward pass.

  Args:
    reasoner: with bound parameters.
    tree: how the chains of a user share a row, N = B * tree.chains.
    prompt: of every chain, as `world_prompts` gives them.
    tokens_NxT: the completions.
    trie: the catalogue.
    temperature: a number or fp32 [N]; by default that of rollouts.
  """
  layout = tree.layout
  if temperature is None:
    temperature = layout.config.temperature
  temperature = jnp.reshape(jnp.asarray(temperature, jnp.float32), (-1, 1, 1))
  # Pinned: what this has in common with a rollout would otherwise take over the rollout's layout.
  prompt, tokens_NxT = constrain_rows((prompt, tokens_NxT))
  hidden = constrain_rows(_hidden(reasoner, tree, prompt, tokens_NxT))

  start, size = layout.vocab.blocks['role']
  role_logits = reasoner.logits(at_slots(hidden, layout.role_slots), start, size)
  intent, m = first_intent(layout, tokens_NxT), len(layout.role_slots)
  role_logits += reasoner.role_logits(prompt.evidence, intent, m, tree.chains)
  role_log_prob = constrained_log_softmax(role_logits, prompt.role_allowed, temperature)
  role = jnp.clip(at_slots(tokens_NxT, layout.role_slots) - start, 0, size - 1)
  roles = _choose(role_log_prob, role, prompt.role_allowed.any(-1))

  def choose_codes(slots: np.ndarray, evidence: Evidence) -> Choice:
    keep, levels = layout.config.retrieved, slots.shape[1]
    priors = reasoner.intent.priors(evidence, keep, trie.item_codes, levels, tree.chains)
    return _code_choices(reasoner, layout, priors, trie, temperature, hidden, tokens_NxT, slots)

  zeros = jnp.zeros((tokens_NxT.shape[0], 1))
  delimiter = Choice(zeros, zeros)
  # Intents are written before the roles: what is done to a role does not reach them.
  intents = choose_codes(layout.intent_slots, prompt.evidence.without_roles())
  path = choose_codes(layout.path_slots, prompt.evidence)
  parts = delimiter, intents, roles, delimiter, path, delimiter
  log_prob, entropy = (jnp.concatenate(part, axis=1) for part in zip(*parts))
  return Likelihood(log_prob, entropy, role_log_prob)


def _choose(log_probs: jax.Array, choice: jax.Array, exists: ArrayLike) -> Choice:
  """Pick the log-prob of each choice, and the entropy of its distribution."""
  picked = jnp.take_along_axis(log_probs, choice[..., None], axis=-1)[..., 0]
  terms = jnp.where(is_possible(log_probs), jnp.exp(log_probs) * log_probs, 0.0)
  entropy = -jnp.sum(terms, axis=-1)
  return Choice(jnp.where(exists, picked, 0.0), entropy)


def _code_choices(
  reasoner: Reasoner,
  layout: Layout,
  priors: Priors,
  trie: Trie,
  temperature: jax.Array,
  hidden_NxTxD: jax.Array,
  tokens_NxT: jax.Array,
  slots: np.ndarray,
) -> Choice:
  """Return the choices of codes at slots [items, levels], level by level, [N, items * levels]."""
  n, (items, levels) = tokens_NxT.shape[0], slots.shape
  is_item = levels == layout.vocab.levels  # and no intent

  @functools.partial(jax.checkpoint, static_argnums=0)
  def choose_code(
    level: int,
    hidden: jax.Array,
    priors: Priors,
    matches: jax.Array,
    exists: jax.Array,
    choice: jax.Array,
  ) -> Choice:
    """Choose among the codes of a level; the backward pass computes the logits again."""
    logits = reasoner.code_logits(hidden, *layout.vocab.blocks[f'sid{level}'])
    logits = logits + reasoner.intent.code_prior(level, priors, matches, is_item)
    return _choose(constrained_log_softmax(logits, exists, temperature), choice, True)

  node = jnp.zeros((n, items), jnp.int32)
  matches = _unused_before(priors.retrieved, layout, tokens_NxT, slots)
  by_level = []
  for level in range(levels):
    start, size = layout.vocab.blocks[f'sid{level}']
    at = slots[:, level]
    choice = jnp.clip(at_slots(tokens_NxT, at) - start, 0, size - 1)
    exists, _ = children_mask(trie, level, node)
    by_level.append(choose_code(level, at_slots(hidden_NxTxD, at), priors, matches, exists, choice))
    node = jnp.maximum(descend(trie, level, node, choice), 0)
    matches &= priors.retrieved.codes[:, None, :, level] == choice[..., None]
  return Choice(*(jnp.stack(part, axis=-1).reshape(n, -1) for part in zip(*by_level)))


def _unused_before(
  retrieved: Retrieved, layout: Layout, tokens_NxT: jax.Array, slots: np.ndarray
) -> jax.Array:
  """Return the retrieved items that no item of the path before each slot is, bool [N, slots, A].

  An intent is no item: its slots use none.
  """
  levels = slots.shape[1]
  starts = np.array([layout.vocab.blocks[f'sid{level}'][0] for level in range(levels)])
  path = tokens_NxT[:, slots] - starts
  same = (retrieved.codes[:, None, :, :levels] == path[:, :, None]).all(-1)
  is_here = same & (levels == layout.vocab.levels)
  return jnp.cumsum(is_here, axis=1) - is_here == 0


def _hidden(reasoner: Reasoner, tree: Tree, prompt: Prompt, tokens_NxT: jax.Array) -> jax.Array:
  """Return the states [N, T, D] from which the tokens of all chains are predicted.

  What chains share is computed once.
  """

  def by_user(x: jax.Array) -> jax.Array:
    return x.reshape(-1, tree.chains, x.shape[1])

  completions = by_user(tokens_NxT)
  tokens = tree.lay(by_user(prompt.tokens), completions)
  valid = tree.lay(by_user(prompt.valid), jnp.ones(completions.shape, bool))
  hidden = reasoner.hidden(tokens, tree.positions, tree.mask(valid.astype(jnp.int32)))

  def before(end: int, completion: slice) -> jax.Array:
    """Return the states one position before each token of a completion."""
    last_of_prompt = hidden[:, end : end + 1]
    return jnp.concatenate([last_of_prompt, hidden[:, completion][:, :-1]], axis=1)

  chains = [before(end, own) for end, own in zip(tree.ends, tree.completions)]
  return jnp.stack(chains, axis=1).reshape(tokens_NxT.shape + hidden.shape[-1:])


class EquationLoss(NamedTuple):
  """NLL in nats under the structural equations alone, without the language model."""

  intent: jax.Array  # of the target's coarse code
  # The same, given hindsight roles. They know the target, so this teaches what a role is worth and
  # nothing else.
  by_role: jax.Array
  retrieved: jax.Array  # of all its codes, by both equations
  roles: jax.Array  # of hindsight roles, given the target's coarse code


def equation_loss(
  reasoner: Reasoner, layout: Layout, prompt: Prompt, examples: Examples, trie: Trie
) -> EquationLoss:
  """Return means over the examples.

  Codes are predicted among those that the trie has; an item that is not in it counts as 0.
  """
  evidence, equation = prompt.evidence, reasoner.intent
  with_roles = evidence.with_roles(examples.roles)
  retrieved = equation.retrieve(evidence, layout.config.retrieved, trie.item_codes)
  target_codes = jnp.take(trie.item_codes, examples.target, axis=0)

  def nll(log_probs: jax.Array, level: int) -> jax.Array:
    log_prob = jnp.take_along_axis(log_probs, target_codes[:, level : level + 1], axis=1)
    return -jnp.mean(jnp.where(is_possible(log_prob), log_prob, 0.0))

  intent, codes_nll = equation.counted(evidence), jnp.zeros(())
  priors = Priors(jax.lax.stop_gradient(intent), retrieved)  # it has a loss of its own
  node, matches = jnp.zeros_like(examples.target), jnp.ones(retrieved.item.shape, bool)
  for level in range(layout.vocab.levels):
    exists, _ = children_mask(trie, level, node)
    logits = equation.code_prior(level, priors, matches[:, None], is_item=True)[:, 0]
    codes_nll += nll(constrained_log_softmax(logits, exists, 1.0), level)
    node = jnp.maximum(descend(trie, level, node, target_codes[:, level]), 0)
    matches &= retrieved.codes[..., level] == target_codes[:, level : level + 1]
  return EquationLoss(
    intent=nll(intent, 0),
    by_role=nll(functional.held_but(equation, 'role_gain').counted(with_roles), 0),
    retrieved=codes_nll,
    roles=_role_nll(reasoner, prompt, target_codes[:, 0], examples.roles),
  )


def _role_nll(
  reasoner: Reasoner, prompt: Prompt, intent_N: jax.Array, roles_NxM: jax.Array
) -> jax.Array:
  """Return the mean NLL of labeled roles towards intents, those left out that do not fit."""
  logits = reasoner.role_logits(prompt.evidence, intent_N, roles_NxM.shape[1])
  log_probs = constrained_log_softmax(logits, prompt.role_allowed, 1.0)
  of_label = jnp.take_along_axis(log_probs, jnp.maximum(roles_NxM, 0)[..., None], axis=2)[..., 0]
  counts = (roles_NxM >= 0) & is_possible(of_label)
  return -jnp.sum(jnp.where(counts, of_label, 0.0)) / jnp.maximum(counts.sum(), 1)


class IntentWeights(NamedTuple):
  """How much each source counts where the coarse codes of intents are chosen."""

  language: float  # the language model's logits
  counted: float  # log p by what is counted
  learned: float  # log p by kinds of users


def intent_log_probs(
  reasoner: Reasoner,
  layout: Layout,
  prompt: Prompt,
  target_B: jax.Array,
  trie: Trie,
  weights: tuple[IntentWeights, ...],
) -> jax.Array:
  """Return log p(coarse code of the target) as a first intent, fp32 [B, weights]."""
  delimiter = jnp.full((len(target_B), 1), layout.vocab.control('INTENT'), jnp.int32)
  tokens = jnp.concatenate([prompt.tokens, delimiter], axis=1)
  valid = jnp.pad(prompt.valid, ((0, 0), (0, 1)), constant_values=True)
  positions = np.arange(tokens.shape[1])
  hidden = reasoner.hidden(tokens, positions, causal(valid.astype(jnp.int32)))[:, -1]
  said = reasoner.logits(hidden, *layout.vocab.blocks['sid0'])
  parts = reasoner.intent.parts(prompt.evidence)
  exists, _ = children_mask(trie, 0, jnp.zeros_like(target_B))
  code = jnp.take(trie.item_codes[:, 0], target_B)[:, None]

  def log_prob(weight: jax.Array) -> jax.Array:
    language, counted, learned = weight
    prior = parts.pooled(prompt.evidence.intent, counted, learned)
    log_probs = constrained_log_softmax(language * said + prior, exists, 1.0)
    return jnp.take_along_axis(log_probs, code, axis=1)[:, 0]

  return jax.lax.map(log_prob, jnp.array(weights)).T


def next_event_loss(reasoner: Reasoner, layout: Layout, prompt: Prompt) -> jax.Array:
  """Return the mean next-token cross-entropy over the prompt's events, in nats.

  It is the loss of stage `align` on a log without text.
  """
  v, per_event = layout.vocab, layout.per_event
  length = layout.config.events * per_event
  tokens, valid = prompt.tokens[:, :length], prompt.valid[:, :length]
  hidden = reasoner.hidden(tokens, np.arange(length), causal(valid.astype(jnp.int32)))[:, :-1]
  blocks = ['event', 'gap'] + [f'sid{level}' for level in range(v.levels)]

  @functools.partial(jax.checkpoint, static_argnums=0)
  def nll(block: str, hidden: jax.Array, target: jax.Array) -> jax.Array:
    """Return [B, positions]; the backward pass computes the logits again."""
    log_probs = jax.nn.log_softmax(reasoner.logits(hidden, *v.blocks[block]), axis=-1)
    return -jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]

  total, count = jnp.zeros(()), jnp.zeros(())
  # Position j predicts token j + 1, which holds block (j + 1) mod per_event.
  for kind, block in enumerate(blocks):
    start, size = v.blocks[block]
    at = np.arange((kind - 1) % per_event, length - 1, per_event)
    target = jnp.clip(at_slots(tokens, at + 1) - start, 0, size - 1)
    weight = (at_slots(valid, at) & at_slots(valid, at + 1)).astype(jnp.float32)
    total += jnp.sum(nll(block, at_slots(hidden, at), target) * weight)
    count += jnp.sum(weight)
  return total / jnp.maximum(count, 1.0)
