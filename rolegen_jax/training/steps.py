"""The training steps: warmup, align, reason, and the joint train step that closes the loop.

All are pure functions (state, batch, trie) -> (state, metrics), jitted once under one mesh with donated state. the joint train step is
one program: Reasoning (rollouts with a KV cache) -> Execution (the backbone's loss of the true conversion, with the
candidates) -> Feedback (what each world was worth) -> Reflection (the reasoner's own rollouts, weighted by it).

Gradients, moments and the reference are of what trains alone: the step gets the rest, if any, as `frozen`, by model.

Shapes: B users or rows, n events, W worlds, P candidates, T completion length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rolegen_jax.config import ALIGN_TASKS, WORD_TASKS
from rolegen_jax.data.batches import Examples, Trajectories
from rolegen_jax.models import functional
from rolegen_jax.models.backbone import NEG_INF, PURCHASE, Backbone, Memory
from rolegen_jax.reasoning import feedback, language
from rolegen_jax.reasoning.frcot import build_prompt, demonstration
from rolegen_jax.reasoning.likelihood import (
  EquationLoss,
  equation_loss,
  likelihood,
  next_event_loss,
)
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.reasoning.rollout import Rollout
from rolegen_jax.reasoning.worlds import Tree, no_interventions, removing, world_prompts
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.sharding import constrain_rows
from rolegen_jax.text.packing import Packed
from rolegen_jax.training.state import State, optimizer

Metrics = dict[str, jax.Array]


class Switches(NamedTuple):
  """Parts of the loop that an ablation turns off at run time, in the same compiled program."""

  intervene: jax.Array | bool = True  # False: all worlds repeat the factual one
  reflect: jax.Array | float = (
    1.0  # weight of the reflection loss; 0: the reasoner learns from hindsight alone
  )


def sequence_loss(
  rolegen: RoleGen, backbone: Backbone, memory: Memory, t: Trajectories, codes_IxL, key
) -> tuple[jax.Array, Metrics]:
  """Weighted mean NLL over all events of rows [B, n], each predicted from what is strictly earlier; nats."""
  config = rolegen.config.backbone
  query_state = backbone.attend(memory, t.event, t.timestamp, t.segment, key)
  log_prob, generated = backbone.log_prob(query_state, memory, t.item, codes_IxL)
  first = jnp.min(
    jnp.where(t.segment[:, :, None] == t.segment[:, None], t.timestamp[:, None], 2**31 - 1), axis=-1
  )
  known = (t.segment > 0) & (
    t.timestamp > first
  )  # a window's first events have nothing before them
  purchase = known & (t.event == PURCHASE)
  weight = jnp.where(purchase, config.purchase_weight, jnp.where(known, config.view_weight, 0.0))
  mean = lambda x, w: jnp.sum(x * w) / jnp.maximum(jnp.sum(w), 1e-6)
  # The generated part alone is supervised too: where the pointer explains an item, the mixture would not teach the codes.
  loss = -mean(log_prob + config.generation_loss * generated, weight)
  return loss, dict(sequence_nll=-mean(log_prob, weight), purchase_nll=-mean(log_prob, purchase))


def warmup_loss(
  rolegen: RoleGen, params, rows: Trajectories, trie: Trie, key
) -> tuple[jax.Array, Metrics]:
  """The backbone on packed rows."""
  backbone = rolegen.bind('backbone', params)
  encode_key, query_key = jax.random.split(key)
  memory = backbone.encode(rows, trie.item_codes, encode_key)
  return sequence_loss(rolegen, backbone, memory, rows, trie.item_codes, query_key)


def execution_loss(
  rolegen: RoleGen, params, examples: Examples, rollout: Rollout | None, trie: Trie, key
):
  """The backbone's loss of the true conversion, with the rollout's candidates, beside the loss over all earlier positions.

  Returns loss, (gain [B, W] of each world's candidates in nats, metrics). `rollout` None: the backbone alone.
  """
  config = rolegen.config
  backbone = rolegen.bind('backbone', params)
  encode_key, sequence_key, keep_key, query_key = jax.random.split(key, 4)
  memory = backbone.encode(examples.history, trie.item_codes, encode_key)
  loss, metrics = sequence_loss(
    rolegen, backbone, memory, examples.history, trie.item_codes, sequence_key
  )
  target = examples.target[:, None]

  def conversion(memory, key=None):
    query_state = rolegen.query(backbone, memory, examples.timestamp, key)
    log_prob, generated = backbone.log_prob(query_state, memory, target, trie.item_codes)
    return log_prob[:, 0], generated[:, 0]

  gain, with_candidates = None, memory
  if rollout is not None:
    keep = jax.random.bernoulli(
      keep_key, 1.0 - config.loop.candidate_dropout, examples.target.shape
    )
    with_candidates = rolegen.add_reasoning(backbone, memory, rollout, keep, trie)
    fixed = rolegen.bind('backbone', jax.lax.stop_gradient(params))
    still = jax.lax.stop_gradient(memory)
    ask = lambda m: fixed.log_prob(
      rolegen.query(fixed, m, examples.timestamp), m, target, trie.item_codes
    )[0][:, 0]
    alone = ask(still)
    worlds = jnp.arange(rollout.candidates.shape[1])
    gain = (
      jax.lax.map(lambda w: ask(rolegen.add_world(fixed, still, rollout, w, trie)), worlds).T
      - alone[:, None]
    )
    gain = jax.lax.stop_gradient(gain)
  log_prob, generated = conversion(with_candidates, query_key)
  execution = -jnp.mean(log_prob + config.backbone.generation_loss * generated)
  metrics |= dict(execution_nll=-jnp.mean(log_prob))
  return loss + execution, (gain, metrics)


def align_loss(
  rolegen: RoleGen, params, examples: Examples, trie: Trie, key
) -> tuple[jax.Array, Metrics]:
  """The reasoner as a plain language model of trajectories: next event."""
  del key
  prompt = build_prompt(
    rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
  )
  loss = next_event_loss(rolegen.bind('reasoner', params), rolegen.layout, prompt)
  return loss, dict(next_token_nll=loss)


def align_words_loss(
  rolegen: RoleGen, params, packed: Packed, trie: Trie, key
) -> tuple[jax.Array, Metrics]:
  """The reasoner as a language model of packed examples of words, semantic IDs and trajectories."""
  del trie, key
  return language.mean_nll(language.read(rolegen.bind('reasoner', params), packed), ALIGN_TASKS)


def reason_words_loss(
  rolegen: RoleGen, params, batch: tuple[Examples, Packed], trie: Trie, key
) -> tuple[jax.Array, Metrics]:
  """Supervised FR-CoT, and the same chains with a sentence after each role and intent."""
  examples, packed = batch
  loss, metrics = reason_loss(rolegen, params, examples, trie, key)
  words, told = language.mean_nll(
    language.read(rolegen.bind('reasoner', params), packed), WORD_TASKS
  )
  return loss + rolegen.config.text.rationales * words, metrics | told


def imitation_loss(
  equations: EquationLoss, log_prob_BxT, role_log_prob, demo, examples: Examples
) -> tuple[jax.Array, Metrics]:
  """FR-CoT imitation from teacher-forced log-probs, and the structural equations. A label that the constraints rule out
  (imported roles) teaches nothing."""
  weight = jnp.where(log_prob_BxT > NEG_INF / 2, demo.weight, 0.0)
  loss = -jnp.sum(log_prob_BxT * weight) / jnp.maximum(weight.sum(), 1.0)
  known = examples.roles >= 0
  right = (jnp.argmax(role_log_prob, axis=-1) == examples.roles) & known
  e, accuracy = equations, right.sum() / jnp.maximum(known.sum(), 1)
  metrics = dict(
    frcot_nll=loss,
    intent_nll=e.intent,
    intent_nll_by_role=e.by_role,
    retrieved_nll=e.retrieved,
    role_accuracy=accuracy,
  )
  return loss + sum(e), metrics


def reason_loss(
  rolegen: RoleGen, params, examples: Examples, trie: Trie, key
) -> tuple[jax.Array, Metrics]:
  """Supervised FR-CoT on hindsight labels."""
  del key
  reasoner, layout = rolegen.bind('reasoner', params), rolegen.layout
  prompt = build_prompt(
    layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
  )
  demo = demonstration(layout, examples, trie.item_codes)
  found = likelihood(reasoner, Tree(layout), prompt, demo.tokens, trie, temperature=1.0)
  return imitation_loss(
    equation_loss(reasoner, layout, prompt, examples, trie),
    found.log_prob,
    found.role_log_prob,
    demo,
    examples,
  )


def reflection_loss(
  rolegen: RoleGen,
  params,
  reference,
  examples: Examples,
  rollout: Rollout,
  gain_BxW,
  trie: Trie,
  switches: Switches,
):
  """The reasoner's rollouts weighted by what they were worth, plus imitation of the hindsight chain, in one forward pass."""
  layout, config = rolegen.layout, rolegen.config.loop
  b, w, t = rollout.tokens.shape
  prompt = build_prompt(
    layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
  )
  demo = demonstration(layout, examples, trie.item_codes)
  # A user's demonstration is one more chain beside those of the worlds, without an intervention.
  beside = lambda a, d: constrain_rows(jnp.concatenate([a, d], axis=1))
  done = jax.tree.map(
    beside, rollout.interventions, no_interventions(b, 1, layout.config.role_events)
  )
  tokens = beside(rollout.tokens, demo.tokens[:, None])
  may_remove = removing(w, config.interventions)
  # Rollouts are colder than the distribution that demonstrations fit: a path is a best guess, not a sample of the market.
  temperature = constrain_rows(jnp.tile(jnp.array([layout.config.temperature] * w + [1.0]), b))
  per_user = lambda x, k: x.reshape(b, k, *x.shape[1:])
  flat = lambda x: constrain_rows(x.reshape(-1, t))
  reasoner = rolegen.bind('reasoner', params)
  found = likelihood(
    reasoner,
    Tree(layout, w + 1, may_remove),
    world_prompts(layout, prompt, done),
    flat(tokens),
    trie,
    temperature,
  )
  chains = world_prompts(layout, prompt, rollout.interventions)
  still = rolegen.bind('reasoner', jax.lax.stop_gradient(reference))
  before = likelihood(still, Tree(layout, w, may_remove), chains, flat(rollout.tokens), trie)
  found = jax.tree.map(lambda x: per_user(x, w + 1), found)
  reward, metrics = feedback.rewards(
    rollout.candidates, examples.target, gain_BxW, trie.item_codes, config
  )
  reflection, more = feedback.reflection_loss(
    found.log_prob[:, :w],
    rollout.log_prob,
    per_user(before.log_prob, w),
    rollout.sampled_mask,
    feedback.advantages(reward),
    reward,
    config,
  )
  equations = equation_loss(reasoner, layout, prompt, examples, trie)
  anchor, imitation = imitation_loss(
    equations, found.log_prob[:, w], found.role_log_prob[:, w], demo, examples
  )
  metrics |= (
    more
    | imitation
    | dict(
      reward=reward.mean(),
      advantage_std=reward.std(1).mean(),
      reflection_loss=reflection,
      entropy=jnp.sum(found.entropy[:, :w] * rollout.sampled_mask)
      / jnp.maximum(rollout.sampled_mask.sum(), 1),
      counterfactual_best=jnp.mean(jnp.argmax(reward, axis=1) > 0),
      world_distance=feedback.jaccard_distance(rollout.candidates).mean(),
    )
  )
  return switches.reflect * reflection + config.imitation * anchor, metrics


def update(tx, grads, opt, params):
  updates, opt = tx.update(grads, opt, params)
  return optax.apply_updates(params, updates), opt


def supervised_step(
  rolegen: RoleGen,
  model: str,
  loss_fn: Callable,
  tx,
  state: State,
  batch,
  trie: Trie,
  frozen: dict = {},
) -> tuple[State, Metrics]:
  """One update of one model by `loss_fn(rolegen, params, batch, trie, key)`."""
  loss_of = lambda params: loss_fn(
    rolegen, functional.join(params, frozen.get(model, {})), batch, trie, state.key()
  )
  (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params[model])
  params, opt = update(tx, grads, state.opt[model], state.params[model])
  metrics |= dict(loss=loss, grad_norm=optax.tree.norm(grads))
  return state._replace(
    step=state.step + 1, params=state.params | {model: params}, opt=state.opt | {model: opt}
  ), metrics


def execution_only_loss(
  rolegen: RoleGen, params, examples: Examples, trie: Trie, key
) -> tuple[jax.Array, Metrics]:
  """The execution phase without a reasoner: what the `no_reasoner` ablation trains on the same occasions."""
  loss, (_, metrics) = execution_loss(rolegen, params, examples, None, trie, key)
  return loss, metrics


def loop_parts(rolegen: RoleGen) -> tuple[dict, dict]:
  """(makers, optimizers) by model of what the joint train step trains and keeps."""
  stage = rolegen.config.loop_stage
  model_fns = rolegen.trained | {'reference': rolegen.trained['reasoner']}
  return model_fns, {
    name: optimizer(stage.optimizer, stage.steps) for name in ('backbone', 'reasoner')
  }


def joint_train_step(
  rolegen: RoleGen,
  optimizers: dict,
  state: State,
  examples: Examples,
  trie: Trie,
  switches: Switches,
  frozen: dict = {},
) -> tuple[State, Metrics]:
  """the joint train step. state.params: reasoner, reference (EMA of the reasoner; it shares what is frozen), backbone."""
  config = rolegen.config.loop
  rollout_key, execution_key = jax.random.split(state.key())
  params, whole = state.params, lambda trained: functional.join(trained, frozen.get('reasoner', {}))

  # Reasoning
  rollout = rolegen.rollout(
    whole(params['reasoner']), examples, trie, rollout_key, switches.intervene
  )

  # Execution and Feedback
  loss_of = lambda p: execution_loss(rolegen, p, examples, rollout, trie, execution_key)
  with jax.named_scope('execution'):
    (execution, (gain, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(
      params['backbone']
    )
  backbone, backbone_opt = update(
    optimizers['backbone'], grads, state.opt['backbone'], params['backbone']
  )
  metrics |= dict(backbone_grad_norm=optax.tree.norm(grads))

  # Reflection
  def reflect():
    loss_of = lambda p: reflection_loss(
      rolegen, whole(p), whole(params['reference']), examples, rollout, gain, trie, switches
    )
    with jax.named_scope('reflection'):
      (loss, more), grads = jax.value_and_grad(loss_of, has_aux=True)(params['reasoner'])
    reasoner, opt = update(optimizers['reasoner'], grads, state.opt['reasoner'], params['reasoner'])
    d = config.reference_decay
    reference = jax.tree.map(lambda r, p: d * r + (1 - d) * p, params['reference'], reasoner)
    return (
      reasoner,
      reference,
      opt,
      more | dict(reasoner_grad_norm=optax.tree.norm(grads), reasoner_loss=loss),
    )

  if config.reflect_every == 1:
    reasoner, reference, reasoner_opt, more = reflect()
  else:
    shapes = jax.eval_shape(reflect)[3]
    skip = lambda: (
      params['reasoner'],
      params['reference'],
      state.opt['reasoner'],
      jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
    )
    reasoner, reference, reasoner_opt, more = jax.lax.cond(
      state.step % config.reflect_every == 0, reflect, skip
    )

  metrics |= more | dict(loss=execution + more['reasoner_loss'])
  new = dict(backbone=backbone, reasoner=reasoner, reference=reference)
  return state._replace(
    step=state.step + 1, params=new, opt=dict(backbone=backbone_opt, reasoner=reasoner_opt)
  ), metrics
