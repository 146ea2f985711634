"""Calibration: how much each expert counts, fitted once training is over.

The experts' weights and the parameters of those that are formulas, some two dozen numbers, are
learned in training on users whose rows the backbone has memorized, and in their past. Here they
alone are fitted to validation conversions, by L-BFGS. What the experts say of every item that they
find for an example is computed once; the test occasions stay unseen.

Lists are judged by their heads, and NLL by the targets that nothing explains: on Amazon Beauty it
wants a third of the weight of retrieved items that the best NDCG@10 does. So after all numbers are
fitted to the NLL of what was bought, the weights are tried one after the other for its NDCG@10, as
the baselines' settings are. A common factor of all weights is then fitted to the NLL again, as
temperature scaling does (Guo et al., ICML 2017), which leaves every ranking as it is.

Shapes: N examples, B rows, M members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.data.batches import Examples
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.models import functional
from rolegen_jax.models.decode import retrieve
from rolegen_jax.models.experts import OFF, Experts, Members, draw_negatives, with_negatives
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.reasoning import predict
from rolegen_jax.reasoning.rolegen import RoleGen, history_keys
from rolegen_jax.runtime.compile import compile_in_step, jit
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.training.losses import Params

FOUND = 50  # items that each expert that searches finds
NEGATIVES = 256  # that stand for all others: what is found alone says nothing of what is missed
# Weights that are tried, beside what an expert has: by half octaves.
TRIED = (0.0, *(2.0 ** (step / 2) for step in range(-14, 6)))
ROUNDS = 2  # through all experts
# NDCG is made smooth, which judges by more than the pairs that stand on an edge: an item is ahead
# by the sigmoid of how much higher it scores, a rank within the first K likewise.
K, SCORE_SOFTNESS, RANK_SOFTNESS = 10, 0.25, 2.0


class Fit(NamedTuple):
  """How well the experts' numbers fit."""

  nll: jax.Array  # fp32 [steps + 1], before each step towards it, and after the last
  ndcg: jax.Array  # fp32 [2], smooth, then and after the search for weights
  calibrated_nll: jax.Array  # fp32 [], at the end


def calibrate(
  rolegen: RoleGen,
  params: dict[str, Params],
  table: ExampleTable,
  trie: Trie,
  mesh: Mesh,
  reasoning: bool = True,
  intervene: bool = True,
  bars_history: bool = False,
) -> tuple[dict[str, np.ndarray], Fit]:
  """Return the fitted arrays of the backbone by path, and how well they fit.

  NLLs are in nats. Targets of `table` are known. `reasoning` and `intervene` are as in
  `predict.predict`, with the same noise. bars_history: lists hold nothing of the history.
  """
  replicated = sharding.sharding(mesh)
  device_trie = jax.device_put(trie, replicated)
  members = _members(rolegen, params, table, device_trie, mesh, reasoning, intervene)
  # Every device gets as many rows: those that fill up weigh nothing.
  n_padding = -len(table) % mesh.size
  size = len(table) + n_padding

  def put(x: np.ndarray, fill: np.ndarray | None = None) -> jax.Array:
    padded = np.concatenate([x, np.repeat(x[:1] if fill is None else fill, n_padding, axis=0)])
    return sharding.global_batch(mesh, padded, np.arange(size), size)

  weight = np.ones(len(table), np.float32)
  with jax.set_mesh(mesh):
    rows = put(weight, np.zeros(1, np.float32))
    args = (params['backbone']['experts'], jax.tree.map(put, members), rows)
    program = compile_in_step(
      jit(_fit_program(rolegen, bars_history), out_shardings=replicated), *args
    )
    fitted, fit = jax.device_get(program(*args))
  return {f'experts.{name}': value for name, value in functional.flatten(fitted).items()}, fit


def _members(
  rolegen: RoleGen,
  params: dict[str, Params],
  table: ExampleTable,
  trie: Trie,
  mesh: Mesh,
  reasoning: bool,
  intervene: bool,
) -> Members:
  """Return what the experts say of each example's target and of all that they find, on the host."""

  def score(params: Any, trie: Trie, examples: Examples, intervene: jax.Array) -> Members:
    backbone = rolegen.bind('backbone', params['backbone'])
    items, said = backbone.items(trie), Conditioning()
    memory = backbone.encode(examples.history, items)
    if reasoning:
      keys = history_keys(rolegen.config.seed, examples)
      rollout = rolegen.rollout(params['reasoner'], examples, trie, keys, intervene)
      said = rolegen.reasoning(rollout, jnp.ones(examples.timestamp.shape, bool))
    query_state = rolegen.query(backbone, memory, examples.timestamp)
    found, _ = retrieve(backbone, query_state, said, trie, FOUND)
    own = jnp.concatenate([examples.target[:, None], found], axis=1)
    negatives = draw_negatives(trie, NEGATIVES, jax.random.key(rolegen.config.seed))
    item, log_weight = with_negatives(own, negatives)
    return backbone.members(query_state, item, log_weight, said, items)

  fixed = (params, trie)
  return predict.over(rolegen, score, fixed, table, mesh, 'calibration', np.bool_(intervene))


