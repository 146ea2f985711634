"""What runs on the device: programs that are compiled for a few batch sizes before requests come.

`reason` rolls out the worlds of users, `rank` lists items given what the worlds say (or nothing:
the backbone alone), `explain` finds the events that carried a list. What the worlds say comes back
to the host in between, where it can wait for the user's next request.

Shapes: B users, K items of a list, C slots of the tables, E experts, M role events, W worlds,
I intents, P candidates of a world.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.data.batches import Examples
from rolegen_jax.models.decode import Ranking
from rolegen_jax.models.functional import Params
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.reasoning.explain import Explanations, explain
from rolegen_jax.reasoning.frcot import coarse_intents
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import compile_in_step, jit
from rolegen_jax.semantic_ids.trie import WORD, Trie, with_regions

MOST_ROWS = WORD  # of a batch: each has a bit in the masks


class Worlds(NamedTuple):
  """What was reasoned about users; numpy on the host, jax on the device."""

  said: Conditioning
  candidates: Any  # int32 [B, W, P]
  candidate_log_prob: Any  # fp32 [B, W, P]
  roles: Any  # int32 [B, W, M]
  intents: Any  # int32 [B, W, I], their coarse codes
  interventions: Any  # Interventions


def batch_sizes(most: int, parts: int) -> tuple[int, ...]:
  """Return the sizes to compile: powers of four up to `most`, each a multiple of `parts`."""
  steps = [4**power for power in range(4) if 4**power < most] + [most]
  return tuple(sorted({-(-size // parts) * parts for size in steps}))


class Programs:
  """The programs over the parameters of a run."""

  def __init__(
    self,
    rolegen: RoleGen,
    params: dict[str, Params],
    alone: Params,
    mesh: Mesh,
    sizes: tuple[int, ...],
    top: int,
  ):
    """params: both models, or {} where nothing is reasoned. alone: the backbone that stands alone.

    sizes: of batches, see `batch_sizes`. top: how many items of a list are explained.
    """
    self.params, self.alone, self.sizes = params, alone, sizes
    self._mesh, self._rolegen, self._top = mesh, rolegen, top
    self._rows, self._everywhere = sharding.sharding(mesh, 'batch'), sharding.sharding(mesh)
    self._jitted: dict[str, jax.stages.Wrapped] = {
      name: jit(function, out_shardings=self._everywhere)
      for name, function in (
        ('alone', self._alone),
        ('reasoned', self._reasoned),
        ('reason', self._reason),
        ('explain', self._explain),
      )
    }
    self._compiled: dict[tuple[str, int], jax.stages.Compiled] = {}

  def size_of(self, rows: int) -> int:
    """Return the smallest size that holds so many rows."""
    return next(size for size in self.sizes if size >= rows)

  def warm(self, trie: Trie, examples: Callable[[int], Examples]) -> int:
    """Compile every program for every size; return how many. examples: any, of a size."""
    for size in self.sizes:
      rows = examples(size)
      every = np.full(len(trie.item_codes), 2**32 - 1, np.uint32)
      listed = self.rank(trie, rows, None, every, False)
      if self.params:
        worlds = self.reason(trie, rows)
        self.rank(trie, rows, worlds.said, every, True)
        self.explain(trie, rows, np.asarray(listed.item))
    return len(self._compiled)

  def rank(
    self, trie: Trie, rows: Examples, said: Conditioning | None, allow_C: np.ndarray, masked: bool
  ) -> Ranking:
    """Return lists, on the host. said: None = the backbone alone.

    allow: uint32, bit b of a slot = row b may get it; not looked at unless `masked`.
    """
    masks = jax.device_put((allow_C, np.bool_(masked)), self._everywhere)
    if said is None:
      return self._call('alone', self.alone, trie, rows, masks)
    return self._call('reasoned', self.params['backbone'], trie, (rows, said), masks)

  def reason(self, trie: Trie, rows: Examples) -> Worlds:
    """Return the worlds, on the host."""
    return self._call('reason', self.params['reasoner'], trie, rows)

  def explain(self, trie: Trie, rows: Examples, item_BxK: np.ndarray) -> Explanations:
    """Return which events carried the first items of lists, on the host."""
    return self._call('explain', self.params, trie, (rows, item_BxK))

  def _call(self, name: str, params: Any, trie: Trie, rows: Any, *rest: Any) -> Any:
    with jax.set_mesh(self._mesh):
      rows = jax.device_put(rows, self._rows)
      key = name, len(jax.tree.leaves(rows)[0])
      if key not in self._compiled:
        self._compiled[key] = compile_in_step(self._jitted[name], params, trie, rows, *rest)
      return jax.device_get(self._compiled[key](params, trie, rows, *rest))

  def _alone(self, params: Params, trie: Trie, rows: Examples, masks: tuple) -> Ranking:
    return self._rank(params, trie, rows, Conditioning(), masks)

  def _reasoned(
    self, params: Params, trie: Trie, rows: tuple[Examples, Conditioning], masks: tuple
  ) -> Ranking:
    return self._rank(params, trie, *rows, masks)

  def _rank(
    self, params: Params, trie: Trie, rows: Examples, said: Conditioning, masks: tuple
  ) -> Ranking:
    allow_C, masked = masks
    unmasked = jax.eval_shape(with_regions, trie, allow_C).regions
    regions = jax.lax.cond(
      masked,
      lambda: with_regions(trie, allow_C).regions,
      lambda: jax.tree.map(lambda region: jnp.ones(region.shape, region.dtype), unmasked),
    )
    trie = dataclasses.replace(trie, regions=regions)
    row = jnp.arange(len(rows.timestamp), dtype=jnp.uint32)
    allow_B = jnp.where(masked, jnp.uint32(1) << row, jnp.uint32(1))
    beams = self._rolegen.config.backbone.beam
    return self._rolegen.rank(params, rows, said, trie, beams, allow_B)

  def _reason(self, params: Params, trie: Trie, rows: Examples) -> Worlds:
    rollout, said = self._rolegen.reason(params, rows, trie)
    intents = coarse_intents(self._rolegen.layout, rollout.tokens)
    candidates = rollout.candidates, rollout.candidate_log_prob
    return Worlds(said, *candidates, rollout.roles, intents, rollout.interventions)

  def _explain(
    self, params: dict[str, Params], trie: Trie, rows: tuple[Examples, jax.Array]
  ) -> Explanations:
    return explain(self._rolegen, params, *rows, trie, self._top)
