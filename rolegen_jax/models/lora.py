"""Which parameters of the reasoner train, and low-rank adapters.

Adapters are LoRA's (Hu et al., arXiv 2106.09685). The setting `reasoner.train` says what trains:

  all     everything
  frozen  the rows of our own tokens, as increments of the tables' rows (`tokens_delta`), and the
          structural equations
  lora    these, and adapters: a projection then computes x W + alpha / rank * (x A) B

All that is added starts at zero, so the first step computes what the base does, bit for bit, and
weight decay pulls towards the base. Parameters are told apart by name: the adapter of a weight NAME
is NAME_lora, the increments of a table NAME are NAME_delta.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import LoraConfig
from rolegen_jax.models.functional import Path
from rolegen_jax.models.intent import EQUATIONS
from rolegen_jax.models.layers import gather_fsdp, param
from rolegen_jax.models.transformer import Block


class Lora(nnx.Module):
  """What an adapter adds to the product with a weight that sums over its first `inputs` axes."""

  def __init__(self, weight: nnx.Param, inputs: int, config: LoraConfig, *, rngs: nnx.Rngs):
    shape, axes = weight.get_value().shape, weight.get_metadata()['axes']
    self.inputs, self.scale = inputs, scale(config)
    self.a = param(
      rngs,
      (*shape[:inputs], config.rank),
      (*axes[:inputs], 'rank'),
      fan_in=math.prod(shape[:inputs]),
    )
    b = jnp.zeros((config.rank, *shape[inputs:]), jnp.float32)
    self.b = nnx.Param(b, axes=('rank', *axes[inputs:]))

  def __call__(self, x: jax.Array) -> jax.Array:
    low_rank = jnp.tensordot(x, gather_fsdp(self.a, x.dtype), self.inputs)
    return self.scale * jnp.tensordot(low_rank, gather_fsdp(self.b, x.dtype), 1)


def scale(config: LoraConfig) -> float:
  """Return the factor of what an adapter adds."""
  return config.alpha / config.rank


def adapt(block: Block, config: LoraConfig, *, rngs: nnx.Rngs) -> Block:
  """Add adapters to a layer.

  They are drawn after the layer's weights, which therefore are those of a layer without adapters.
  """
  for name in config.targets:
    layer = block.attention if hasattr(block.attention, name) else block.mlp
    inputs = 2 if name == 'wo' else 1  # wo sums over heads and head_dim
    setattr(layer, f'{name}_lora', Lora(getattr(layer, name), inputs, config, rngs=rngs))
  return block


def is_added(path: Path) -> bool:
  """Return whether a parameter of the reasoner is an adapter's or an increment of a table."""
  return any(name.endswith(('_lora', '_delta')) for name in path)


def trains(path: Path) -> bool:
  """Return whether a parameter of the reasoner trains where the base is frozen."""
  return is_added(path) or path[0] in EQUATIONS


def frozen(path: Path) -> bool:
  """Return whether a parameter of the reasoner belongs to the frozen base."""
  return not trains(path)
