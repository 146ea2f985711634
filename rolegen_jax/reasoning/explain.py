"""Why an item is listed: the events that carried it, and their roles towards it.

What an event carries of an item is how much less likely the item would be, among those listed, had
the event never been: the backbone reads the history without it, and the equations of intent and of
retrieved items leave it out. What the reasoner's chains name is drawn anew in every history and is
not counted. Roles are those towards the item's coarse code, by the equation of roles.

Shapes: B users, K listed items, S of them explained, M last events, R roles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.data.batches import Examples
from rolegen_jax.models.functional import Params
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.reasoning.batched import Batched
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.reasoning.roles import without
from rolegen_jax.semantic_ids.trie import Trie


class Explanations(NamedTuple):
  """Of the first S listed items of each user; numpy on the host, jax on the device.

  Slots without an event have effect 0 and role -1; so has every role without `reasoner.roles`.
  """

  effect: Any  # fp32 [B, S, M], nats of log p(item among those listed)
  role: Any  # int32 [B, S, M], the likeliest


def explaining(
  rolegen: RoleGen, params: dict[str, Params], trie: Trie, mesh: Mesh, first: int
) -> Batched:
  """Return (examples, lists int32 [B, K]) -> Explanations of the `first` items; -1 = no item."""
  fixed = params, jax.device_put(trie, sharding.sharding(mesh))
  return Batched(rolegen, _explain_batch(rolegen, first), fixed, mesh)


@functools.lru_cache(maxsize=2)  # other lists of the same models run the same program
def _explain_batch(rolegen: RoleGen, first: int) -> Callable:
  """Return (parameters, trie, (examples, lists)) -> the explanations of one batch."""

  def batch(params: dict, trie: Trie, rows: tuple[Examples, jax.Array]) -> Explanations:
    return explain(rolegen, params, *rows, trie, first)

  return batch


def explain(
  rolegen: RoleGen,
  params: dict[str, Params],
  examples: Examples,
  item_BxK: jax.Array,
  trie: Trie,
  first: int,
) -> Explanations:
  """Return the explanations of the `first` items of each list."""
  m, n = rolegen.config.reasoner.role_events, examples.history.item.shape[1]
  with sharding.layout(rolegen.decoding):
    backbone = rolegen.gathered('backbone', params['backbone'])
    reasoner = rolegen.gathered('reasoner', params['reasoner'])
    items, log_weight = backbone.items(trie), jnp.where(item_BxK >= 0, 0.0, NEG_INF)
    prompt = build_prompt(
      rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
    )

    def log_probs(position: jax.Array) -> jax.Array:
      """Return log p of the first items without the event at a position; -1 = with all events."""
      evidence = prompt.evidence
      evidence = evidence._replace(present=evidence.present & (jnp.arange(n) != position))
      memory = backbone.encode(without(examples.history, position), items)
      query_state = rolegen.query(backbone, memory, examples.timestamp)
      said = rolegen.equations_say(reasoner, evidence, trie)
      members = backbone.members(query_state, item_BxK, log_weight, said, items)
      return backbone.experts.log_probs(members)[:, :first]

    positions = jnp.concatenate([jnp.array([-1]), jnp.arange(n - m, n)])
    log_prob = jax.lax.map(log_probs, positions)
    effect = jnp.moveaxis(log_prob[:1] - log_prob[1:], 0, -1)

    code = jnp.take(trie.item_codes[:, 0], jnp.maximum(item_BxK[:, :first], 0))
    towards = jax.vmap(lambda k: reasoner.role_logits(prompt.evidence, k, m), 1, 1)(code)
    allowed = prompt.role_allowed[:, None]
    role = jnp.argmax(jnp.where(allowed, towards, NEG_INF), axis=-1)
  is_event = (examples.history.segment[:, None, -m:] > 0) & (item_BxK[:, :first] >= 0)[..., None]
  role = jnp.where(is_event & allowed.any(-1), role, -1)
  return Explanations(jnp.where(is_event, effect, 0.0), role)
