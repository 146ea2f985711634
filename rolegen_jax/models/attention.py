"""Attention behind one function: `attend` picks the platform's kernel for given shapes and mask.

  splash  TPU: flash attention that skips the blocks a pattern rules out; needs a `SegmentMask`
  cudnn   GPU: flash attention with any mask, which it takes as a bias
  xla     everywhere: the whole matrix of scores in fp32; takes all that the others do not

Flash attention pays off for long sequences and computes in bfloat16 only. On every platform XLA
therefore keeps float32, sequences shorter than SHORT (the codes of an item, one token against a
cache), learned biases and heads of odd widths. The platform is that of the mesh's devices, so a
program compiled for chips elsewhere gets their kernel.

Shapes: B rows, T queries, S memory positions, H query heads, K key/value heads, X head width;
W chains of a row and P slots that they share; A positions of a trunk and Z of a branch.
Sources: splash, jax.experimental.pallas.ops.tpu.splash_attention; cudnn,
jax.nn.dot_product_attention; attention to a shared prefix and to own slots in two parts,
Hydragen (arXiv 2402.05099).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax import sharding
from rolegen_jax.models.numerics import NEG_INF

SHORT = 128  # queries; with fewer, a flash kernel would compute more padding than scores
LANES = 128  # of a TPU: splash takes sequences in multiples of it
BLOCK = 1024  # the longest sequence that splash takes as one block

KeyValues = tuple[jax.Array, jax.Array]  # keys and values, of equal shape


class SegmentMask(NamedTuple):
  """A query sees the memory that `pattern` lets it see within its own segment.

  Every query must see something.
  """

  pattern: np.ndarray  # bool [T, S], static
  queries: jax.Array  # int32 [B, T], segment of each query, not negative
  memory: jax.Array  # int32 [B, S], segment of each memory position

  def dense(self) -> jax.Array:
    """Return the mask as one array, bool [B, T, S]."""
    return jnp.asarray(self.pattern) & (self.queries[:, :, None] == self.memory[:, None])


class BranchedMask(NamedTuple):
  """Self-attention of rows that fork: a trunk, then branches of equal length.

  A branch sees the trunk's first `shared` positions and itself.
  """

  trunk: np.ndarray  # bool [A, A], static
  branch: np.ndarray  # bool [Z, Z], static
  shared: int
  segment: jax.Array  # int32 [B, A + branches * Z]
  # bool [Z, shared], static: what a branch sees of the trunk's first positions; None = all of them
  reach: np.ndarray | None = None


Mask = jax.Array | SegmentMask | BranchedMask  # an array is bool [B, T, S], True = visible


class Visible(NamedTuple):
  """The slots that one query of each chain sees."""

  shared: jax.Array  # bool [B, P], of the slots that the chains of a row share
  own: jax.Array  # bool [B, W, S], of each chain's own slots


def causal(segment_BxT: jax.Array) -> SegmentMask:
  """Return the mask of causal self-attention within segments."""
  return SegmentMask(np.tri(segment_BxT.shape[1], dtype=bool), segment_BxT, segment_BxT)


def windowed(mask: Mask, positions: jax.Array | np.ndarray, before: int, window: int) -> Mask:
  """Narrow `mask` to keys less than `window` positions before the query.

  Args:
    mask: over `before` slots of memory, which hold positions 0 .. before - 1, and the queries.
    positions: of the queries, int [B, T], or numpy [T] for all rows. Positions that are known
      before the program runs keep the pattern static.
    before: number of memory slots that come before the queries' own.
    window: positions that a query sees, itself included.

  Returns `mask` itself where the window rules nothing out.
  """
  if not isinstance(positions, np.ndarray) or positions.ndim > 1:
    earlier = jnp.broadcast_to(jnp.arange(before), (len(positions), before))
    memory = jnp.concatenate([earlier, positions], axis=1)
    near = positions[:, :, None] - memory[:, None] < window
    return _dense(mask) & near
  if np.ptp(np.concatenate([positions, np.arange(before)])) < window:
    return mask

  def is_near(queries: np.ndarray, memory: np.ndarray) -> np.ndarray:
    return queries[:, None] - memory[None] < window

  if isinstance(mask, BranchedMask):
    a, z = len(mask.trunk), len(mask.branch)
    trunk, branch = positions[:a], positions[a : a + z]  # all branches have the same positions
    mask = mask._replace(trunk=mask.trunk & is_near(trunk, trunk))
    if not len(branch):
      return mask
    return mask._replace(
      branch=mask.branch & is_near(branch, branch), reach=is_near(branch, trunk[: mask.shared])
    )
  pattern = is_near(positions, np.concatenate([np.arange(before), positions]))
  if isinstance(mask, SegmentMask):
    return mask._replace(pattern=mask.pattern & pattern)
  return mask & pattern


def _dense(mask: Mask) -> jax.Array:
  """Return a mask that does not branch as one array, bool [B, T, S]."""
  assert not isinstance(mask, BranchedMask)
  return mask.dense() if isinstance(mask, SegmentMask) else mask


def platform() -> str:
  """Return where the program that is being traced will run: 'tpu', 'gpu' or 'cpu'."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def kernel_for(backend: str, q: jax.Array, mask: Mask, bias: jax.Array | None = None) -> str:
  """Return the kernel of a backend for these arguments of `attend`."""
  t, x = q.shape[1], q.shape[3]
  if q.dtype != jnp.bfloat16 or bias is not None or t < SHORT:
    return 'xla'
  if backend == 'tpu' and isinstance(mask, SegmentMask) and x % LANES == 0:
    return 'splash'
  return 'cudnn' if backend == 'gpu' and x % 8 == 0 and x <= 128 else 'xla'


