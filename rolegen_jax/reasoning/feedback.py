"""Feedback and reflection: what each world's chain was worth, and how the reasoner learns from it.

Shapes: B users, W worlds, P candidates per world, T completion length, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rolegen_jax.config import LoopConfig


class Feedback(NamedTuple):
  """What each world's rollout was worth; constants of the policy loss."""

  reward: jax.Array  # fp32 [B, W]
  advantage: jax.Array  # fp32 [B, W], relative to the other worlds of the user


def prefix_share(
  candidates_BxWxP: jax.Array, target_B: jax.Array, codes_IxL: ArrayLike
) -> jax.Array:
  """Return the share of leading codes that candidates have in common with the target, [B, W, P].

  1 is the target itself.
  """
  candidate_codes = jnp.take(codes_IxL, candidates_BxWxP, axis=0)
  target_codes = jnp.take(codes_IxL, target_B, axis=0)[:, None, None]
  return jnp.cumprod(candidate_codes == target_codes, axis=-1).mean(-1)


def repeats(candidates_BxWxP: jax.Array) -> jax.Array:
  """Return the malformed share of each path, fp32 [B, W].

  A candidate is malformed when it repeats an earlier one of the same path.
  """
  return _repeats_earlier(candidates_BxWxP).mean(-1)


def _repeats_earlier(candidates: jax.Array) -> jax.Array:
  """Return which candidates [..., P] repeat an earlier one of the same path."""
  same = candidates[..., :, None] == candidates[..., None, :]
  return (same & jnp.tril(jnp.ones(same.shape[-2:], bool), -1)).any(-1)


def marginal_hits(hit_BxW: jax.Array) -> jax.Array:
  """Return what each world adds to the best hit of all worlds of its user, fp32 [B, W].

  It is the hit of the union less that of the union without it: a world whose hit another one has as
  well adds nothing.
  """
  best = jax.lax.top_k(hit_BxW, 2)[0]
  is_best = hit_BxW == best[:, :1]
  return jnp.where(is_best, best[:, :1] - best[:, 1:], 0.0)


def jaccard_distance(candidates_BxWxP: jax.Array) -> jax.Array:
  """Return the mean over pairs of worlds of 1 - |A & B| / |A | B| of candidate sets, fp32 [B]."""
  c, worlds = candidates_BxWxP, candidates_BxWxP.shape[1]
  is_first = ~_repeats_earlier(c)  # of its path: a set has it once
  same = c[:, :, None, :, None] == c[:, None, :, None, :]
  both = same & is_first[:, :, None, :, None] & is_first[:, None, :, None, :]
  n_both = both.sum((-1, -2))
  size = is_first.sum(-1)
  distance = 1.0 - n_both / (size[:, :, None] + size[:, None] - n_both)
  return distance.sum((1, 2)) / (worlds * (worlds - 1))


def rewards(
  candidates_BxWxP: jax.Array,
  target_B: jax.Array,
  gain_BxW: jax.Array,
  codes_IxL: ArrayLike,
  config: LoopConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Return the reward [B, W] of every world, and the means of its parts.

  Hits are the share of leading codes in common with the target, plus 1 for the target itself; what
  counts is what a world adds to those of the others. The gain, in nats, is that of
  `losses.execution_gain`; it is clipped to [-2, 2].
  """
  share = prefix_share(candidates_BxWxP, target_B, codes_IxL).max(-1)
  hit = share + (share == 1.0)
  parts = dict(
    hit=marginal_hits(hit),
    gain=jnp.clip(gain_BxW, -2.0, 2.0),
    malformed=repeats(candidates_BxWxP),
  )
  reward = config.reward_hit * parts['hit'] + config.reward_gain * parts['gain']
  reward -= config.reward_malformed * parts['malformed']
  metrics = {f'reward_{name}': part.mean() for name, part in parts.items()}
  metrics |= dict(union_hit=(share == 1.0).any(1).mean(), union_share=share.max(1).mean())
  return jax.lax.stop_gradient(reward), metrics


def advantages(reward_BxW: jax.Array, kinds: Sequence[str]) -> jax.Array:
  """Return the advantage of every world, fp32 [B, W]: what its own tokens may be paid for.

  Neither that a user is easy to predict nor what an intervention does by itself is to a chain's
  credit. So the baseline of a world is the user's mean plus what worlds of its kind get above the
  users' means over the batch. `kinds` are those of worlds 1 .. W - 1. The advantage is divided by
  its standard deviation within the user, plus a constant that keeps near-ties small.
  """
  kind_of = np.array(['factual', *kinds])
  relative = reward_BxW - reward_BxW.mean(1, keepdims=True)
  same_kind_WxW = (kind_of[:, None] == kind_of).astype(np.float32)
  of_kind_W = relative.mean(0) @ (same_kind_WxW / same_kind_WxW.sum(0))
  advantage = relative - of_kind_W
  return advantage / (advantage.std(1, keepdims=True) + 0.1)


def policy_loss(
  log_prob_BxWxT: jax.Array,
  rollout_log_prob_BxWxT: jax.Array,
  reference_log_prob_BxWxT: jax.Array,
  sampled_mask_BxWxT: jax.Array,
  advantage_BxW: jax.Array,
  reward_BxW: jax.Array,
  config: LoopConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Return the loss of the reasoner's own rollouts plus kl * KL(policy || reference), and metrics.

  The objective `reinforce` is the likelihood of the chains weighted by their advantages (Williams,
  1992; the baseline is that of `advantages`). A rollout is used for one update by the parameters
  that made it, so there is no ratio to clip. `weighted` is the likelihood weighted by the softmax
  of reward / weight_beta. The KL divergence is estimated by exp(d) - d - 1, which has low variance.
  Positions that were not sampled carry no gradient.
  """
  sampled = sampled_mask_BxWxT.astype(jnp.float32)

  def mean(x: jax.Array) -> jax.Array:
    return jnp.sum(x * sampled) / jnp.maximum(sampled.sum(), 1.0)

  if config.objective == 'reinforce':
    weight_BxW = advantage_BxW
  else:
    weight_BxW = jax.nn.softmax(reward_BxW / config.weight_beta, axis=1) * reward_BxW.shape[1]
  loss = -mean(weight_BxW[..., None] * log_prob_BxWxT)
  difference = reference_log_prob_BxWxT - log_prob_BxWxT
  kl = mean(jnp.exp(difference) - difference - 1.0)
  # Rollout and update must agree on log p: both are by the same parameters.
  disagreement = mean(jnp.abs(log_prob_BxWxT - rollout_log_prob_BxWxT))
  return loss + config.kl * kl, dict(kl=kl, logp_difference=disagreement)
