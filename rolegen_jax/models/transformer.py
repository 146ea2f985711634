"""The transformer stack that the reasoner, the backbone and SASRec share.

Pre-norm blocks of grouped-query attention with rotary positions and a gated MLP (`layers.py`).
Blocks are stacked and scanned, with a rematerialization policy. Switches of the config make the
stack the decoder of a pretrained family; the scan tells layers that see a window only (L) from
those that see everything (G).

Shapes: B batch, T query positions, S memory positions, D width, K key/value heads, X head width;
W chains of a row and P slots that they share.
Sources: Qwen3 arXiv 2505.09388, Gemma 3 2503.19786, Llama 3 2407.21783.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from rolegen_jax.config import TransformerConfig
from rolegen_jax.models.attention import KeyValues, Mask, Visible, attend_shared, windowed
from rolegen_jax.models.layers import Attention, GatedMLP, norm
from rolegen_jax.models.numerics import dropout
from rolegen_jax.sharding import constrain

REMAT: dict[str, Callable[[Callable], Callable]] = {
  'none': lambda f: f,
  'full': jax.checkpoint,
  'dots': functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  ),
}


def local_layers(config: TransformerConfig) -> np.ndarray:
  """Return which layers see a window only, bool [layers]."""
  pattern = config.layer_pattern or 'G'
  return np.array([pattern[i % len(pattern)] == 'L' for i in range(config.layers)])


class LayerMasks(NamedTuple):
  """What layers that see everything (G) and layers that see a window (L) may attend to."""

  full: Mask
  window: Mask  # the same object where the window rules nothing out


class Dropout(NamedTuple):
  """Dropout on what each layer adds to the residual stream, while training."""

  rate: float
  key: jax.Array | None  # of the stack, or of one layer; None = off

  def __call__(self, x: jax.Array, part: int) -> jax.Array:
    """Apply it to `x`; `part` numbers the places of a layer."""
    if self.key is None:
      return x
    return dropout(x, self.rate, jax.random.fold_in(self.key, part))


NO_DROPOUT = Dropout(0.0, None)


class StepPlace(NamedTuple):
  """Where one decoded position lies and what it sees."""

  position: ArrayLike  # int [], of the rotary embedding
  slot: ArrayLike  # int [], of the chains' own cache, which the position is written to
  visible: Visible
  in_window: Visible  # of these, what a layer with a window sees


class Block(nnx.Module):
  """One pre-norm layer.

  `full` computes all positions at once, `step` one position of every chain against a cache. In
  both, `is_local` (bool [], may be traced) says that the layer sees a window only; it is None in a
  stack without such layers.
  """

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.post_norms = config.post_norms
    self.attention_norm = norm(config)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = norm(config)
    self.mlp = GatedMLP(config, rngs=rngs)
    if config.post_norms:
      self.attention_post_norm, self.mlp_post_norm = norm(config), norm(config)

  def _residual(self, x: jax.Array, attended: jax.Array, drop: Dropout = NO_DROPOUT) -> jax.Array:
    """Add what attention and then the MLP compute to the residual stream."""
    if not self.post_norms:
      x = x + drop(attended, 0)
      return x + drop(self.mlp(self.mlp_norm(x)), 1)
    x = x + drop(self.attention_post_norm(attended), 0)
    return x + drop(self.mlp_post_norm(self.mlp(self.mlp_norm(x))), 1)

  def full(
    self,
    x: jax.Array,
    positions_BxT: jax.Array,
    masks: LayerMasks,
    is_local: jax.Array | None = None,
    before: KeyValues | None = None,
    drop: Dropout = NO_DROPOUT,
  ) -> tuple[jax.Array, KeyValues]:
    """Return the new residual stream and this layer's rotated keys and values [B, T, K, X].

    `before` holds the keys and values of slots that come before these positions.
    """
    normed = self.attention_norm(x)
    own_k, own_v = self.attention.kv(normed, positions_BxT, is_local)
    k, v = own_k, own_v
    if before is not None:
      k = jnp.concatenate([before[0], k], axis=1)
      v = jnp.concatenate([before[1], v], axis=1)
    q = self.attention.q(normed, positions_BxT, is_local)
    see_all = functools.partial(self.attention.attend, mask=masks.full)
    see_window = functools.partial(self.attention.attend, mask=masks.window)
    if masks.window is masks.full:
      attended = see_all(q, k, v)
    else:
      attended = jax.lax.cond(is_local, see_window, see_all, q, k, v)
    return self._residual(x, self.attention.out(attended), drop), (own_k, own_v)

  def step(
    self,
    x_BxWxD: jax.Array,
    at: StepPlace,
    shared: KeyValues,
    cache: KeyValues,
    layer: jax.Array,
    is_local: jax.Array | None = None,
  ) -> tuple[jax.Array, KeyValues]:
    """Compute one position of W chains against what they share and what is their own.

    Args:
      x_BxWxD: the residual stream at this position.
      at: where the position lies, and what it sees in layers of either kind.
      shared: this layer's keys and values [B, P, K, X] of slots that the chains share.
      cache: all layers' keys and values of the chains' own slots, [layers, B, W, S, K, X].
      layer: int32 [], this layer's index in the cache.

    Returns the new residual stream, and the cache with this position written at
    [layer, :, :, at.slot].
    """
    normed = self.attention_norm(x_BxWxD)
    positions = jnp.full(x_BxWxD.shape[:2], at.position, jnp.int32)

    def write(cached: jax.Array, new: jax.Array) -> jax.Array:
      new = new[None, :, :, None].astype(cached.dtype)
      return jax.lax.dynamic_update_slice(cached, new, (layer, 0, 0, at.slot, 0, 0))

    k, v = self.attention.kv(normed, positions, is_local)
    cache = write(cache[0], k), write(cache[1], v)
    own_k, own_v = (jax.lax.dynamic_index_in_dim(c, layer, keepdims=False) for c in cache)
    visible = at.visible
    if is_local is not None:
      visible = jax.tree.map(functools.partial(jnp.where, is_local), at.in_window, at.visible)
    q = self.attention.q(normed, positions, is_local)
    attended = attend_shared(q, shared, (own_k, own_v), visible)
    return self._residual(x_BxWxD, self.attention.out(attended)), cache


class Adapt(Protocol):
  """What may add modules to a freshly built layer (`lora.adapt`)."""

  def __call__(self, block: Block, *, rngs: nnx.Rngs) -> Block: ...


class Transformer(nnx.Module):
  """A masked stack over positions that are embedded already."""

  def __init__(
    self, config: TransformerConfig, adapt: Adapt | None = None, *, rngs: nnx.Rngs
  ) -> None:
    self.config = config

    def make_block(rngs: nnx.Rngs) -> Block:
      block = Block(config, rngs=rngs)
      return block if adapt is None else adapt(block, rngs=rngs)

    self.blocks = nnx.vmap(make_block)(rngs.split(config.layers))
    self.norm = norm(config)

  @property
  def _is_local(self) -> jax.Array | None:
    """Which layers see a window only, bool [layers]; None where every layer sees everything."""
    is_local = local_layers(self.config)
    return jnp.asarray(is_local) if is_local.any() else None

  def __call__(
    self,
    x_BxTxD: jax.Array,
    positions: jax.Array | np.ndarray,
    mask: Mask,
    drop: Dropout = NO_DROPOUT,
  ) -> jax.Array:
    """Return hidden states after the final norm [B, T, D], in `config.dtype`.

    `positions` is int32 [B, T], or numpy [T] for all rows. Positions that are known before the
    program runs keep the pattern of windows static. `drop` is dropout inside every layer.
    """
    return self._layers(x_BxTxD, positions, mask, None, keep=False, drop=drop)[0]

  def prefill(
    self,
    x_BxTxD: jax.Array,
    positions: jax.Array | np.ndarray,
    mask: Mask,
    before: KeyValues | None = None,
  ) -> tuple[jax.Array, KeyValues]:
    """Return hidden states [B, T, D] and the cache [layers, B, T, K, X] of these positions.

    `before` is the cache of P slots that come first and hold positions 0 .. P - 1; the mask is then
    over P + T positions of memory.
    """
    return self._layers(x_BxTxD, positions, mask, before, keep=True)

  def _layers(
    self,
    x_BxTxD: jax.Array,
    positions: jax.Array | np.ndarray,
    mask: Mask,
    before: KeyValues | None,
    keep: bool,
    drop: Dropout = NO_DROPOUT,
  ) -> tuple[jax.Array, KeyValues]:
    positions_BxT = jnp.broadcast_to(positions, x_BxTxD.shape[:2])
    is_local, masks = self._is_local, LayerMasks(mask, mask)
    if is_local is not None:
      slots_before = 0 if before is None else before[0].shape[2]
      masks = LayerMasks(mask, windowed(mask, positions, slots_before, self.config.window))

    def layer(
      x: jax.Array, xs: tuple[Block, KeyValues | None, jax.Array | None, jax.Array | None]
    ) -> tuple[jax.Array, KeyValues | None]:
      block, before, is_local, key = xs
      x = constrain(x, 'batch', None, None)
      x, kv = block.full(x, positions_BxT, masks, is_local, before, Dropout(drop.rate, key))
      return x, kv if keep else None

    x = x_BxTxD.astype(self.config.dtype)
    keys = None if drop.key is None else jax.random.split(drop.key, self.config.layers)
    layers = self.blocks, before, is_local, keys
    x, cache = jax.lax.scan(REMAT[self.config.remat](layer), x, layers)
    return self.norm(x), cache

  def step(
    self,
    x_BxWxD: jax.Array,
    position: ArrayLike,
    shared: KeyValues,
    cache: KeyValues,
    slot: ArrayLike,
    visible: Visible,
  ) -> tuple[jax.Array, KeyValues]:
    """Compute one more position of W chains of a row.

    Args:
      x_BxWxD: the embedded position of each chain.
      position: its rotary position, the same in all chains.
      shared: keys and values of slots that the chains share, [layers, B, P, K, X].
      cache: keys and values of the chains' own slots, [layers, B, W, S, K, X].
      slot: the own slot that the position is written to.
      visible: slots that the position sees. Their order is that of their positions, so a window
        reaches back over as many slots.

    Returns hidden states [B, W, D] and the cache with `slot` written.
    """
    is_local, in_window = self._is_local, visible
    if is_local is not None:
      p, s = visible.shared.shape[-1], visible.own.shape[-1]

      def reached(first: int, length: int) -> jax.Array:
        return first + jnp.arange(length) > p + slot - self.config.window

      in_window = Visible(visible.shared & reached(0, p), visible.own & reached(p, s))
    place = StepPlace(position, slot, visible, in_window)

    def layer(
      carry: tuple[jax.Array, KeyValues, jax.Array],
      xs: tuple[Block, KeyValues, jax.Array | None],
    ) -> tuple[tuple[jax.Array, KeyValues, jax.Array], None]:
      x, cache, index = carry
      block, shared, is_local = xs
      x, cache = block.step(x, place, shared, cache, index, is_local)
      return (x, cache, index + 1), None

    x = x_BxWxD.astype(self.config.dtype)
    carry = x, cache, jnp.zeros((), jnp.int32)
    (x, cache, _), _ = jax.lax.scan(layer, carry, (self.blocks, shared, is_local))
    return self.norm(x), cache
