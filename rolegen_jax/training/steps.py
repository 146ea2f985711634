"""The training steps: one for the supervised stages, and the joint train step of the closed loop.

Both are pure functions (state, batch, trie) -> (state, metrics), jitted once under one mesh with
donated state. The joint train step is one program of four phases:

  Reasoning   the reasoner rolls out W worlds per user with a KV cache
  Execution   the backbone is updated by the loss of the true conversion, given the reasoning
  Feedback    each world is rewarded for what it was worth to that prediction
  Reflection  the reasoner is updated by its own rollouts, weighted by their advantages

Gradients, optimizer moments and the reference cover only the parameters that train. The others,
if any, come as `frozen`, by model.

Shapes: B users or rows, W worlds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rolegen_jax.data.batches import Examples
from rolegen_jax.models import functional
from rolegen_jax.reasoning import feedback, worlds
from rolegen_jax.reasoning.feedback import Feedback
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.reasoning.rollout import Rollout
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.sharding import constrain_rows
from rolegen_jax.training.losses import (
  Metrics,
  Params,
  execution_loss,
  reflection_loss,
)
from rolegen_jax.training.state import State, optimizer

Optimizers = dict[str, optax.GradientTransformation]


class Switches(NamedTuple):
  """Parts of the loop that an ablation turns off at run time, in the same compiled program."""

  # False: every world repeats the factual one.
  intervene: Any = True
  # Weight of the policy loss; 0: the reasoner learns from hindsight alone.
  reflect: Any = 1.0


def supervised_step(
  rolegen: RoleGen,
  model: str,
  loss_fn: Callable[..., tuple[jax.Array, Metrics]],
  tx: optax.GradientTransformation,
  state: State,
  batch: Any,
  trie: Trie,
  frozen: dict[str, Params] | None = None,
) -> tuple[State, Metrics]:
  """Update one model once by `loss_fn(rolegen, params, batch, trie, key)`."""
  fixed = (frozen or {}).get(model, {})

  def loss_of(params: Params) -> tuple[jax.Array, Metrics]:
    return loss_fn(rolegen, functional.join(params, fixed), batch, trie, state.key())

  (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params[model])
  params, opt = _update(tx, grads, state.opt[model], state.params[model])
  metrics |= dict(loss=loss, grad_norm=optax.tree.norm(grads))
  state = state._replace(
    step=state.step + 1, params=state.params | {model: params}, opt=state.opt | {model: opt}
  )
  return state, metrics


def joint_parts(rolegen: RoleGen) -> tuple[dict[str, Callable], Optimizers]:
  """Return (model_fns, optimizers) by model of what the joint train step keeps and trains."""
  stage = rolegen.config.loop_stage
  model_fns = rolegen.trained | {'reference': rolegen.trained['reasoner']}
  optimizers = {name: optimizer(stage.optimizer, stage.steps) for name in ('backbone', 'reasoner')}
  return model_fns, optimizers


def joint_train_step(
  rolegen: RoleGen,
  optimizers: Optimizers,
  state: State,
  examples: Examples,
  trie: Trie,
  switches: Switches,
  frozen: dict[str, Params] | None = None,
) -> tuple[State, Metrics]:
  """Run the four phases once.

  `state.params` holds backbone, reasoner and reference, an exponential moving average of the
  reasoner that shares what is frozen of it.
  """
  rollout_key, execution_key = jax.random.split(state.key())
  models = _Models(rolegen, optimizers, state, (frozen or {}).get('reasoner', {}))
  rollout = _reasoning(models, examples, trie, rollout_key, switches.intervene)
  backbone, gain, execution_metrics = _execution(models, examples, rollout, trie, execution_key)
  worth, feedback_metrics = _feedback(models, examples, rollout, gain, trie)
  reasoner, reference, reflection_metrics = _reflection(
    models, examples, rollout, worth, trie, switches.reflect
  )
  loss = execution_metrics.pop('loss') + reflection_metrics['reasoner_loss']
  state = state._replace(
    step=state.step + 1,
    params=dict(backbone=backbone.params, reasoner=reasoner.params, reference=reference),
    opt=dict(backbone=backbone.opt, reasoner=reasoner.opt),
  )
  return state, execution_metrics | feedback_metrics | reflection_metrics | dict(loss=loss)


class _Models(NamedTuple):
  """What every phase needs of both models."""

  rolegen: RoleGen
  optimizers: Optimizers
  state: State
  frozen: Params  # of the reasoner

  def reasoner(self, trained: Params) -> Params:
    """Return all parameters of the reasoner from those that train."""
    return functional.join(trained, self.frozen)


class _Updated(NamedTuple):
  params: Params
  opt: Any


def _reasoning(
  models: _Models, examples: Examples, trie: Trie, key: jax.Array, intervene: ArrayLike
) -> Rollout:
  reasoner = models.reasoner(models.state.params['reasoner'])
  keys = constrain_rows(jax.random.split(key, len(examples.target)))
  return models.rolegen.rollout(reasoner, examples, trie, keys, intervene)


def _execution(
  models: _Models, examples: Examples, rollout: Rollout, trie: Trie, key: jax.Array
) -> tuple[_Updated, jax.Array, Metrics]:
  """Return the updated backbone, each world's execution gain [B, W] and metrics."""
  state = models.state

  def loss_of(params: Params) -> tuple[jax.Array, Any]:
    return execution_loss(models.rolegen, params, examples, rollout, trie, key)

  with jax.named_scope('execution'):
    (loss, (gain, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(
      state.params['backbone']
    )
  updated = _update(
    models.optimizers['backbone'], grads, state.opt['backbone'], state.params['backbone']
  )
  return updated, gain, metrics | dict(loss=loss, backbone_grad_norm=optax.tree.norm(grads))


def _feedback(
  models: _Models, examples: Examples, rollout: Rollout, gain_BxW: jax.Array, trie: Trie
) -> tuple[Feedback, Metrics]:
  """Return what each world was worth."""
  config = models.rolegen.config.loop
  kinds = worlds.kinds(config.worlds, config.interventions)
  reward, metrics = feedback.rewards(
    rollout.candidates, examples.target, gain_BxW, trie.item_codes, config
  )
  metrics |= dict(
    reward=reward.mean(),
    advantage_std=reward.std(1).mean(),
    world_distance=feedback.jaccard_distance(rollout.candidates).mean(),
  )
  return Feedback(reward, feedback.advantages(reward, kinds)), metrics


def _reflection(
  models: _Models,
  examples: Examples,
  rollout: Rollout,
  worth: Feedback,
  trie: Trie,
  weight: ArrayLike,
) -> tuple[_Updated, Params, Metrics]:
  """Return the updated reasoner, the updated reference and metrics.

  Between its turns, every `loop.reflect_every` steps, both stay as they are and metrics are 0.
  """
  config, state = models.rolegen.config.loop, models.state
  params, reference = state.params['reasoner'], state.params['reference']

  def loss_of(trained: Params) -> tuple[jax.Array, Metrics]:
    return reflection_loss(
      models.rolegen,
      models.reasoner(trained),
      models.reasoner(reference),
      examples,
      rollout,
      worth,
      trie,
      weight,
    )

  def reflect() -> tuple[_Updated, Params, Metrics]:
    with jax.named_scope('reflection'):
      (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updated = _update(models.optimizers['reasoner'], grads, state.opt['reasoner'], params)
    decay = config.reference_decay
    moved = jax.tree.map(lambda r, p: decay * r + (1 - decay) * p, reference, updated.params)
    metrics |= dict(reasoner_grad_norm=optax.tree.norm(grads), reasoner_loss=loss)
    return updated, moved, metrics

  if config.reflect_every == 1:
    return reflect()
  shapes = jax.eval_shape(reflect)[2]

  def skip() -> tuple[_Updated, Params, Metrics]:
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return _Updated(params, state.opt['reasoner']), reference, zeros

  return jax.lax.cond(state.step % config.reflect_every == 0, reflect, skip)


def _update(tx: optax.GradientTransformation, grads: Params, opt: Any, params: Params) -> _Updated:
  updates, opt = tx.update(grads, opt, params)
  return _Updated(optax.apply_updates(params, updates), opt)
