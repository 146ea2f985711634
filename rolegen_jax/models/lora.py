"""What of the reasoner trains, and low-rank adapters (LoRA, Hu et al., arXiv 2106.09685).

`reasoner.train` = all: everything. frozen: the rows of our tokens, as what is added to those of the tables (`tokens_delta`), and the
equation of intent. lora: these, and adapters: a projection then computes x W + alpha / rank * (x A) B. Everything that is added starts
at zero, so the first step meets the base bit for bit, and weight decay pulls towards the base.

Parameters are told apart by name: adapters are NAME_lora beside the weight NAME, rows NAME_delta beside the table NAME.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import LoraConfig
from rolegen_jax.models.transformer import Block, gather_fsdp, param


class Lora(nnx.Module):
  """What an adapter adds to a weight whose first `inputs` dimensions are summed over."""

  def __init__(self, weight: nnx.Param, inputs: int, config: LoraConfig, *, rngs: nnx.Rngs):
    shape, axes = weight.get_value().shape, weight.get_metadata()['axes']
    self.inputs, self.scale = inputs, scale(config)
    self.a = param(
      rngs,
      (*shape[:inputs], config.rank),
      (*axes[:inputs], 'rank'),
      fan_in=math.prod(shape[:inputs]),
    )
    self.b = nnx.Param(
      jnp.zeros((config.rank, *shape[inputs:]), jnp.float32), axes=('rank', *axes[inputs:])
    )

  def __call__(self, x):
    narrow = jnp.tensordot(x, gather_fsdp(self.a, x.dtype), self.inputs)
    return self.scale * jnp.tensordot(narrow, gather_fsdp(self.b, x.dtype), 1)


def scale(config: LoraConfig) -> float:
  return config.alpha / config.rank


def adapt(block: Block, config: LoraConfig, *, rngs: nnx.Rngs) -> Block:
  """A layer with adapters. They are drawn after its weights, which so are those of a layer without."""
  for name in config.targets:
    layer = block.attention if hasattr(block.attention, name) else block.mlp
    setattr(
      layer, f'{name}_lora', Lora(getattr(layer, name), 2 if name == 'wo' else 1, config, rngs=rngs)
    )
  return block


def added(path: tuple[str, ...]) -> bool:
  """Whether a parameter of the reasoner, by its names, is an adapter or the rows of our tokens."""
  return any(name.endswith(('_lora', '_delta')) for name in path)


def trains(path: tuple[str, ...]) -> bool:
  """Whether it trains where the base is frozen."""
  return added(path) or path[0] == 'intent'


def frozen(path: tuple[str, ...]) -> bool:
  return not trains(path)
