"""A state that goes on from an earlier one: moments are taken, schedules begin anew."""

import jax
import numpy as np
import optax

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig, OptimizerConfig
from rolegen_jax.training import state as states
from tests import tiny


def adam(opt):
  parts = jax.tree.leaves(opt, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
  return next(x for x in parts if isinstance(x, optax.ScaleByAdamState))


def test_moments_are_taken_and_the_schedule_begins_anew():
  mesh = sharding.make_mesh(MeshConfig())
  model_fns = {'reasoner': tiny.rolegen().model_fns['reasoner']}
  optimizers = {'reasoner': states.optimizer(OptimizerConfig(), 100)}
  shapes = states.abstract(model_fns, optimizers, mesh).opt['reasoner']
  earlier = jax.tree.map(lambda x: np.full(x.shape, 3, x.dtype), shapes)
  params = {'reasoner': tiny.params('reasoner')}
  with jax.set_mesh(mesh):
    state = states.create(
      model_fns, optimizers, mesh, jax.random.key(0), params, {'reasoner': earlier}
    )
  taken = adam(state.opt['reasoner'])
  assert all((np.asarray(x) == 3).all() for x in jax.tree.leaves(taken))
  others = jax.tree.leaves(state.opt['reasoner'], is_leaf=lambda x: x is taken)
  schedules = [x for x in others if x is not taken]
  assert schedules and all((np.asarray(x) == 0).all() for x in schedules)
  assert int(state.step) == 0
