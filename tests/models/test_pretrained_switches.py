"""The switches of pretrained families inside our own programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.models import attention as lib
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.likelihood import likelihood
from rolegen_jax.reasoning.worlds import Tree, removing, world_prompts
from rolegen_jax.runtime.compile import jit
from tests import tiny

WINDOW = 9
GEMMA = (
  'layer_pattern=LG',
  f'window={WINDOW}',
  'local_rope_theta=50.0',
  'rope_scaling.kind=linear',
  'rope_scaling.factor=4',
  'qk_norm=true',
  'post_norms=true',
  'norm_offset=1',
  'activation=gelu_tanh',
  'attention_scale=0.4',
  'embedding_scale=5.6',
  'tied=false',
  'logit_softcap=8',
)


@pytest.mark.slow  # those below hold the windows themselves
def test_rollouts_and_likelihoods_agree_in_layers_with_windows():
  """What a rollout samples token by token is what one pass over all worlds scores."""
  rolegen = tiny.rolegen(*(f'reasoner.transformer.{switch}' for switch in GEMMA))
  params = tiny.random_params(rolegen.model_fns['reasoner'])
  interventions = rolegen.config.loop.interventions
  tree = Tree(rolegen.layout, tiny.WORLDS, removing(tiny.WORLDS, interventions))
  assert tree.layout.prompt_length > WINDOW and 'readout' in params

  @jit
  def sample_and_score(params, examples, trie, key):
    keys = jax.random.split(key, len(examples.target))
    rollout = rolegen.rollout(params, examples, trie, keys)
    prompt = build_prompt(
      rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
    )
    prompts = world_prompts(rolegen.layout, prompt, rollout.interventions)
    tokens = rollout.tokens.reshape(-1, rolegen.layout.length)
    reasoner = rolegen.bind('reasoner', params)
    return rollout, likelihood(reasoner, tree, prompts, tokens, trie).log_prob

  rollout, log_prob = jax.device_get(
    sample_and_score(params, tiny.examples(), tiny.trie(), jax.random.key(0))
  )
  assert rollout.interventions.removed.any() and rollout.log_prob.min() < -1
  log_prob = np.where(rollout.sampled_mask, log_prob.reshape(rollout.log_prob.shape), 0.0)
  np.testing.assert_allclose(log_prob, rollout.log_prob, atol=1e-4)


@pytest.mark.parametrize('forks', [0, 2])
def test_a_window_over_a_trunk_and_its_branches(forks):
  a, z, shared, window = 30, 12, 10, 7
  positions = np.concatenate([np.arange(a), np.tile(np.arange(shared, shared + z), forks)])
  segment = jnp.asarray(np.arange(len(positions))[None] >= np.array([[0], [3]]), jnp.int32)
  mask = lib.BranchedMask(np.tri(a, dtype=bool), np.tri(z, dtype=bool), shared, segment)
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, len(positions), 2, 8))
  dense = np.zeros((len(positions),) * 2, bool)
  dense[:a, :a] = np.tri(a)
  for start in range(a, len(dense), z):
    branch = slice(start, start + z)
    dense[branch, :shared], dense[branch, branch] = True, np.tri(z)
  dense &= positions[:, None] - positions[None] < window
  expected_mask = jnp.asarray(dense) & (segment[:, :, None] == segment[:, None])

  @jit
  def attend_by_each_mask(q, k, v):
    masks = lib.windowed(mask, positions, 0, window), expected_mask, mask
    return [lib.attend(q, k, v, m) for m in masks]

  attended, expected, without_window = jax.device_get(attend_by_each_mask(q, k, v))
  np.testing.assert_allclose(attended, expected, atol=1e-6)
  assert np.abs(attended - without_window).max() > 0.1
  assert lib.windowed(mask, positions, 0, a) is mask  # a window over everything changes nothing


def test_windows_at_static_and_at_traced_positions():
  segment, before = jnp.ones((2, 6), jnp.int32), 4
  positions = np.arange(before, before + 6)
  pattern = np.tri(6, before + 6, before, dtype=bool)
  mask = lib.SegmentMask(pattern, segment, jnp.ones((2, before + 6), jnp.int32))
  static = lib.windowed(mask, positions, before, window=3)
  assert isinstance(static, lib.SegmentMask) and (static.pattern.sum(axis=1) == 3).all()
  traced = lib.windowed(mask, jnp.broadcast_to(positions, (2, 6)), before, window=3)
  np.testing.assert_array_equal(traced, static.dense())