def attend(
  q_BxTxHxX: jax.Array,
  k_BxSxKxX: jax.Array,
  v_BxSxKxX: jax.Array,
  mask: Mask,
  bias_BxHxTxS: jax.Array | None = None,
  kernel: str = 'auto',
) -> jax.Array:
  """Compute grouped-query attention with an fp32 softmax, [B, T, H, X].

  `kernel` is 'auto', or 'xla' for that kernel whatever the platform has. The result of a query
  that sees nothing is meaningless.
  """
  q, k, v = q_BxTxHxX, k_BxSxKxX, v_BxSxKxX
  if isinstance(mask, BranchedMask):
    return _attend_branched(q, k, v, mask, kernel)
  if kernel == 'auto':
    kernel = kernel_for(platform(), q, mask, bias_BxHxTxS)
  if kernel == 'splash':
    assert isinstance(mask, SegmentMask)
    return splash(q, k, v, mask)
  dense = _dense(mask)
  if kernel == 'cudnn':
    return cudnn(q, k, v, dense)
  return jax.nn.dot_product_attention(q, k, v, bias=bias_BxHxTxS, mask=dense[:, None])


def _attend_branched(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: BranchedMask, kernel: str
) -> jax.Array:
  """Attend within the trunk, and within all branches as rows of their own.

  No score that the fork rules out is computed.
  """
  (b, t), a, z = mask.segment.shape, len(mask.trunk), len(mask.branch)
  trunk_segment = mask.segment[:, :a]
  trunk_mask = SegmentMask(mask.trunk, trunk_segment, trunk_segment)
  trunk = attend(q[:, :a], k[:, :a], v[:, :a], trunk_mask, kernel=kernel)
  if t == a:
    return trunk
  forks = (t - a) // z

  def own(x: jax.Array) -> jax.Array:
    return x[:, a:].reshape(b * forks, z, *x.shape[2:])

  def visible(x: jax.Array) -> jax.Array:
    return jnp.concatenate([per_chain(x[:, : mask.shared], forks), own(x)], axis=1)

  reach = np.ones((z, mask.shared), bool) if mask.reach is None else mask.reach
  pattern = np.concatenate([reach, mask.branch], axis=1)
  branch_mask = SegmentMask(pattern, own(mask.segment), visible(mask.segment))
  branches = attend(own(q), visible(k), visible(v), branch_mask, kernel=kernel)
  return jnp.concatenate([trunk, branches.reshape(b, t - a, *q.shape[2:])], axis=1)


def per_chain(x: jax.Array, chains: int) -> jax.Array:
  """Repeat each row `chains` times in a row, [B, ...] -> [B * chains, ...].

  It is a broadcast, so rows stay on their device, which `jnp.repeat` does not guarantee.
  """
  repeated = jnp.broadcast_to(x[:, None], (x.shape[0], chains, *x.shape[1:]))
  return repeated.reshape(x.shape[0] * chains, *x.shape[1:])


