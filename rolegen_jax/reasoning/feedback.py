"""Feedback and reflection: what each world's chain was worth, and how the reasoner learns from it.

Shapes: B users, W worlds, P candidates per world, T completion positions, L levels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rolegen_jax.config import LoopConfig


def prefix_share(candidates_BxWxP, target_B, codes_IxL) -> jax.Array:
  """fp32 [B, W, P]: share of leading codes that a candidate has in common with the target; 1 = the item itself."""
  same = (
    jnp.take(codes_IxL, candidates_BxWxP, axis=0)
    == jnp.take(codes_IxL, target_B, axis=0)[:, None, None]
  )
  return jnp.cumprod(same, axis=-1).mean(-1)


def repeats(candidates_BxWxP) -> jax.Array:
  """fp32 [B, W]: share of a path's candidates that repeat an earlier one of the same path (the malformed share)."""
  same = candidates_BxWxP[..., :, None] == candidates_BxWxP[..., None, :]
  return (same & jnp.tril(jnp.ones(same.shape[-2:], bool), -1)).any(-1).mean(-1)


def novelty(candidates_BxWxP) -> jax.Array:
  """fp32 [B, W]: share of a world's candidates that no other world of the user has."""
  w = candidates_BxWxP.shape[1]
  same = candidates_BxWxP[:, :, :, None, None] == candidates_BxWxP[:, None, None]  # [B, W, P, W, P]
  elsewhere = same.any(-1) & ~jnp.eye(w, dtype=bool)[:, None]
  return 1.0 - elsewhere.any(-1).mean(-1)


def jaccard_distance(candidates_BxWxP) -> jax.Array:
  """fp32 [B]: mean over pairs of worlds of 1 - |A and B| / |A or B| of their candidate sets."""
  c, w = candidates_BxWxP, candidates_BxWxP.shape[1]
  repeated = (c[..., :, None] == c[..., None, :]) & jnp.tril(jnp.ones((c.shape[-1],) * 2, bool), -1)
  first = ~repeated.any(-1)
  both = (
    (c[:, :, None, :, None] == c[:, None, :, None, :])
    & first[:, :, None, :, None]
    & first[:, None, :, None, :]
  ).sum((-1, -2))
  size = first.sum(-1)
  distance = 1.0 - both / (size[:, :, None] + size[:, None] - both)
  return distance.sum((1, 2)) / (w * (w - 1))


def rewards(
  candidates_BxWxP, target_B, gain_BxW, codes_IxL, config: LoopConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Reward [B, W] of every world, and the mean of its parts. Gain: log p(y | h, c_w) - log p(y | h), nats, clipped to [-2, 2]."""
  hit = prefix_share(candidates_BxWxP, target_B, codes_IxL).max(-1)
  parts = dict(
    hit=hit,
    gain=jnp.clip(gain_BxW, -2.0, 2.0),
    novelty=novelty(candidates_BxWxP),
    malformed=repeats(candidates_BxWxP),
  )
  reward = config.reward_hit * parts['hit'] + config.reward_gain * parts['gain']
  reward += config.reward_novelty * parts['novelty'] - config.reward_malformed * parts['malformed']
  return jax.lax.stop_gradient(reward), {f'reward_{k}': v.mean() for k, v in parts.items()}


def advantages(reward_BxW) -> jax.Array:
  """Group-relative advantage over a user's worlds; the spread is floored so that near-ties stay small."""
  centred = reward_BxW - reward_BxW.mean(1, keepdims=True)
  return centred / (reward_BxW.std(1, keepdims=True) + 0.1)


def reflection_loss(
  log_prob_BxWxT,
  rollout_log_prob,
  reference_log_prob,
  sampled_mask,
  advantage_BxW,
  reward_BxW,
  config: LoopConfig,
):
  """(loss, metrics) of the reasoner's own rollouts; positions that are not free carry no gradient.

  policy_gradient: clipped ratio objective (PPO, arXiv 1707.06347) on group advantages (GRPO, 2402.03300) plus
  kl * KL(policy || reference) by the low-variance estimator exp(d) - d - 1. weighted: softmax(reward / beta)-weighted
  log-likelihood of the chains.
  """
  sampled_mask = sampled_mask.astype(jnp.float32)
  mean = lambda x: jnp.sum(x * sampled_mask) / jnp.maximum(sampled_mask.sum(), 1.0)
  log_ratio = log_prob_BxWxT - rollout_log_prob
  if config.objective == 'policy_gradient':
    ratio, a = jnp.exp(log_ratio), advantage_BxW[..., None]
    clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    objective, clipped_share = (
      jnp.minimum(ratio * a, clipped * a),
      mean(jnp.abs(ratio - 1.0) > config.clip),
    )
  else:
    weight = jax.nn.softmax(reward_BxW / config.weight_beta, axis=1) * reward_BxW.shape[1]
    objective, clipped_share = weight[..., None] * log_prob_BxWxT, jnp.zeros(())
  d = reference_log_prob - log_prob_BxWxT
  kl = mean(jnp.exp(d) - d - 1.0)
  metrics = dict(kl=kl, clipped_share=clipped_share, logp_difference=mean(jnp.abs(log_ratio)))
  return -mean(objective) + config.kl * kl, metrics
