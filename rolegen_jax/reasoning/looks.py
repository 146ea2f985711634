"""What looks at items would open for users: their instrumental value, by kinds of users.

How much interest contact with an item moves is counted for everybody alike in
`features/interest_shift.py`. Where kinds of users are known, it depends on who looks, and on what
they met before: it is what a view, now, would change in the chances of coarse codes.

Shapes: B examples, K listed items, I items, A attributes of an item.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.data.batches import Examples
from rolegen_jax.models.functional import Params
from rolegen_jax.reasoning.batched import Batched
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import Trie


class Looked(NamedTuple):
  """Listed items, and what is known of them."""

  item: Any  # int32 [B, K]; -1 = no item
  attribute: Any  # int32 [B, K, A]; -1 = no more

  @classmethod
  def of(cls, item_BxK: np.ndarray, attribute_IxA: np.ndarray) -> Looked:
    """Return items with the attributes that they have in the catalogue."""
    return cls(item_BxK, attribute_IxA[np.maximum(item_BxK, 0)])


def are_known(params: dict[str, Params]) -> bool:
  """Return whether kinds of users say anything: validation may give them no weight."""
  pooled = params['reasoner']['intent'].get('pooled') if 'reasoner' in params else None
  return pooled is not None and float(np.asarray(pooled)[1]) > 0


def opened(
  rolegen: RoleGen, kinds: Params, trie: Trie, examples: Examples, listed: Looked
) -> jax.Array:
  """Return how much of a user's interest a view of each listed item would move, fp32 [B, K].

  In 0..1; what it is of no item nobody should read. kinds: parameters of `models/kinds.py`.
  """
  equation = rolegen.bind('kinds', kinds)
  evidence = build_prompt(
    rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
  ).evidence
  code = jnp.take(trie.item_codes[:, 0], jnp.maximum(listed.item, 0))
  return equation.opened(evidence, equation.of_users(evidence), code, listed.attribute)


def looking(rolegen: RoleGen, params: dict[str, Params], trie: Trie, mesh: Mesh) -> Batched:
  """Return (examples, Looked) -> `opened`."""
  fixed = params['reasoner']['intent']['kinds'], jax.device_put(trie, sharding.sharding(mesh))
  return Batched(rolegen, _batch(rolegen), fixed, mesh)


@functools.lru_cache(maxsize=2)  # other lists of the same models run the same program
def _batch(rolegen: RoleGen) -> Callable:
  def batch(kinds: Params, trie: Trie, rows: tuple[Examples, Looked]) -> jax.Array:
    return opened(rolegen, kinds, trie, *rows)

  return batch
