"""How likely the reasoner thinks what it reads and writes, and the losses made of that.

Sampling (`rollout.py`) and likelihood use the same constrained softmax over the block of the vocabulary that a position holds, so
log-probs of rollout and training agree but for rounding. No logits are kept for the backward pass.

Shapes: B users, N = B * chains sequences, M role events, I intents, P candidates, L levels, A items called for, T completion length, K codes, D width.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.data.batches import Examples
from rolegen_jax.models.attention import causal
from rolegen_jax.models.backbone import NEG_INF
from rolegen_jax.models.intent import Retrieved
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import Layout, Prompt, at_slots
from rolegen_jax.reasoning.worlds import Tree
from rolegen_jax.semantic_ids.trie import Trie, children_mask, descend
from rolegen_jax.sharding import constrain_rows


def constrained_log_softmax(logits, allowed, temperature):
  """log-softmax over allowed entries at a temperature; NEG_INF elsewhere, and everywhere where nothing is allowed."""
  masked = jnp.where(allowed, logits / temperature, NEG_INF)
  return jnp.where(allowed, jax.nn.log_softmax(masked, axis=-1), NEG_INF)


class Likelihood(NamedTuple):
  log_prob: jax.Array  # fp32 [N, T]; 0 at marks and at slots without an event
  entropy: jax.Array  # fp32 [N, T], nats; 0 likewise
  role_log_prob: jax.Array  # fp32 [N, M, roles]


def likelihood(
  reasoner: Reasoner, tree: Tree, prompt: Prompt, tokens_NxT, trie: Trie, temperature=None
) -> Likelihood:
  """Teacher-forced log-probs of the completions of all chains of B users, N = B * chains, in one forward pass.

  `prompt`: of every chain, as `world_prompts` gives them. Temperature: number or fp32 [N]; default: that of rollouts.
  """
  layout, v = tree.layout, tree.layout.vocab
  temperature = jnp.reshape(
    jnp.asarray(layout.config.temperature if temperature is None else temperature, jnp.float32),
    (-1, 1, 1),
  )
  # Pinned: what this has in common with a rollout would otherwise take over the layout of rollouts.
  prompt, tokens_NxT = constrain_rows((prompt, tokens_NxT))
  hidden = constrain_rows(_hidden(reasoner, tree, prompt, tokens_NxT))

  def choose(log_probs, choice, exists):
    """(log-prob of the choice, entropy), 0 where nothing is chosen."""
    picked = jnp.take_along_axis(log_probs, choice[..., None], axis=-1)[..., 0]
    spread = -jnp.sum(
      jnp.where(log_probs > NEG_INF / 2, jnp.exp(log_probs) * log_probs, 0.0), axis=-1
    )
    return jnp.where(exists, picked, 0.0), spread

  @functools.partial(jax.checkpoint, static_argnums=0)
  def choose_code(level, hidden, retrieved, below, exists, choice):
    """`choose` among the codes of a level; logits are computed again in the backward pass, none are kept for it."""
    said = reasoner.intent.next_code(level, retrieved, below) if level else intent[:, None]
    logits = reasoner.logits(hidden, *v.blocks[f'sid{level}']) + said
    return choose(constrained_log_softmax(logits, exists, temperature), choice, True)

  start, size = v.blocks['role']
  m = layout.config.role_events
  role_log_prob = constrained_log_softmax(
    reasoner.logits(hidden[:, :m], start, size), prompt.role_allowed, temperature
  )
  found = [
    choose(
      role_log_prob, jnp.clip(tokens_NxT[:, :m] - start, 0, size - 1), prompt.role_allowed.any(-1)
    )
  ]
  delimiter = (jnp.zeros((tokens_NxT.shape[0], 1)),) * 2
  intent, retrieved = (
    reasoner.intent(prompt.evidence),
    reasoner.intent.retrieve(prompt.evidence, layout.config.retrieved, trie.item_codes),
  )
  for slots in (layout.intent_slots, layout.path_slots):
    node, levels = jnp.zeros((tokens_NxT.shape[0], slots.shape[0]), jnp.int32), []
    below = _ahead(retrieved, layout, tokens_NxT, slots)
    for level in range(slots.shape[1]):
      start, size = v.blocks[f'sid{level}']
      at = slots[:, level]
      choice = jnp.clip(at_slots(tokens_NxT, at) - start, 0, size - 1)
      exists, _ = children_mask(trie, level, node)
      levels.append(choose_code(level, at_slots(hidden, at), retrieved, below, exists, choice))
      node = jnp.maximum(descend(trie, level, node, choice), 0)
      below &= retrieved.codes[:, None, :, level] == choice[..., None]
    found += [
      delimiter,
      tuple(jnp.stack(part, axis=-1).reshape(tokens_NxT.shape[0], -1) for part in zip(*levels)),
    ]
  log_prob, entropy = (jnp.concatenate(part, axis=1) for part in zip(*found, delimiter))
  return Likelihood(log_prob, entropy, role_log_prob)


def _ahead(retrieved: Retrieved, layout: Layout, tokens_NxT, slots: np.ndarray) -> jax.Array:
  """bool [N, slots, A]: the items called for that the path has not come to before each of the slots. An intent is no item."""
  starts = np.array([layout.vocab.blocks[f'sid{level}'][0] for level in range(slots.shape[1])])
  path = tokens_NxT[:, slots] - starts
  here = (retrieved.codes[:, None, :, : slots.shape[1]] == path[:, :, None]).all(-1) & (
    slots.shape[1] == layout.vocab.levels
  )
  return jnp.cumsum(here, axis=1) - here == 0


def _hidden(reasoner: Reasoner, tree: Tree, prompt: Prompt, tokens_NxT):
  """Hidden states [N, T, D] from which the tokens of all chains are predicted: what chains share is computed once."""
  apart = lambda x: x.reshape(-1, tree.chains, x.shape[1])
  tokens = tree.lay(apart(prompt.tokens), apart(tokens_NxT))
  valid = tree.lay(apart(prompt.valid), jnp.ones(apart(tokens_NxT).shape, bool))
  hidden = reasoner.hidden(tokens, tree.positions, tree.mask(valid.astype(jnp.int32)))
  before = lambda end, own: jnp.concatenate(
    [hidden[:, end : end + 1], hidden[:, own][:, :-1]], axis=1
  )
  found = jnp.stack([before(end, own) for end, own in zip(tree.ends, tree.completions)], axis=1)
  return found.reshape(tokens_NxT.shape + hidden.shape[-1:])


class EquationLoss(NamedTuple):
  """NLL in nats of the target under the structural equations alone, the language model unheard."""

  intent: jax.Array  # of its coarse code
  by_role: jax.Array  # the same with hindsight roles done. They know the target, so this teaches what a role is worth and nothing else
  retrieved: jax.Array  # of its further codes


def equation_loss(
  reasoner: Reasoner, layout: Layout, prompt: Prompt, examples: Examples, trie: Trie
) -> EquationLoss:
  """Means over the cases. Further codes are told among those that the tree has; an item that is not in it counts as 0."""
  m, evidence, equation = examples.roles.shape[1], prompt.evidence, reasoner.intent
  told = evidence._replace(role=evidence.role.at[:, -m:].set(examples.roles))
  retrieved = equation.retrieve(evidence, layout.config.retrieved, trie.item_codes)
  target = jnp.take(trie.item_codes, examples.target, axis=0)

  def of(log_probs, level):
    found = jnp.take_along_axis(log_probs, target[:, level : level + 1], axis=1)
    return -jnp.mean(jnp.where(found > NEG_INF / 2, found, 0.0))

  further, node, below = 0.0, jnp.zeros_like(examples.target), jnp.ones(retrieved.item.shape, bool)
  for level in range(1, layout.vocab.levels):
    node = jnp.maximum(descend(trie, level - 1, node, target[:, level - 1]), 0)
    below &= retrieved.codes[..., level - 1] == target[:, level - 1 : level]
    exists, _ = children_mask(trie, level, node)
    further += of(
      constrained_log_softmax(
        equation.next_code(level, retrieved, below[:, None])[:, 0], exists, 1.0
      ),
      level,
    )
  return EquationLoss(of(equation(evidence), 0), of(equation(told, only_roles=True), 0), further)


def next_event_loss(reasoner: Reasoner, layout: Layout, prompt: Prompt) -> jax.Array:
  """Mean next-token cross-entropy in nats over the prompt's events: the `align` stage on a log without text."""
  v, k = layout.vocab, layout.per_event
  body = layout.config.events * k
  tokens, valid = prompt.tokens[:, :body], prompt.valid[:, :body]
  hidden = reasoner.hidden(tokens, np.arange(body), causal(valid.astype(jnp.int32)))[:, :-1]
  blocks = ['event', 'gap'] + [f'sid{level}' for level in range(v.levels)]

  @functools.partial(jax.checkpoint, static_argnums=0)
  def nll(name, hidden, target):
    """[B, positions]; logits are computed again in the backward pass, none are kept for it."""
    log_probs = jax.nn.log_softmax(reasoner.logits(hidden, *v.blocks[name]), axis=-1)
    return -jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]

  total, count = 0.0, 0.0
  for i, name in enumerate(blocks):  # position j predicts token j + 1, whose kind is (j + 1) mod k
    start, size = v.blocks[name]
    at = np.arange((i - 1) % k, body - 1, k)
    target = jnp.clip(at_slots(tokens, at + 1) - start, 0, size - 1)
    weight = (at_slots(valid, at) & at_slots(valid, at + 1)).astype(jnp.float32)
    total += jnp.sum(nll(name, at_slots(hidden, at), target) * weight)
    count += jnp.sum(weight)
  return total / jnp.maximum(count, 1.0)
