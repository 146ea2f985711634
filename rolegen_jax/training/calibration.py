"""Calibration: how much the backbone trusts each of its sources, fitted to validation conversions once training is over.

History, candidates, calls, intent and the decoder are mixed by a few scalars: how the pointer weighs ages and event types, and the biases of
its gates. Training learns them on users whose rows the backbone has memorised, and in their past. Here these scalars alone, two
dozen, are fitted to conversions that it was not trained on, as temperature scaling does (Guo et al., ICML 2017): the memory of
every case is computed once, then full-batch Adam on the NLL of what was bought. The test occasions stay unseen.

Shapes: N cases, B rows, S memory slots.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.reasoning import predict
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit, together
from rolegen_jax.semantic_ids.trie import Trie

VECTORS = (
  'pointer_age',
  'pointer_event',
  'intent_appeal',
)  # parameters of the backbone that are fitted
BIASES = ('gate', 'intent_gate', 'counted_gate')  # of which the last entry is


def calibrate(
  rolegen: RoleGen,
  params,
  table: ExampleTable,
  trie: Trie,
  mesh: Mesh,
  reasoning: bool = True,
  intervene: bool = True,
) -> tuple[dict, np.ndarray]:
  """({name: array} that replace the backbone's parameters of these names, NLL in nats before each step and after the last).

  `table`: cases whose targets are known. `reasoning` and `intervene` as in `predict.predict`, with the same noise.
  """
  config = rolegen.config
  c, fixed = config.calibration, jax.device_put(trie, sharding.sharding(mesh))

  def remembered(params, trie, number, examples, intervene):
    backbone = rolegen.bind('backbone', params['backbone'])
    memory = backbone.encode(examples.history, trie.item_codes)
    if reasoning:
      key = jax.random.fold_in(jax.random.key(config.evaluation.seed), number)
      rollout = rolegen.rollout(params['reasoner'], examples, trie, key, intervene)
      memory = rolegen.add_reasoning(
        backbone, memory, rollout, jnp.ones(examples.timestamp.shape, bool), trie
      )
    return memory

  def nll(chosen, params, trie, memory, timestamp, target, weight):
    biases = {name: jnp.concatenate([params[name][:-1], chosen[name][-1:]]) for name in BIASES}
    backbone = rolegen.bind('backbone', params | chosen | biases)
    log_prob, _ = backbone.log_prob(
      rolegen.query(backbone, memory, timestamp), memory, target[:, None], trie.item_codes
    )
    return -jnp.sum(log_prob[:, 0] * weight) / jnp.sum(weight)

  tx = optax.adam(optax.cosine_decay_schedule(c.learning_rate, c.steps))

  def fit(params, trie, *examples):
    def step(carry, _):
      chosen, opt = carry
      value, grads = jax.value_and_grad(lambda chosen: nll(chosen, params, trie, *examples))(chosen)
      updates, opt = tx.update(grads, opt, chosen)
      return (optax.apply_updates(chosen, updates), opt), value

    start = {name: params[name] for name in (*VECTORS, *BIASES)}
    (chosen, _), values = jax.lax.scan(step, (start, tx.init(start)), length=c.steps)
    return chosen, jnp.append(values, nll(chosen, params, trie, *examples))

  memory = predict.over(
    rolegen, remembered, (params, fixed), table, mesh, 'calibration', np.bool_(intervene)
  )
  # Rows for every device: those that fill up count nothing.
  rows = -len(table) % mesh.size
  fill = lambda x: np.concatenate([x, np.repeat(x[:1], rows, axis=0)])
  size = len(table) + rows
  weight = (np.arange(size) < len(table)).astype(np.float32)
  place = lambda x: sharding.global_batch(mesh, np.asarray(x), np.arange(size), size)
  known = (
    jax.tree.map(fill, memory),
    fill(table.timestamp.astype(np.int32)),
    fill(table.target),
    weight,
  )
  with jax.set_mesh(mesh):
    given = (params['backbone'], fixed, *jax.tree.map(place, known))
    compiled = together(jit(fit, out_shardings=sharding.sharding(mesh)), *given)
    return jax.device_get(compiled(*given))
