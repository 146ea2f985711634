"""Residual k-means over the mesh: level l clusters what levels 0..l-1 left unexplained.

Codebooks are trained on a sample of the rows where there are many, one level one jitted program (k-means++ start, Lloyd
iterations in a `fori_loop`), compiled once for all levels; then every row gets its codes of all levels, block by block. Rows are
sharded over all devices, centroids replicated.

Legend: I items, T training rows, N rows padded, S rows that a start is drawn from, L levels, K codes, D width.
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

ROW_BLOCK = 1024  # training rows are padded to a multiple whatever the device count, so the random draws do not depend on it
ENCODE_BLOCK = (
  2048  # rows that a device encodes at a time: their distances to a codebook stay in its cache
)
# How many rows are looked at: up to FEW_ROWS all, of more a sample. Codebooks gain little from more than 256 rows per code (faiss
# trains on as many), and a start, which needs a pass for each code, nothing from more than 16 after a few iterations.
FEW_ROWS = 16_384
TRAIN_ROWS_PER_CODE = 256
START_ROWS_PER_CODE = 16


@dataclasses.dataclass(frozen=True)
class Quantised:
  """What a quantiser returns. `points` are what the codebooks approximate: the embeddings, or an encoder's image of them."""

  codebooks: np.ndarray  # float32 [L, K, D]
  codes: np.ndarray  # int32 [I, L], collisions not resolved
  points: np.ndarray  # float32 [I, D]
  error: np.ndarray  # float32 [L]: mean squared distance to the embedding after each level, as share of its mean squared norm
  encoder: tuple[
    np.ndarray, ...
  ] = ()  # kernel, bias, kernel, bias, ... of the ReLU network embedding -> point; () = identity


def residual_kmeans(
  embeddings: np.ndarray, levels: int, codes: int, iterations: int, seed: int, mesh: Mesh
) -> Quantised:
  """Quantises embeddings float32 [I, D]. Every process passes all rows and gets all results.

  The same seed gives the same result on the same mesh. Over meshes, sums are taken in another order: results agree to
  rounding. Fewer distinct rows than codes leaves codes unused. Memory over the devices: the rows, and T x K floats.
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
    code_NxL, squared_NxL = quantise(shard_rows(x_IxD, mesh.size, mesh), jnp.stack(codebooks))
  error = np.asarray(squared_NxL)[: len(x_IxD)].mean(axis=0, dtype=np.float64) / scale
  return Quantised(
    codebooks=np.stack(codebooks),
    codes=np.asarray(code_NxL)[: len(x_IxD)],
    points=x_IxD,
    error=error.astype(np.float32),
  )


def training_rows(rows: int, codes: int, seed: int) -> np.ndarray:
  """Which rows codebooks are trained on [T]: all as they come, or where there are many a sample in random order."""
  if rows <= FEW_ROWS:
    return np.arange(rows)
  return np.random.default_rng(seed).permutation(rows)[: max(FEW_ROWS, TRAIN_ROWS_PER_CODE * codes)]


def shard_rows(x: np.ndarray, multiple: int, mesh: Mesh) -> jax.Array:
  """`x` [n, ...], which every process holds, spread over all devices by its rows, with zeros added to a multiple of `multiple`."""
  pad = -len(x) % multiple
  x = np.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)) if pad else x
  place = sharding(mesh, 'rows', *(None,) * (x.ndim - 1))
  return jax.make_array_from_callback(x.shape, place, lambda index: x[index])


@functools.partial(jax.jit, static_argnames=('codes', 'iterations', 'start_rows'))
def kmeans(key, x_NxD, weight_N, codes: int, iterations: int, start_rows: int):
  """One level: (centroids [K, D], residual rows [N, D]). Rows of weight 0 do not count."""
  start_KxD = _plus_plus(
    key, constrain(x_NxD[:start_rows], 'rows', None), weight_N[:start_rows], codes
  )
  centroid_KxD = jax.lax.fori_loop(
    0, iterations, lambda _, c: _lloyd(c, x_NxD, weight_N), start_KxD
  )
  code_N, _ = nearest(x_NxD, centroid_KxD)
  residual_NxD = (x_NxD - centroid_KxD[code_N]) * weight_N[:, None]
  return constrain(centroid_KxD, None, None), constrain(residual_NxD, 'rows', None)


@jax.jit
def quantise(x_NxD, codebooks_LxKxD):
  """(codes int32 [N, L], squared distance of the row to its approximation after each level [N, L]), both replicated."""

  def of_level(x_D, centroid_KxD):
    code_1, _ = nearest(x_D[None], centroid_KxD)
    x_D = x_D - centroid_KxD[code_1[0]]
    return x_D, (code_1[0], jnp.sum(x_D**2))

  of_row = lambda x_D: jax.lax.scan(of_level, x_D, codebooks_LxKxD)[1]
  of_rows = lambda x_nxD: jax.lax.map(of_row, x_nxD, batch_size=min(ENCODE_BLOCK, len(x_nxD)))
  # Inside shard_map, blocks are cut from the rows of one device; XLA would cut them from all rows and send them round.
  rows = spec(('rows', None))
  code_NxL, squared_NxL = jax.shard_map(of_rows, in_specs=rows, out_specs=rows)(x_NxD)
  return constrain(code_NxL.astype(jnp.int32), None, None), constrain(squared_NxL, None, None)


def nearest(x_NxD: jax.Array, centroid_KxD: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(index of the nearest centroid, lowest on ties, squared distance to it), each [N]."""
  dot_NxK = jnp.matmul(x_NxD, centroid_KxD.T, precision='highest')
  score_NxK = jnp.sum(centroid_KxD**2, axis=1) - 2 * dot_NxK
  distance_N = jnp.sum(x_NxD**2, axis=1) + jnp.min(score_NxK, axis=1)
  return jnp.argmin(score_NxK, axis=1), jnp.maximum(distance_N, 0)


