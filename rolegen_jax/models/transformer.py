"""The transformer stack that the reasoner, the backbone and SASRec share.

Shapes: B batch, T query positions, S memory positions, D width, H query heads, K key/value heads, X head width, F MLP width.
Pre-norm blocks of grouped-query attention with rotary positions and a gated MLP; layers are stacked and scanned, with a
rematerialisation policy. Parameters are fp32; compute is `config.dtype`; softmax and norms are fp32. Switches of the config make
it the decoder of a pretrained family; layers that see a window only (L) are told from those that see all (G) inside the scan.
Sources: RMSNorm arXiv 1910.07467, RoPE 2104.09864, GQA 2305.13245, SwiGLU 2002.05202; Qwen3 2505.09388, Gemma 3 2503.19786,
Llama 3 2407.21783.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rolegen_jax.config import RopeScaling, TransformerConfig
from rolegen_jax.models.attention import attend, attend_shared, windowed
from rolegen_jax.sharding import constrain

REMAT = {
  'none': lambda f: f,
  'full': jax.checkpoint,
  'dots': lambda f: jax.checkpoint(
    f, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  ),
}
GATES = {'silu': jax.nn.silu, 'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True)}


def param(rngs: nnx.Rngs, shape, axes, fan_in: int | None = None, scale: float = 1.0) -> nnx.Param:
  """Truncated-normal parameter of std scale / sqrt(fan_in), with its logical axes. fan_in defaults to the first dimension."""
  std = scale / (fan_in or shape[0]) ** 0.5
  return nnx.Param(
    std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32), axes=axes
  )


def gather_fsdp(parameter: nnx.Param, dtype) -> jax.Array:
  """A weight as a layer uses it: cast, then gathered over fsdp; what is spread over tensor stays spread.

  Said outright: left to itself the partitioner sometimes gathers the activations of the whole batch instead.
  """
  return constrain(
    parameter[...].astype(dtype),
    *(None if a == 'embed' else a for a in parameter.get_metadata()['axes']),
  )


def gather_replicated(parameter: nnx.Param, dtype) -> jax.Array:
  """A table as lookups and slices use it: cast, then gathered whole, so that they stay local to a device.

  Rows spread over tensor would cost a reduction of the looked-up activations, or their replication. The price is
  vocabulary x width numbers of scratch: 2 MB for a thousand tokens, 300 MB for a pretrained 150,000 x 1024 in bfloat16.
  """
  return constrain(parameter[...].astype(dtype), *(None,) * parameter[...].ndim)


def adapted(layer: nnx.Module, name: str, x, y):
  """`y`, what the weight `name` of a layer makes of `x`, with what its adapter adds, if there is one (`lora.py`)."""
  adapter = getattr(layer, f'{name}_lora', None)
  return y if adapter is None else y + adapter(x)


class RMSNorm(nnx.Module):
  def __init__(self, width: int, epsilon: float = 1e-6, offset: float = 0.0):
    self.epsilon, self.offset = epsilon, offset
    self.scale = nnx.Param(jnp.full((width,), 1.0 - offset, jnp.float32), axes=(None,))

  def __call__(self, x):
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
    return (normed * (self.offset + self.scale[...] if self.offset else self.scale[...])).astype(
      x.dtype
    )


def norm(config: TransformerConfig, width: int | None = None) -> RMSNorm:
  """The norm of a family, over the residual stream unless `width` says otherwise."""
  return RMSNorm(width or config.width, config.norm_epsilon, config.norm_offset)


def local_layers(config: TransformerConfig) -> np.ndarray:
  """bool [layers]: those that see a window only."""
  return np.array(
    [
      bool(config.layer_pattern) and config.layer_pattern[i % len(config.layer_pattern)] == 'L'
      for i in range(config.layers)
    ]
  )


def frequencies(half: int, theta: float, scaling: RopeScaling = RopeScaling()) -> jax.Array:
  """Radians a position, fp32 [half]."""
  plain = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if scaling.kind == 'none':
    return plain
  stretched = plain / scaling.factor
  if scaling.kind == 'linear':
    return stretched
  waves = scaling.context * plain / (2 * math.pi)  # in the first context
  share = jnp.clip(
    (waves - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency), 0.0, 1.0
  )
  return (1.0 - share) * stretched + share * plain


def rope(x_BxTxHxX: jax.Array, positions_BxT: jax.Array, frequency_X2: jax.Array) -> jax.Array:
  """Rotary position embedding, halves convention; angles in fp32."""
  angle = positions_BxT[..., None, None].astype(jnp.float32) * frequency_X2
  cos, sin = jnp.cos(angle).astype(x_BxTxHxX.dtype), jnp.sin(angle).astype(x_BxTxHxX.dtype)
  a, b = jnp.split(x_BxTxHxX, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Attention(nnx.Module):
  """Projections of one attention layer. `q`, `kv` and `out` are apart so that caches and cross-attention can use them."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.config = c = config
    self.wq = param(rngs, (c.width, c.heads, c.head_dim), ('embed', 'heads', 'head_dim'))
    self.wk = param(rngs, (c.width, c.kv_heads, c.head_dim), ('embed', 'kv_heads', 'head_dim'))
    self.wv = param(rngs, (c.width, c.kv_heads, c.head_dim), ('embed', 'kv_heads', 'head_dim'))
    self.wo = param(
      rngs,
      (c.heads, c.head_dim, c.width),
      ('heads', 'head_dim', 'embed'),
      c.heads * c.head_dim,
      (2 * c.layers) ** -0.5,
    )
    if c.qk_norm:
      self.q_norm, self.k_norm = norm(c, c.head_dim), norm(c, c.head_dim)

  def q(self, x, positions_BxT=None, local=None):
    q = constrain(
      adapted(self, 'wq', x, jnp.einsum('btd,dhx->bthx', x, gather_fsdp(self.wq, x.dtype))),
      'batch',
      None,
      'heads',
      None,
    )
    q = self._rotate(self.q_norm(q) if self.config.qk_norm else q, positions_BxT, local)
    scale = self.config.attention_scale  # the kernels' own is head_dim ** -0.5
    return q * (scale * self.config.head_dim**0.5) if scale else q

  def kv(self, x, positions_BxT=None, local=None):
    k = constrain(
      adapted(self, 'wk', x, jnp.einsum('bsd,dkx->bskx', x, gather_fsdp(self.wk, x.dtype))),
      'batch',
      None,
      'kv_heads',
      None,
    )
    v = constrain(
      adapted(self, 'wv', x, jnp.einsum('bsd,dkx->bskx', x, gather_fsdp(self.wv, x.dtype))),
      'batch',
      None,
      'kv_heads',
      None,
    )
    return self._rotate(self.k_norm(k) if self.config.qk_norm else k, positions_BxT, local), v

  def _rotate(self, x, positions_BxT, local):
    if positions_BxT is None:
      return x
    c, half = self.config, self.config.head_dim // 2
    turns = frequencies(half, c.rope_theta, c.rope_scaling)
    if local is not None:
      turns = jnp.where(local, frequencies(half, c.local_rope_theta), turns)
    return rope(x, positions_BxT, turns)

  def attend(self, q, k, v, mask, bias=None):
    return attend(q, k, v, mask, bias, self.config.attention)

  def out(self, o):
    o = constrain(o, 'batch', None, 'heads', None)
    return constrain(
      adapted(self, 'wo', o, jnp.einsum('bthx,hxd->btd', o, gather_fsdp(self.wo, o.dtype))),
      'batch',
      None,
      None,
    )


