"""Residual k-means and RQ-VAE on the sharded path: 8 devices against 1, one seed against itself, fewer items than codes."""

import jax
import numpy as np
import pytest

from rolegen_jax.config import MeshConfig
from rolegen_jax.semantic_ids import residual_kmeans as kmeans_lib
from rolegen_jax.semantic_ids.catalogue import encode
from rolegen_jax.semantic_ids.residual_kmeans import residual_kmeans
from rolegen_jax.semantic_ids.rqvae import rqvae
from rolegen_jax.sharding import make_mesh


def clustered(items, dim=16, centres=20, seed=0):
  rng = np.random.default_rng(seed)
  x = (
    rng.standard_normal((items, dim))
    + 6 * rng.standard_normal((centres, dim))[rng.integers(0, centres, items)]
  )
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def relative_error(found):
  """Per level, from codebooks and codes."""
  parts = np.stack([book[found.codes[:, level]] for level, book in enumerate(found.codebooks)])
  residual = found.points - np.cumsum(parts, axis=0)
  return np.square(residual).sum(axis=(1, 2)) / np.square(found.points).sum()


def test_kmeans_one_and_eight_devices_agree():
  assert len(jax.devices()) == 8
  x = clustered(1999)  # not divisible: padding rows must not count
  one = residual_kmeans(x, 3, 32, 10, 0, make_mesh(MeshConfig(), jax.devices()[:1]))
  eight = residual_kmeans(x, 3, 32, 10, 0, make_mesh(MeshConfig(fsdp=2, tensor=2)))
  again = residual_kmeans(x, 3, 32, 10, 0, make_mesh(MeshConfig(fsdp=2, tensor=2)))
  np.testing.assert_array_equal(eight.codebooks, again.codebooks)
  np.testing.assert_array_equal(eight.codes, again.codes)
  assert (one.codes == eight.codes).all(axis=1).mean() >= 0.999
  np.testing.assert_allclose(one.error, eight.error, rtol=1e-4)


def test_kmeans_finds_clusters_and_reports_its_error():
  x = clustered(1500, centres=20)
  found = residual_kmeans(x, 3, 32, 15, 0, make_mesh(MeshConfig()))
  np.testing.assert_allclose(found.error, relative_error(found), rtol=1e-3)
  assert (np.diff(found.error) < 0).all()
  naive = np.random.default_rng(0).choice(len(x), 32, replace=False)
  distance = np.square(x[:, None] - x[naive][None]).sum(axis=-1).min(axis=1)
  assert found.error[0] < 0.8 * distance.mean()  # rows have unit norm
  assert (np.bincount(found.codes[:, 0], minlength=32) > 0).all()


@pytest.mark.parametrize('items,distinct', [(5, 5), (40, 3), (1, 1)])
def test_kmeans_with_fewer_vectors_than_codes(items, distinct):
  x = clustered(distinct)[np.arange(items) % distinct]
  found = residual_kmeans(x, 2, 16, 5, 0, make_mesh(MeshConfig()))
  assert np.isfinite(found.codebooks).all() and found.error[0] < 1e-5
  assert len(np.unique(found.codes[:, 0])) == distinct


def test_kmeans_of_many_rows_trains_on_some_and_encodes_all():
  rows, codes = 40_001, 128
  trained = kmeans_lib.training_rows(rows, codes, 0)
  np.testing.assert_array_equal(trained, kmeans_lib.training_rows(rows, codes, 0))
  assert (
    len(np.unique(trained)) == len(trained) == 256 * codes
    and (trained != kmeans_lib.training_rows(rows, codes, 1)).any()
  )
  x = clustered(rows, dim=8, centres=400)
  one = residual_kmeans(x, 2, codes, 6, 0, make_mesh(MeshConfig(), jax.devices()[:1]))
  eight = residual_kmeans(x, 2, codes, 6, 0, make_mesh(MeshConfig(fsdp=2, tensor=2)))
  again = residual_kmeans(x, 2, codes, 6, 0, make_mesh(MeshConfig(fsdp=2, tensor=2)))
  np.testing.assert_array_equal(eight.codebooks, again.codebooks)
  np.testing.assert_array_equal(eight.codes, again.codes)
  np.testing.assert_allclose(one.error, eight.error, rtol=1e-3)
  for found in (one, eight):
    np.testing.assert_allclose(found.error, relative_error(found), rtol=1e-3)
    residual = x.copy()
    for level, book in enumerate(found.codebooks):
      nearest = (np.square(book).sum(axis=1) - 2 * residual @ book.T).argmin(axis=1)
      assert (nearest == found.codes[:, level]).mean() > 0.999
      residual -= book[found.codes[:, level]]
    squared = np.square(residual).sum(axis=1)
    unseen = np.setdiff1d(np.arange(rows), trained)
    assert squared[unseen].mean() < 1.05 * squared[trained].mean()


@pytest.mark.parametrize('rows', [2048, kmeans_lib.FEW_ROWS + 1024])
def test_sums_of_clusters_do_not_count_padding(rows):
  rng = np.random.default_rng(0)
  x, code, weight = (
    rng.standard_normal((rows, 4), np.float32),
    rng.integers(0, 7, rows),
    (np.arange(rows) < rows - 500).astype(np.float32),
  )
  found, size = jax.jit(kmeans_lib._sums, static_argnums=3)(code, x, weight, 9)
  expected = np.stack([x[(code == k) & (weight > 0)].sum(axis=0) for k in range(9)])
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)
  np.testing.assert_array_equal(size, np.bincount(code[weight > 0], minlength=9))


def test_rqvae_learns_uses_its_codes_and_encodes_new_items():
  x = clustered(1500)
  mesh = make_mesh(MeshConfig())
  short, again, found = (rqvae(x, 2, 32, epochs, 0, mesh) for epochs in (1, 1, 30))
  np.testing.assert_array_equal(short.codes, again.codes)
  assert found.error[-1] < 0.5 * short.error[-1] and found.error[-1] < 0.4
  assert all(len(np.unique(found.codes[:, level])) >= 16 for level in range(2))
  np.testing.assert_allclose(encode(found.encoder, x), found.points, rtol=1e-4, atol=1e-4)
  residual = found.points - found.codebooks[0][found.codes[:, 0]]
  expected = np.square(residual[:, None] - found.codebooks[1]).sum(axis=-1).argmin(axis=1)
  assert (expected == found.codes[:, 1]).mean() > 0.999
