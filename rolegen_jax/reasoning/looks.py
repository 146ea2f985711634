"""What looks at items would open for users: their instrumental value, by kinds of users.

How much interest contact with an item moves is counted for everybody alike in
`features/interest_shift.py`. Where kinds of users are known, it depends on who looks, and on what
they met before: it is what a view, now, would change in the chances of coarse codes.

Shapes: N examples, B of a batch, K listed items, I items, A attributes of an item.
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
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.predict import Table, on_device, over
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import compile_in_step, jit
from rolegen_jax.semantic_ids.trie import Trie


class Looked(NamedTuple):
  """Listed items, and what is known of them."""

  item: Any  # int32 [B, K]; -1 = no item
  attribute: Any  # int32 [B, K, A]; -1 = no more


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


# What runs on what, and what it is asked.
def opened_by_looks(
  rolegen: RoleGen,
  params: dict[str, Params],
  table: Table,
  item_NxK: np.ndarray,
  attribute_IxA: np.ndarray,
  trie: Trie,
  mesh: Mesh,
) -> np.ndarray:
  """Return `opened` of all lists of a table, fp32 [N, K], on the host."""
  fixed = params['reasoner']['intent']['kinds'], jax.device_put(trie, sharding.sharding(mesh))
  rows = _Lists(table, item_NxK, attribute_IxA)
  return over(rolegen, _batch(rolegen), fixed, rows, mesh, 'what looks would open')


class Online:
  """`opened` of batches that come one at a time, of `size` examples; compiled at the first."""

  def __init__(self, rolegen: RoleGen, params: dict[str, Params], trie: Trie, mesh: Mesh):
    self.size, self._mesh = rolegen.config.evaluation.batch, mesh
    trie = jax.device_put(trie, sharding.sharding(mesh))
    self._fixed = params['reasoner']['intent']['kinds'], trie
    self._jitted = jit(_batch(rolegen), out_shardings=sharding.sharding(mesh))
    self._compiled: jax.stages.Compiled | None = None

  def __call__(self, examples: Examples, listed: Looked) -> np.ndarray:
    """Return what looks would open, fp32 [size, K], on the host."""
    with jax.set_mesh(self._mesh):
      args = (*self._fixed, on_device((examples, listed), self._mesh, self.size))
      if self._compiled is None:
        self._compiled = compile_in_step(self._jitted, *args)
      return jax.device_get(self._compiled(*args))


@functools.lru_cache(maxsize=2)  # other lists of the same models run the same program
def _batch(rolegen: RoleGen) -> Callable:
  def batch(kinds: Params, trie: Trie, rows: tuple[Examples, Looked]) -> jax.Array:
    return opened(rolegen, kinds, trie, *rows)

  return batch


class _Lists(NamedTuple):
  """A table of examples beside what was listed for them."""

  table: Table
  item: np.ndarray
  attribute_IxA: np.ndarray

  def __len__(self) -> int:
    return len(self.table)

  def rows(self, index: np.ndarray, width: int) -> tuple[Examples, Looked]:
    """Return the examples of these numbers, and their lists."""
    item = self.item[index]
    return self.table.rows(index, width), Looked(item, self.attribute_IxA[np.maximum(item, 0)])