class GatedMLP(nnx.Module):
  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    c = config
    self.act = c.activation
    self.gate = param(rngs, (c.width, c.mlp), ('embed', 'mlp'))
    self.up = param(rngs, (c.width, c.mlp), ('embed', 'mlp'))
    self.down = param(rngs, (c.mlp, c.width), ('mlp', 'embed'), c.mlp, (2 * c.layers) ** -0.5)

  def __call__(self, x):
    project = lambda name, x: adapted(self, name, x, x @ gather_fsdp(getattr(self, name), x.dtype))
    hidden = GATES[self.act](project('gate', x)) * project('up', x)
    hidden = constrain(hidden, 'batch', None, 'mlp')
    return constrain(project('down', hidden), 'batch', None, None)


class Block(nnx.Module):
  """One pre-norm layer. `full` sees all positions at once, `step` one position of every chain against a cache.

  `local` (bool [], may be traced): the layer sees a window only; None in a stack without such layers.
  """

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.post_norms = config.post_norms
    self.attention_norm = norm(config)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = norm(config)
    self.mlp = GatedMLP(config, rngs=rngs)
    if config.post_norms:
      self.attention_post_norm, self.mlp_post_norm = norm(config), norm(config)

  def _add(self, x, attended):
    """The residual stream after attention and the MLP."""
    if not self.post_norms:
      x = x + attended
      return x + self.mlp(self.mlp_norm(x))
    x = x + self.attention_post_norm(attended)
    return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))

  def full(self, x, positions_BxT, masks, local=None, before=None):
    """Returns the new residual stream and this layer's rotated keys and values [B, T, K, X]. `masks`: of layers that see all, and of
    local ones. `before`: keys and values of slots that come first."""
    normed = self.attention_norm(x)
    own = self.attention.kv(normed, positions_BxT, local)
    k, v = own if before is None else (jnp.concatenate(pair, axis=1) for pair in zip(before, own))
    q, (mask, near) = self.attention.q(normed, positions_BxT, local), masks
    over = lambda mask: lambda q, k, v: self.attention.attend(q, k, v, mask)
    found = (
      over(mask)(q, k, v) if near is mask else jax.lax.cond(local, over(near), over(mask), q, k, v)
    )
    return self._add(x, self.attention.out(found)), own

  def step(self, x_BxWxD, position, shared, cache, layer, slot, sees, local=None):
    """One position of W chains: writes its keys and values at [layer, :, :, slot] of the chains' whole cache [layers, B, W, S, K, X],
    then attends to what they share [B, P, K, X] and to the chain's own slots; `sees`: two of what `attention.attend_shared` takes,
    for layers that see all and for local ones."""
    normed, positions = (
      self.attention_norm(x_BxWxD),
      jnp.full(x_BxWxD.shape[:2], position, jnp.int32),
    )
    new = self.attention.kv(normed, positions, local)
    cache = tuple(
      jax.lax.dynamic_update_slice(
        c, n[None, :, :, None].astype(c.dtype), (layer, 0, 0, slot, 0, 0)
      )
      for c, n in zip(cache, new)
    )
    own = tuple(jax.lax.dynamic_index_in_dim(c, layer, keepdims=False) for c in cache)
    seen = (
      sees[0] if local is None else tuple(jnp.where(local, near, far) for far, near in zip(*sees))
    )
    attended = attend_shared(self.attention.q(normed, positions, local), shared, own, *seen)
    return self._add(x_BxWxD, self.attention.out(attended)), cache


