"""The losses of all stages, pure functions of parameters and one batch; log-probabilities in nats.

Each returns (loss, metrics). `training/steps.py` differentiates them and updates the models.

Shapes: B users or rows, n events, W worlds, P candidates per world, T completion length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rolegen_jax.data.batches import Examples, Trajectories
from rolegen_jax.models.backbone import PURCHASE, Backbone
from rolegen_jax.models.experts import Items, Members, Negatives, draw_negatives, with_negatives
from rolegen_jax.models.memory import Conditioning, Memory, QueryState
from rolegen_jax.models.numerics import is_possible
from rolegen_jax.reasoning import feedback, language
from rolegen_jax.reasoning.feedback import Feedback
from rolegen_jax.reasoning.frcot import (
  Demonstration,
  Layout,
  Prompt,
  build_prompt,
  demonstration,
)
from rolegen_jax.reasoning.likelihood import (
  EquationLoss,
  Likelihood,
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

Params = dict[str, Any]
Metrics = dict[str, jax.Array]
LATEST_S = 2**31 - 1  # a timestamp later than any
# Of the loss of all experts together, which scores the codes of each item.
PRODUCT_NEGATIVES, TRENDING = 128, 64


# Backbone


class Noise(NamedTuple):
  """The random keys of the backbone's losses."""

  rows: jax.Array  # which items go without their own row
  encode: jax.Array
  query: jax.Array
  negatives: jax.Array
  keep: jax.Array  # which targets see the reasoning
  generated: jax.Array  # which targets the generative expert learns from

  @classmethod
  def of(cls, key: jax.Array) -> Noise:
    """Split a key."""
    return cls(*jax.random.split(key, len(cls._fields)))


def choices_loss(
  backbone: Backbone,
  query_state: QueryState,
  target_BxQ: jax.Array,
  own_BxM: jax.Array,
  weight_BxQ: jax.Array,
  negatives: Negatives,
  items: Items,
  key: jax.Array,
) -> tuple[jax.Array, Metrics, jax.Array]:
  """Return the loss of targets, their weighted mean NLL by its parts, and log p of each.

  The parts are the generative expert and the others of the backbone: experts that learn apart err
  apart, and it is worth more to multiply them. log p, fp32 [B, Q], is by the others where there are
  any. own: see `Backbone.choice_log_prob`; key: draws the targets that are generated.
  """
  config, nll = backbone.config, {}
  state, target, weight = query_state.state, target_BxQ, weight_BxQ
  loss, log_prob = jnp.zeros(()), jnp.zeros(target.shape)
  if backbone.has('generative'):
    if (number := config.generated_targets(weight.shape[1])) < weight.shape[1]:
      drawn = draw_queries(weight, number, key)
      state = jnp.take_along_axis(state, drawn[..., None], axis=1)
      target, weight = (jnp.take_along_axis(x, drawn, axis=1) for x in (target, weight))
    log_prob = backbone.generated(state, jnp.take(items.codes, jnp.maximum(target, 0), axis=0))
    nll['generative'] = -_weighted_mean(log_prob, weight)
    loss += config.generation_loss * nll['generative']
  if config.experts != ('generative',):
    log_prob = backbone.choice_log_prob(query_state, target_BxQ, own_BxM, negatives, items)
    nll['choice'] = -_weighted_mean(log_prob, weight_BxQ)
    loss += nll['choice']
  return loss, nll, log_prob


def draw_queries(weight_BxQ: jax.Array, number: int, key: jax.Array) -> jax.Array:
  """Return so many random queries of each row, int32 [B, number]; those without weight last."""
  order = jnp.where(weight_BxQ > 0, jax.random.uniform(key, weight_BxQ.shape), -1.0)
  return jax.lax.top_k(order, number)[1]


