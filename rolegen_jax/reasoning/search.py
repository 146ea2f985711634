"""What the worlds of a user name at inference: the likeliest items, found by beams.

Training draws paths item by item (`sampling.py`), as rewards compare samples. At inference a world
names the likeliest values of its path's first item instead, at temperature 1. World after world
takes those that no world before it has. It may find too few: beams follow a few prefixes, which in
a sparse catalogue lead to an item or two each.

Shapes: B users, W worlds, N = B * W chains (worlds of a user adjacent), b beams, A retrieved
items, P items named by a world, K codes, D width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rolegen_jax.models.attention import KeyValues
from rolegen_jax.models.intent import Priors
from rolegen_jax.models.numerics import NEG_INF, is_possible, pick, top_k
from rolegen_jax.reasoning.likelihood import constrained_log_softmax
from rolegen_jax.reasoning.sampling import Reading, Sampler
from rolegen_jax.semantic_ids.trie import Trie, children_mask, descend, leaf, root
from rolegen_jax.sharding import constrain

BEAMS = 8  # prefixes that a world follows from one code to the next


def likeliest_items(
  sampler: Sampler, reading: Reading, priors: Priors, trie: Trie
) -> tuple[jax.Array, jax.Array]:
  """Return the items that worlds name and their log-probabilities, int32 and fp32 [N, P].

  Where a world finds fewer, -1 and NEG_INF.
  reading: of all chains up to the roles. Log-probabilities are those of a world alone.
  """
  reasoner, layout = sampler.reasoner, sampler.layout
  slots, n = layout.path_slots[0], priors.intent.shape[0]
  before = int(slots[0]) - 1  # PATH
  reading = sampler.read(jnp.full((n, 1), layout.start[before]), before, reading.cache)
  node, score = root((n, 1)), jnp.zeros((n, 1))
  matches = jnp.ones((n, 1, priors.retrieved.item.shape[1]), bool)
  most = layout.config.candidates * sampler.chains[1]  # others may have all but its last P
  for level, slot in enumerate(slots.tolist()):
    allowed = children_mask(trie, level, node)[0]
    prior = reasoner.intent.code_prior(level, priors, matches, is_item=True)
    codes = allowed.shape[-1]
    hidden = reading.hidden.reshape(*node.shape, -1)
    logits = reasoner.code_logits(hidden, layout.start[slot], codes)
    log_probs = constrained_log_softmax(logits + prior, allowed, 1.0)
    entries = jnp.where(allowed, score[..., None] + log_probs, NEG_INF).reshape(n, -1)
    is_last = level == len(slots) - 1
    score, entry = top_k(entries, min(most if is_last else BEAMS, entries.shape[1]))
    parent, code = entry // codes, entry % codes
    node = jnp.where(is_possible(score), descend(trie, level, pick(node, parent), code), -1)
    if not is_last:
      begins = priors.retrieved.codes[:, None, :, level] == code[..., None]
      matches = pick(matches, parent) & begins
      wide, cache = _followed(sampler, reading, parent)
      reading = wide.read(layout.start[slot] + code, slot, cache)
  item, log_prob = (x.reshape(*sampler.chains, -1) for x in (leaf(trie, node), score))
  named = _apart(item, log_prob, layout.config.candidates)
  return named[0].reshape(n, -1), named[1].reshape(n, -1)


def _followed(
  sampler: Sampler, reading: Reading, parent_Nxb: jax.Array
) -> tuple[Sampler, KeyValues]:
  """Return a sampler of b chains for each of a world, and the caches of their parents."""
  users, worlds = sampler.chains
  parent = parent_Nxb.reshape(users, worlds, -1)

  def of_parents(cache: jax.Array) -> jax.Array:
    shape = cache.shape
    by_world = cache.reshape(*shape[:2], worlds, -1, *shape[3:])
    # [layers, B, W, b, ...], user by user and world by world.
    chosen = jax.vmap(jax.vmap(lambda x, at: x[:, at], (1, 0), 1), (1, 0), 1)(by_world, parent)
    chosen = chosen.reshape(*shape[:2], -1, *shape[3:])
    return constrain(chosen, None, 'batch', None, None, 'kv_heads', None)

  own = sampler.visible.own
  own = jnp.broadcast_to(own[:, :, None], (*parent.shape, own.shape[-1]))
  visible = sampler.visible._replace(own=own.reshape(users, -1, own.shape[-1]))
  keys, values = reading.cache
  cache = of_parents(keys), of_parents(values)
  return dataclasses.replace(sampler, visible=visible), cache


def _apart(
  item_BxWxC: jax.Array, log_prob_BxWxC: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
  """Return the likeliest `size` of each world's items, best first, that no world before it has.

  Past the last of them, -1 and NEG_INF.
  """
  users, worlds, found = item_BxWxC.shape
  fill = ((0, 0), (0, 0), (0, max(size - found, 0)))
  item_BxWxC = jnp.pad(item_BxWxC, fill, constant_values=-1)
  log_prob_BxWxC = jnp.pad(log_prob_BxWxC, fill, constant_values=NEG_INF)
  named = jnp.full((users, 0), -1)
  chosen = []
  for world in range(worlds):
    item = item_BxWxC[:, world]
    is_named = (item[:, :, None] == named[:, None]).any(-1)
    score, place = jax.lax.top_k(jnp.where(is_named, NEG_INF, log_prob_BxWxC[:, world]), size)
    chosen.append((jnp.where(is_possible(score), pick(item, place), -1), score))
    named = jnp.concatenate([named, chosen[-1][0]], axis=1)
  items, log_probs = zip(*chosen)
  return jnp.stack(items, axis=1), jnp.stack(log_probs, axis=1)
