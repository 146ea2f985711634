"""RoleGen over a table of cases: fixed-size batches on the device, results gathered on the host."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.data.batches import Examples
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.models.decode import Ranking
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.reasoning.roles import intent_effects, label_roles, removal_effects
from rolegen_jax.runtime.compile import compile_in_step, jit
from rolegen_jax.runtime.progress import progress
from rolegen_jax.semantic_ids.trie import Trie


class Predictions(NamedTuple):
  """Of N cases; the reasoner's part is None for the backbone alone."""

  item: np.ndarray  # int32 [N, k], best first; -1 = fewer than k exist
  score: np.ndarray  # fp32 [N, k], log p
  roles: np.ndarray | None  # int32 [N, M], factual world
  candidates: np.ndarray | None  # int32 [N, W, P]
  forced_role: np.ndarray | None  # int32 [N, W, M], do(role); -1 = none
  removed: np.ndarray | None  # bool [N, W, M], do(remove)
  forced_intent: np.ndarray | None  # int32 [N, W], do(first code of the first intent); -1 = none
  pivotal: np.ndarray | None  # fp32 [N, M], how much of the intent each event moves


class Effects(NamedTuple):
  """What the last M events of N cases did for their conversions, nats."""

  intent: (
    np.ndarray
  )  # fp32 [N, M], by the structural equation: on the log-probability of the target's coarse code
  backbone: np.ndarray  # fp32 [N, M], by the backbone alone: on the target's


def predict(
  rolegen: RoleGen,
  params,
  table: ExampleTable,
  trie: Trie,
  mesh: Mesh,
  beams: int,
  reasoning: bool = True,
  intervene: bool = True,
  label: str = 'recommend',
  noise: float = 1.0,
) -> Predictions:
  """Recommends for every case. The noise of a case depends on the seed and its place in the table only."""

  def batch(params, trie, number, examples, intervene):
    key = jax.random.fold_in(jax.random.key(rolegen.config.evaluation.seed), number)
    found = rolegen.recommend(params, examples, trie, key, beams, reasoning, intervene, noise)
    if found.rollout is None:
      return found.ranking.item, found.ranking.score
    r = found.rollout
    return (
      found.ranking.item,
      found.ranking.score,
      r.roles[:, 0],
      r.candidates,
      *r.interventions,
      r.pivotal,
    )

  columns = over(
    rolegen,
    batch,
    (params, jax.device_put(trie, sharding.sharding(mesh))),
    table,
    mesh,
    label,
    np.bool_(intervene),
  )
  return Predictions(*columns, *(None,) * (len(Predictions._fields) - len(columns)))


class Online:
  """RoleGen for cases that come a batch at a time: one program of `evaluation.batch` cases, compiled at the first of them."""

  def __init__(
    self, rolegen: RoleGen, params, trie: Trie, mesh: Mesh, beams: int, reasoning: bool = True
  ):
    def batch(params, trie, examples, place):
      key = functools.reduce(
        jax.random.fold_in, place, jax.random.key(rolegen.config.evaluation.seed)
      )
      return rolegen.recommend(params, examples, trie, key, beams, reasoning).ranking

    self.size, self._mesh = rolegen.config.evaluation.batch, mesh
    self._fixed = params, jax.device_put(trie, sharding.sharding(mesh))
    self._jitted, self._compiled = jit(batch, out_shardings=sharding.sharding(mesh)), None

  def __call__(self, examples: Examples, place: tuple[int, ...]) -> Ranking:
    """[size, beams], best first, on the device. `place` says which noise: as many numbers each time."""
    put = lambda x: sharding.global_batch(
      self._mesh, np.asarray(x), np.arange(self.size), self.size
    )
    with jax.set_mesh(self._mesh):
      given = (*self._fixed, jax.tree.map(put, examples), np.array(place, np.uint32))
      self._compiled = self._compiled or compile_in_step(self._jitted, *given)
      return self._compiled(*given)


def hindsight_roles(rolegen: RoleGen, table: ExampleTable, found: InterestShift) -> np.ndarray:
  """Roles int32 [N, M] of every case whose target is known."""
  config, roles = rolegen.config, []
  for start in range(0, len(table), 1024):  # in parts, for memory
    part = np.arange(start, min(start + 1024, len(table)))
    history = table.rows(part, config.backbone.context).history
    roles.append(
      label_roles(history, table.target[part], config.reasoner.role_events, found, config.roles)
    )
  return np.concatenate(roles)


def effects(
  rolegen: RoleGen, params, table: ExampleTable, trie: Trie, mesh: Mesh, label: str = 'effects'
) -> Effects:
  """Of every case; targets are known."""
  last = rolegen.config.reasoner.role_events

  def batch(params, trie, number, examples):
    del number
    prompt = build_prompt(
      rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
    )
    by_intent = intent_effects(
      rolegen.bind('reasoner', params['reasoner']).intent,
      prompt.evidence,
      examples.target,
      trie.item_codes,
      last,
    )
    return by_intent, removal_effects(
      rolegen.bind('backbone', params['backbone']), examples, trie.item_codes, last
    )

  return Effects(
    *over(
      rolegen, batch, (params, jax.device_put(trie, sharding.sharding(mesh))), table, mesh, label
    )
  )


def over(rolegen: RoleGen, function: Callable, fixed: tuple, table, mesh: Mesh, label: str, *extra):
  """`function(*fixed, batch number, rows, *extra)` over a table with a length and `rows(index, width)`, such as a ExampleTable; the last
  batch is filled up and cut. Returns what the function does, of all rows."""
  size, width = rolegen.config.evaluation.batch, rolegen.config.backbone.context
  results = []
  place = lambda x: sharding.global_batch(
    mesh, np.asarray(x), np.arange(size), size
  )  # every process holds the whole table
  with jax.set_mesh(mesh):
    jitted = jit(function, out_shardings=sharding.sharding(mesh))
    for number, start in enumerate(progress(range(0, len(table), size), label)):
      index = np.minimum(np.arange(start, start + size), len(table) - 1)
      examples = jax.tree.map(place, table.rows(index, width))
      given = (*fixed, np.int32(number), examples, *extra)
      if number == 0:
        compiled = compile_in_step(jitted, *given)
      results.append(compiled(*given))
  host = jax.device_get(results)
  return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(table)], *host)