def _fit_program(rolegen: RoleGen, bars_history: bool) -> Any:
  """Return the function (experts, members, weight of rows) -> (fitted experts, Fit)."""
  config, names = rolegen.config.calibration, rolegen.config.backbone.experts
  graphdef = functional.abstract(lambda rngs: Experts(names))[0]

  def fit(experts: Params, members: Members, weight: jax.Array) -> tuple[Params, Fit]:
    if bars_history:
      members = _without_history(members)

    def mean(value_N: jax.Array) -> jax.Array:
      return jnp.sum(value_N * weight) / jnp.sum(weight)

    def nll(fitted: Params) -> jax.Array:
      return -mean(functional.bind(graphdef, fitted).log_probs(members)[:, 0])

    likely, nlls = _minimized(nll, experts, config.steps)
    log_weight = likely['log_weight']
    # What the experts say, whatever their weights. One that is off stays off.
    terms = functional.bind(graphdef, likely | dict(log_weight=jnp.zeros_like(log_weight)))
    ndcg = _soft_ndcg(terms.terms(members), members)
    weights, ndcgs = _climb(lambda x: mean(ndcg(x)), jnp.exp(log_weight), log_weight > OFF)

    def scaled(log_scale: jax.Array) -> Params:
      return likely | dict(log_weight=jnp.maximum(jnp.log(weights) + log_scale, OFF))

    log_scale, _ = _minimized(lambda x: nll(scaled(x)), jnp.zeros(()), config.steps)
    fitted = scaled(log_scale)
    return fitted, Fit(nlls, ndcgs, nll(fitted))

  return fit


def _minimized(objective: Callable, start: Any, steps: int) -> tuple[Any, jax.Array]:
  """Return where L-BFGS leads, and the objective before each step and at the end."""
  tx = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(objective)

  def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], jax.Array]:
    fitted, opt = carry
    value, grads = value_and_grad(fitted, state=opt)
    updates, opt = tx.update(grads, opt, fitted, value=value, grad=grads, value_fn=objective)
    return (optax.apply_updates(fitted, updates), opt), value

  (fitted, _), values = jax.lax.scan(step, (start, tx.init(start)), length=steps)
  return fitted, jnp.append(values, objective(fitted))


def _without_history(members: Members) -> Members:
  """Return the members without items of the history, but for the target, which is the first."""
  held = (members.item[:, :, None] == members.slot_item[:, None]).any(-1)
  held = held.at[:, 0].set(False)
  return members._replace(log_weight=jnp.where(held, NEG_INF, members.log_weight))


def _soft_ndcg(says_NxMxE: jax.Array, members: Members) -> Callable[[jax.Array], jax.Array]:
  """Return a function from weights [E] to the smooth NDCG@K of each example's target, fp32 [N].

  The target is the first member. Its rank is among those that stand for themselves alone.
  """
  counts = members.log_weight[:, 1:] == 0.0
  higher = says_NxMxE[:, 1:] - says_NxMxE[:, :1]

  def ndcg(weights: jax.Array) -> jax.Array:
    ahead = jax.nn.sigmoid(higher @ weights / SCORE_SOFTNESS)
    rank = jnp.sum(jnp.where(counts, ahead, 0.0), axis=1)  # 0 = first
    return jax.nn.sigmoid((K - rank) / RANK_SOFTNESS) / jnp.log2(2.0 + rank)

  return ndcg


def _climb(
  objective: Callable[[jax.Array], jax.Array], start_E: jax.Array, is_on: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Return the weights [E] that changing one after the other leads to, and what they gain, [2]."""
  n = len(start_E)
  expert, value = jnp.repeat(jnp.arange(n), len(TRIED)), jnp.tile(jnp.array(TRIED), n)

  def step(
    carry: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, jax.Array]
  ) -> tuple[tuple[jax.Array, jax.Array], None]:
    (weights, best), (expert, value) = carry, xs
    changed = weights.at[expert].set(value)
    found = objective(changed)
    better = is_on[expert] & (found > best)
    return (jnp.where(better, changed, weights), jnp.where(better, found, best)), None

  first = objective(start_E)
  tried = jnp.tile(expert, ROUNDS), jnp.tile(value, ROUNDS)
  (weights, best), _ = jax.lax.scan(step, (start_E, first), tried)
  return weights, jnp.stack([first, best])
