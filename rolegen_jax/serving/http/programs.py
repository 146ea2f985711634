"""What runs on the device: programs that are compiled for a few batch sizes before requests come.

`encode` reads events into the pool of encoded histories, `reason` rolls out the worlds of users,
`rank` lists items given a history and what the worlds say (or nothing: the backbone alone),
`explain` finds the events that carried a list, `opens` what looks at its items would open for the
user. What the worlds say comes back to the host in
between, where it can wait for the user's next request. The pool stays, and is written in place.

Shapes: B users, K items of a list, C slots of the tables, S slots of the pool, E experts, M role
events, W worlds, I intents, P candidates of a world.
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
from rolegen_jax.data.batches import Examples, Trajectories
from rolegen_jax.models.decode import Ranking, Ready, item_table
from rolegen_jax.models.encoded import (
  More,
  Pool,
  extended,
  pool_shapes,
  right_aligned,
  slot_bytes,
)
from rolegen_jax.models.experts import ItemTable
from rolegen_jax.models.functional import Params
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.reasoning.explain import Explanations, explain
from rolegen_jax.reasoning.frcot import coarse_intents
from rolegen_jax.reasoning.looks import Looked, are_known, opened
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import compile_in_step, jit, jit_once
from rolegen_jax.semantic_ids.trie import WORD, Trie, with_regions

MOST_ROWS = WORD  # of a batch: each has a bit in the masks
FEW = 8  # events by which histories grow between two requests, mostly


class Worlds(NamedTuple):
  """What was reasoned about users; numpy on the host, jax on the device."""

  said: Conditioning
  candidates: Any  # int32 [B, W, P]
  candidate_log_prob: Any  # fp32 [B, W, P]
  roles: Any  # int32 [B, W, M]
  intents: Any  # int32 [B, W, I], their coarse codes
  interventions: Any  # Interventions


class _Ranked(NamedTuple):
  """What lists are made from, by row."""

  examples: Examples
  slot: Any  # int32 [B], of the pool
  said: Conditioning


_POOL = 3  # the argument of `_encode` that is written in place


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
    pool_bytes: int,
  ):
    """params: both models, or {} where nothing is reasoned. alone: the backbone that stands alone.

    sizes: of batches, see `batch_sizes`. top: how many items of a list are explained. pool_bytes:
    of the encoded histories, on each device; there is room for those of a batch in any case.
    """
    self.params, self.alone, self.sizes = params, alone, sizes
    self.knows_kinds = are_known(params)
    self._mesh, self._rolegen, self._top = mesh, rolegen, top
    backbone = rolegen.config.backbone
    self.few = min(FEW, backbone.context - 1)
    self.slots = max(pool_bytes // slot_bytes(backbone), sizes[-1])
    self._rows, self._everywhere = sharding.sharding(mesh, 'batch'), sharding.sharding(mesh)
    shapes = pool_shapes(backbone, self.slots)
    self._empty = jit_once(
      lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
      out_shardings=self._everywhere,
    )
    self.empty_pool()
    self._jitted: dict[str, jax.stages.Wrapped] = {
      name: jit(function, out_shardings=self._everywhere)
      for name, function in (
        ('alone', self._rank),
        ('reasoned', self._rank),
        ('reason', self._reason),
        ('explain', self._explain),
        ('opens', self._opens),
      )
    }
    self._jitted['encode'] = jit(self._encode, out_shardings=self._everywhere, donate_argnums=_POOL)
    # Where it lies, each device's part of the items: as the table itself has it.
    self._jitted['table'] = jit(self._item_table)
    self._compiled: dict[tuple, jax.stages.Compiled] = {}
    self._tables: dict[str, tuple[tuple, ItemTable]] = {}  # by backbone; from what it was made

  def empty_pool(self) -> None:
    """Begin with a pool that holds nothing."""
    self._pool: Pool = self._empty()

  def size_of(self, rows: int) -> int:
    """Return the smallest size that holds so many rows."""
    return next(size for size in self.sizes if size >= rows)

  def warm(self, trie: Trie, examples: Callable[[int], Examples]) -> int:
    """Compile every program for every size; return how many. examples: any, of a size."""
    for size in self.sizes:
      rows, nowhere = examples(size), np.full(size, self.slots, np.int32)
      for width in (self.few, rows.history.item.shape[1]):
        new = Trajectories(*np.zeros((5, size, 1 + width), np.int32))
        self.encode('alone', trie, More(new, np.zeros(size, np.int32), nowhere))
      every = np.full(len(trie.item_codes), 2**32 - 1, np.uint32)
      listed = self.rank(trie, rows, nowhere, None, every, False)
      if self.params:
        worlds = self.reason(trie, rows)
        self.rank(trie, rows, nowhere, worlds.said, every, True)
        self.explain(trie, rows, np.asarray(listed.item))
      if self.knows_kinds:
        none = np.full((*listed.item.shape, rows.excites.attribute.shape[-1]), -1, np.int32)
        self.opens(trie, rows, Looked(np.asarray(listed.item), none))
    return len(self._compiled)

  def encode(self, name: str, trie: Trie, more: More) -> None:
    """Put events into the pool. name: of the backbone, 'alone' or 'reasoned'."""
    size, rows = self.size_of(len(more.slot)), len(more.slot)
    filled = jax.tree.map(lambda x: x[np.minimum(np.arange(size), rows - 1)], more)
    nowhere = np.where(np.arange(size) < rows, filled.slot, self.slots)
    more = filled._replace(slot=nowhere.astype(np.int32))
    self._pool = self._run('encode', self._backbone(name), trie, more, self._pool)

  def rank(
    self,
    trie: Trie,
    rows: Examples,
    slot_B: np.ndarray,
    said: Conditioning | None,
    allow_C: np.ndarray,
    masked: bool,
  ) -> Ranking:
    """Return lists, on the host. said: None = the backbone alone.

    slot: of the pool, where the same backbone encoded each history. allow: uint32, bit b of a slot
    of the tables = row b may get it; not looked at unless `masked`.
    """
    name = 'alone' if said is None else 'reasoned'
    inputs = _Ranked(rows, slot_B, Conditioning() if said is None else said)
    ready = Ready(self._pool.hidden, self._table(name, trie))
    ranking = self._run(
      name, self._backbone(name), trie, inputs, (allow_C, np.bool_(masked)), ready
    )
    return jax.device_get(ranking)

  def reason(self, trie: Trie, rows: Examples) -> Worlds:
    """Return the worlds, on the host."""
    return jax.device_get(self._run('reason', self.params['reasoner'], trie, rows))

  def explain(self, trie: Trie, rows: Examples, item_BxK: np.ndarray) -> Explanations:
    """Return which events carried the first items of lists, on the host."""
    return jax.device_get(self._run('explain', self.params, trie, (rows, item_BxK)))

  def opens(self, trie: Trie, rows: Examples, listed: Looked) -> np.ndarray:
    """Return what looks at the items of lists, by slot, would open for users, fp32 [B, K]."""
    kinds = self.params['reasoner']['intent']['kinds']
    return jax.device_get(self._run('opens', kinds, trie, (rows, listed)))

  def _backbone(self, name: str) -> Params:
    return self.alone if name == 'alone' else self.params['backbone']

  def _table(self, name: str, trie: Trie) -> ItemTable:
    """Return the table of the items, made anew where items have come since it was made."""
    source = self._backbone(name), trie.item_codes, trie.item_count, trie.item_text
    made = self._tables.get(name)
    if made is None or any(old is not new for old, new in zip(made[0], source)):
      made = source, self._run('table', self._backbone(name), trie, ())
      self._tables[name] = made
    return made[1]

  def _run(self, name: str, params: Any, trie: Trie, rows: Any, *rest: Any) -> Any:
    """Return what a program makes of rows on the host, on the device.

    A call that is given arrays of the host puts them where the program expects them, in a tenth of
    the time that `device_put` takes.
    """
    with jax.set_mesh(self._mesh):
      key = name, *(leaf.shape for leaf in jax.tree.leaves(rows)[:1])
      if key not in self._compiled:
        placed = jax.device_put(rows, self._rows), *jax.tree.map(self._placed, rest)
        self._compiled[key] = compile_in_step(self._jitted[name], params, trie, *placed)
      return self._compiled[key](params, trie, rows, *rest)

  def _placed(self, x: Any) -> jax.Array:
    return x if isinstance(x, jax.Array) else jax.device_put(x, self._everywhere)

  def _encode(self, params: Params, trie: Trie, more: More, pool: Pool) -> Pool:
    with sharding.layout(self._rolegen.decoding):
      backbone = self._rolegen.gathered('backbone', params)
      return extended(backbone, pool, more, backbone.items(trie))

  def _item_table(self, params: Params, trie: Trie, rows: tuple) -> ItemTable:
    del rows  # there are none
    with sharding.layout(self._rolegen.decoding):
      return item_table(self._rolegen.gathered('backbone', params), trie)

  def _rank(self, params: Params, trie: Trie, rows: _Ranked, masks: tuple, pool: Ready) -> Ranking:
    allow_C, masked = masks
    unmasked = jax.eval_shape(with_regions, trie, allow_C).regions
    regions = jax.lax.cond(
      masked,
      lambda: with_regions(trie, allow_C).regions,
      lambda: jax.tree.map(lambda region: jnp.ones(region.shape, region.dtype), unmasked),
    )
    trie = dataclasses.replace(trie, regions=regions)
    row = jnp.arange(len(rows.slot), dtype=jnp.uint32)
    allow_B = jnp.where(masked, jnp.uint32(1) << row, jnp.uint32(1))
    beams = self._rolegen.config.backbone.beam
    states = right_aligned(pool.states, rows.slot, rows.examples.history.segment)
    ready = pool._replace(states=states)
    return self._rolegen.rank(params, rows.examples, rows.said, trie, beams, allow_B, ready)

  def _reason(self, params: Params, trie: Trie, rows: Examples) -> Worlds:
    rollout, said = self._rolegen.reason(params, rows, trie)
    intents = coarse_intents(self._rolegen.layout, rollout.tokens)
    candidates = rollout.candidates, rollout.candidate_log_prob
    return Worlds(said, *candidates, rollout.roles, intents, rollout.interventions)

  def _opens(self, kinds: Params, trie: Trie, rows: tuple[Examples, Looked]) -> jax.Array:
    return opened(self._rolegen, kinds, trie, *rows)

  def _explain(
    self, params: dict[str, Params], trie: Trie, rows: tuple[Examples, jax.Array]
  ) -> Explanations:
    return explain(self._rolegen, params, *rows, trie, self._top)
