"""Ablations at run time: what is left when the language model, or all training, is taken out."""

import jax
import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig
from rolegen_jax.models import intent
from rolegen_jax.reasoning.ablations import counts_only, no_language_model
from rolegen_jax.runtime.compile import jit
from tests import tiny
from tests.reasoning import chains


@pytest.fixture(scope='module')
def params() -> dict:
  return {name: tiny.params(name) for name in ('backbone', 'reasoner')}


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(MeshConfig())


def test_no_language_model_leaves_the_equations_and_uniform_roles(params, mesh):
  ablated = no_language_model(params, mesh)
  jax.tree.map(np.testing.assert_array_equal, ablated['backbone'], params['backbone'])
  equations = ablated['reasoner']['intent']
  jax.tree.map(np.testing.assert_array_equal, equations, params['reasoner']['intent'])
  logits = jit(lambda p, hidden: tiny.rolegen().bind('reasoner', p).logits(hidden, 0, tiny.CODES))
  hidden = np.ones((3, 32), np.float32)
  assert (logits(params['reasoner'], hidden) != 0).any()
  assert (logits(ablated['reasoner'], hidden) == 0).all()
  sample = chains.sampler()
  arguments = tiny.examples(1), tiny.trie(), jax.random.key(0), True, 1.0
  rollout = jax.device_get(sample(ablated['reasoner'], *arguments))
  roles = rollout.log_prob[..., : rollout.roles.shape[2]][
    rollout.sampled_mask[..., : rollout.roles.shape[2]]
  ]
  # CONVERT is alone at purchases, the other roles are alike elsewhere.
  assert set(np.round(np.unique(roles), 4)) <= {0.0, np.float32(np.round(-np.log(7), 4))}


def test_counts_only_has_the_initial_constants(params, mesh):
  ablated = counts_only(params, mesh)
  equation = ablated['reasoner']['intent']
  assert set(equation) == set(params['reasoner']['intent'])
  np.testing.assert_allclose(equation['focus'], [intent.FOCUS])
  np.testing.assert_allclose(equation['counted_focus'], [intent.COUNTED_FOCUS] * 2)
  np.testing.assert_allclose(np.exp(equation['strength']), [intent.OPENS, intent.DRAWS, 1.2], 1e-6)
  assert not ablated['reasoner']['tokens'].any() and params['reasoner']['tokens'].any()