def sequence_loss(
  backbone: Backbone,
  memory: Memory,
  rows: Trajectories,
  trie: Trie,
  items: Items,
  noise: Noise,
) -> tuple[jax.Array, Metrics]:
  """Return the weighted mean NLL of the events of rows [B, n], given what is strictly earlier."""
  config = backbone.config
  query_state = backbone.attend(memory, rows.event, rows.timestamp, rows.segment, noise.query)
  same_segment = rows.segment[:, :, None] == rows.segment[:, None]
  first_s = jnp.min(jnp.where(same_segment, rows.timestamp[:, None], LATEST_S), axis=-1)
  # The first events of a window have nothing before them to be predicted from.
  predictable = (rows.segment > 0) & (rows.timestamp > first_s)
  purchase = predictable & (rows.event == PURCHASE)
  other_weight = jnp.where(predictable, config.view_weight, 0.0)
  weight = jnp.where(purchase, config.purchase_weight, other_weight)
  negatives = draw_negatives(trie, config.negatives, noise.negatives, rows.item)
  loss, nll, log_prob = choices_loss(
    backbone, query_state, rows.item, rows.item, weight, negatives, items, noise.generated
  )
  metrics = {f'sequence_{name}_nll': value for name, value in nll.items()}
  return loss, metrics | dict(purchase_nll=-_weighted_mean(log_prob, purchase))


def _weighted_mean(x: jax.Array, weight: jax.Array) -> jax.Array:
  return jnp.sum(x * weight) / jnp.maximum(jnp.sum(weight), 1e-6)


def warmup_loss(
  rolegen: RoleGen, params: Params, rows: Trajectories, trie: Trie, key: jax.Array
) -> tuple[jax.Array, Metrics]:
  """Return the loss of the backbone alone on packed rows."""
  backbone, noise = rolegen.bind('backbone', params), Noise.of(key)
  items = backbone.items(trie, noise.rows)
  memory = backbone.encode(rows, items, noise.encode)
  return sequence_loss(backbone, memory, rows, trie, items, noise)


