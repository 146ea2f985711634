"""RQ-VAE: residual quantization of a learned latent.

From Zeghidour et al. 2021; for semantic IDs: Rajput et al., TIGER, 2023.

An MLP encodes an embedding, L codebooks quantize its latent residually, an MLP decodes the sum.
Gradients are straight-through, with a commitment loss. Codebooks start from k-means of the first
batch, and codes unused in an epoch restart from data. Batches are sharded over all devices,
parameters replicated; one epoch is one jitted scan.

Legend: I items, S steps, B batch, D embedding width, Z latent width, L levels, K codes.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from rolegen_jax.runtime.progress import progress
from rolegen_jax.semantic_ids.residual_kmeans import Quantized, nearest, residual_kmeans
from rolegen_jax.sharding import constrain, sharding

HIDDEN = 128
LATENT = 32
BATCH = 1024  # rows over all devices
LEARNING_RATE = 1e-3
COMMITMENT = 0.25
INIT_ITERATIONS = 10  # of the k-means that starts the codebooks


class RQVAE(nnx.Module):
  """The model. Codebooks start at zero and are set by `rqvae`."""

  def __init__(self, dim: int, levels: int, codes: int, rngs: nnx.Rngs) -> None:
    """Create the weights; `dim` is D."""
    self.encode_in = nnx.Linear(dim, HIDDEN, rngs=rngs)
    self.encode_out = nnx.Linear(HIDDEN, LATENT, rngs=rngs)
    self.decode_in = nnx.Linear(LATENT, HIDDEN, rngs=rngs)
    self.decode_out = nnx.Linear(HIDDEN, dim, rngs=rngs)
    self.codebooks = nnx.Param(jnp.zeros((levels, codes, LATENT)))

  def encode(self, x_BxD: jax.Array) -> jax.Array:
    """Return latents [B, Z]."""
    return self.encode_out(nnx.relu(self.encode_in(x_BxD)))

  def decode(self, z_BxZ: jax.Array) -> jax.Array:
    """Return embeddings [B, D]."""
    return self.decode_out(nnx.relu(self.decode_in(z_BxZ)))

  def quantize(self, z_BxZ: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (codes [B, L], chosen centroids [L, B, Z], residual before each level [L, B, Z])."""
    codes, chosen, residuals = [], [], []
    for codebook_KxZ in self.codebooks[...]:
      code_B, _ = nearest(z_BxZ, codebook_KxZ)
      codes.append(code_B)
      chosen.append(codebook_KxZ[code_B])
      residuals.append(z_BxZ)
      z_BxZ = z_BxZ - jax.lax.stop_gradient(chosen[-1])
    return jnp.stack(codes, axis=1), jnp.stack(chosen), jnp.stack(residuals)

  def loss(self, x_BxD: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return (mean over rows of squared error + codebook + commitment terms, auxiliary).

    The auxiliary is (codes [B, L], residual before each level [L, B, Z]).
    """
    z_BxZ = self.encode(x_BxD)
    codes_BxL, chosen_LxBxZ, residual_LxBxZ = self.quantize(z_BxZ)
    straight_BxZ = z_BxZ + jax.lax.stop_gradient(chosen_LxBxZ.sum(axis=0) - z_BxZ)
    codebook_terms = sum(
      _mean_squared_norm(jax.lax.stop_gradient(residual_BxZ) - chosen_BxZ)
      + COMMITMENT * _mean_squared_norm(residual_BxZ - jax.lax.stop_gradient(chosen_BxZ))
      for residual_BxZ, chosen_BxZ in zip(residual_LxBxZ, chosen_LxBxZ)
    )
    error = _mean_squared_norm(self.decode(straight_BxZ) - x_BxD)
    return error + codebook_terms, (codes_BxL, residual_LxBxZ)


def _mean_squared_norm(x_BxZ: jax.Array) -> jax.Array:
  return jnp.sum(x_BxZ**2, axis=-1).mean()


def rqvae(
  embeddings: np.ndarray, levels: int, codes: int, iterations: int, seed: int, mesh: Mesh
) -> Quantized:
  """Quantize embeddings float32 [I, D] in `iterations` epochs.

  Every process passes all rows and gets all results. In the result, `points` are the latents,
  `encoder` is the network that makes them, and `error` compares decoded and true embeddings.
  """
  x_IxD = np.asarray(embeddings, np.float32)
  rng = np.random.default_rng(seed)
  batch = min(BATCH, -(-len(x_IxD) // mesh.size) * mesh.size)
  model = RQVAE(x_IxD.shape[1], levels, codes, nnx.Rngs(seed))
  first_rows_B = _epoch_rows(rng, len(x_IxD), batch)[0]
  first_BxZ = np.asarray(model.encode(x_IxD[first_rows_B]))
  start = residual_kmeans(first_BxZ, levels, codes, INIT_ITERATIONS, seed, mesh)
  model.codebooks[...] = jnp.asarray(start.codebooks)
  graph, state = nnx.split(model)
  params = nnx.to_pure_dict(state)
  carry = jax.device_put((params, _optimizer().init(params)), sharding(mesh))
  with jax.set_mesh(mesh):
    for epoch in progress(range(iterations), 'RQ-VAE epoch'):
      rows_SxB = _epoch_rows(rng, len(x_IxD), batch)
      batches_SxBxD = _shard_batches(x_IxD, rows_SxB, mesh)
      carry = _epoch(graph, carry, batches_SxBxD, jax.random.fold_in(jax.random.key(seed), epoch))
  params = jax.tree.map(np.asarray, carry[0])
  codes_IxL, z_IxZ, error_L = jax.jit(_outputs, static_argnums=0)(graph, params, x_IxD)
  layers = [params[name] for name in ('encode_in', 'encode_out')]
  return Quantized(
    codebooks=params['codebooks'],
    codes=np.asarray(codes_IxL, np.int32),
    points=np.asarray(z_IxZ),
    error=np.asarray(error_L),
    encoder=tuple(layer[part] for layer in layers for part in ('kernel', 'bias')),
  )


def _bind(graph: nnx.GraphDef, params: dict) -> RQVAE:
  return nnx.merge(graph, nnx.State(params))


def _optimizer() -> optax.GradientTransformation:
  return optax.adam(LEARNING_RATE)


def _epoch_rows(rng: np.random.Generator, items: int, batch: int) -> np.ndarray:
  """Return the rows [S, B] of an epoch: a permutation, its end filled up with its start."""
  steps = -(-items // batch)
  return np.resize(rng.permutation(items), (steps, batch))


def _shard_batches(x_IxD: np.ndarray, rows_SxB: np.ndarray, mesh: Mesh) -> jax.Array:
  """Return x[rows] [S, B, D] with each batch spread over all devices."""

  def read(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None
    return x_IxD[rows_SxB[index[:2]]]

  shape = (*rows_SxB.shape, x_IxD.shape[1])
  return jax.make_array_from_callback(shape, sharding(mesh, None, 'rows', None), read)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _epoch(
  graph: nnx.GraphDef, carry: tuple[dict, Any], batches_SxBxD: jax.Array, key: jax.Array
) -> tuple[dict, Any]:
  """Return (params, optimizer state) after one pass over the batches, unused codes restarted."""

  def step(
    carry: tuple[dict, Any], x_BxD: jax.Array
  ) -> tuple[tuple[dict, Any], tuple[jax.Array, jax.Array]]:
    params, moments = carry

    def loss(params: dict) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
      return _bind(graph, params).loss(x_BxD)

    gradient, (codes_BxL, residual_LxBxZ) = jax.grad(loss, has_aux=True)(params)
    updates, moments = _optimizer().update(gradient, moments)
    params = optax.apply_updates(params, updates)
    n_codes = params['codebooks'].shape[1]
    used_LxK = jax.nn.one_hot(codes_BxL, n_codes).sum(axis=0)
    return (params, moments), (used_LxK, residual_LxBxZ[:, :n_codes])

  (params, moments), (used_SxLxK, residual_SxLxBxZ) = jax.lax.scan(step, carry, batches_SxBxD)
  codebooks_LxKxZ = params['codebooks']
  residual_LxBxZ = constrain(residual_SxLxBxZ[-1], None, None, None)
  draw_K = jax.random.randint(key, codebooks_LxKxZ.shape[1:2], 0, residual_LxBxZ.shape[1])
  unused_LxK = used_SxLxK.sum(axis=0) == 0
  params['codebooks'] = jnp.where(unused_LxK[..., None], residual_LxBxZ[:, draw_K], codebooks_LxKxZ)
  return params, moments


def _outputs(
  graph: nnx.GraphDef, params: dict, x_IxD: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return (codes [I, L], latents [I, Z], reconstruction error after each level [L])."""
  model = _bind(graph, params)
  z_IxZ = model.encode(x_IxD)
  codes_IxL, chosen_LxIxZ, _ = model.quantize(z_IxZ)
  decoded_LxIxD = model.decode(jnp.cumsum(chosen_LxIxZ, axis=0))
  scale = jnp.maximum(jnp.sum(x_IxD**2), 1e-30)
  error_L = jnp.sum((decoded_LxIxD - x_IxD) ** 2, axis=(1, 2)) / scale
  return codes_IxL, z_IxZ, error_L
