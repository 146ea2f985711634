"""Calibration: how much each expert counts, fitted once training is over.

The experts' weights and the parameters of those that are formulas, some two dozen numbers, are
learned in training on users whose rows the backbone has memorized, and in their past. Here they
alone are fitted to validation conversions, as temperature scaling does (Guo et al., ICML 2017):
what the experts say of every item that they find for an example is computed once, then L-BFGS
runs on the NLL of what was bought among them. A normal prior about what training left, one nat wide
and worth `calibration.prior` examples, keeps few examples from moving them far. The test occasions
stay unseen.

Before that, it is chosen how much the language model counts where intents are chosen, and how much
what is counted and what is learned of kinds of users: the weights by which the coarse codes of the
same conversions are likeliest as intents. A language model learns conversions by heart that say
nothing of others.

Shapes: N examples, B rows, M members, G choices of weights.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

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
from rolegen_jax.models.experts import Experts, Members, draw_negatives, with_negatives
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.reasoning.batched import over
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.likelihood import IntentWeights, intent_log_probs
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import compile_in_step, jit
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.training.losses import Params

# Weights to choose from. What is counted and what is learned of kinds of users hold much in common.
LANGUAGE = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.0)
POOLED = tuple(
  pair for pair in itertools.product((1.0, 0.75, 0.5, 0.25, 0.0), repeat=2) if any(pair)
)
FOUND = 50  # items that each expert that searches finds
NEGATIVES = 256  # that stand for all others: what is found alone says nothing of what is missed


def calibrate(
  rolegen: RoleGen,
  params: dict[str, Params],
  table: ExampleTable,
  trie: Trie,
  mesh: Mesh,
  reasoning: bool = True,
  intervene: bool = True,
  is_barred: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Return the fitted arrays of the backbone by path, and the loss before each step.

  The first loss is the NLL at the start, in nats; one more, at the end, is the NLL there. Targets
  of `table` are known. `reasoning` and `intervene` are as in `predict.predict`, with the same
  noise. is_barred: items [N, M] -> bool, what the lists of the examples leave out, so that it
  stands against no target. No target is barred.
  """
  device_trie = jax.device_put(trie, sharding.sharding(mesh))
  members = _members(rolegen, params, table, device_trie, mesh, reasoning, intervene)
  if is_barred is not None:
    barred = is_barred(np.asarray(members.item))
    members = members._replace(log_weight=jnp.where(barred, NEG_INF, members.log_weight))
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
    program = compile_in_step(_fit_program(rolegen, mesh), *args)
    fitted, nll = jax.device_get(program(*args))
  return {f'experts.{name}': value for name, value in functional.flatten(fitted).items()}, nll


def weights_to_choose(rolegen: RoleGen) -> tuple[IntentWeights, ...]:
  """Return the weights of the sources of intents that validation chooses from."""
  pooled = POOLED if rolegen.config.reasoner.kinds else ((1.0, 0.0),)
  return tuple(IntentWeights(language, *pair) for language in LANGUAGE for pair in pooled)


def intent_weights(
  rolegen: RoleGen, params: dict[str, Params], table: ExampleTable, trie: Trie, mesh: Mesh
) -> tuple[IntentWeights, np.ndarray]:
  """Return the best of `weights_to_choose`, and the NLL of the targets' coarse codes by each.

  In nats, fp32 [G].
  """
  fixed = (params['reasoner'], jax.device_put(trie, sharding.sharding(mesh)))
  log_probs = _intent_log_probs(rolegen)
  (log_prob_NxG,) = over(rolegen, log_probs, fixed, table, mesh, 'weights of intents')
  nll = -log_prob_NxG.mean(0)
  return weights_to_choose(rolegen)[int(np.argmin(nll))], nll


@functools.lru_cache(maxsize=2)  # other parameters of the same models run the same program
def _intent_log_probs(rolegen: RoleGen) -> Callable[..., tuple[jax.Array]]:
  """Return (reasoner, trie, examples) -> log p by each choice of weights, fp32 [B, G]."""
  layout, weights = rolegen.layout, weights_to_choose(rolegen)

  def log_probs(reasoner: Params, trie: Trie, examples: Examples) -> tuple[jax.Array]:
    prompt = build_prompt(
      layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
    )
    model = rolegen.bind('reasoner', reasoner)
    return (intent_log_probs(model, layout, prompt, examples.target, trie, weights),)

  return log_probs


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
  score, fixed = _score(rolegen, reasoning), (params, trie)
  return over(rolegen, score, fixed, table, mesh, 'calibration', np.bool_(intervene))


@functools.lru_cache(maxsize=2)  # other parameters of the same models run the same program
def _score(rolegen: RoleGen, reasoning: bool) -> Callable[..., Members]:
  """Return (parameters, trie, examples, intervene) -> the Members of one batch."""

  def score(params: Any, trie: Trie, examples: Examples, intervene: jax.Array) -> Members:
    backbone = rolegen.bind('backbone', params['backbone'])
    items, said = backbone.items(trie), Conditioning()
    memory = backbone.encode(examples.history, items)
    if reasoning:
      _, said = rolegen.reason(params['reasoner'], examples, trie, intervene)
    query_state = rolegen.query(backbone, memory, examples.timestamp)
    found, _ = retrieve(backbone, query_state, said, trie, FOUND)
    own = jnp.concatenate([examples.target[:, None], found], axis=1)
    negatives = draw_negatives(trie, NEGATIVES, jax.random.key(rolegen.config.seed))
    item, log_weight = with_negatives(own, negatives)
    return backbone.members(query_state, item, log_weight, said, items)

  return score


@functools.lru_cache(maxsize=2)
def _fit_program(rolegen: RoleGen, mesh: Mesh) -> jax.stages.Wrapped:
  """Return the function (experts, members, weight of rows) -> (fitted experts, NLLs), jitted."""
  config, names = rolegen.config.calibration, rolegen.config.backbone.experts
  tx = optax.lbfgs()
  graphdef = functional.abstract(lambda rngs: Experts(names))[0]

  def nll(experts: Params, members: Members, weight: jax.Array) -> jax.Array:
    log_prob = functional.bind(graphdef, experts).log_probs(members)[:, 0]
    return -jnp.sum(log_prob * weight) / jnp.sum(weight)

  def fit(experts: Params, members: Members, weight: jax.Array) -> tuple[Params, jax.Array]:
    def objective(fitted: Params) -> jax.Array:
      moved = jax.tree.map(lambda x, start: jnp.sum((x - start) ** 2) / 2, fitted, experts)
      prior = config.prior * sum(jax.tree.leaves(moved))
      return nll(fitted, members, weight) + prior / jnp.sum(weight)

    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], jax.Array]:
      fitted, opt = carry
      value, grads = value_and_grad(fitted, state=opt)
      updates, opt = tx.update(grads, opt, fitted, value=value, grad=grads, value_fn=objective)
      return (optax.apply_updates(fitted, updates), opt), value

    (fitted, _), values = jax.lax.scan(step, (experts, tx.init(experts)), length=config.steps)
    return fitted, jnp.append(values, nll(fitted, members, weight))

  return jit(fit, out_shardings=sharding.sharding(mesh))
