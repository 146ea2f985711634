"""Rollouts of the tiny reasoner and their likelihoods, compiled once for all tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.reasoning import frcot
from rolegen_jax.reasoning.likelihood import likelihood
from rolegen_jax.reasoning.rollout import Rollout
from rolegen_jax.reasoning.worlds import Tree, world_prompts
from rolegen_jax.runtime.compile import jit
from tests import tiny


@functools.cache
def sampler(*settings: str):

  @jit
  def sample(params, examples, trie, key, intervene, noise):
    keys = jax.random.split(key, len(examples.target))
    return tiny.rolegen(*settings).rollout(params, examples, trie, keys, intervene, noise)

  return sample


def rollout(
  examples,
  key: int = 0,
  intervene: bool = True,
  noise: float = 1.0,
  trie=None,
  settings: tuple[str, ...] = (),
) -> Rollout:
  """A rollout on the host."""
  trie = tiny.trie() if trie is None else trie
  sample, params = sampler(*settings), tiny.params('reasoner')
  return jax.device_get(sample(params, examples, trie, jax.random.key(key), intervene, noise))


@functools.cache
def teacher(*settings: str):
  rolegen = tiny.rolegen(*settings)

  @jit
  def score(params, examples, rollout, trie):
    prompt = frcot.build_prompt(
      rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
    )
    prompts = world_prompts(rolegen.layout, prompt, rollout.interventions)
    tokens = jnp.reshape(rollout.tokens, (-1, rolegen.layout.length))
    reasoner = rolegen.bind('reasoner', params)
    return likelihood(reasoner, Tree(rolegen.layout), prompts, tokens, trie)

  return score


def likelihoods(examples, rollout: Rollout, settings: tuple[str, ...] = ()):
  """(log-probs [B, W, T], 0 where nothing was sampled, and log-probs of roles [B, W, M, roles])."""
  scores = teacher(*settings)(tiny.params('reasoner'), examples, rollout, tiny.trie())
  log_prob = np.array(scores.log_prob).reshape(rollout.log_prob.shape)
  roles = np.array(scores.role_log_prob)
  roles = roles.reshape(*rollout.roles.shape, roles.shape[-1])
  return np.where(rollout.sampled_mask, log_prob, 0.0), roles
