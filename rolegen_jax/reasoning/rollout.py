"""Rollouts: what the reasoner says of each user in all of the user's worlds.

A rollout finds the pivotal events by the structural equation, chooses what is done in each world,
reads the prompts (`prefill.py`) and samples the completions of all worlds at once (`sampling.py`):
intents, the roles of the events towards them, then the path, which starts from what the structural
equations say once the roles are known. At inference the likeliest items are named in place of a
path (`search.py`). All of it is on device and in a layout of `sharding.ROLLOUTS`.

Shapes: B users, W worlds, N = B * W sequences (worlds of a user adjacent), M role events,
P candidates, T completion length, that up to the roles where candidates are searched, K coarse
codes, A retrieved items.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rolegen_jax.models.intent import without_each
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import Layout, Prompt, at_slots, first_intent
from rolegen_jax.reasoning.prefill import Prefilled, prefill, prefill_worlds
from rolegen_jax.reasoning.sampling import Completions, Reading, RolloutSettings, Sampler
from rolegen_jax.reasoning.search import likeliest_items
from rolegen_jax.reasoning.worlds import (
  Choice,
  Interventions,
  Tree,
  choose_interventions,
  no_choice,
  pivotal,
  removing,
  world_prompts,
)
from rolegen_jax.semantic_ids.trie import Trie, children_mask, leaf


class Rollout(NamedTuple):
  """The chains of all worlds and what they say."""

  tokens: jax.Array  # int32 [B, W, T]
  log_prob: jax.Array  # fp32 [B, W, T], of a world alone; 0 where not sampled
  # bool [B, W, T]: what was sampled and may carry gradient; False at delimiters, interventions and
  # slots without an event
  sampled_mask: jax.Array
  roles: jax.Array  # int32 [B, W, M]; -1 where there is no event
  # int32 [B, W, P], items: the path's, or the likeliest, best first, -1 past the last
  candidates: jax.Array
  candidate_log_prob: jax.Array  # fp32 [B, W, P], of the candidate's codes, of the world alone
  intent: jax.Array  # fp32 [B, W, K], log-probabilities of coarse codes by the structural equation
  retrieved: jax.Array  # int32 [B, W, A], items that the history retrieves; -1 = no more
  retrieved_share: jax.Array  # fp32 [B, W, A], the share of each in what is retrieved
  interventions: Interventions


def sample_rollout(
  reasoner: Reasoner,
  layout: Layout,
  prompt: Prompt,
  trie: Trie,
  keys_B: jax.Array,
  settings: RolloutSettings,
  intervene: ArrayLike = True,
) -> Rollout:
  """Sample the worlds of every user, [B, ...] prompts; a user's noise comes from the user's key.

  With `intervene` (bool, may be traced) False, nothing is done in any world.
  """
  choice_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys_B), 1, 0)
  users, m = prompt.role_allowed.shape[:2]
  worlds, kinds = settings.worlds, settings.interventions
  tree = Tree(layout, worlds, removing(worlds, kinds))
  factual = prefill(reasoner, tree, prompt)
  exists, _ = children_mask(trie, 0, jnp.zeros((users,), jnp.int32))
  intents = without_each(reasoner.intent, prompt.evidence, m)
  moved = pivotal(intents)
  intent = jnp.where(exists, intents[0], NEG_INF)
  choice = choose_interventions(prompt, moved, intent, worlds, kinds, choice_keys)
  choice = jax.tree.map(
    lambda done, none: jnp.where(intervene, done, none), choice, no_choice(users, worlds, m)
  )
  sampler, reading = _begin(reasoner, tree, factual, prompt, choice, noise_keys, settings)
  return sample_worlds(sampler, reading, prompt, choice, trie)


def role_chances(
  reasoner: Reasoner,
  layout: Layout,
  prompt: Prompt,
  trie: Trie,
  intent_B: jax.Array,
  keys_B: jax.Array,
  draws: int,
) -> jax.Array:
  """Return the chances fp32 [B, M, R] of each event's roles; 0 where there is no event.

  They are means over `draws` chains, each with an intent of its own; under do(first code of the
  first intent = `intent`) where that is not -1.
  """
  users, m = prompt.role_allowed.shape[:2]
  intent = jnp.broadcast_to(intent_B[:, None], (users, draws))
  choice = no_choice(users, draws, m)._replace(intent=intent)
  tree, settings = Tree(layout, draws), RolloutSettings(draws, ())
  factual = prefill(reasoner, tree, prompt)
  sampler, reading = _begin(reasoner, tree, factual, prompt, choice, keys_B, settings)
  prompts = world_prompts(layout, prompt, choice.without_roles())
  log_probs = _intents_and_roles(sampler, reading, prompts, choice, trie)[-1]
  return jnp.exp(log_probs).reshape(users, draws, m, -1).mean(1)


def _intents_and_roles(
  sampler: Sampler, reading: Reading, prompts: Prompt, choice: Choice, trie: Trie
) -> tuple[Reading, Completions, Completions, jax.Array]:
  """Sample the first half of all chains: (reading, intents, roles, log p of roles [N, M, R])."""
  reasoner, layout = sampler.reasoner, sampler.layout
  keep, levels = layout.config.retrieved, layout.config.intent_levels
  chains = choice.role_shift.shape[1]
  priors = reasoner.intent.priors(prompts.evidence, keep, trie.item_codes, levels, chains)
  reading, intents = sampler.intents(reading, priors, prompts.evidence.intent, trie)
  m = choice.role_shift.shape[-1]
  intent = first_intent(layout, intents.tokens)
  towards = reasoner.role_logits(prompts.evidence, intent, m, chains)
  shift = choice.role_shift.reshape(-1, m)
  reading, roles, log_probs = sampler.roles(reading, towards, prompts.role_allowed, shift)
  return reading, intents, roles, log_probs


def _begin(
  reasoner: Reasoner,
  tree: Tree,
  factual: Prefilled,
  prompt: Prompt,
  choice: Choice,
  keys_B: jax.Array,
  settings: RolloutSettings,
) -> tuple[Sampler, Reading]:
  """Read the prompts of all worlds under a choice."""
  prompts = world_prompts(tree.layout, prompt, choice.without_roles())
  removes = choice.removed.any(-1)
  prefilled = prefill_worlds(reasoner, tree, factual, prompt, prompts, removes)
  return Sampler.begin(reasoner, tree.layout, prefilled, keys_B, settings)


def sample_worlds(
  sampler: Sampler, reading: Reading, prompt: Prompt, choice: Choice, trie: Trie
) -> Rollout:
  """Sample the worlds of every user under a choice. `prompt` is per user, [B, ...].

  reading: the prompts of all worlds as `sampler` begins.
  """
  reasoner, layout = sampler.reasoner, sampler.layout
  users, worlds, m = choice.role_shift.shape
  prompts = world_prompts(layout, prompt, choice.without_roles())
  reading, intents, written, _ = _intents_and_roles(sampler, reading, prompts, choice, trie)
  has_event = prompts.role_allowed.any(-1)
  roles = jnp.where(has_event, written.tokens - layout.vocab.role(0), -1)

  interventions = choice.with_roles(roles.reshape(users, worlds, m))
  prompts = world_prompts(layout, prompt, interventions)
  keep, levels = layout.config.retrieved, layout.vocab.levels
  priors = reasoner.intent.priors(prompts.evidence, keep, trie.item_codes, levels, worlds)
  parts = [intents, written]
  if sampler.settings.search:
    candidates, log_prob = likeliest_items(sampler, reading, priors, trie)
  else:
    parts.append(sampler.path(reading, priors, trie))
    candidates, log_prob = _on_path(layout, parts[-1], trie)
  completions = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)

  flat = dict(
    tokens=completions.tokens,
    log_prob=completions.log_prob,
    sampled_mask=_sampled_mask(layout, prompts, completions),
    roles=roles,
    candidates=candidates,
    candidate_log_prob=log_prob,
    intent=priors.intent,
    retrieved=priors.retrieved.item,
    retrieved_share=priors.retrieved.shares(),
  )
  by_world = {name: x.reshape(users, worlds, *x.shape[1:]) for name, x in flat.items()}
  return Rollout(**by_world, interventions=interventions)


def _on_path(layout: Layout, path: Completions, trie: Trie) -> tuple[jax.Array, jax.Array]:
  """Return the items on paths and their log-probabilities, int32 and fp32 [N, P]."""
  slots = layout.path_slots - (layout.role_slots[-1] + 1)
  log_prob = at_slots(path.log_prob, slots.ravel()).reshape(-1, *slots.shape)
  return leaf(trie, at_slots(path.node, slots[:, -1])), log_prob.sum(-1)


def _sampled_mask(layout: Layout, prompts: Prompt, completions: Completions) -> jax.Array:
  """Return where a token was sampled, bool [N, T]."""
  m = layout.config.role_events
  has_event = prompts.role_allowed.any(-1)
  role_sampled = has_event & (prompts.evidence.role[:, -m:] < 0)
  shape = completions.tokens.shape
  sampled = jnp.broadcast_to(~layout.is_delimiter[: shape[1]], shape)
  sampled = sampled.at[:, layout.role_slots].set(role_sampled)
  return sampled.at[:, layout.intent_slots[0, 0]].set(prompts.evidence.intent < 0)
