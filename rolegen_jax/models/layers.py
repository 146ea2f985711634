"""The parts of a transformer layer: parameters, norms, rotary positions, attention and MLP.

Parameters are fp32; norms and softmax are computed in fp32, the rest in the type of the
activations. Switches of the config make the parts those of a pretrained family.

Shapes: B batch, T query positions, S memory positions, D width, H query heads, K key/value heads,
X head width, F MLP width.
Sources: RMSNorm arXiv 1910.07467, RoPE 2104.09864, GQA 2305.13245, SwiGLU 2002.05202.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from rolegen_jax.config import RopeScaling, TransformerConfig
from rolegen_jax.models.attention import KeyValues, Mask, attend
from rolegen_jax.sharding import constrain

Axes = tuple[str | None, ...]  # a logical axis of `sharding.TRAIN` for each dimension

GATES: dict[str, Callable[[jax.Array], jax.Array]] = {
  'silu': jax.nn.silu,
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
}


def param(
  rngs: nnx.Rngs,
  shape: tuple[int, ...],
  axes: Axes,
  fan_in: int | None = None,
  scale: float = 1.0,
) -> nnx.Param:
  """Draw a truncated-normal parameter of std scale / sqrt(fan_in), with its logical axes.

  `fan_in` defaults to the first dimension.
  """
  std = scale / (fan_in or shape[0]) ** 0.5
  value = std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32)
  return nnx.Param(value, axes=axes)


def gather_fsdp(parameter: nnx.Param, dtype: DTypeLike) -> jax.Array:
  """Return a weight as a layer uses it: cast, then gathered over fsdp but still split over tensor.

  The layout is stated because the partitioner, left to itself, sometimes gathers the activations
  of the whole batch instead.
  """
  axes = (None if a == 'embed' else a for a in parameter.get_metadata()['axes'])
  return constrain(parameter[...].astype(dtype), *axes)


def gather_replicated(parameter: nnx.Param, dtype: DTypeLike) -> jax.Array:
  """Return a table as lookups and slices use it: cast, then gathered whole, so they stay local.

  Rows split over tensor would cost a reduction of the looked-up activations, or their replication.
  The price is vocabulary x width numbers of scratch: 2 MB for a thousand tokens, 300 MB for a
  pretrained 150,000 x 1024 in bfloat16.
  """
  value = parameter[...]
  return constrain(value.astype(dtype), *(None,) * value.ndim)


def adapted(layer: nnx.Module, name: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """Add to `y`, the product of `x` and the layer's weight `name`, what its adapter adds.

  A weight without an adapter (`lora.py`) leaves `y` as it is.
  """
  adapter = getattr(layer, f'{name}_lora', None)
  return y if adapter is None else y + adapter(x)


class RMSNorm(nnx.Module):
  """Root-mean-square norm over the last axis, computed in fp32."""

  def __init__(self, width: int, epsilon: float = 1e-6, offset: float = 0.0):
    self.epsilon, self.offset = epsilon, offset
    self.scale = nnx.Param(jnp.full((width,), 1.0 - offset, jnp.float32), axes=(None,))

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
    scale = self.offset + self.scale[...] if self.offset else self.scale[...]
    return (normed * scale).astype(x.dtype)


def norm(config: TransformerConfig, width: int | None = None) -> RMSNorm:
  """Build the norm of a family, over the residual stream unless `width` says otherwise."""
  return RMSNorm(width or config.width, config.norm_epsilon, config.norm_offset)


def frequencies(half: int, theta: float, scaling: RopeScaling = RopeScaling()) -> jax.Array:
  """Return the radians per position of each rotated pair, fp32 [half]."""
  plain = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if scaling.kind == 'none':
    return plain
  stretched = plain / scaling.factor
  if scaling.kind == 'linear':
    return stretched
  waves = scaling.context * plain / (2 * math.pi)  # in the context of the first training
  low, high = scaling.low_frequency, scaling.high_frequency
  plain_share = jnp.clip((waves - low) / (high - low), 0.0, 1.0)
  return (1.0 - plain_share) * stretched + plain_share * plain


def rope(x_BxTxHxX: jax.Array, positions_BxT: jax.Array, frequency_X2: jax.Array) -> jax.Array:
  """Rotate the two halves of each head by its position, with angles in fp32."""
  angle = positions_BxT[..., None, None].astype(jnp.float32) * frequency_X2
  cos, sin = jnp.cos(angle).astype(x_BxTxHxX.dtype), jnp.sin(angle).astype(x_BxTxHxX.dtype)
  a, b = jnp.split(x_BxTxHxX, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Attention(nnx.Module):
  """The projections of one attention layer.

  `q`, `kv` and `out` are separate so that caches and cross-attention can use them.
  """

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.config = c = config
    inputs, outputs = c.width, c.heads * c.head_dim
    self.wq = param(rngs, (inputs, c.heads, c.head_dim), ('embed', 'heads', 'head_dim'))
    self.wk = param(rngs, (inputs, c.kv_heads, c.head_dim), ('embed', 'kv_heads', 'head_dim'))
    self.wv = param(rngs, (inputs, c.kv_heads, c.head_dim), ('embed', 'kv_heads', 'head_dim'))
    self.wo = param(
      rngs,
      (c.heads, c.head_dim, c.width),
      ('heads', 'head_dim', 'embed'),
      fan_in=outputs,
      scale=(2 * c.layers) ** -0.5,
    )
    if c.qk_norm:
      self.q_norm, self.k_norm = norm(c, c.head_dim), norm(c, c.head_dim)

  def q(
    self,
    x: jax.Array,
    positions_BxT: jax.Array | None = None,
    is_local: jax.Array | None = None,
  ) -> jax.Array:
    """Return queries [B, T, H, X], rotated where positions are given."""
    q = adapted(self, 'wq', x, jnp.einsum('btd,dhx->bthx', x, gather_fsdp(self.wq, x.dtype)))
    q = constrain(q, 'batch', None, 'heads', None)
    q = self._rotate(self.q_norm(q) if self.config.qk_norm else q, positions_BxT, is_local)
    scale = self.config.attention_scale  # the kernels' own is head_dim ** -0.5
    return q * (scale * self.config.head_dim**0.5) if scale else q

  def kv(
    self,
    x: jax.Array,
    positions_BxT: jax.Array | None = None,
    is_local: jax.Array | None = None,
  ) -> KeyValues:
    """Return keys, rotated where positions are given, and values, [B, S, K, X] each."""
    k = adapted(self, 'wk', x, jnp.einsum('bsd,dkx->bskx', x, gather_fsdp(self.wk, x.dtype)))
    k = constrain(k, 'batch', None, 'kv_heads', None)
    v = adapted(self, 'wv', x, jnp.einsum('bsd,dkx->bskx', x, gather_fsdp(self.wv, x.dtype)))
    v = constrain(v, 'batch', None, 'kv_heads', None)
    return self._rotate(self.k_norm(k) if self.config.qk_norm else k, positions_BxT, is_local), v

  def _rotate(
    self, x: jax.Array, positions_BxT: jax.Array | None, is_local: jax.Array | None
  ) -> jax.Array:
    if positions_BxT is None:
      return x
    c, half = self.config, self.config.head_dim // 2
    frequency = frequencies(half, c.rope_theta, c.rope_scaling)
    if is_local is not None:
      frequency = jnp.where(is_local, frequencies(half, c.local_rope_theta), frequency)
    return rope(x, positions_BxT, frequency)

  def attend(
    self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, bias: jax.Array | None = None
  ) -> jax.Array:
    """Return attended values [B, T, H, X]; see `attention.attend`."""
    return attend(q, k, v, mask, bias, self.config.attention)

  def out(self, attended: jax.Array) -> jax.Array:
    """Project attended values back to the residual stream, [B, T, D]."""
    o = constrain(attended, 'batch', None, 'heads', None)
    y = adapted(self, 'wo', o, jnp.einsum('bthx,hxd->btd', o, gather_fsdp(self.wo, o.dtype)))
    return constrain(y, 'batch', None, None)


class GatedMLP(nnx.Module):
  """down(activation(gate(x)) * up(x))."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    c = config
    self.activation = c.activation
    self.gate = param(rngs, (c.width, c.mlp), ('embed', 'mlp'))
    self.up = param(rngs, (c.width, c.mlp), ('embed', 'mlp'))
    self.down = param(rngs, (c.mlp, c.width), ('mlp', 'embed'), c.mlp, (2 * c.layers) ** -0.5)

  def __call__(self, x: jax.Array) -> jax.Array:
    def project(name: str, x: jax.Array) -> jax.Array:
      return adapted(self, name, x, x @ gather_fsdp(getattr(self, name), x.dtype))

    hidden = GATES[self.activation](project('gate', x)) * project('up', x)
    hidden = constrain(hidden, 'batch', None, 'mlp')
    return constrain(project('down', hidden), 'batch', None, None)
