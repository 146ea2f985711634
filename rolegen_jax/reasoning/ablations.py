"""Ablations of a trained RoleGen that need no training: what is replaced at run time.

They say what the language model is worth, what training the structural equations is worth, and what
each expert is worth. With the first two, the backbone and the weights of its experts stay those of
RoleGen; without an expert, the weights of the others are fitted again.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rolegen_jax.models import functional
from rolegen_jax.models.experts import EXPERTS, OFF
from rolegen_jax.models.functional import Params
from rolegen_jax.models.intent import Intent
from rolegen_jax.models.role_equation import RoleEquation

# (parameters of both models, mesh) -> those of the ablation.
Replacement = Callable[[dict[str, Params], Mesh], dict[str, Params]]
# Parameters of the reasoner through which its language model speaks.
_TABLES = ('tokens', 'tokens_delta', 'readout', 'readout_delta')


def no_language_model(params: dict[str, Params], mesh: Mesh) -> dict[str, Params]:
  """Return both models with the reasoner's token tables zeroed.

  Its logits are then 0: intents, roles and paths are drawn by the structural equations.
  """
  del mesh
  reasoner = dict(params['reasoner'])
  reasoner |= {name: jnp.zeros_like(reasoner[name]) for name in _TABLES if name in reasoner}
  return params | {'reasoner': reasoner}


def counts_only(params: dict[str, Params], mesh: Mesh) -> dict[str, Params]:
  """Return `no_language_model` with the structural equations at their initial constants.

  What is left of the reasoner is counted on training events; nothing of it was trained, and kinds
  of users say nothing. Roles are drawn evenly and do nothing.
  """
  params = no_language_model(params, mesh)
  trained = params['reasoner']['intent']
  codes, levels = len(trained['base']), len(trained['counted_focus'])
  kinds = len(trained['kinds']['prior']) if 'kinds' in trained else 0
  makes = dict(
    intent=lambda rngs: Intent(codes, levels),
    roles=lambda rngs: RoleEquation(codes, kinds, rngs=rngs),
  )
  initial = {
    name: functional.init(make, jax.random.key(0), mesh)[1] for name, make in makes.items()
  }
  initial['intent'] = trained | initial['intent']  # kinds of users stay where they are
  initial['intent']['role_gain'] = jnp.zeros_like(initial['intent']['role_gain'])
  if 'pooled' in trained:
    initial['intent']['pooled'] = jnp.zeros_like(trained['pooled']).at[0].set(1.0)
  return params | {'reasoner': params['reasoner'] | initial}


def without(expert: str) -> Replacement:
  """Return what leaves an expert out of both models: it neither finds items nor scores them."""

  def replace(params: dict[str, Params], mesh: Mesh) -> dict[str, Params]:
    del mesh
    experts = params['backbone']['experts']
    log_weight = jnp.asarray(experts['log_weight']).at[EXPERTS.index(expert)].set(OFF)
    backbone = params['backbone'] | {'experts': experts | {'log_weight': log_weight}}
    return params | {'backbone': backbone}

  return replace


REPLACEMENTS: dict[str, Replacement] = dict(  # of `config.AT_RUN_TIME`
  no_language_model=no_language_model, counts_only=counts_only
)