def _plus_plus(key, x_NxD, weight_N, codes):
  """k-means++ start (Arthur & Vassilvitskii 2007): each next centre is a row drawn with chance ~ squared distance to the others."""

  def add(k, state):
    centroid_KxD, distance_N = state
    # log 0 = -inf: padding and rows already chosen are never drawn, unless nothing else is left
    score_N = jnp.log(distance_N * weight_N) + jax.random.gumbel(
      jax.random.fold_in(key, k), distance_N.shape
    )
    centre_D = whole_NxD[jnp.argmax(score_N)]
    return centroid_KxD.at[k].set(centre_D), jnp.minimum(
      distance_N, jnp.sum((x_NxD - centre_D) ** 2, axis=1)
    )

  whole_NxD = constrain(x_NxD, None, None)  # once, not a collective for each centre
  start = jnp.zeros((codes, x_NxD.shape[1])), jnp.ones_like(weight_N)
  return jax.lax.fori_loop(0, codes, add, start)[0]


def _lloyd(centroid_KxD, x_NxD, weight_N):
  """One iteration. An empty cluster moves to the row farthest from its centroid, the next empty one to the next farthest."""
  codes = len(centroid_KxD)
  code_N, distance_N = nearest(x_NxD, centroid_KxD)
  sum_KxD, size_K = _sums(code_N, x_NxD, weight_N, codes)
  empty_K = size_K == 0
  far_row_K = jax.lax.top_k(distance_N * weight_N, min(codes, len(weight_N)))[1]
  nth_empty_K = jnp.minimum(jnp.cumsum(empty_K) - 1, len(far_row_K) - 1)
  mean_KxD = sum_KxD / jnp.maximum(size_K, 1)[:, None]
  return jnp.where(empty_K[:, None], x_NxD[far_row_K[nth_empty_K]], mean_KxD)


def _sums(code_N, x_NxD, weight_N, codes):
  """(sum of the rows of each code [K, D], how many they are [K])."""

  def by_matmul(code_N, x_NxD, weight_N):
    member_NxK = jax.nn.one_hot(code_N, codes) * weight_N[:, None]
    return jnp.matmul(member_NxK.T, x_NxD, precision='highest'), jnp.sum(member_NxK, axis=0)

  def by_scatter(code_N, x_NxD, weight_N):
    code_N = jnp.where(weight_N > 0, code_N, codes)  # out of range: dropped
    return tuple(jax.ops.segment_sum(a, code_N, codes) for a in (x_NxD, weight_N))

  # A CPU adds rows one after the other, 25 times faster than it multiplies by a one-hot matrix; a small catalogue keeps the product,
  # and with it its IDs of earlier versions. A GPU would add in any order, which is not the same sum twice; a TPU multiplies best.
  if len(x_NxD) <= FEW_ROWS:
    return by_matmul(code_N, x_NxD, weight_N)
  return jax.lax.platform_dependent(code_N, x_NxD, weight_N, cpu=by_scatter, default=by_matmul)