class Transformer(nnx.Module):
  """A causal (or any masked) stack over already embedded positions. `adapt(block, rngs=rngs)` may add to a layer."""

  def __init__(
    self, config: TransformerConfig, adapt: Callable = lambda block, rngs: block, *, rngs: nnx.Rngs
  ):
    self.config = config
    make = nnx.vmap(lambda rngs: adapt(Block(config, rngs=rngs), rngs=rngs))
    self.blocks = make(rngs.split(config.layers))
    self.norm = norm(config)

  @property
  def _local(self):
    """bool [layers]; None when every layer sees all."""
    local = local_layers(self.config)
    return jnp.asarray(local) if local.any() else None

  def __call__(self, x_BxTxD, positions, mask):
    """Final-norm hidden states [B, T, D]; fp32 or bf16 by config. `mask` as `attention.attend` takes it.

    `positions`: int32 [B, T], or numpy [T] for all rows. Known before the program runs, they keep windows a static pattern.
    """
    return self._layers(x_BxTxD, positions, mask, None, keep=False)[0]

  def prefill(self, x_BxTxD, positions, mask, before=None):
    """(hidden [B, T, D], cache of (keys, values) each [layers, B, T, K, X]); with the cache of P slots that come before and hold
    positions 0 .. P - 1, mask [B, T, P + T]."""
    return self._layers(x_BxTxD, positions, mask, before, keep=True)

  def _layers(self, x_BxTxD, positions, mask, before, keep: bool):
    positions_BxT, local, near = jnp.broadcast_to(positions, x_BxTxD.shape[:2]), self._local, mask
    if local is not None:
      near = windowed(
        mask, positions, 0 if before is None else before[0].shape[2], self.config.window
      )

    def layer(x, xs):
      block, before, local = xs
      x, kv = block.full(
        constrain(x, 'batch', None, None), positions_BxT, (mask, near), local, before
      )
      return x, kv if keep else None

    x = x_BxTxD.astype(self.config.dtype)
    x, cache = jax.lax.scan(REMAT[self.config.remat](layer), x, (self.blocks, before, local))
    return self.norm(x), cache

  def step(self, x_BxWxD, position, shared, cache, slot, sees):
    """One more position of W chains of a row, at `slot` of their cache of (keys, values) [layers, B, W, S, K, X] beside the slots that
    they share, [layers, B, P, K, X]: (hidden [B, W, D], cache with `slot` written). `sees`: bool [B, P] and [B, W, S].
    Positions are those of the slots, in this order: a window reaches back over as many slots."""
    local, near, p = self._local, sees, sees[0].shape[-1]
    if local is not None:
      reached = lambda first, n: first + jnp.arange(n) > p + slot - self.config.window
      near = sees[0] & reached(0, p), sees[1] & reached(p, sees[1].shape[-1])

    def layer(carry, xs):
      x, cache, index = carry
      block, shared, local = xs
      x, cache = block.step(x, position, shared, cache, index, slot, (sees, near), local)
      return (x, cache, index + 1), None

    x = x_BxWxD.astype(self.config.dtype)
    (x, cache, _), _ = jax.lax.scan(layer, (x, cache, 0), (self.blocks, shared, local))
    return self.norm(x), cache
