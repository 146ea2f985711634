"""Rollouts of FR-CoT completions on device, with a KV cache and the constraint tables, in a ROLLOUTS layout.

Sampling is a Gumbel-max structural causal model (Oberst & Sontag, ICML 2019): the token of a position is
argmax(logits / temperature + noise), and the noise of a user's position is the same in all of that user's worlds. So two
worlds differ only through their interventions, and a world without one repeats the factual world bit for bit.

Shapes: B users, W worlds, N = B * W sequences (worlds of a user adjacent), M role events, T completion length, K block width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.models.backbone import NEVER
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import Layout, Prompt, at_slots, constrained_log_softmax
from rolegen_jax.semantic_ids.trie import Trie, children_mask, leaf
from rolegen_jax.sharding import constrain_rows

TRIGGER = ROLE_NAMES.index('TRIGGER')
CONVERT = ROLE_NAMES.index('CONVERT')


class Interventions(NamedTuple):
  """What is done in each world; all -1 and False in world 0."""

  role: jax.Array  # int32 [B, W, M], do(role_m = this); -1 = none
  removed: jax.Array  # bool [B, W, M], do(remove the m-th of the last M events)


class Rollout(NamedTuple):
  tokens: jax.Array  # int32 [B, W, T]
  log_prob: jax.Array  # fp32 [B, W, T], as sampled; 0 where not sampled
  free: jax.Array  # bool [B, W, T]: sampled, so it may carry gradient; False at marks, interventions and empty slots
  roles: jax.Array  # int32 [B, W, M]; -1 where there is no event
  candidates: jax.Array  # int32 [B, W, P] item indices
  candidate_log_prob: jax.Array  # fp32 [B, W, P], of the candidate's codes as sampled
  intent: jax.Array  # fp32 [B, W, K], log-probabilities of neighbourhoods by the structural equation
  interventions: Interventions


def decode(reasoner: Reasoner, layout: Layout, prompt: Prompt, intent_NxK, trie: Trie, key, worlds: int, noise: float, length: int):
  """Samples the first `length` positions of the completion of N prompts; interventions are those of the prompts.

  Returns tokens [N, length], their log-probs, the SID trie node reached at each position, and role log-probs [N, length, roles].
  """
  v, n = layout.vocab, prompt.tokens.shape[0]
  roles, width = len(ROLE_NAMES), max(layout.vocab.codes, len(ROLE_NAMES))
  hidden, cache = reasoner.prefill(*constrain_rows((prompt.tokens, prompt.valid)), room=length)
  slots = jnp.arange(layout.prompt_length + length)
  visible = jnp.pad(prompt.valid, ((0, 0), (0, length)), constant_values=True)
  m = layout.config.role_events
  pad_roles = ((0, 0), (0, max(length - m, 0)), (0, 0))
  role_allowed = jnp.pad(prompt.role_allowed, pad_roles)[:, :length]
  forced = jnp.pad(prompt.evidence.role[:, -m:], pad_roles[:2], constant_values=-1)[:, :length]
  evidence = jnp.pad(intent_NxK, ((0, 0), (0, width - v.codes)))

  def allowed_at(level, role_allowed_NxR, node):
    """bool [N, width] and the child node of each code; level -1 stands for roles."""
    of_role = lambda: (jnp.pad(role_allowed_NxR, ((0, 0), (0, width - roles))), jnp.zeros((n, width), jnp.int32))

    def of_level(l):
      exists, child = children_mask(trie, l, node)
      return (jnp.pad(a, ((0, 0), (0, width - v.codes))) for a in (exists, child))

    branches = [of_role] + [lambda l=l: tuple(of_level(l)) for l in range(v.levels)]
    return jax.lax.switch(level + 1, branches)

  def position(carry, xs):
    hidden, cache, node = carry
    t, start, level, is_mark, opens_intent, role_allowed_NxR, forced_N = xs
    node = jnp.where(level <= 0, 0, node)
    allowed, child = allowed_at(level, role_allowed_NxR, node)
    logits = reasoner.logits(hidden, start, width) + jnp.where(opens_intent, evidence, 0.0)
    log_probs = constrained_log_softmax(logits, allowed, layout.config.temperature)
    gumbel = jax.random.gumbel(jax.random.fold_in(key, t), (n // worlds, width))
    choice = jnp.argmax(log_probs + noise * per_world(gumbel, worlds), axis=-1).astype(jnp.int32)
    choice = jnp.where(forced_N >= 0, forced_N, choice)
    some = allowed.any(-1) & ~is_mark
    log_prob = jnp.where(some & (forced_N < 0), jnp.take_along_axis(log_probs, choice[:, None], axis=1)[:, 0], 0.0)
    node = jnp.where(level >= 0, jnp.take_along_axis(child, choice[:, None], axis=1)[:, 0], node)
    token = jnp.where(is_mark, start, jnp.where(some, start + choice, v.control('UNKNOWN_ROLE')))
    slot = layout.prompt_length + t
    hidden, cache = reasoner.step(constrain_rows(token), slot, cache, visible & (slots <= slot))
    return (hidden, cache, node), (token, log_prob, node, log_probs[:, :roles])

  time_major = lambda x: jnp.moveaxis(x, 1, 0)
  static = (jnp.asarray(a[:length]) for a in (layout.start, layout.level, layout.is_mark, layout.opens_intent))
  xs = (jnp.arange(length), *static, time_major(role_allowed), time_major(forced))
  _, outputs = jax.lax.scan(position, (hidden, cache, jnp.zeros((n,), jnp.int32)), xs)
  return tuple(time_major(o) for o in outputs)


def choose_interventions(prompt: Prompt, role_log_prob_BxMxR, worlds: int, remove_share: float, key) -> Interventions:
  """Pivots are the events most probably TRIGGERs, one per counterfactual world (again from the top when there are too few).

  The last round(remove_share * (W - 1)) worlds remove their pivot, the others give it another role, uniformly drawn.
  """
  b, m, roles = role_log_prob_BxMxR.shape
  eligible = prompt.role_allowed[..., TRIGGER]
  order = jnp.argsort(-jnp.where(eligible, role_log_prob_BxMxR[..., TRIGGER], 2 * NEVER), axis=1)
  some = jnp.maximum(eligible.sum(1, keepdims=True), 1)
  pivot = jnp.take_along_axis(order, jnp.arange(worlds - 1)[None] % some, axis=1)
  at_pivot = (jnp.arange(m) == pivot[..., None]) & eligible.any(1)[:, None, None]
  removes = jnp.arange(worlds - 1) >= worlds - 1 - round(remove_share * (worlds - 1))
  factual = jnp.argmax(jnp.take_along_axis(role_log_prob_BxMxR, pivot[..., None], axis=1), axis=-1)
  other = jax.random.randint(key, factual.shape, 1, roles - 1)  # CONVERT, the last role, is never forced
  new_role = (factual + other) % (roles - 1)
  role = jnp.where(at_pivot & ~removes[:, None], new_role[..., None], -1)
  none = lambda x, fill: jnp.pad(x, ((0, 0), (1, 0), (0, 0)), constant_values=fill)
  return Interventions(none(role.astype(jnp.int32), -1), none(at_pivot & removes[:, None], False))


def no_interventions(users: int, worlds: int, role_events: int) -> Interventions:
  return Interventions(jnp.full((users, worlds, role_events), -1, jnp.int32), jnp.zeros((users, worlds, role_events), bool))


def per_world(x: jax.Array, worlds: int) -> jax.Array:
  """[B, ...] -> [B * W, ...], each row W times in a row. A broadcast: rows stay on their device, which `jnp.repeat` does not keep."""
  return jnp.broadcast_to(x[:, None], (x.shape[0], worlds, *x.shape[1:])).reshape(-1, *x.shape[1:])


def world_prompts(layout: Layout, prompt: Prompt, interventions: Interventions) -> Prompt:
  """The prompts [B * W, ...] that the worlds see: removed events are visible to nobody, cause nothing and get no role."""
  b, w, m = interventions.removed.shape
  removed, role = (a.reshape(b * w, m) for a in (interventions.removed, interventions.role))
  gone = jnp.repeat(jnp.pad(removed, ((0, 0), (layout.config.events - m, 0))), layout.per_event, axis=1)
  tokens, valid, allowed, evidence = jax.tree.map(lambda x: per_world(x, w), prompt)
  present = evidence.present.at[:, -m:].set(evidence.present[:, -m:] & ~removed)
  evidence = evidence._replace(present=present, role=evidence.role.at[:, -m:].set(role))
  return Prompt(tokens, valid & ~jnp.pad(gone, ((0, 0), (0, 2))), allowed & ~removed[..., None], evidence)


def rollout_worlds(reasoner: Reasoner, layout: Layout, prompt: Prompt, interventions: Interventions, trie: Trie, key, noise: float = 1.0) -> Rollout:
  """W completions per user under the given interventions, with common noise. `prompt` is per user, [B, ...]."""
  b, w, m = interventions.role.shape
  unflat = lambda x: x.reshape(b, w, *x.shape[1:])
  worlds_prompt = world_prompts(layout, prompt, interventions)
  intent = reasoner.intent(worlds_prompt.evidence)
  tokens, log_prob, node, _ = decode(reasoner, layout, worlds_prompt, intent, trie, key, w, noise, layout.length)
  has_event = worlds_prompt.role_allowed.any(-1)
  free = jnp.broadcast_to(~layout.is_mark, tokens.shape).at[:, :m].set(has_event & (worlds_prompt.evidence.role[:, -m:] < 0))
  roles = jnp.where(has_event, tokens[:, :m] - layout.vocab.blocks['role'][0], -1)
  candidates = leaf(trie, at_slots(node, layout.path_slots[:, -1]))
  candidate_log_prob = at_slots(log_prob, layout.path_slots.ravel()).reshape(b * w, *layout.path_slots.shape).sum(-1)
  found = (tokens, log_prob, free, roles, candidates, candidate_log_prob, intent)
  return Rollout(*(unflat(x) for x in found), interventions)


def reason(reasoner: Reasoner, layout: Layout, prompt: Prompt, trie: Trie, key, worlds: int, remove_share: float, intervene, noise: float = 1.0) -> Rollout:
  """Factual roles first, to find the pivots; then all worlds at once. `intervene` (bool, may be traced) False: worlds repeat the factual one."""
  pivot_key, noise_key = jax.random.split(key)
  b, m = prompt.role_allowed.shape[:2]
  *_, role_log_prob = decode(reasoner, layout, prompt, jnp.zeros((b, layout.vocab.codes)), trie, noise_key, 1, noise, m)
  chosen = choose_interventions(prompt, role_log_prob, worlds, remove_share, pivot_key)
  interventions = jax.tree.map(lambda a, z: jnp.where(intervene, a, z), chosen, no_interventions(b, worlds, m))
  return rollout_worlds(reasoner, layout, prompt, interventions, trie, noise_key, noise)
