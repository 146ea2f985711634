"""The switches of pretrained families inside our own programs: what a rollout samples token by token is what one pass over all worlds says."""

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

GEMMA = (
  'layer_pattern=LG',
  'window=9',
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


def test_rollouts_and_likelihoods_agree_in_layers_with_windows():
  rolegen = tiny.rolegen(*(f'reasoner.transformer.{switch}' for switch in GEMMA))
  params, examples, trie, loop = (
    tiny.random_params(rolegen.model_fns['reasoner']),
    tiny.examples(),
    tiny.trie(),
    rolegen.config.loop,
  )
  tree = Tree(rolegen.layout, tiny.WORLDS, removing(tiny.WORLDS, loop.interventions))
  assert tree.layout.prompt_length > 9 and 'readout' in params

  @jit
  def both(params, examples, trie, key):
    rollout = rolegen.rollout(params, examples, trie, key)
    prompt = build_prompt(
      rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
    )
    prompts = world_prompts(rolegen.layout, prompt, rollout.interventions)
    flat = rollout.tokens.reshape(-1, rollout.tokens.shape[-1])
    return rollout, likelihood(rolegen.bind('reasoner', params), tree, prompts, flat, trie).log_prob

  rollout, found = jax.device_get(both(params, examples, trie, jax.random.key(0)))
  assert rollout.interventions.removed.any() and rollout.log_prob.min() < -1
  np.testing.assert_allclose(
    np.where(rollout.free, found.reshape(rollout.log_prob.shape), 0.0), rollout.log_prob, atol=1e-4
  )


@pytest.mark.parametrize('forks', [0, 2])
def test_a_window_over_a_trunk_and_its_branches(forks):
  a, z, shared, window = 30, 12, 10, 7
  positions = np.concatenate([np.arange(a), np.tile(np.arange(shared, shared + z), forks)])
  segment = jnp.asarray(np.arange(len(positions))[None] >= np.array([[0], [3]]), jnp.int32)
  mask = lib.Branched(np.tri(a, dtype=bool), np.tri(z, dtype=bool), shared, segment)
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, len(positions), 2, 8))
  dense = np.zeros((len(positions),) * 2, bool)
  dense[:a, :a] = np.tri(a)
  for start in range(a, len(dense), z):
    dense[start : start + z, :shared], dense[start : start + z, start : start + z] = True, np.tri(z)
  dense &= positions[:, None] - positions[None] < window
  seen = jnp.asarray(dense) & (segment[:, :, None] == segment[:, None])
  found = lib.attend(q, k, v, lib.windowed(mask, positions, 0, window))
  np.testing.assert_allclose(found, lib.attend(q, k, v, seen), atol=1e-6)
  assert np.abs(found - lib.attend(q, k, v, mask)).max() > 0.1
  assert (
    lib.windowed(mask, positions, 0, a) is mask
  )  # a window that reaches everything changes nothing


def test_windows_of_masks_known_beforehand_and_of_those_that_are_not():
  segment = jnp.ones((2, 6), jnp.int32)
  positions, known = (
    np.arange(4, 10),
    lib.Seen(np.tri(6, 10, 4, dtype=bool), segment, jnp.ones((2, 10), jnp.int32)),
  )
  narrow = lib.windowed(known, positions, 4, 3)
  assert isinstance(narrow, lib.Seen) and (narrow.pattern.sum(axis=1) == 3).all()
  traced = lib.windowed(known, jnp.broadcast_to(positions, (2, 6)), 4, 3)
  np.testing.assert_array_equal(traced, narrow.dense())
