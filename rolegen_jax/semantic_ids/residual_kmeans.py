"""Residual k-means over the mesh: level l clusters what levels 0..l-1 left unexplained.

Where there are many rows, codebooks are trained on a sample of them. Each level is one run of a
jitted program (k-means++ start, Lloyd iterations in a `fori_loop`) that is compiled once for all
levels; then every row gets its codes of all levels, block by block. Rows are sharded over all
devices, centroids replicated.

Legend: I items, T training rows, N rows padded, S rows that a start is drawn from, L levels,
K codes, D width.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rolegen_jax.runtime.progress import progress
from rolegen_jax.sharding import constrain, sharding, spec

# Training rows are padded to a multiple of it whatever the device count, so that the random draws
# do not depend on that count.
ROW_BLOCK = 1024
# Rows that a device encodes at a time: their distances to a codebook stay in its cache.
ENCODE_BLOCK = 2048
# Up to FEW_ROWS, all rows are used; of more, a sample. Codebooks gain little from more than 256
# rows per code (faiss trains on as many), and a start, which needs a pass for each code, nothing
# from more than 16 after a few iterations.
FEW_ROWS = 16_384
TRAIN_ROWS_PER_CODE = 256
START_ROWS_PER_CODE = 16


@dataclasses.dataclass(frozen=True)
class Quantized:
  """The result of a quantizer."""

  # float32 [L, K, D].
  codebooks: np.ndarray
  # int32 [I, L], collisions not resolved.
  codes: np.ndarray
  # float32 [I, D], what the codebooks approximate: the embeddings, or an encoder's image of them.
  points: np.ndarray
  # float32 [L], mean squared distance to the embedding after each level, as a share of the
  # embeddings' mean squared norm.
  error: np.ndarray
  # kernel, bias, kernel, bias, ... of the ReLU network embedding -> point; () = identity.
  encoder: tuple[np.ndarray, ...] = ()


def residual_kmeans(
  embeddings: np.ndarray, levels: int, codes: int, iterations: int, seed: int, mesh: Mesh
) -> Quantized:
  """Quantize embeddings float32 [I, D]. Every process passes all rows and gets all results.

  The same seed gives the same result on the same mesh. Other meshes add in another order: results
  agree to rounding. Fewer distinct rows than codes leaves codes unused. Memory over the devices:
  the rows, and T x K floats.
  """
  x_IxD = np.asarray(embeddings, np.float32)
  scale = max(float(np.einsum('id,id->i', x_IxD, x_IxD).mean(dtype=np.float64)), 1e-30)
  row_T = training_rows(len(x_IxD), codes, seed)
  block = math.lcm(ROW_BLOCK, mesh.size)
  residual_NxD = shard_rows(x_IxD[row_T], block, mesh)
  weight_N = shard_rows(np.ones(len(row_T), np.float32), block, mesh)
  start_rows = len(weight_N)
  if len(row_T) > FEW_ROWS:
    start_rows = min(-(-START_ROWS_PER_CODE * codes // block) * block, start_rows)
  codebooks = []
  with jax.set_mesh(mesh):
    for level in progress(range(levels), 'residual k-means level'):
      key = jax.random.fold_in(jax.random.key(seed), level)
      centroid_KxD, residual_NxD = kmeans(
        key, residual_NxD, weight_N, codes, iterations, start_rows
      )
      codebooks.append(centroid_KxD)
    code_NxL, squared_NxL = quantize(shard_rows(x_IxD, mesh.size, mesh), jnp.stack(codebooks))
  error_L = np.asarray(squared_NxL)[: len(x_IxD)].mean(axis=0, dtype=np.float64) / scale
  return Quantized(
    codebooks=np.stack(codebooks),
    codes=np.asarray(code_NxL)[: len(x_IxD)],
    points=x_IxD,
    error=error_L.astype(np.float32),
  )


def training_rows(rows: int, codes: int, seed: int) -> np.ndarray:
  """Return the rows int64 [T] that codebooks are trained on.

  Few rows are all used, in their order; of many, a sample in random order.
  """
  if rows <= FEW_ROWS:
    return np.arange(rows)
  return np.random.default_rng(seed).permutation(rows)[: max(FEW_ROWS, TRAIN_ROWS_PER_CODE * codes)]


def shard_rows(x: np.ndarray, multiple: int, mesh: Mesh) -> jax.Array:
  """Spread the rows of `x` [n, ...], which every process holds, over all devices.

  Zero rows are added up to a multiple of `multiple`.
  """
  pad = -len(x) % multiple
  x = np.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)) if pad else x
  placement = sharding(mesh, 'rows', *(None,) * (x.ndim - 1))
  return jax.make_array_from_callback(x.shape, placement, lambda index: x[index])


@functools.partial(jax.jit, static_argnames=('codes', 'iterations', 'start_rows'))
def kmeans(
  key: jax.Array,
  x_NxD: jax.Array,
  weight_N: jax.Array,
  codes: int,
  iterations: int,
  start_rows: int,
) -> tuple[jax.Array, jax.Array]:
  """Run one level and return (centroids [K, D], residual rows [N, D]); weight 0 does not count."""
  start_KxD = _plus_plus(
    key, constrain(x_NxD[:start_rows], 'rows', None), weight_N[:start_rows], codes
  )
  centroid_KxD = jax.lax.fori_loop(
    0, iterations, lambda _, centroid_KxD: _lloyd(centroid_KxD, x_NxD, weight_N), start_KxD
  )
  code_N, _ = nearest(x_NxD, centroid_KxD)
  residual_NxD = (x_NxD - centroid_KxD[code_N]) * weight_N[:, None]
  return constrain(centroid_KxD, None, None), constrain(residual_NxD, 'rows', None)


@jax.jit
def quantize(x_NxD: jax.Array, codebooks_LxKxD: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return (codes int32 [N, L], squared distances [N, L]), both replicated.

  The distances are those of the row to its approximation after each level.
  """

  def quantize_level(
    x_D: jax.Array, centroid_KxD: jax.Array
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    code_1, _ = nearest(x_D[None], centroid_KxD)
    x_D = x_D - centroid_KxD[code_1[0]]
    return x_D, (code_1[0], jnp.sum(x_D**2))

  def quantize_row(x_D: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.scan(quantize_level, x_D, codebooks_LxKxD)[1]

  def quantize_rows(x_nxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.map(quantize_row, x_nxD, batch_size=min(ENCODE_BLOCK, len(x_nxD)))

  # Inside shard_map, blocks are cut from the rows of one device; XLA would cut them from all rows
  # and send them around.
  rows = spec(('rows', None))
  code_NxL, squared_NxL = jax.shard_map(quantize_rows, in_specs=rows, out_specs=rows)(x_NxD)
  return constrain(code_NxL.astype(jnp.int32), None, None), constrain(squared_NxL, None, None)


def nearest(x_NxD: jax.Array, centroid_KxD: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return (index of the nearest centroid, lowest on ties; squared distance to it), each [N]."""
  dot_NxK = jnp.matmul(x_NxD, centroid_KxD.T, precision='highest')
  score_NxK = jnp.sum(centroid_KxD**2, axis=1) - 2 * dot_NxK
  distance_N = jnp.sum(x_NxD**2, axis=1) + jnp.min(score_NxK, axis=1)
  return jnp.argmin(score_NxK, axis=1), jnp.maximum(distance_N, 0)


def _plus_plus(key: jax.Array, x_SxD: jax.Array, weight_S: jax.Array, codes: int) -> jax.Array:
  """Return the centroids [K, D] of a k-means++ start (Arthur & Vassilvitskii 2007).

  Each next center is a row drawn with a probability proportional to its squared distance to the
  nearest center so far.
  """

  def add_center(k: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    centroid_KxD, distance_S = state
    # log 0 = -inf: padding and rows already chosen are never drawn, unless nothing else is left.
    log_weight_S = jnp.log(distance_S * weight_S)
    noise_S = jax.random.gumbel(jax.random.fold_in(key, k), distance_S.shape)
    center_D = replicated_SxD[jnp.argmax(log_weight_S + noise_S)]
    distance_to_center_S = jnp.sum((x_SxD - center_D) ** 2, axis=1)
    return centroid_KxD.at[k].set(center_D), jnp.minimum(distance_S, distance_to_center_S)

  replicated_SxD = constrain(x_SxD, None, None)  # once, not a collective for each center
  start = jnp.zeros((codes, x_SxD.shape[1])), jnp.ones_like(weight_S)
  return jax.lax.fori_loop(0, codes, add_center, start)[0]


def _lloyd(centroid_KxD: jax.Array, x_NxD: jax.Array, weight_N: jax.Array) -> jax.Array:
  """Run one iteration and return the new centroids [K, D].

  An empty cluster moves to the row farthest from its centroid, the next empty one to the next
  farthest.
  """
  codes = len(centroid_KxD)
  code_N, distance_N = nearest(x_NxD, centroid_KxD)
  sum_KxD, size_K = _sums(code_N, x_NxD, weight_N, codes)
  empty_K = size_K == 0
  far_row_K = jax.lax.top_k(distance_N * weight_N, min(codes, len(weight_N)))[1]
  nth_empty_K = jnp.minimum(jnp.cumsum(empty_K) - 1, len(far_row_K) - 1)
  mean_KxD = sum_KxD / jnp.maximum(size_K, 1)[:, None]
  return jnp.where(empty_K[:, None], x_NxD[far_row_K[nth_empty_K]], mean_KxD)


def _sums(
  code_N: jax.Array, x_NxD: jax.Array, weight_N: jax.Array, codes: int
) -> tuple[jax.Array, jax.Array]:
  """Return (sum of the rows of each code [K, D], number of them [K])."""

  def by_matmul(
    code_N: jax.Array, x_NxD: jax.Array, weight_N: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    member_NxK = jax.nn.one_hot(code_N, codes) * weight_N[:, None]
    return jnp.matmul(member_NxK.T, x_NxD, precision='highest'), jnp.sum(member_NxK, axis=0)

  def by_scatter(
    code_N: jax.Array, x_NxD: jax.Array, weight_N: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    code_N = jnp.where(weight_N > 0, code_N, codes)  # out of range: dropped
    return jax.ops.segment_sum(x_NxD, code_N, codes), jax.ops.segment_sum(weight_N, code_N, codes)

  # A CPU adds rows one after the other, 25 times faster than it multiplies by a one-hot matrix; a
  # small catalogue keeps the product, and with it its IDs of earlier versions. A GPU would add in
  # any order, which is not the same sum twice; a TPU multiplies best.
  if len(x_NxD) <= FEW_ROWS:
    return by_matmul(code_N, x_NxD, weight_N)
  return jax.lax.platform_dependent(code_N, x_NxD, weight_N, cpu=by_scatter, default=by_matmul)
