"""Residual k-means over the mesh: level l clusters what levels 0..l-1 left unexplained.

Rows are sharded over all devices, centroids replicated; one level is one jitted program (k-means++ start, Lloyd iterations
in a `fori_loop`), compiled once for all levels.

Legend: N rows padded (weight 0), I items, L levels, K codes, D width.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rolegen_jax.progress import progress
from rolegen_jax.sharding import constrain, sharding

ROW_BLOCK = 1024  # rows are padded to a multiple whatever the device count, so the random draws do not depend on it


@dataclasses.dataclass(frozen=True)
class Quantised:
  """What a quantiser returns. `points` are what the codebooks approximate: the embeddings, or an encoder's image of them."""

  codebooks: np.ndarray  # float32 [L, K, D]
  codes: np.ndarray  # int32 [I, L], collisions not resolved
  points: np.ndarray  # float32 [I, D]
  error: np.ndarray  # float32 [L]: mean squared distance to the embedding after each level, as share of its mean squared norm
  encoder: tuple[np.ndarray, ...] = ()  # kernel, bias, kernel, bias, ... of the ReLU network embedding -> point; () = identity


def residual_kmeans(embeddings: np.ndarray, levels: int, codes: int, iterations: int, seed: int, mesh: Mesh) -> Quantised:
  """Quantises embeddings float32 [I, D]. Every process passes all rows and gets all results.

  The same seed gives the same result on the same mesh. Over meshes, sums are taken in another order: results agree to
  rounding. Fewer distinct rows than codes leaves codes unused. Memory: I x K floats over the devices.
  """
  x_NxD, weight_N = shard_rows(embeddings, mesh)
  scale = max(float(np.square(embeddings, dtype=np.float64).sum(axis=1).mean()), 1e-30)
  codebooks, codes_per_level, errors = [], [], []
  with jax.set_mesh(mesh):
    for level in progress(range(levels), 'residual k-means level'):
      key = jax.random.fold_in(jax.random.key(seed), level)
      centroid_KxD, code_N, x_NxD, error = kmeans(key, x_NxD, weight_N, codes, iterations)
      codebooks.append(np.asarray(centroid_KxD))
      codes_per_level.append(np.asarray(code_N)[:len(embeddings)])
      errors.append(float(error) / scale)
  return Quantised(
      codebooks=np.stack(codebooks), codes=np.stack(codes_per_level, axis=1).astype(np.int32),
      points=np.asarray(embeddings, np.float32), error=np.asarray(errors, np.float32),
  )


def shard_rows(x_IxD: np.ndarray, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
  """Rows [N, D] and weights [N] (1, or 0 for padding) over all devices of `mesh`, from a matrix that every process holds."""
  block = math.lcm(ROW_BLOCK, mesh.size)
  pad = -len(x_IxD) % block
  x = np.pad(np.asarray(x_IxD, np.float32), ((0, pad), (0, 0)))
  weight = np.pad(np.ones(len(x_IxD), np.float32), (0, pad))
  place = lambda a, *axes: jax.make_array_from_callback(a.shape, sharding(mesh, *axes), lambda index: a[index])
  return place(x, 'rows', None), place(weight, 'rows')


@functools.partial(jax.jit, static_argnames=('codes', 'iterations'))
def kmeans(key, x_NxD, weight_N, codes: int, iterations: int):
  """One level: (centroids [K, D], code of every row [N] replicated, residual rows [N, D], mean squared residual)."""
  start_KxD = _plus_plus(key, x_NxD, weight_N, codes)
  centroid_KxD = jax.lax.fori_loop(0, iterations, lambda _, c: _lloyd(c, x_NxD, weight_N), start_KxD)
  code_N, _ = nearest(x_NxD, centroid_KxD)
  residual_NxD = constrain((x_NxD - centroid_KxD[code_N]) * weight_N[:, None], 'rows', None)
  error = jnp.sum(residual_NxD**2) / jnp.sum(weight_N)
  return constrain(centroid_KxD, None, None), constrain(code_N, None), residual_NxD, constrain(error)


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
    score_N = jnp.log(distance_N * weight_N) + jax.random.gumbel(jax.random.fold_in(key, k), distance_N.shape)
    centre_D = x_NxD[jnp.argmax(score_N)]
    return centroid_KxD.at[k].set(centre_D), jnp.minimum(distance_N, jnp.sum((x_NxD - centre_D) ** 2, axis=1))

  start = jnp.zeros((codes, x_NxD.shape[1])), jnp.ones_like(weight_N)
  return jax.lax.fori_loop(0, codes, add, start)[0]


def _lloyd(centroid_KxD, x_NxD, weight_N):
  """One iteration. An empty cluster moves to the row farthest from its centroid, the next empty one to the next farthest."""
  codes = len(centroid_KxD)
  code_N, distance_N = nearest(x_NxD, centroid_KxD)
  member_NxK = jax.nn.one_hot(code_N, codes) * weight_N[:, None]
  size_K = jnp.sum(member_NxK, axis=0)
  sum_KxD = jnp.matmul(member_NxK.T, x_NxD, precision='highest')
  empty_K = size_K == 0
  far_row_K = jax.lax.top_k(distance_N * weight_N, min(codes, len(weight_N)))[1]
  nth_empty_K = jnp.minimum(jnp.cumsum(empty_K) - 1, len(far_row_K) - 1)
  mean_KxD = sum_KxD / jnp.maximum(size_K, 1)[:, None]
  return jnp.where(empty_K[:, None], x_NxD[far_row_K[nth_empty_K]], mean_KxD)
