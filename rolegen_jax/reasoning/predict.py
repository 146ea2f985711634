"""RoleGen over tables of examples: lists, hindsight roles, chances of roles, effects of events.

Shapes: N examples, M role events, W worlds, P candidates per world, k recommended items.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.data.batches import Examples
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.models.functional import Params
from rolegen_jax.reasoning.batched import Batched, over
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.reasoning.roles import intent_effects, label_roles, removal_effects
from rolegen_jax.semantic_ids.trie import Trie

# Chains that the chances of roles are means over: with an intent of their own, or that told.
ROLE_DRAWS, TOLD_DRAWS = 16, 2
LABEL_ROWS = 1024  # examples whose hindsight roles are computed at once, for memory


class Predictions(NamedTuple):
  """What RoleGen says of N examples; the reasoner's part is None for the backbone alone."""

  item: np.ndarray  # int32 [N, k], best first; -1 = fewer than k exist
  score: np.ndarray  # fp32 [N, k], log p among all items that were scored
  # fp32 [N, k, E], what each of `experts.EXPERTS` adds to an item's score; None = not kept
  terms: np.ndarray | None
  roles: np.ndarray | None = None  # int32 [N, M], of the factual world
  candidates: np.ndarray | None = None  # int32 [N, W, P]
  forced_role: np.ndarray | None = None  # int32 [N, W, M], do(role); -1 = none
  removed: np.ndarray | None = None  # bool [N, W, M], do(remove)
  # int32 [N, W], do(first code of the first intent); -1 = none
  forced_intent: np.ndarray | None = None


class Effects(NamedTuple):
  """What the last M events of N examples did for their conversions, nats."""

  # fp32 [N, M], by the structural equation: on the log-probability of the target's coarse code
  intent: np.ndarray
  backbone: np.ndarray  # fp32 [N, M], by the backbone alone: on that of the target


# The first six say what runs on what, the others are what ablations and progress differ in.
def predict(
  rolegen: RoleGen,
  params: dict[str, Params],
  table: ExampleTable,
  trie: Trie,
  mesh: Mesh,
  beams: int,
  reasoning: bool = True,
  intervene: bool = True,
  label: str = 'recommend',
) -> Predictions:
  """Recommend for every example, whatever its place in the table."""
  predictor = predicting(rolegen, params, trie, mesh, beams, reasoning)
  return Predictions(*predictor.over(table, label, np.bool_(intervene)))


def predicting(
  rolegen: RoleGen,
  params: dict[str, Params],
  trie: Trie,
  mesh: Mesh,
  beams: int,
  reasoning: bool = True,
) -> Batched:
  """Return (examples, intervene) -> the fields of Predictions."""
  fixed = params, jax.device_put(trie, sharding.sharding(mesh))
  return Batched(rolegen, _recommend(rolegen, beams, reasoning), fixed, mesh)


@functools.lru_cache(maxsize=2)  # other parameters of the same models run the same program
def _recommend(rolegen: RoleGen, beams: int, reasoning: bool) -> Callable:
  """Return (parameters, trie, examples, intervene) -> the fields of Predictions, of one batch."""

  def batch(
    params: dict[str, Params], trie: Trie, examples: Examples, intervene: jax.Array
  ) -> tuple[jax.Array | None, ...]:
    ranking, rollout = rolegen.recommend(params, examples, trie, beams, reasoning, intervene)
    listed = ranking.item, ranking.score, ranking.terms
    if rollout is None:
      return listed
    factual_roles, done = rollout.roles[:, 0], rollout.interventions
    return (*listed, factual_roles, rollout.candidates, *done)

  return batch


def hindsight_roles(
  rolegen: RoleGen,
  table: ExampleTable,
  shift: InterestShift,
  kinds: Params | None,
  trie: Trie,
  mesh: Mesh,
) -> np.ndarray:
  """Return the roles int32 [N, M] of every example, whose targets are known.

  kinds: parameters of `models/kinds.py`; None = all users are of one.
  """
  config, roles, effects = rolegen.config, [], None
  if kinds is not None:
    effects = _kinds_effects(rolegen, kinds, table, trie, mesh)
  for start in range(0, len(table), LABEL_ROWS):
    rows = np.arange(start, min(start + LABEL_ROWS, len(table)))
    history = table.rows(rows, config.backbone.context).history
    last, target = config.reasoner.role_events, table.target[rows]
    of_rows = (effects[0][rows], effects[1][rows]) if effects else None
    roles.append(label_roles(history, target, last, shift, config.roles, of_rows))
  return np.concatenate(roles)


def _kinds_effects(
  rolegen: RoleGen, kinds: Params, table: ExampleTable, trie: Trie, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
  """Return `Kinds.removal_effects` on the coarse codes of targets, fp32 [N, M] each."""
  last = rolegen.config.reasoner.role_events

  def batch(kinds: Params, trie: Trie, examples: Examples) -> tuple[jax.Array, ...]:
    equation = rolegen.bind('kinds', kinds)
    evidence = build_prompt(
      rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
    ).evidence
    effects = equation.removal_effects(evidence, equation.of_users(evidence), last)
    code = jnp.take(trie.item_codes[:, 0], examples.target)[:, None, None]
    return tuple(jnp.take_along_axis(x, code, axis=2)[..., 0] for x in effects)

  fixed = kinds, jax.device_put(trie, sharding.sharding(mesh))
  return over(rolegen, batch, fixed, table, mesh, 'hindsight roles')


def role_chances(
  rolegen: RoleGen, params: dict[str, Params], table: ExampleTable, trie: Trie, mesh: Mesh
) -> np.ndarray:
  """Return the chances fp32 [N, M, R] that the reasoner gives the roles of each event.

  They are towards the coarse code of the target where it is known, else from the history alone.
  """
  draws = TOLD_DRAWS if (table.target >= 0).all() else ROLE_DRAWS

  def batch(params: dict[str, Params], trie: Trie, examples: Examples) -> jax.Array:
    coarse_code = jnp.take(trie.item_codes[:, 0], jnp.maximum(examples.target, 0))
    intent = jnp.where(examples.target >= 0, coarse_code, -1)
    return rolegen.role_chances(params['reasoner'], examples, trie, intent, draws)

  fixed = params, jax.device_put(trie, sharding.sharding(mesh))
  return over(rolegen, batch, fixed, table, mesh, 'roles')


def effects(
  rolegen: RoleGen,
  params: dict[str, Params],
  table: ExampleTable,
  trie: Trie,
  mesh: Mesh,
  label: str = 'effects',
) -> Effects:
  """Return the effects of the last events of every example, whose targets are known."""
  last = rolegen.config.reasoner.role_events

  def batch(
    params: dict[str, Params], trie: Trie, examples: Examples
  ) -> tuple[jax.Array, jax.Array]:
    prompt = build_prompt(
      rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
    )
    equation = rolegen.bind('reasoner', params['reasoner']).intent
    backbone = rolegen.bind('backbone', params['backbone'])
    target, codes = examples.target, trie.item_codes
    by_intent = intent_effects(equation, prompt.evidence, target, codes, last)
    return by_intent, removal_effects(backbone, examples, trie, last)

  fixed = params, jax.device_put(trie, sharding.sharding(mesh))
  return Effects(*over(rolegen, batch, fixed, table, mesh, label))
