"""Text vectors: whitened main components, of all items, and of items that come later."""

import numpy as np
import pytest

from rolegen_jax.data.files import DataError
from rolegen_jax.semantic_ids.text_vectors import TextVectors


def unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def embeddings(items: int = 4000, width: int = 12, seed: int = 0) -> np.ndarray:
  """Unit rows that share a direction, with variances from 1 to 1e-4; three rows are zero."""
  rng = np.random.default_rng(seed)
  scale = 10.0 ** -np.linspace(0, 2, width)
  x = unit(rng.standard_normal((items, width)) * scale + 0.7).astype(np.float32)
  x[[1, 5, 9]] = 0
  return x


def test_vectors_are_unit_rows_and_no_direction_outweighs_another():
  x = embeddings()
  fitted = TextVectors.fit(x, 6)
  assert fitted.vectors.dtype == fitted.basis.dtype == np.float32
  assert fitted.vectors.shape == (4000, 6) and fitted.basis.shape == (12, 6)
  assert np.flatnonzero(~fitted.vectors.any(axis=1)).tolist() == [1, 5, 9]
  known = x.any(axis=1)
  np.testing.assert_allclose(np.linalg.norm(fitted.vectors[known], axis=1), 1, rtol=1e-5)
  # Before they are scaled to unit length, the components are uncorrelated and of one variance.
  white = (x[known] - fitted.mean) @ fitted.basis
  np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-2)
  np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=2e-2)


def test_the_main_components_are_kept():
  x = embeddings()
  basis = TextVectors.fit(x, 6).basis
  centered = x[x.any(axis=1)] - x[x.any(axis=1)].mean(axis=0)
  _, _, right = np.linalg.svd(centered, full_matrices=False)
  directions = basis / np.linalg.norm(basis, axis=0)
  np.testing.assert_allclose(np.abs(right[:6] @ directions), np.eye(6), atol=1e-3)


def test_the_width_is_at_most_that_of_the_embeddings():
  assert TextVectors.fit(embeddings(), 128).vectors.shape == (4000, 12)
  assert TextVectors.fit(embeddings(items=20), 128).vectors.shape == (20, 12)


def test_few_items_keep_their_neighbors():
  """Fully whitened, 12 items of 12 components would all be equally far apart."""
  rng = np.random.default_rng(0)
  center = np.repeat(rng.standard_normal((3, 64)), 4, axis=0)
  x = unit(center + 0.3 * rng.standard_normal((12, 64))).astype(np.float32)
  vectors = TextVectors.fit(x, 64).vectors
  same = np.kron(np.eye(3), np.ones((4, 4))) > 0
  similarity = vectors @ vectors.T
  assert similarity[same].min() > 0.3 > similarity[~same].max()


def test_texts_that_tell_nothing_are_zero():
  one_text = np.tile(unit(np.ones((1, 8), np.float32)), (5, 1))
  assert not TextVectors.fit(one_text, 4).vectors.any()
  assert not TextVectors.fit(np.zeros((5, 8), np.float32), 4).vectors.any()


def test_items_that_come_later_have_the_vectors_of_their_text():
  x = embeddings()
  fitted = TextVectors.fit(x, 6)
  later = fitted.of(x[[3, 1, 0]])
  assert later.dtype == np.float32
  np.testing.assert_allclose(later, fitted.vectors[[3, 1, 0]], atol=1e-6)


def test_what_is_saved_is_what_is_read(tmp_path):
  fitted = TextVectors.fit(embeddings(), 6)
  fitted.save(tmp_path)
  loaded = TextVectors.load(tmp_path)
  for name in ('vectors', 'mean', 'basis'):
    np.testing.assert_array_equal(getattr(loaded, name), getattr(fitted, name))
  assert loaded.digest == fitted.digest == TextVectors.fit(embeddings(), 6).digest
  assert loaded.digest != TextVectors.fit(embeddings(seed=1), 6).digest
  (tmp_path / 'text.npz').write_bytes(b'half of')
  with pytest.raises(DataError, match='text.npz: .*remove the DONE.json beside it'):
    TextVectors.load(tmp_path)
  (tmp_path / 'text.npz').unlink()
  with pytest.raises(DataError, match='text.npz: no such file'):
    TextVectors.load(tmp_path)