def execution_loss(
  rolegen: RoleGen,
  params: Params,
  examples: Examples,
  rollout: Rollout,
  trie: Trie,
  key: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
  """Return the backbone's loss of the true conversion given the reasoning, plus `sequence_loss`.

  The product of all experts teaches its weights alone: what an expert says of an item it learns
  from its own loss. The auxiliary output is (gain [B, W] of `execution_gain`, metrics).
  """
  backbone, noise = rolegen.bind('backbone', params), Noise.of(key)
  items = backbone.items(trie, noise.rows)
  memory = backbone.encode(examples.history, items, noise.encode)
  loss, metrics = sequence_loss(backbone, memory, examples.history, trie, items, noise)
  query_state = rolegen.query(backbone, memory, examples.timestamp, noise.query)
  target, weight = examples.target[:, None], jnp.ones((len(examples.target), 1))
  own = jnp.concatenate([target, examples.history.item], axis=1)
  keys = jax.random.split(noise.negatives)
  negatives = draw_negatives(trie, backbone.config.negatives, keys[0], own)
  alone, _, _ = choices_loss(
    backbone, query_state, target, own, weight, negatives, items, noise.generated
  )
  scored = _scored(rolegen, params, query_state, examples, rollout, trie, items, keys[1])
  keep_share = 1.0 - rolegen.config.loop.reasoning_dropout
  keep = jax.random.bernoulli(noise.keep, keep_share, examples.target.shape)
  said = rolegen.reasoning(rollout, keep)
  gain = execution_gain(rolegen, params, scored, rollout)
  log_prob = backbone.experts.log_probs(scored._replace(conditioning=said))[:, 0]
  metrics |= dict(execution_nll=-jnp.mean(log_prob))
  return loss + alone + metrics['execution_nll'], (gain, metrics)


def _scored(
  rolegen: RoleGen,
  params: Params,
  query_state: QueryState,
  examples: Examples,
  rollout: Rollout,
  trie: Trie,
  items: Items,
  key: jax.Array,
) -> Members:
  """Return what the backbone's experts say of each target, which is the first of its members.

  The others are the items of the history and of any world, what is trending most, and negatives.
  Nothing of it carries a gradient.
  """
  backbone = rolegen.bind('backbone', params)
  users = len(examples.target)
  own = [examples.target[:, None], examples.history.item]
  own += [rollout.retrieved.reshape(users, -1), rollout.candidates.reshape(users, -1)]
  trending = backbone.experts.shares(query_state, items.trending)
  own += [] if trending is None else [trending.most(TRENDING)]
  negatives = draw_negatives(trie, PRODUCT_NEGATIVES, key)
  item, log_weight = with_negatives(jnp.concatenate(own, axis=1), negatives)
  scored = backbone.members(query_state, item, log_weight, Conditioning(), items)
  return jax.lax.stop_gradient(scored)


def execution_gain(
  rolegen: RoleGen, params: Params, scored: Members, rollout: Rollout
) -> jax.Array:
  """Return fp32 [B, W]: what the candidates of each world add to log p(target), in nats.

  That is log p(y | h, intent_w, retrieved_w, candidates_w) - log p(y | h, intent_w, retrieved_w):
  what the equations make of an intervention is in both terms and no merit of the chain. Nothing
  here carries a gradient: the gain is a reward of the reasoner, no loss of the backbone. The target
  is the first member of `scored`.
  """
  experts = rolegen.bind('backbone', jax.lax.stop_gradient(params)).experts

  def log_prob(case: tuple[jax.Array, jax.Array]) -> jax.Array:
    world, has_candidates = case
    said = rolegen.world_reasoning(rollout, world, has_candidates)
    return experts.log_probs(scored._replace(conditioning=said))[:, 0]

  worlds = rollout.candidates.shape[1]
  cases = jnp.tile(jnp.arange(worlds), 2), jnp.arange(2 * worlds) < worlds
  with_candidates, without = jnp.split(jax.lax.map(log_prob, cases), 2)
  return jax.lax.stop_gradient((with_candidates - without).T)


# Reasoner


def align_loss(
  rolegen: RoleGen, params: Params, examples: Examples, trie: Trie, key: jax.Array
) -> tuple[jax.Array, Metrics]:
  """Return the next-token loss of the reasoner as a language model of trajectories."""
  del key
  reasoner, layout = rolegen.bind('reasoner', params), rolegen.layout
  prompt = _prompt(layout, examples, trie)
  loss = next_event_loss(reasoner, layout, prompt)
  return loss, dict(next_token_nll=loss, tokens=prompt.valid.sum())


def _prompt(layout: Layout, examples: Examples, trie: Trie) -> Prompt:
  now, codes = examples.timestamp, trie.item_codes
  return build_prompt(layout, examples.history, examples.excites, now, codes)


def align_words_loss(
  rolegen: RoleGen, params: Params, packed: Packed, trie: Trie, key: jax.Array
) -> tuple[jax.Array, Metrics]:
  """Return the next-token loss on packed examples of words, semantic IDs and trajectories."""
  del trie, key
  reasoner = rolegen.bind('reasoner', params)
  return language.words_loss(reasoner, packed)


def reason_loss(
  rolegen: RoleGen, params: Params, examples: Examples, trie: Trie, key: jax.Array
) -> tuple[jax.Array, Metrics]:
  """Return the supervised FR-CoT loss on hindsight labels, and that of the words beside them."""
  del key
  reasoner, layout = rolegen.bind('reasoner', params), rolegen.layout
  prompt = _prompt(layout, examples, trie)
  demo = demonstration(layout, examples, trie.item_codes)
  chain = likelihood(reasoner, Tree(layout), prompt, demo.tokens, trie, temperature=1.0)
  equations = equation_loss(reasoner, layout, prompt, examples, trie)
  loss, metrics = imitation_loss(equations, chain.log_prob, chain.role_log_prob, demo, examples)
  word_loss, word_metrics = language.words_loss(reasoner, examples.words, rolegen.config.text)
  tokens = prompt.valid.sum() + demo.tokens.size + word_metrics.pop('tokens', 0)
  return loss + word_loss, metrics | word_metrics | dict(tokens=tokens)


def imitation_loss(
  equations: EquationLoss,
  log_prob_BxT: jax.Array,
  role_log_prob_BxMxR: jax.Array,
  demo: Demonstration,
  examples: Examples,
) -> tuple[jax.Array, Metrics]:
  """Return the loss of imitating the hindsight chain, plus that of the structural equations.

  A label that the constraints rule out, as imported roles may, teaches nothing.
  """
  weight = jnp.where(is_possible(log_prob_BxT), demo.weight, 0.0)
  loss = -jnp.sum(log_prob_BxT * weight) / jnp.maximum(weight.sum(), 1.0)
  labeled = examples.roles >= 0
  correct = (jnp.argmax(role_log_prob_BxMxR, axis=-1) == examples.roles) & labeled
  metrics = dict(
    frcot_nll=loss,
    **{f'{name}_nll': value for name, value in equations._asdict().items()},
    role_accuracy=correct.sum() / jnp.maximum(labeled.sum(), 1),
  )
  return loss + sum(equations), metrics


def reflection_loss(
  rolegen: RoleGen,
  params: Params,
  reference: Params,
  examples: Examples,
  rollout: Rollout,
  worth: Feedback,
  trie: Trie,
  weight: ArrayLike,
) -> tuple[jax.Array, Metrics]:
  """Return `weight` times the policy loss of the rollouts, plus the losses of imitation and words.

  The first two come from one forward pass: a user's demonstration is one more chain beside those of
  the worlds, without an intervention.
  """
  layout, config = rolegen.layout, rolegen.config.loop
  worlds = rollout.tokens.shape[1]
  demo = demonstration(layout, examples, trie.item_codes)
  policy, reference_log_prob = _chain_likelihoods(
    rolegen, params, reference, examples, rollout, demo, trie
  )
  policy_loss, policy_metrics = feedback.policy_loss(
    policy.log_prob[:, :worlds],
    rollout.log_prob,
    reference_log_prob,
    rollout.sampled_mask,
    worth.advantage,
    worth.reward,
    config,
  )
  reasoner = rolegen.bind('reasoner', params)
  prompt = _prompt(layout, examples, trie)
  equations = equation_loss(reasoner, layout, prompt, examples, trie)
  imitation, metrics = imitation_loss(
    equations, policy.log_prob[:, worlds], policy.role_log_prob[:, worlds], demo, examples
  )
  n_sampled = jnp.maximum(rollout.sampled_mask.sum(), 1)
  entropy = jnp.sum(policy.entropy[:, :worlds] * rollout.sampled_mask) / n_sampled
  metrics = policy_metrics | metrics | dict(reflection_loss=policy_loss, entropy=entropy)
  word_loss, word_metrics = language.words_loss(reasoner, examples.words)
  loss = jnp.multiply(weight, policy_loss) + config.imitation * imitation + word_loss
  chains = rollout.tokens.size + demo.tokens.size
  tokens = prompt.valid.sum() + chains + word_metrics.pop('tokens', 0)
  return loss, metrics | word_metrics | dict(tokens=tokens)


def _chain_likelihoods(
  rolegen: RoleGen,
  params: Params,
  reference: Params,
  examples: Examples,
  rollout: Rollout,
  demo: Demonstration,
  trie: Trie,
) -> tuple[Likelihood, jax.Array]:
  """Return likelihoods under the policy and log-probs under the reference.

  The first are [B, W + 1, ...], of the rollouts and then of the demonstration; the second
  [B, W, T], of the rollouts alone.
  """
  layout, config = rolegen.layout, rolegen.config.loop
  users, worlds, length = rollout.tokens.shape
  prompt = _prompt(layout, examples, trie)

  def append(worlds_axis: jax.Array, extra: jax.Array) -> jax.Array:
    return constrain_rows(jnp.concatenate([worlds_axis, extra], axis=1))

  def flatten(tokens: jax.Array) -> jax.Array:
    return constrain_rows(tokens.reshape(-1, length))

  def per_user(x: jax.Array, chains: int) -> jax.Array:
    return x.reshape(users, chains, *x.shape[1:])

  factual = no_interventions(users, 1, layout.config.role_events)
  interventions = jax.tree.map(append, rollout.interventions, factual)
  tokens = append(rollout.tokens, demo.tokens[:, None])
  may_remove = removing(worlds, config.interventions)
  # Rollouts are colder than the distribution that demonstrations fit: a path is a best guess, not
  # a sample of the market.
  temperatures = jnp.array([layout.config.temperature] * worlds + [1.0])
  temperature = constrain_rows(jnp.tile(temperatures, users))
  policy = likelihood(
    rolegen.bind('reasoner', params),
    Tree(layout, worlds + 1, may_remove),
    world_prompts(layout, prompt, interventions),
    flatten(tokens),
    trie,
    temperature,
  )
  fixed = likelihood(
    rolegen.bind('reasoner', jax.lax.stop_gradient(reference)),
    Tree(layout, worlds, may_remove),
    world_prompts(layout, prompt, rollout.interventions),
    flatten(rollout.tokens),
    trie,
  )
  by_user = jax.tree.map(lambda x: per_user(x, worlds + 1), policy)
  return by_user, per_user(fixed.log_prob, worlds)
