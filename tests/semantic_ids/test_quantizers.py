"""Residual k-means and RQ-VAE over eight devices: the same as over one, and reproducible."""

import jax
import numpy as np
import pytest

from rolegen_jax.config import MeshConfig
from rolegen_jax.semantic_ids import residual_kmeans as kmeans_lib
from rolegen_jax.semantic_ids.catalogue import encode
from rolegen_jax.semantic_ids.residual_kmeans import residual_kmeans
from rolegen_jax.semantic_ids.rqvae import rqvae
from rolegen_jax.sharding import make_mesh


def clustered(items, dim=16, centers=20, seed=0):
  """Unit vectors around random centers, float32 [items, dim]."""
  rng = np.random.default_rng(seed)
  noise = rng.standard_normal((items, dim))
  x = noise + 6 * rng.standard_normal((centers, dim))[rng.integers(0, centers, items)]
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def relative_error(result):
  """The error after each level, from codebooks and codes."""
  chosen = [book[result.codes[:, level]] for level, book in enumerate(result.codebooks)]
  residual = result.points - np.cumsum(np.stack(chosen), axis=0)
  return np.square(residual).sum(axis=(1, 2)) / np.square(result.points).sum()


def one_device():
  return make_mesh(MeshConfig(), jax.devices()[:1])


def eight_devices():
  assert len(jax.devices()) == 8
  return make_mesh(MeshConfig(fsdp=2, tensor=2))


def test_kmeans_on_one_and_eight_devices_agree():
  x = clustered(1999)  # not divisible: padding rows must not count
  one = residual_kmeans(x, 3, 32, 10, 0, one_device())
  eight = residual_kmeans(x, 3, 32, 10, 0, eight_devices())
  again = residual_kmeans(x, 3, 32, 10, 0, eight_devices())
  np.testing.assert_array_equal(eight.codebooks, again.codebooks)
  np.testing.assert_array_equal(eight.codes, again.codes)
  assert (one.codes == eight.codes).all(axis=1).mean() >= 0.999
  np.testing.assert_allclose(one.error, eight.error, rtol=1e-4)


def test_kmeans_finds_clusters_and_reports_its_error():
  x = clustered(1500, centers=20)
  result = residual_kmeans(x, 3, 32, 15, 0, make_mesh(MeshConfig()))
  np.testing.assert_allclose(result.error, relative_error(result), rtol=1e-3)
  assert (np.diff(result.error) < 0).all()
  random_centers = x[np.random.default_rng(0).choice(len(x), 32, replace=False)]
  distance = np.square(x[:, None] - random_centers[None]).sum(axis=-1).min(axis=1)
  assert result.error[0] < 0.8 * distance.mean()  # rows have unit norm
  assert (np.bincount(result.codes[:, 0], minlength=32) > 0).all()


@pytest.mark.parametrize('items,distinct', [(5, 5), (40, 3), (1, 1)])
def test_kmeans_with_fewer_vectors_than_codes(items, distinct):
  x = clustered(distinct)[np.arange(items) % distinct]
  result = residual_kmeans(x, 2, 16, 5, 0, make_mesh(MeshConfig()))
  assert np.isfinite(result.codebooks).all() and result.error[0] < 1e-5
  assert len(np.unique(result.codes[:, 0])) == distinct


def test_training_rows_are_a_sample_without_repeats():
  rows, codes = 40_001, 128
  sample = kmeans_lib.training_rows(rows, codes, 0)
  np.testing.assert_array_equal(sample, kmeans_lib.training_rows(rows, codes, 0))
  assert len(np.unique(sample)) == len(sample) == 256 * codes
  assert (sample != kmeans_lib.training_rows(rows, codes, 1)).any()


@pytest.mark.slow
def test_kmeans_of_many_rows_trains_on_some_and_encodes_all():
  rows, codes = 40_001, 128
  trained = kmeans_lib.training_rows(rows, codes, 0)
  x = clustered(rows, dim=8, centers=400)
  one = residual_kmeans(x, 2, codes, 6, 0, one_device())
  eight = residual_kmeans(x, 2, codes, 6, 0, eight_devices())
  again = residual_kmeans(x, 2, codes, 6, 0, eight_devices())
  np.testing.assert_array_equal(eight.codebooks, again.codebooks)
  np.testing.assert_array_equal(eight.codes, again.codes)
  np.testing.assert_allclose(one.error, eight.error, rtol=1e-3)
  for result in (one, eight):
    np.testing.assert_allclose(result.error, relative_error(result), rtol=1e-3)
    residual = x.copy()
    for level, book in enumerate(result.codebooks):
      nearest = (np.square(book).sum(axis=1) - 2 * residual @ book.T).argmin(axis=1)
      assert (nearest == result.codes[:, level]).mean() > 0.999
      residual -= book[result.codes[:, level]]
    squared = np.square(residual).sum(axis=1)
    unseen = np.setdiff1d(np.arange(rows), trained)
    assert squared[unseen].mean() < 1.05 * squared[trained].mean()


@pytest.mark.parametrize('rows', [2048, kmeans_lib.FEW_ROWS + 1024])
def test_sums_of_clusters_do_not_count_padding(rows):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((rows, 4), np.float32)
  code = rng.integers(0, 7, rows)
  is_row = np.arange(rows) < rows - 500
  sums, sizes = jax.jit(kmeans_lib._sums, static_argnums=3)(code, x, is_row.astype(np.float32), 9)
  expected = np.stack([x[(code == k) & is_row].sum(axis=0) for k in range(9)])
  np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=1e-2)
  np.testing.assert_array_equal(sizes, np.bincount(code[is_row], minlength=9))


@pytest.mark.slow
def test_rqvae_learns_uses_its_codes_and_encodes_new_items():
  x = clustered(1500)
  mesh = make_mesh(MeshConfig())
  short, again, trained = (rqvae(x, 2, 32, epochs, 0, mesh) for epochs in (1, 1, 30))
  np.testing.assert_array_equal(short.codes, again.codes)
  assert trained.error[-1] < 0.5 * short.error[-1] and trained.error[-1] < 0.4
  assert all(len(np.unique(trained.codes[:, level])) >= 16 for level in range(2))
  np.testing.assert_allclose(encode(trained.encoder, x), trained.points, rtol=1e-4, atol=1e-4)
  residual = trained.points - trained.codebooks[0][trained.codes[:, 0]]
  nearest = np.square(residual[:, None] - trained.codebooks[1]).sum(axis=-1).argmin(axis=1)
  assert (nearest == trained.codes[:, 1]).mean() > 0.999
