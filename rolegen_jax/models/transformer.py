"""The transformer stack that the reasoner, the backbone and SASRec share.

Shapes: B batch, T query positions, S memory positions, D width, H query heads, K key/value heads, X head width, F MLP width.
Pre-norm blocks of grouped-query attention with rotary positions and a gated MLP; layers are stacked and scanned, with a
rematerialisation policy. Parameters are fp32; compute is `config.dtype`; softmax and norms are fp32.
Sources: RMSNorm arXiv 1910.07467, RoPE 2104.09864, GQA 2305.13245, SwiGLU 2002.05202.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import TransformerConfig
from rolegen_jax.models.attention import attend, attend_shared
from rolegen_jax.sharding import constrain

REMAT = {
    'none': lambda f: f,
    'full': jax.checkpoint,
    'dots': lambda f: jax.checkpoint(f, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}


def param(rngs: nnx.Rngs, shape, axes, fan_in: int | None = None, scale: float = 1.0) -> nnx.Param:
  """Truncated-normal parameter of std scale / sqrt(fan_in), with its logical axes. fan_in defaults to the first dimension."""
  std = scale / (fan_in or shape[0]) ** 0.5
  return nnx.Param(std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32), axes=axes)


def use(parameter: nnx.Param, dtype) -> jax.Array:
  """A weight as a layer uses it: cast, then gathered over fsdp; what is spread over tensor stays spread.

  Said outright: left to itself the partitioner sometimes gathers the activations of the whole batch instead.
  """
  return constrain(parameter[...].astype(dtype), *(None if a == 'embed' else a for a in parameter.get_metadata()['axes']))


def whole(parameter: nnx.Param, dtype) -> jax.Array:
  """A table as lookups and slices use it: cast, then gathered whole, so that they stay local to a device.

  Rows spread over tensor would cost a reduction of the looked-up activations, or their replication. The price is
  vocabulary x width numbers of scratch: 2 MB for a thousand tokens, 300 MB for a pretrained 150,000 x 1024 in bfloat16.
  """
  return constrain(parameter[...].astype(dtype), *(None,) * parameter[...].ndim)


class RMSNorm(nnx.Module):

  def __init__(self, width: int):
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=(None,))

  def __call__(self, x):
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + 1e-6)
    return (normed * self.scale[...]).astype(x.dtype)


def rope(x_BxTxHxX: jax.Array, positions_BxT: jax.Array, theta: float) -> jax.Array:
  """Rotary position embedding, halves convention; angles in fp32."""
  half = x_BxTxHxX.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions_BxT[..., None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle).astype(x_BxTxHxX.dtype), jnp.sin(angle).astype(x_BxTxHxX.dtype)
  a, b = jnp.split(x_BxTxHxX, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Attention(nnx.Module):
  """Projections of one attention layer. `q`, `kv` and `out` are apart so that caches and cross-attention can use them."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    c = config
    self.theta, self.kernel = c.rope_theta, c.attention
    self.wq = param(rngs, (c.width, c.heads, c.head_dim), ('embed', 'heads', 'head_dim'))
    self.wk = param(rngs, (c.width, c.kv_heads, c.head_dim), ('embed', 'kv_heads', 'head_dim'))
    self.wv = param(rngs, (c.width, c.kv_heads, c.head_dim), ('embed', 'kv_heads', 'head_dim'))
    self.wo = param(
        rngs, (c.heads, c.head_dim, c.width), ('heads', 'head_dim', 'embed'), c.heads * c.head_dim, (2 * c.layers) ** -0.5
    )

  def q(self, x, positions_BxT=None):
    q = constrain(jnp.einsum('btd,dhx->bthx', x, use(self.wq, x.dtype)), 'batch', None, 'heads', None)
    return q if positions_BxT is None else rope(q, positions_BxT, self.theta)

  def kv(self, x, positions_BxT=None):
    k = constrain(jnp.einsum('bsd,dkx->bskx', x, use(self.wk, x.dtype)), 'batch', None, 'kv_heads', None)
    v = constrain(jnp.einsum('bsd,dkx->bskx', x, use(self.wv, x.dtype)), 'batch', None, 'kv_heads', None)
    return (k if positions_BxT is None else rope(k, positions_BxT, self.theta)), v

  def attend(self, q, k, v, mask, bias=None):
    return attend(q, k, v, mask, bias, self.kernel)

  def out(self, o):
    o = constrain(o, 'batch', None, 'heads', None)
    return constrain(jnp.einsum('bthx,hxd->btd', o, use(self.wo, o.dtype)), 'batch', None, None)


