"""Rollouts: what the reasoner says of each user in all of the user's counterfactual worlds.

A rollout finds the pivotal events by the structural equation, chooses what is done in each world,
reads the prompts (`prefill.py`) and samples the completions of all worlds at once (`sampling.py`),
on device and in a layout of `sharding.ROLLOUTS`.

Shapes: B users, W worlds, N = B * W sequences (worlds of a user adjacent), M role events,
P candidates, T completion length, K coarse codes, A retrieved items.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rolegen_jax.models.intent import without_each
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import Layout, Prompt, at_slots
from rolegen_jax.reasoning.prefill import Prefilled, prefill, prefill_worlds
from rolegen_jax.reasoning.sampling import Completions, RolloutSettings, decode
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


class Rollout(NamedTuple):
  """The chains of all worlds and what they say."""

  tokens: jax.Array  # int32 [B, W, T]
  log_prob: jax.Array  # fp32 [B, W, T], as sampled; 0 where not sampled
  # bool [B, W, T]: what was sampled and may carry gradient; False at delimiters, interventions and
  # slots without an event
  sampled_mask: jax.Array
  roles: jax.Array  # int32 [B, W, M]; -1 where there is no event
  candidates: jax.Array  # int32 [B, W, P], items
  candidate_log_prob: jax.Array  # fp32 [B, W, P], of the candidate's codes as sampled
  intent: jax.Array  # fp32 [B, W, K], log-probabilities of coarse codes by the structural equation
  retrieved: jax.Array  # int32 [B, W, A], items that the history retrieves; -1 = no more
  retrieved_share: jax.Array  # fp32 [B, W, A], the share of each in what is retrieved
  interventions: Interventions
  # fp32 [B, M], how much of the intent each event moves, by which pivots are chosen
  pivotal: jax.Array | None = None


def sample_rollout(
  reasoner: Reasoner,
  layout: Layout,
  prompt: Prompt,
  trie: Trie,
  key: jax.Array,
  settings: RolloutSettings,
  intervene: ArrayLike = True,
) -> Rollout:
  """Sample the worlds of every user, [B, ...] prompts.

  With `intervene` (bool, may be traced) False, nothing is done in any world.
  """
  pivot_key, noise_key = jax.random.split(key)
  users, m = prompt.role_allowed.shape[:2]
  worlds, kinds = settings.worlds, settings.interventions
  tree = Tree(layout, worlds, removing(worlds, kinds))
  factual = prefill(reasoner, tree, prompt)
  exists, _ = children_mask(trie, 0, jnp.zeros((users,), jnp.int32))
  intents = without_each(reasoner.intent, prompt.evidence, m)
  moved = pivotal(intents)
  intent = jnp.where(exists, intents[0], NEG_INF)
  chosen = choose_interventions(prompt, moved, intent, worlds, kinds, pivot_key)
  interventions = jax.tree.map(
    lambda done, nothing: jnp.where(intervene, done, nothing),
    chosen,
    no_interventions(users, worlds, m),
  )
  rollout = rollout_worlds(
    reasoner, tree, prompt, factual, interventions, trie, noise_key, settings
  )
  return rollout._replace(pivotal=moved)


def rollout_worlds(
  reasoner: Reasoner,
  tree: Tree,
  prompt: Prompt,
  factual: Prefilled,
  interventions: Interventions,
  trie: Trie,
  key: jax.Array,
  settings: RolloutSettings,
) -> Rollout:
  """Sample the worlds of every user under given interventions. `prompt` is per user, [B, ...]."""
  layout, (users, worlds, m) = tree.layout, interventions.role.shape
  prompts = world_prompts(layout, prompt, interventions)
  priors = reasoner.intent.priors(prompts.evidence, layout.config.retrieved, trie.item_codes)
  removes = interventions.removed.any(-1)
  prefilled = prefill_worlds(reasoner, tree, factual, prompt, prompts, removes)
  completions = decode(reasoner, layout, prefilled, prompts, priors, trie, key, settings)

  has_event = prompts.role_allowed.any(-1)
  roles = completions.tokens[:, :m] - layout.vocab.blocks['role'][0]
  path = layout.path_slots
  path_log_prob = at_slots(completions.log_prob, path.ravel())
  weight = priors.retrieved.weight
  flat = dict(
    tokens=completions.tokens,
    log_prob=completions.log_prob,
    sampled_mask=_sampled_mask(layout, prompts, completions),
    roles=jnp.where(has_event, roles, -1),
    candidates=leaf(trie, at_slots(completions.node, path[:, -1])),
    candidate_log_prob=path_log_prob.reshape(users * worlds, *path.shape).sum(-1),
    intent=priors.intent,
    retrieved=priors.retrieved.item,
    retrieved_share=weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-9),
  )
  by_world = {name: x.reshape(users, worlds, *x.shape[1:]) for name, x in flat.items()}
  return Rollout(**by_world, interventions=interventions)


def _sampled_mask(layout: Layout, prompts: Prompt, completions: Completions) -> jax.Array:
  """Return where a token was sampled, bool [N, T]."""
  m = layout.config.role_events
  has_event = prompts.role_allowed.any(-1)
  role_sampled = has_event & (prompts.evidence.role[:, -m:] < 0)
  sampled = jnp.broadcast_to(~layout.is_delimiter, completions.tokens.shape)
  sampled = sampled.at[:, :m].set(role_sampled)
  return sampled.at[:, layout.intent_slots[0, 0]].set(prompts.evidence.intent < 0)
