"""RQ-VAE: residual quantisation of a learnt latent (Zeghidour et al. 2021; for semantic IDs: Rajput et al., TIGER, 2023).

An MLP encodes an embedding, L codebooks quantise its latent residually, an MLP decodes the sum. Straight-through gradients,
commitment loss, codebooks that start from k-means of the first batch, and codes unused in an epoch restarted from data.
Batches are sharded over all devices, parameters replicated; one epoch is one jitted scan.

Legend: B batch, D embedding width, Z latent width, L levels, K codes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from rolegen_jax.runtime.progress import progress
from rolegen_jax.semantic_ids.residual_kmeans import Quantised, nearest, residual_kmeans
from rolegen_jax.sharding import constrain, sharding

HIDDEN = 128
LATENT = 32
BATCH = 1024  # rows over all devices
LEARNING_RATE = 1e-3
COMMITMENT = 0.25
INIT_ITERATIONS = 10  # of the k-means that starts the codebooks


class RQVAE(nnx.Module):
  """Weights only need `dim`, the embedding width D; codebooks start at zero and are set by `rqvae`."""

  def __init__(self, dim: int, levels: int, codes: int, rngs: nnx.Rngs):
    self.encode_in, self.encode_out = (
      nnx.Linear(dim, HIDDEN, rngs=rngs),
      nnx.Linear(HIDDEN, LATENT, rngs=rngs),
    )
    self.decode_in, self.decode_out = (
      nnx.Linear(LATENT, HIDDEN, rngs=rngs),
      nnx.Linear(HIDDEN, dim, rngs=rngs),
    )
    self.codebooks = nnx.Param(jnp.zeros((levels, codes, LATENT)))

  def encode(self, x_BxD: jax.Array) -> jax.Array:
    return self.encode_out(nnx.relu(self.encode_in(x_BxD)))

  def decode(self, z_BxZ: jax.Array) -> jax.Array:
    return self.decode_out(nnx.relu(self.decode_in(z_BxZ)))

  def quantise(self, z_BxZ: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(codes [B, L], chosen centroids [L, B, Z], residual that each level saw [L, B, Z])."""
    codes, chosen, seen = [], [], []
    for codebook_KxZ in self.codebooks[...]:
      code_B, _ = nearest(z_BxZ, codebook_KxZ)
      codes.append(code_B)
      chosen.append(codebook_KxZ[code_B])
      seen.append(z_BxZ)
      z_BxZ = z_BxZ - jax.lax.stop_gradient(chosen[-1])
    return jnp.stack(codes, axis=1), jnp.stack(chosen), jnp.stack(seen)

  def loss(self, x_BxD: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """(mean over rows of squared error + codebook + commitment terms, (codes [B, L], residuals seen [L, B, Z]))."""
    z_BxZ = self.encode(x_BxD)
    codes_BxL, chosen_LxBxZ, seen_LxBxZ = self.quantise(z_BxZ)
    straight_BxZ = z_BxZ + jax.lax.stop_gradient(chosen_LxBxZ.sum(axis=0) - z_BxZ)
    squared = lambda a: jnp.sum(a**2, axis=-1).mean()
    pull = sum(
      squared(jax.lax.stop_gradient(seen) - chosen)
      + COMMITMENT * squared(seen - jax.lax.stop_gradient(chosen))
      for seen, chosen in zip(seen_LxBxZ, chosen_LxBxZ)
    )
    return squared(self.decode(straight_BxZ) - x_BxD) + pull, (codes_BxL, seen_LxBxZ)


def rqvae(
  embeddings: np.ndarray, levels: int, codes: int, iterations: int, seed: int, mesh: Mesh
) -> Quantised:
  """Quantises embeddings float32 [I, D] in `iterations` epochs. Every process passes all rows and gets all results.

  `points` are the latents, `encoder` the network that makes them; `error` compares decoded and true embeddings.
  """
  x_IxD = np.asarray(embeddings, np.float32)
  rng = np.random.default_rng(seed)
  batch = min(BATCH, -(-len(x_IxD) // mesh.size) * mesh.size)
  model = RQVAE(x_IxD.shape[1], levels, codes, nnx.Rngs(seed))
  first_BxZ = np.asarray(model.encode(x_IxD[_epoch_rows(rng, len(x_IxD), batch)[0]]))
  model.codebooks[...] = jnp.asarray(
    residual_kmeans(first_BxZ, levels, codes, INIT_ITERATIONS, seed, mesh).codebooks
  )
  graph, state = nnx.split(model)
  params = nnx.to_pure_dict(state)
  carry = jax.device_put((params, _optimizer().init(params)), sharding(mesh))
  with jax.set_mesh(mesh):
    for epoch in progress(range(iterations), 'RQ-VAE epoch'):
      rows = _epoch_rows(rng, len(x_IxD), batch)
      batches_SxBxD = jax.make_array_from_callback(
        (*rows.shape, x_IxD.shape[1]),
        sharding(mesh, None, 'rows', None),
        lambda index: x_IxD[rows[index[:2]]],
      )
      carry = _epoch(graph, carry, batches_SxBxD, jax.random.fold_in(jax.random.key(seed), epoch))
  params = jax.tree.map(np.asarray, carry[0])
  codes_IxL, z_IxZ, error_L = jax.jit(_outputs, static_argnums=0)(graph, params, x_IxD)
  layers = [params[name] for name in ('encode_in', 'encode_out')]
  return Quantised(
    codebooks=params['codebooks'],
    codes=np.asarray(codes_IxL, np.int32),
    points=np.asarray(z_IxZ),
    error=np.asarray(error_L),
    encoder=tuple(layer[part] for layer in layers for part in ('kernel', 'bias')),
  )


def _bind(graph, params) -> RQVAE:
  return nnx.merge(graph, nnx.State(params))


def _optimizer() -> optax.GradientTransformation:
  return optax.adam(LEARNING_RATE)


def _epoch_rows(rng: np.random.Generator, items: int, batch: int) -> np.ndarray:
  """Row numbers [S, B] of an epoch: a permutation, its end filled up with rows from its start."""
  steps = -(-items // batch)
  return np.resize(rng.permutation(items), (steps, batch))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _epoch(graph, carry, batches_SxBxD, key):
  """(params, optimizer state) after one pass over the batches, unused codes restarted."""

  def step(carry, x_BxD):
    params, moments = carry
    gradient, (codes_BxL, seen_LxBxZ) = jax.grad(
      lambda p: _bind(graph, p).loss(x_BxD), has_aux=True
    )(params)
    updates, moments = _optimizer().update(gradient, moments)
    params = optax.apply_updates(params, updates)
    n_codes = params['codebooks'].shape[1]
    return (params, moments), (
      jax.nn.one_hot(codes_BxL, n_codes).sum(axis=0),
      seen_LxBxZ[:, :n_codes],
    )

  (params, moments), (used_SxLxK, seen_SxLxBxZ) = jax.lax.scan(step, carry, batches_SxBxD)
  codebooks_LxKxZ = params['codebooks']
  seen_LxBxZ = constrain(seen_SxLxBxZ[-1], None, None, None)
  draw_K = jax.random.randint(key, codebooks_LxKxZ.shape[1:2], 0, seen_LxBxZ.shape[1])
  dead_LxK = used_SxLxK.sum(axis=0) == 0
  params['codebooks'] = jnp.where(dead_LxK[..., None], seen_LxBxZ[:, draw_K], codebooks_LxKxZ)
  return params, moments


def _outputs(graph, params, x_IxD):
  """(codes [I, L], latents [I, Z], reconstruction error after each level [L]); see Quantised."""
  model = _bind(graph, params)
  z_IxZ = model.encode(x_IxD)
  codes_IxL, chosen_LxIxZ, _ = model.quantise(z_IxZ)
  decoded_LxIxD = model.decode(jnp.cumsum(chosen_LxIxZ, axis=0))
  error_L = jnp.sum((decoded_LxIxD - x_IxD) ** 2, axis=(1, 2)) / jnp.maximum(
    jnp.sum(x_IxD**2), 1e-30
  )
  return codes_IxL, z_IxZ, error_L
