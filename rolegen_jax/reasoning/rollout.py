"""Rollouts of FR-CoT completions on device, with KV caches and the constraint tables, in a ROLLOUTS layout.

The prompt is computed once per user, and read once per token for all of the user's worlds; a world that removes an event adds what
follows the removal (`worlds.py`). Worlds keep apart only what they write.

Sampling is a Gumbel-max structural causal model (Oberst & Sontag, ICML 2019): the token of a position is
argmax(logits / temperature + noise). Each world has noise of its own: what may follow where this is done. With `common` noise,
the same at a position in all of a user's worlds, it is what would have followed here: two worlds differ only through their
interventions, and a world without one repeats the factual world bit for bit. That costs candidates: `docs/quality.md`.

Shapes: B users, W worlds, N = B * W sequences (worlds of a user adjacent), C context slots, M role events, T completion length, K block width or coarse codes,
A items called for.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.models.attention import Seen, causal, per_chain
from rolegen_jax.models.backbone import NEG_INF
from rolegen_jax.models.intent import Retrieved, without_each
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import Layout, Prompt, at_slots
from rolegen_jax.reasoning.likelihood import constrained_log_softmax
from rolegen_jax.reasoning.worlds import (
  Interventions,
  Tree,
  choose_interventions,
  no_interventions,
  pivotal,
  removing,
  world_prompts,
)
from rolegen_jax.semantic_ids.trie import Trie, children_mask, leaf
from rolegen_jax.sharding import constrain, constrain_rows


class Rollout(NamedTuple):
  tokens: jax.Array  # int32 [B, W, T]
  log_prob: jax.Array  # fp32 [B, W, T], as sampled; 0 where not sampled
  sampled_mask: jax.Array  # bool [B, W, T]: sampled, so it may carry gradient; False at marks, interventions and empty slots
  roles: jax.Array  # int32 [B, W, M]; -1 where there is no event
  candidates: jax.Array  # int32 [B, W, P] item indices
  candidate_log_prob: jax.Array  # fp32 [B, W, P], of the candidate's codes as sampled
  intent: jax.Array  # fp32 [B, W, K], log-probabilities of coarse codes by the structural equation
  retrieved: jax.Array  # int32 [B, W, A], items that the history calls for most; -1 = no more
  retrieved_share: jax.Array  # fp32 [B, W, A], of these calls
  interventions: Interventions
  pivotal: jax.Array | None = (
    None  # fp32 [B, M], how much of the intent each event moves; by this pivots are chosen
  )


class Read(NamedTuple):
  """A prompt of R positions as W chains of each user have read it, ready to go on. P positions come before the last M events."""

  hidden: jax.Array  # [B, W, D], of the last token
  shared: tuple[
    jax.Array, jax.Array
  ]  # keys and values of the first P positions, [layers, B, P, K, X]
  rest: tuple[jax.Array, jax.Array]  # of the others, of each chain, [layers, B, W, R - P, K, X]
  sees: tuple[jax.Array, jax.Array]  # bool [B, P] and [B, W, R - P]


def read(reasoner: Reasoner, tree: Tree, prompt: Prompt) -> Read:
  """The factual prompts, by one chain each."""
  p, tokens, valid = tree.shared, *constrain_rows((prompt.tokens, prompt.valid))
  hidden, cache = reasoner.prefill(
    tokens, np.arange(tree.layout.prompt_length), causal(valid.astype(jnp.int32))
  )
  own = tuple(c[:, :, None, p:] for c in cache)
  return Read(
    hidden[:, -1:], tuple(c[:, :, :p] for c in cache), own, (valid[:, :p], valid[:, None, p:])
  )


def in_worlds(
  reasoner: Reasoner, tree: Tree, factual: Read, prompt: Prompt, prompts: Prompt, removes_BxW
) -> Read:
  """The prompts of all worlds [B * W, R]: the factual one, read again from position P where an event is removed.

  A world that may remove one and does not takes the factual one too, so that it repeats the factual world bit for bit.
  """
  forks, p, r = len(tree.removing), tree.shared, tree.layout.prompt_length
  many = lambda x, axis, n: jnp.broadcast_to(x, (*x.shape[:axis], n, *x.shape[axis + 1 :]))
  if not forks:
    worlds = lambda x, axis: many(x, axis, tree.chains)
    return Read(
      worlds(factual.hidden, 1),
      factual.shared,
      tuple(worlds(c, 2) for c in factual.rest),
      (factual.sees[0], worlds(factual.sees[1], 1)),
    )
  valid = prompts.valid.reshape(-1, tree.chains, r)[:, -forks:]  # they come last
  tokens, segment = constrain_rows(
    (per_chain(prompt.tokens[:, p:], forks), valid.reshape(-1, r).astype(jnp.int32))
  )
  before = tuple(jax.vmap(lambda x: per_chain(x, forks))(c) for c in factual.shared)
  mask = Seen(np.tri(r, dtype=bool)[p:], segment[:, p:], segment)
  hidden, cache = reasoner.prefill(tokens, np.arange(p, r), mask, before)

  def worlds(old, new, axis):
    """Old of one chain along `axis`, new of the forks."""
    new = new.reshape(*old.shape[:axis], forks, *old.shape[axis + 1 :])
    removes = jnp.expand_dims(
      removes_BxW[:, -forks:], (*range(axis - 1), *range(axis + 1, old.ndim))
    )
    return jnp.concatenate(
      [many(old, axis, tree.chains - forks), jnp.where(removes, new, old)], axis=axis
    )

  rest = tuple(worlds(old, new, 2) for old, new in zip(factual.rest, cache))
  return Read(
    worlds(factual.hidden, hidden[:, -1], 1),
    factual.shared,
    rest,
    (factual.sees[0], worlds(factual.sees[1], valid[:, :, p:], 1)),
  )


def decode(
  reasoner: Reasoner,
  layout: Layout,
  ready: Read,
  prompt: Prompt,
  intent_NxK,
  retrieved: Retrieved,
  trie: Trie,
  key,
  noise: float,
  common: bool = False,
):
  """Samples N = B * W completions; interventions are those of the prompts.

  First codes hear the world's intent; further ones, the items called for that are not on the path yet. Returns tokens [N, T], their
  log-probs, and the SID trie node reached at each position.
  """
  v, (b, worlds, rest) = layout.vocab, ready.sees[1].shape
  n, length, roles, width = (
    b * worlds,
    layout.length,
    len(ROLE_NAMES),
    max(layout.vocab.codes, len(ROLE_NAMES)),
  )
  cache = tuple(
    constrain(
      jnp.pad(c, ((0, 0),) * 3 + ((0, length), (0, 0), (0, 0))),
      None,
      'batch',
      None,
      None,
      'kv_heads',
      None,
    )
    for c in ready.rest
  )
  seen, slots = (
    jnp.pad(ready.sees[1], ((0, 0), (0, 0), (0, length)), constant_values=True),
    jnp.arange(rest + length),
  )
  m = layout.config.role_events
  after_roles = ((0, 0), (0, length - m), (0, 0))
  role_allowed = jnp.pad(prompt.role_allowed, after_roles)
  forced = jnp.pad(prompt.evidence.role[:, -m:], after_roles[:2], constant_values=-1)
  forced = forced.at[:, layout.intent_slots[0, 0]].set(prompt.evidence.intent)

  def options(level, role_allowed_NxR, node, below_NxA):
    """[N, width]: what is allowed, the child node of each code, and what the equations say of it; level -1 stands for roles."""
    of_role = lambda: (
      jnp.pad(role_allowed_NxR, ((0, 0), (0, width - roles))),
      jnp.zeros((n, width), jnp.int32),
      jnp.zeros((n, width)),
    )

    def of_level(l):
      said = reasoner.intent.next_code(l, retrieved, below_NxA[:, None])[:, 0] if l else intent_NxK
      return tuple(
        jnp.pad(a, ((0, 0), (0, width - v.codes))) for a in (*children_mask(trie, l, node), said)
      )

    return jax.lax.switch(
      level + 1, [of_role] + [functools.partial(of_level, l) for l in range(v.levels)]
    )

  def position(carry, xs):
    hidden, cache, node, below, ahead = carry
    t, start, level, is_delimiter, role_allowed_NxR, forced_N = xs
    node, below = jnp.where(level <= 0, 0, node), jnp.where(level <= 0, ahead, below)
    allowed, child, said = options(level, role_allowed_NxR, node, below)
    logits = reasoner.logits(hidden.reshape(n, -1), start, width) + said
    log_probs = constrained_log_softmax(logits, allowed, layout.config.temperature)
    gumbel = jax.random.gumbel(jax.random.fold_in(key, t), (b if common else n, width))
    choice = jnp.argmax(
      log_probs + noise * per_chain(gumbel, worlds if common else 1), axis=-1
    ).astype(jnp.int32)
    choice = jnp.where(forced_N >= 0, forced_N, choice)
    some = allowed.any(-1) & ~is_delimiter
    log_prob = jnp.where(
      some & (forced_N < 0), jnp.take_along_axis(log_probs, choice[:, None], axis=1)[:, 0], 0.0
    )
    node = jnp.where(level >= 0, jnp.take_along_axis(child, choice[:, None], axis=1)[:, 0], node)
    below &= (
      jax.lax.dynamic_index_in_dim(retrieved.codes, jnp.maximum(level, 0), axis=2, keepdims=False)
      == choice[:, None]
    )
    ahead &= ~(below & (level == v.levels - 1))  # an item is on a path once
    token = jnp.where(
      is_delimiter, start, jnp.where(some, start + choice, v.control('UNKNOWN_ROLE'))
    )
    slot, place = rest + t, layout.prompt_length + t
    sees = ready.sees[0], seen & (slots <= slot)
    hidden, cache = reasoner.step(
      constrain_rows(token.reshape(b, worlds)), place, ready.shared, cache, slot, sees
    )
    return (hidden, cache, node, below, ahead), (token, log_prob, node)

  time_major = lambda x: jnp.moveaxis(x, 1, 0)
  static = (jnp.asarray(a) for a in (layout.start, layout.level, layout.is_delimiter))
  xs = (jnp.arange(length), *static, time_major(role_allowed), time_major(forced))
  every = jnp.ones(retrieved.item.shape, bool)
  _, outputs = jax.lax.scan(
    position, (ready.hidden, cache, jnp.zeros((n,), jnp.int32), every, every), xs
  )
  return tuple(time_major(o) for o in outputs)


def rollout_worlds(
  reasoner: Reasoner,
  tree: Tree,
  prompt: Prompt,
  factual: Read,
  interventions: Interventions,
  trie: Trie,
  key,
  noise: float = 1.0,
  common: bool = False,
) -> Rollout:
  """W completions per user under the given interventions. `prompt` is per user, [B, ...]."""
  layout, (b, w, m) = tree.layout, interventions.role.shape
  unflat = lambda x: x.reshape(b, w, *x.shape[1:])
  prompts = world_prompts(layout, prompt, interventions)
  intent, retrieved = (
    reasoner.intent(prompts.evidence),
    reasoner.intent.retrieve(prompts.evidence, layout.config.retrieved, trie.item_codes),
  )
  ready = in_worlds(reasoner, tree, factual, prompt, prompts, interventions.removed.any(-1))
  tokens, log_prob, node = decode(
    reasoner, layout, ready, prompts, intent, retrieved, trie, key, noise, common
  )
  has_event = prompts.role_allowed.any(-1)
  sampled_mask = (
    jnp.broadcast_to(~layout.is_delimiter, tokens.shape)
    .at[:, :m]
    .set(has_event & (prompts.evidence.role[:, -m:] < 0))
  )
  sampled_mask = sampled_mask.at[:, layout.intent_slots[0, 0]].set(prompts.evidence.intent < 0)
  roles = jnp.where(has_event, tokens[:, :m] - layout.vocab.blocks['role'][0], -1)
  candidates = leaf(trie, at_slots(node, layout.path_slots[:, -1]))
  candidate_log_prob = (
    at_slots(log_prob, layout.path_slots.ravel()).reshape(b * w, *layout.path_slots.shape).sum(-1)
  )
  share = retrieved.weight / jnp.maximum(retrieved.weight.sum(-1, keepdims=True), 1e-9)
  found = (
    tokens,
    log_prob,
    sampled_mask,
    roles,
    candidates,
    candidate_log_prob,
    intent,
    retrieved.item,
    share,
  )
  return Rollout(*(unflat(x) for x in found), interventions)


def sample_rollout(
  reasoner: Reasoner,
  layout: Layout,
  prompt: Prompt,
  trie: Trie,
  key,
  worlds: int,
  done: tuple[str, ...],
  intervene,
  noise: float = 1.0,
  common: bool = False,
) -> Rollout:
  """Pivots by the structural equation; then all worlds at once, in which the interventions of these kinds are `done`.

  `intervene` (bool, may be traced) False: worlds repeat the factual one.
  """
  pivot_key, noise_key = jax.random.split(key)
  b, m = prompt.role_allowed.shape[:2]
  tree = Tree(layout, worlds, removing(worlds, done))
  factual = read(reasoner, tree, prompt)
  exists, _ = children_mask(trie, 0, jnp.zeros((b,), jnp.int32))
  intents = without_each(reasoner.intent, prompt.evidence, m)
  moved = pivotal(intents)
  chosen = choose_interventions(
    prompt, moved, jnp.where(exists, intents[0], NEG_INF), worlds, done, pivot_key
  )
  interventions = jax.tree.map(
    lambda a, z: jnp.where(intervene, a, z), chosen, no_interventions(b, worlds, m)
  )
  rollout = rollout_worlds(
    reasoner, tree, prompt, factual, interventions, trie, noise_key, noise, common
  )
  return rollout._replace(pivotal=moved)