class GatedMLP(nnx.Module):

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    c = config
    self.gate = param(rngs, (c.width, c.mlp), ('embed', 'mlp'))
    self.up = param(rngs, (c.width, c.mlp), ('embed', 'mlp'))
    self.down = param(rngs, (c.mlp, c.width), ('mlp', 'embed'), c.mlp, (2 * c.layers) ** -0.5)

  def __call__(self, x):
    hidden = jax.nn.silu(x @ use(self.gate, x.dtype)) * (x @ use(self.up, x.dtype))
    hidden = constrain(hidden, 'batch', None, 'mlp')
    return constrain(hidden @ use(self.down, x.dtype), 'batch', None, None)


class Block(nnx.Module):
  """One pre-norm layer. `full` sees all positions at once, `step` one position of every chain against a cache."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config.width)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = RMSNorm(config.width)
    self.mlp = GatedMLP(config, rngs=rngs)

  def full(self, x, positions_BxT, mask, before=None):
    """Returns the new residual stream and this layer's rotated keys and values [B, T, K, X]. `before`: those of slots that come first."""
    normed = self.attention_norm(x)
    own = self.attention.kv(normed, positions_BxT)
    k, v = own if before is None else (jnp.concatenate(pair, axis=1) for pair in zip(before, own))
    x = x + self.attention.out(self.attention.attend(self.attention.q(normed, positions_BxT), k, v, mask))
    return x + self.mlp(self.mlp_norm(x)), own

  def step(self, x_BxWxD, position, shared, cache, layer, slot, sees):
    """One position of W chains: writes its keys and values at [layer, :, :, slot] of the chains' whole cache [layers, B, W, S, K, X],
    then attends to what they share [B, P, K, X] and to the chain's own slots; `sees` as `attention.attend_shared` takes them."""
    normed, positions = self.attention_norm(x_BxWxD), jnp.full(x_BxWxD.shape[:2], position, jnp.int32)
    new = self.attention.kv(normed, positions)
    cache = tuple(jax.lax.dynamic_update_slice(c, n[None, :, :, None].astype(c.dtype), (layer, 0, 0, slot, 0, 0)) for c, n in zip(cache, new))
    own = tuple(jax.lax.dynamic_index_in_dim(c, layer, keepdims=False) for c in cache)
    x = x_BxWxD + self.attention.out(attend_shared(self.attention.q(normed, positions), shared, own, *sees))
    return x + self.mlp(self.mlp_norm(x)), cache


class Transformer(nnx.Module):
  """A causal (or any masked) stack over already embedded positions."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.config = config
    make = nnx.vmap(lambda rngs: Block(config, rngs=rngs))
    self.blocks = make(rngs.split(config.layers))
    self.norm = RMSNorm(config.width)

  def __call__(self, x_BxTxD, positions_BxT, mask):
    """Final-norm hidden states [B, T, D]; fp32 or bf16 by config. `mask` as `attention.attend` takes it."""
    return self._layers(x_BxTxD, positions_BxT, mask, None, keep=False)[0]

  def prefill(self, x_BxTxD, positions_BxT, mask, before=None):
    """(hidden [B, T, D], cache of (keys, values) each [layers, B, T, K, X]); with the cache of P slots that come before, mask [B, T, P + T]."""
    return self._layers(x_BxTxD, positions_BxT, mask, before, keep=True)

  def _layers(self, x_BxTxD, positions_BxT, mask, before, keep: bool):

    def layer(x, xs):
      block, before = xs
      x, kv = block.full(constrain(x, 'batch', None, None), positions_BxT, mask, before)
      return x, kv if keep else None

    x = x_BxTxD.astype(self.config.dtype)
    x, cache = jax.lax.scan(REMAT[self.config.remat](layer), x, (self.blocks, before))
    return self.norm(x), cache

  def step(self, x_BxWxD, position, shared, cache, slot, sees):
    """One more position of W chains of a row, at `slot` of their cache of (keys, values) [layers, B, W, S, K, X] beside the slots that
    they share, [layers, B, P, K, X]: (hidden [B, W, D], cache with `slot` written). `sees`: bool [B, P] and [B, W, S]."""

    def layer(carry, xs):
      x, cache, index = carry
      block, shared = xs
      x, cache = block.step(x, position, shared, cache, index, slot, sees)
      return (x, cache, index + 1), None

    x = x_BxWxD.astype(self.config.dtype)
    (x, cache, _), _ = jax.lax.scan(layer, (x, cache, 0), (self.blocks, shared))
    return self.norm(x), cache
