import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import LoopConfig
from rolegen_jax.reasoning import feedback as lib
from rolegen_jax.runtime.compile import jit

CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]], np.int32)
CANDIDATES = jnp.array([[[0, 1], [2, 3], [1, 1]]])  # one user, three worlds of two candidates


def test_prefix_share_counts_leading_codes():
  share = jit(lib.prefix_share)(CANDIDATES, jnp.array([1]), CODES)
  np.testing.assert_allclose(share, [[[2 / 3, 1], [1 / 3, 0], [1, 1]]], rtol=1e-6)


def test_repeats_are_within_a_path():
  assert jit(lib.repeats)(CANDIDATES).tolist() == [[0, 0, 0.5]]
  assert jit(lib.repeats)(jnp.array([[[5, 5, 5, 7]]])).tolist() == [[0.5]]


def test_credit_is_what_a_world_adds_to_the_union():
  """One world alone has the best hit; two share it; all miss."""
  hit = jnp.array([[2.0, 0.5, 0.25], [0.5, 2.0, 2.0], [0.0, 0.0, 0.0]])
  expected = [[1.5, 0, 0], [0, 0, 0], [0, 0, 0]]
  assert jit(lib.marginal_hits)(hit).tolist() == expected
  for w in range(3):  # against the definition
    others = np.delete(np.asarray(hit), w, axis=1).max(1)
    np.testing.assert_allclose(hit.max(1) - others, np.array(expected)[:, w])


def test_jaccard_distance_is_between_sets():
  jaccard_distance = jit(lib.jaccard_distance)
  # {0,1} {2,3}: 1; {0,1} {1}: 1 - 1/2; {2,3} {1}: 1
  assert float(jaccard_distance(CANDIDATES)[0]) == pytest.approx((1 + 0.5 + 1) / 3)
  assert float(jaccard_distance(jnp.array([[[1, 2], [2, 1], [1, 2]]]))[0]) == 0
  assert float(jaccard_distance(jnp.array([[[1, 1], [2, 2]]]))[0]) == 1


def test_reward_is_the_weighted_sum_of_its_parts():
  config = LoopConfig(reward_hit=1.0, reward_gain=0.5, reward_malformed=2.0)
  gain = jnp.array([[0.4, -1.0, 30.0]])
  rewards = jit(functools.partial(lib.rewards, config=config))
  # Item 2 is in world 1 alone, items 0 and 1 are near it. A gain of 30 nats is clipped to 2.
  reward, metrics = rewards(CANDIDATES, jnp.array([2]), gain, CODES)
  expected = [0.2, 2 - 1 / 3 - 0.5, 0.5 * 2 - 2.0 * 0.5]
  np.testing.assert_allclose(reward[0], expected, rtol=1e-5)
  assert float(metrics['reward_gain']) == pytest.approx((0.4 - 1 + 2) / 3)
  assert float(metrics['union_hit']) == 1 and float(metrics['union_share']) == 1
  # Worlds 0 and 2 both have item 1: neither adds anything.
  reward, _ = rewards(CANDIDATES, jnp.array([1]), 0 * gain, CODES)
  np.testing.assert_allclose(reward[0], [0, 0, -1], atol=1e-6)


def advantages(reward, kinds) -> np.ndarray:
  return np.array(jit(functools.partial(lib.advantages, kinds=kinds))(jnp.array(reward)))


def test_advantages_are_relative_to_the_users_worlds():
  # No kind of world is better than another over the batch.
  rewards = [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [10.0, 10.0, 10.0], [0.0, 1e-3, 0.0]]
  advantage = advantages(rewards, ['intent', 'role'])
  np.testing.assert_allclose(advantage.mean(1), 0.0, atol=1e-5)
  assert (np.diff(advantage[0]) > 0).all() and (np.diff(advantage[1]) < 0).all()
  assert np.abs(advantage[2:]).max() < 0.01  # ties and near-ties stay small


