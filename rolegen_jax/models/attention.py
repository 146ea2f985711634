"""Attention behind one function: `attend` picks the kernel that the platform has for the shapes and the mask at hand.

  splash  TPU: flash attention that skips what the pattern rules out; under a `Seen` mask
  cudnn   GPU: flash attention; any mask, which it takes as a bias
  xla     everywhere: scores in fp32, whole; all that the others do not take

Flash attention pays for long sequences and takes bfloat16 only. What stays with XLA on every platform: float32, sequences below
SHORT (the codes of an item, one token against a cache), a learned bias, heads of odd widths. The platform is that of the mesh's
devices, so a program that is compiled for chips elsewhere gets their kernel.

Shapes: B rows, T queries, S memory, H query heads, K key/value heads, X head width; W chains of a row, P slots that they share.
Sources: splash, jax.experimental.pallas.ops.tpu.splash_attention; cudnn, jax.nn.dot_product_attention; attention to a shared
prefix and to what is one's own in two parts, Hydragen (arXiv 2402.05099).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax import sharding

SHORT = 128  # queries; below, a flash kernel would compute more padding than scores
LANES = 128  # of a TPU: splash takes sequences in multiples
BLOCK = 1024  # the longest sequence that splash takes as one block
NEG_INF = -1e30  # a score that is masked


class Seen(NamedTuple):
  """Who sees whom: a query sees the memory that `pattern` lets it see, of its own segment. Every query must see something."""

  pattern: np.ndarray  # bool [T, S], static
  queries: jax.Array  # int32 [B, T], segments, not negative
  memory: jax.Array  # int32 [B, S], likewise

  def dense(self) -> jax.Array:
    return jnp.asarray(self.pattern) & (self.queries[:, :, None] == self.memory[:, None])


class Branched(NamedTuple):
  """Self-attention of rows that fork: a trunk, then branches of one length that see the trunk's first `shared` positions and themselves."""

  trunk: np.ndarray  # bool [A, A], static
  branch: np.ndarray  # bool [Z, Z], static
  shared: int
  segment: jax.Array  # int32 [B, A + branches * Z]
  reach: np.ndarray | None = (
    None  # bool [Z, shared], static: what a branch sees of the trunk; None = all of `shared`
  )


def causal(segment_BxT) -> Seen:
  t = segment_BxT.shape[1]
  return Seen(np.tri(t, dtype=bool), segment_BxT, segment_BxT)


def windowed(mask, positions, before: int, window: int):
  """`mask`, narrowed to keys less than `window` positions before the query; `mask` itself where that rules nothing out.

  `positions`: int [B, T], or numpy [T]; `before` slots of memory come first and hold positions 0 .. before - 1.
  """
  if not isinstance(positions, np.ndarray) or positions.ndim > 1:
    memory = jnp.concatenate(
      [jnp.broadcast_to(jnp.arange(before), (len(positions), before)), positions], axis=1
    )
    dense = mask.dense() if isinstance(mask, Seen) else mask
    return dense & (positions[:, :, None] - memory[:, None] < window)
  if np.ptp(np.concatenate([positions, np.arange(before)])) < window:
    return mask
  near = lambda queries, memory: queries[:, None] - memory[None] < window
  if isinstance(mask, Branched):
    a, z = len(mask.trunk), len(mask.branch)
    trunk, branch = positions[:a], positions[a : a + z]  # branches are of one kind
    if not len(branch):
      return mask._replace(trunk=mask.trunk & near(trunk, trunk))
    return mask._replace(
      trunk=mask.trunk & near(trunk, trunk),
      branch=mask.branch & near(branch, branch),
      reach=near(branch, trunk[: mask.shared]),
    )
  pattern = near(positions, np.concatenate([np.arange(before), positions]))
  return mask._replace(pattern=mask.pattern & pattern) if isinstance(mask, Seen) else mask & pattern


