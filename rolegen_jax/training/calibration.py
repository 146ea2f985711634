"""Calibration: how much the backbone trusts each of its sources, fitted once training is over.

History, candidates, retrieved items, intent and the decoder are mixed by a few scalars: how the
pointer weighs ages and event types, and the biases of its gates. Training learns them on users
whose rows the backbone has memorized, and in their past. Here these scalars alone, two dozen, are
fitted to validation conversions, as temperature scaling does (Guo et al., ICML 2017): the memory
of every example is computed once, then full-batch Adam runs on the NLL of what was bought. The
test occasions stay unseen.

Shapes: N examples, B rows, S memory slots.
"""

from __future__ import annotations

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
from rolegen_jax.models.memory import Memory
from rolegen_jax.reasoning import predict
from rolegen_jax.reasoning.rolegen import RoleGen, history_keys
from rolegen_jax.runtime.compile import compile_in_step, jit
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.training.losses import Params

# Paths of the backbone's parameters that are fitted: whole, and their last entry only.
VECTORS = ('pointer.slot_age', 'pointer.slot_event', 'pointer.intent_appeal')
BIASES = ('pointer.gate', 'pointer.intent_gate', 'counted_gate')


def calibrate(
  rolegen: RoleGen,
  params: dict[str, Params],
  table: ExampleTable,
  trie: Trie,
  mesh: Mesh,
  reasoning: bool = True,
  intervene: bool = True,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Return the fitted arrays of the backbone by path, and the NLL before each step and at the end.

  NLLs are in nats. Targets of `table` are known. `reasoning` and `intervene` are as in
  `predict.predict`, with the same noise.
  """
  replicated = sharding.sharding(mesh)
  device_trie = jax.device_put(trie, replicated)
  memory = _memories(rolegen, params, table, device_trie, mesh, reasoning, intervene)
  # Every device gets as many rows: those that fill up weigh nothing.
  n_padding = -len(table) % mesh.size
  size = len(table) + n_padding

  def pad(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.repeat(x[:1], n_padding, axis=0)])

  def put(x: np.ndarray) -> jax.Array:
    return sharding.global_batch(mesh, np.asarray(x), np.arange(size), size)

  weight = (np.arange(size) < len(table)).astype(np.float32)
  timestamp = pad(table.timestamp.astype(np.int32))
  rows = (jax.tree.map(pad, memory), timestamp, pad(table.target), weight)
  with jax.set_mesh(mesh):
    args = (params['backbone'], device_trie, *jax.tree.map(put, rows))
    program = compile_in_step(jit(_fit_program(rolegen), out_shardings=replicated), *args)
    return jax.device_get(program(*args))


def _memories(
  rolegen: RoleGen,
  params: dict[str, Params],
  table: ExampleTable,
  trie: Trie,
  mesh: Mesh,
  reasoning: bool,
  intervene: bool,
) -> Memory:
  """Return the memory of every example, on the host."""

  def encode(params: Any, trie: Trie, examples: Examples, intervene: jax.Array) -> Memory:
    backbone = rolegen.bind('backbone', params['backbone'])
    memory = backbone.encode(examples.history, trie.item_codes)
    if not reasoning:
      return memory
    keys = history_keys(rolegen.config.seed, examples)
    rollout = rolegen.rollout(params['reasoner'], examples, trie, keys, intervene)
    keep = jnp.ones(examples.timestamp.shape, bool)
    return rolegen.add_reasoning(backbone, memory, rollout, keep, trie)

  fixed = (params, trie)
  return predict.over(rolegen, encode, fixed, table, mesh, 'calibration', np.bool_(intervene))


def _fit_program(rolegen: RoleGen) -> Any:
  """Return the function (backbone, trie, memory, timestamp, target, weight) -> (fitted, NLLs)."""
  config = rolegen.config.calibration
  tx = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))

  def nll(
    fitted: Params,
    backbone_params: Params,
    trie: Trie,
    memory: Memory,
    timestamp: jax.Array,
    target: jax.Array,
    weight: jax.Array,
  ) -> jax.Array:
    leaves = functional.flatten(backbone_params)
    biases = {name: jnp.concatenate([leaves[name][:-1], fitted[name][-1:]]) for name in BIASES}
    backbone = rolegen.bind('backbone', functional.unflatten(leaves | fitted | biases))
    query_state = rolegen.query(backbone, memory, timestamp)
    log_prob, _ = backbone.log_prob(query_state, memory, target[:, None], trie.item_codes)
    return -jnp.sum(log_prob[:, 0] * weight) / jnp.sum(weight)

  def fit(backbone_params: Params, trie: Trie, *rows: Any) -> tuple[Params, jax.Array]:
    def step(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], jax.Array]:
      fitted, opt = carry
      value, grads = jax.value_and_grad(nll)(fitted, backbone_params, trie, *rows)
      updates, opt = tx.update(grads, opt, fitted)
      return (optax.apply_updates(fitted, updates), opt), value

    leaves = functional.flatten(backbone_params)
    start = {name: leaves[name] for name in (*VECTORS, *BIASES)}
    (fitted, _), values = jax.lax.scan(step, (start, tx.init(start)), length=config.steps)
    return fitted, jnp.append(values, nll(fitted, backbone_params, trie, *rows))

  return fit
