"""Every item has its own ID, whatever the quantizer did; the artifact is bound to its content."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.config import ConfigError, MeshConfig, SemanticIdConfig
from rolegen_jax.data.files import DataError
from rolegen_jax.semantic_ids import catalogue as lib
from rolegen_jax.sharding import make_mesh


def vectors(items, dim=8, seed=0):
  return np.random.default_rng(seed).standard_normal((items, dim)).astype(np.float32)


def distinct(codes):
  return len(np.unique(codes, axis=0)) == len(codes)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 27), st.integers(0, 27), st.booleans())
def test_assign_gives_free_ids_and_is_deterministic(seed, n, n_taken, crowded):
  rng = np.random.default_rng(seed)
  n = min(n, 27 - n_taken)
  codebooks = rng.standard_normal((3, 3, 4)).astype(np.float32)
  taken = np.unravel_index(rng.choice(27, n_taken, replace=False), (3, 3, 3))
  taken = np.stack(taken, axis=1).astype(np.int32)
  points = np.zeros((n, 4)) if crowded else rng.standard_normal((n, 4))
  points = points.astype(np.float32)
  codes = lib.assign(points, codebooks, taken=taken)
  assert codes.shape == (n, 3) and distinct(np.concatenate([codes, taken]))
  np.testing.assert_array_equal(codes, lib.assign(points, codebooks, taken=taken))


def test_a_collision_moves_the_farther_item_at_the_last_level():
  codebooks = np.array([[[0.0], [10.0]], [[0.0], [1.0]]], np.float32)
  points = np.array([[0.2], [0.1], [10.0]], np.float32)
  preferred = np.array([[0, 0], [0, 0], [1, 0]], np.int32)
  codes = lib.assign(points, codebooks, preferred=preferred)
  assert codes.tolist() == [[0, 1], [0, 0], [1, 0]]

  # Three items, two leaves: the farthest leaves the prefix.
  crowd = np.array([[0.2], [0.1], [0.3]], np.float32)
  codes = lib.assign(crowd, codebooks, preferred=np.zeros((3, 2), np.int32))
  assert codes.tolist() == [[0, 1], [0, 0], [1, 0]]


@pytest.mark.parametrize('method', ['residual_kmeans', 'rqvae'])
def test_build_add_save_load(method, tmp_path):
  config = SemanticIdConfig(method=method, levels=3, codes=8, iterations=5)
  # Of sixty items nothing is known.
  x = np.concatenate([vectors(300), np.zeros((60, 8), np.float32)])
  ids = [f'item-{i:04d}' for i in range(360)]
  built = lib.build(x, ids, config, make_mesh(MeshConfig()))
  assert distinct(built.codes) and built.codes.max() < 8
  assert built.report['collision_rate'] > 0.1 and built.report['moved_by_level'][-1] > 0
  for stage in ('before', 'after'):
    assert all(1 <= perplexity <= 8 for perplexity in built.report[stage]['perplexity'])
  assert built.report['after']['error'][-1] >= built.report['before']['error'][-1]

  grown = built.add(
    lib.encode(built.encoder, vectors(100, seed=1)), [f'new-{i}' for i in range(100)]
  )
  np.testing.assert_array_equal(grown.codes[:360], built.codes)
  assert distinct(grown.codes) and grown.digest != built.digest == grown.parent
  np.testing.assert_array_equal(grown.codes_of(['new-3', 'item-0007']), grown.codes[[363, 7]])
  message = "1 of 2 items have no semantic ID, the first is .*'zzz'"
  with pytest.raises(lib.ArtifactError, match=message):
    grown.codes_of(['item-0001', 'zzz'])
  with pytest.raises(ValueError, match='there twice'):
    built.add(lib.encode(built.encoder, vectors(1)), ['item-0001'])

  grown.save(tmp_path)
  loaded = lib.Catalogue.load(tmp_path, expected_digest=grown.digest)
  assert loaded.digest == grown.digest and loaded.report == grown.report
  more = lib.encode(built.encoder, vectors(9, seed=2)), range(9)
  np.testing.assert_array_equal(loaded.add(*more).codes, grown.add(*more).codes)
  assert [path.name for path in tmp_path.iterdir()] == ['catalogue.npz']


def test_load_names_both_hashes(tmp_path):
  catalogue = lib.Catalogue(
    np.arange(4),
    np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32),
    np.zeros((2, 2, 3), np.float32),
  )
  path = catalogue.save(tmp_path)
  with pytest.raises(lib.ArtifactError, match=f'{catalogue.digest}.*0123456789abcdef'):
    lib.Catalogue.load(tmp_path, expected_digest='0123456789abcdef')
  other = dataclasses.replace(catalogue, codes=catalogue.codes[::-1].copy())
  with np.load(path) as file:
    arrays = dict(file) | {'codes': other.codes}
  np.savez(path, **arrays)
  with pytest.raises(lib.ArtifactError, match=f'{other.digest}.*{catalogue.digest}'):
    lib.Catalogue.load(tmp_path)


@pytest.mark.parametrize('name', ['codes', 'codebooks', 'report'])
def test_a_damaged_file_is_named(tmp_path, name):
  path = lib.Catalogue(np.arange(2), np.eye(2, dtype=np.int32), np.zeros((2, 2, 3))).save(tmp_path)
  with np.load(path) as file:
    arrays = {other: file[other] for other in file.files if other != name}
  whole = path.read_bytes()
  np.savez(path, **arrays)
  without = path.read_bytes()
  for content in (without, whole[:200], b''):
    path.write_bytes(content)
    with pytest.raises(DataError, match='catalogue.npz: cannot be read .* must be a catalogue; '):
      lib.Catalogue.load(tmp_path)
  path.unlink()
  with pytest.raises(DataError, match='catalogue.npz: no such file; must be a catalogue'):
    lib.Catalogue.load(tmp_path)


def test_too_many_items_and_bad_embeddings_are_refused():
  mesh, config = make_mesh(MeshConfig()), SemanticIdConfig(levels=2, codes=3, iterations=2)
  assert distinct(lib.build(vectors(9), range(9), config, mesh).codes)  # exactly full
  with pytest.raises(ConfigError, match=r'semantic_ids.codes=3: 10 items .* codes \*\* levels = 9'):
    lib.build(vectors(10), range(10), config, mesh)
  x = vectors(5)
  x[3, 2] = np.nan
  with pytest.raises(ValueError, match='item 3 is not finite'):
    lib.build(x, range(5), config, mesh)