def platform() -> str:
  """Where the program that is being traced will run: 'tpu', 'gpu' or 'cpu'."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def kernel_for(where: str, q, mask, bias=None) -> str:
  """The kernel for a platform and these arguments of `attend`."""
  t, x = q.shape[1], q.shape[3]
  if q.dtype != jnp.bfloat16 or bias is not None or t < SHORT:
    return 'xla'
  if where == 'tpu' and isinstance(mask, Seen) and x % LANES == 0:
    return 'splash'
  return 'cudnn' if where == 'gpu' and x % 8 == 0 and x <= 128 else 'xla'


def attend(q_BxTxHxX, k_BxSxKxX, v_BxSxKxX, mask, bias_BxHxTxS=None, kernel: str = 'auto'):
  """Grouped-query attention with fp32 softmax, [B, T, H, X]. `mask`: bool [B, T, S], True = seen, or `Seen`, or `Branched`.

  A query that sees nothing gets numbers that mean nothing. `kernel`: 'auto', or 'xla' for that one whatever the platform has.
  """
  if isinstance(mask, Branched):
    return _attend_branched(q_BxTxHxX, k_BxSxKxX, v_BxSxKxX, mask, kernel)
  kernel = kernel_for(platform(), q_BxTxHxX, mask, bias_BxHxTxS) if kernel == 'auto' else kernel
  if kernel == 'splash':
    return splash(q_BxTxHxX, k_BxSxKxX, v_BxSxKxX, mask)
  mask = mask.dense() if isinstance(mask, Seen) else mask
  if kernel == 'cudnn':
    return cudnn(q_BxTxHxX, k_BxSxKxX, v_BxSxKxX, mask)
  return jax.nn.dot_product_attention(
    q_BxTxHxX, k_BxSxKxX, v_BxSxKxX, bias=bias_BxHxTxS, mask=mask[:, None]
  )


def _attend_branched(q, k, v, mask: Branched, kernel: str):
  """The trunk, and all branches as rows of their own: no score of what a fork rules out is computed."""
  (b, t), a, z = mask.segment.shape, len(mask.trunk), len(mask.branch)
  on_trunk = mask.segment[:, :a]
  found = attend(q[:, :a], k[:, :a], v[:, :a], Seen(mask.trunk, on_trunk, on_trunk), kernel=kernel)
  if t == a:
    return found
  forks = (t - a) // z
  own = lambda x: x[:, a:].reshape(b * forks, z, *x.shape[2:])
  seen = lambda x: jnp.concatenate([per_chain(x[:, : mask.shared], forks), own(x)], axis=1)
  pattern = np.concatenate(
    [np.ones((z, mask.shared), bool) if mask.reach is None else mask.reach, mask.branch], axis=1
  )
  branches = attend(
    own(q), seen(k), seen(v), Seen(pattern, own(mask.segment), seen(mask.segment)), kernel=kernel
  )
  return jnp.concatenate([found, branches.reshape(b, t - a, *q.shape[2:])], axis=1)


def per_chain(x: jax.Array, chains: int) -> jax.Array:
  """[B, ...] -> [B * chains, ...], each row so many times in a row. A broadcast: rows stay on their device, which `jnp.repeat` does not keep."""
  return jnp.broadcast_to(x[:, None], (x.shape[0], chains, *x.shape[1:])).reshape(
    x.shape[0] * chains, *x.shape[1:]
  )


def attend_shared(q_BxWxHxX, shared, own, sees_BxP, sees_BxWxS):
  """One query of each of W chains, over slots [B, P, K, X] that the chains share and its own [B, W, S, K, X]: [B, W, H, X].

  What is shared is read once for all chains. Chains that see the same compute the same, bit for bit.
  """
  (shared_k, shared_v), (own_k, own_v) = shared, own
  b, w, h, x = q_BxWxHxX.shape
  p, kv = shared_k.shape[1:3]
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  q = q_BxWxHxX.reshape(b, w, kv, h // kv, x)
  scores = (
    jnp.concatenate(
      [product('bwkgx,bpkx->bwkgp', q, shared_k), product('bwkgx,bwskx->bwkgs', q, own_k)], axis=-1
    )
    * x**-0.5
  )
  seen = jnp.concatenate([jnp.broadcast_to(sees_BxP[:, None], (b, w, p)), sees_BxWxS], axis=-1)[
    :, :, None, None
  ]
  weights = jax.nn.softmax(jnp.where(seen, scores, NEG_INF), axis=-1).astype(own_v.dtype)
  found = product('bwkgp,bpkx->bwkgx', weights[..., :p], shared_v) + product(
    'bwkgs,bwskx->bwkgx', weights[..., p:], own_v
  )
  return found.astype(q.dtype).reshape(b, w, h, x)


def splash(q_BxTxHxX, k_BxSxKxX, v_BxSxKxX, seen: Seen, interpret: bool = False):
  """On every device for its own rows and heads. Padded to LANES; the padding is a segment of its own."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as lib,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  (t, s), x = seen.pattern.shape, q_BxTxHxX.shape[3]
  more_t, more_s = (-t % LANES or LANES, -s % LANES or LANES) if t % LANES or s % LANES else (0, 0)
  pattern = np.pad(seen.pattern, ((0, more_t), (0, more_s)))
  pattern[t:, s:] = True
  size = lambda n: n if n <= BLOCK else next(m for m in (512, 384, 256, 128) if n % m == 0)
  q_block, block = map(size, pattern.shape)
  blocks = lib.BlockSizes(q_block, block, block, q_block, block, block, q_block, block)

  def local(q, k, v, queries, memory):
    heads = masks.MultiHeadMask([masks.NumpyMask(pattern)] * q.shape[2])
    run = lib.make_splash_mha(
      heads, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
    )
    fill = lambda a, more, with_what=0: jnp.pad(
      a, ((0, 0), (0, more), *((0, 0),) * (a.ndim - 2)), constant_values=with_what
    )
    heads_first = lambda a, more: jnp.swapaxes(fill(a, more), 1, 2)
    segments = lib.SegmentIds(fill(queries, more_t, -1), fill(memory, more_s, -1))
    found = jax.vmap(run)(
      heads_first(q * x**-0.5, more_t), heads_first(k, more_s), heads_first(v, more_s), segments
    )
    return jnp.swapaxes(found, 1, 2)[:, :t]

  if jax.sharding.get_abstract_mesh().empty:
    return local(q_BxTxHxX, k_BxSxKxX, v_BxSxKxX, seen.queries, seen.memory)
  spec = lambda *axes: sharding.spec(axes, sharding._in_force.get())
  rows, keys, segments = (
    spec('batch', None, 'heads', None),
    spec('batch', None, 'kv_heads', None),
    spec('batch', None),
  )
  # The kernel's own outputs carry no record of the axes they vary over, so shard_map cannot check them.
  spread = jax.shard_map(
    local, in_specs=(rows, keys, keys, segments, segments), out_specs=rows, check_vma=False
  )
  return spread(q_BxTxHxX, k_BxSxKxX, v_BxSxKxX, seen.queries, seen.memory)


def cudnn(q_BxTxHxX, k_BxSxKxX, v_BxSxKxX, mask_BxTxS):
  """Lengths are padded to even ones, which its backward pass asks for."""
  t, s = mask_BxTxS.shape[1:]
  pad = lambda a: jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0)))
  mask = jnp.pad(mask_BxTxS, ((0, 0), (0, t % 2), (0, s % 2)))[:, None]
  return jax.nn.dot_product_attention(
    pad(q_BxTxHxX), pad(k_BxSxKxX), pad(v_BxSxKxX), mask=mask, implementation='cudnn'
  )[:, :t]