def attend_shared(
  q_BxWxHxX: jax.Array, shared: KeyValues, own: KeyValues, visible: Visible
) -> jax.Array:
  """Attend with one query of each of W chains to shared and own slots, [B, W, H, X].

  Args:
    q_BxWxHxX: the queries.
    shared: keys and values [B, P, K, X] of slots that the chains of a row share; they are read
      once for all chains.
    own: keys and values [B, W, S, K, X] of each chain's own slots.
    visible: which slots are seen. Chains that see the same compute the same, bit for bit.
  """
  (shared_k, shared_v), (own_k, own_v) = shared, own
  b, w, h, x = q_BxWxHxX.shape
  p, kv_heads = shared_k.shape[1:3]
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  q = q_BxWxHxX.reshape(b, w, kv_heads, h // kv_heads, x)
  shared_scores = product('bwkgx,bpkx->bwkgp', q, shared_k)
  own_scores = product('bwkgx,bwskx->bwkgs', q, own_k)
  scores = jnp.concatenate([shared_scores, own_scores], axis=-1) * x**-0.5
  sees_shared = jnp.broadcast_to(visible.shared[:, None], (b, w, p))
  sees = jnp.concatenate([sees_shared, visible.own], axis=-1)[:, :, None, None]
  weights = jax.nn.softmax(jnp.where(sees, scores, NEG_INF), axis=-1).astype(own_v.dtype)
  from_shared = product('bwkgp,bpkx->bwkgx', weights[..., :p], shared_v)
  from_own = product('bwkgs,bwskx->bwkgx', weights[..., p:], own_v)
  return (from_shared + from_own).astype(q.dtype).reshape(b, w, h, x)


def splash(
  q_BxTxHxX: jax.Array,
  k_BxSxKxX: jax.Array,
  v_BxSxKxX: jax.Array,
  mask: SegmentMask,
  interpret: bool = False,
) -> jax.Array:
  """Run the TPU kernel; every device computes its own rows and heads."""
  run = functools.partial(_splash_on_device, pattern=mask.pattern, interpret=interpret)
  arrays = q_BxTxHxX, k_BxSxKxX, v_BxSxKxX, mask.queries, mask.memory
  if jax.sharding.get_abstract_mesh().empty:
    return run(*arrays)
  table = sharding._in_force.get()
  queries = sharding.spec(('batch', None, 'heads', None), table)
  keys = sharding.spec(('batch', None, 'kv_heads', None), table)
  segments = sharding.spec(('batch', None), table)
  # The kernel's outputs carry no record of the mesh axes they vary over, so shard_map cannot
  # check them.
  sharded = jax.shard_map(
    run, in_specs=(queries, keys, keys, segments, segments), out_specs=queries, check_vma=False
  )
  return sharded(*arrays)


def _splash_on_device(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  query_segment: jax.Array,
  memory_segment: jax.Array,
  pattern: np.ndarray,
  interpret: bool,
) -> jax.Array:
  """Pad sequences to multiples of LANES, with padding as a segment of its own, and run splash."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  (t, s), x = pattern.shape, q.shape[3]
  pad_t, pad_s = 0, 0
  if t % LANES or s % LANES:
    # Both sides get padding: padded queries need padded memory of their segment to see.
    pad_t, pad_s = -t % LANES or LANES, -s % LANES or LANES
  pattern = np.pad(pattern, ((0, pad_t), (0, pad_s)))
  pattern[t:, s:] = True

  def block_size(length: int) -> int:
    return length if length <= BLOCK else next(m for m in (512, 384, 256, 128) if length % m == 0)

  q_block, kv_block = map(block_size, pattern.shape)
  sizes = (q_block, kv_block, kv_block)
  kernel = kernels.make_splash_mha(
    masks.MultiHeadMask([masks.NumpyMask(pattern)] * q.shape[2]),
    block_sizes=kernels.BlockSizes(*sizes, *sizes, q_block, kv_block),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )

  def pad(array: jax.Array, length: int, fill: int = 0) -> jax.Array:
    widths = ((0, 0), (0, length), *((0, 0),) * (array.ndim - 2))
    return jnp.pad(array, widths, constant_values=fill)

  def heads_first(array: jax.Array, padding: int) -> jax.Array:
    return jnp.swapaxes(pad(array, padding), 1, 2)

  segments = kernels.SegmentIds(pad(query_segment, pad_t, -1), pad(memory_segment, pad_s, -1))
  attended = jax.vmap(kernel)(
    heads_first(q * x**-0.5, pad_t), heads_first(k, pad_s), heads_first(v, pad_s), segments
  )
  return jnp.swapaxes(attended, 1, 2)[:, :t]


def cudnn(
  q_BxTxHxX: jax.Array, k_BxSxKxX: jax.Array, v_BxSxKxX: jax.Array, mask_BxTxS: jax.Array
) -> jax.Array:
  """Run the GPU kernel, on lengths padded to even ones, which its backward pass requires."""
  t, s = mask_BxTxS.shape[1:]

  def pad(array: jax.Array) -> jax.Array:
    return jnp.pad(array, ((0, 0), (0, array.shape[1] % 2), (0, 0), (0, 0)))

  mask = jnp.pad(mask_BxTxS, ((0, 0), (0, t % 2), (0, s % 2)))[:, None]
  return jax.nn.dot_product_attention(
    pad(q_BxTxHxX), pad(k_BxSxKxX), pad(v_BxSxKxX), mask=mask, implementation='cudnn'
  )[:, :t]