def test_what_an_intervention_does_by_itself_is_no_advantage():
  """Rewards are a user's level plus 5 for any world of kind `intent`, and a merit of one chain."""
  level, merit = np.array([[0.0], [3.0], [-2.0]]), np.zeros((3, 4))
  kinds = ['intent', 'intent', 'role']
  by_itself = np.array([0.0, 5.0, 5.0, 1.0])
  np.testing.assert_allclose(advantages(level + by_itself, kinds), 0.0, atol=1e-6)
  merit[1, 2] = 1.0
  advantage = advantages(level + by_itself + merit, kinds)
  assert advantage.argmax() == 1 * 4 + 2 and advantage[1, 2] > 1
  assert advantage[0, 2] < 0  # the same kind of world, without the merit


B, W, T = 2, 3, 4
REWARD = jnp.array([[1.0, 0.0, 0.2], [0.0, 0.0, 1.0]])
EVERYWHERE = jnp.ones((B, W, T), bool)


def make_loss(objective: str, sampled_mask=EVERYWHERE, advantage=None, reference=None, **changes):
  """(log-probs -> (loss, metrics), gradient of the loss, the rollout's log-probs)."""
  config = dataclasses.replace(LoopConfig(), objective=objective, **changes)
  rollout = -1.0 - jax.random.uniform(jax.random.key(0), (B, W, T))
  advantage = advantages(REWARD, ['intent', 'intent']) if advantage is None else advantage
  reference = rollout if reference is None else reference

  def loss(log_prob):
    return lib.policy_loss(log_prob, rollout, reference, sampled_mask, advantage, REWARD, config)

  @jit
  def gradient(log_prob):
    return jax.grad(lambda x: loss(x)[0])(log_prob)

  return jit(loss), lambda log_prob: np.array(gradient(log_prob)), rollout


@pytest.mark.parametrize('objective', ['reinforce', 'weighted'])
def test_the_better_worlds_become_likelier(objective):
  _, gradient, rollout = make_loss(objective)
  push = -gradient(rollout)
  assert push[0, 0].min() > max(push[0, 1].max(), push[0, 2].max())
  assert push[1, 2].min() > push[1, :2].max()
  if objective == 'reinforce':
    assert (push[0, 0] > 0).all() and (push[0, 1] < 0).all()  # the worse world is pushed down
  else:
    assert (push > 0).all()  # a weighted likelihood only raises


@pytest.mark.parametrize('objective', ['reinforce', 'weighted'])
def test_forced_positions_carry_no_gradient_and_no_loss(objective):
  mask = EVERYWHERE.at[:, 1, 2].set(False)
  reference = jnp.full((B, W, T), -3.0)
  loss, gradient, rollout = make_loss(objective, sampled_mask=mask, reference=reference)
  at_rollout = gradient(rollout)
  assert (at_rollout[:, 1, 2] == 0).all() and (at_rollout[np.array(mask)] != 0).all()
  assert float(loss(rollout)[0]) == float(loss(rollout.at[:, 1, 2].set(-50.0))[0])


def test_the_reference_pulls_back():
  reference = jnp.full((B, W, T), -1.5)
  loss, gradient, _ = make_loss(
    'reinforce', advantage=jnp.zeros((B, W)), reference=reference, kl=1.0
  )
  value, metrics = loss(reference)
  assert float(value) == pytest.approx(0.0, abs=1e-6)
  assert float(metrics['kl']) == pytest.approx(0.0, abs=1e-6)
  assert (gradient(jnp.full((B, W, T), -1.0)) > 0).all()
  assert (gradient(jnp.full((B, W, T), -2.0)) < 0).all()


def test_metrics_of_an_unchanged_policy():
  loss, _, rollout = make_loss('reinforce')
  metrics = {name: float(value) for name, value in loss(rollout)[1].items()}
  assert metrics == dict(kl=0.0, logp_difference=0.0)


def test_without_sampled_positions_there_is_no_loss():
  loss, gradient, rollout = make_loss('weighted', sampled_mask=~EVERYWHERE)
  assert float(loss(rollout)[0]) == 0.0 and not gradient(rollout).any()
