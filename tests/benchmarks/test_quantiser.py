"""The benchmark of the quantisers at a tiny size: vectors with the structure promised, errors that are true, all sides, a picture."""

import numpy as np
import pytest

from experiments.benchmarks import quantiser_parts as parts
from experiments.benchmarks import quantiser_plot

TINY = parts.Case(rows=10_240, width=16, iterations=6)  # 40 rows per code: with fewer, faiss warns


@pytest.fixture(scope='module')
def sharded():
  return parts.sharded(TINY, repeats=1)


def test_simulated_vectors_are_seeded_and_have_structure():
  x = parts.simulate(4000, 32)
  np.testing.assert_array_equal(x, parts.simulate(4000, 32))
  assert x.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
  spectrum = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
  assert spectrum[:4].sum() > 3 * spectrum[-16:].sum()  # decays
  noise = np.random.default_rng(0).standard_normal((4000, 32)) @ np.linalg.cholesky(np.cov(x.T)).T
  near = lambda a: np.square(a[:200, None] - a[None, 200:]).sum(axis=-1).min(axis=1).mean() / a.var(axis=0).sum()
  assert near(x) < 0.7 * near(noise)  # and clusters, which normal vectors of the same covariance have not


def test_error_is_that_of_the_approximations(monkeypatch):
  monkeypatch.setattr(parts, 'BLOCK', 7)
  rng = np.random.default_rng(0)
  x, books = rng.standard_normal((20, 4), np.float32), rng.standard_normal((3, parts.CODES, 4), np.float32)
  codes = rng.integers(0, parts.CODES, (20, 3))
  found = parts.relative_error(x, codes, books)
  for level in range(3):
    approximation = sum(books[i][codes[:, i]] for i in range(level + 1))
    assert found[level] == pytest.approx(np.square(x - approximation).sum() / np.square(x).sum(), rel=1e-5)


def test_all_sides_are_measured_and_drawn(sharded, tmp_path):
  pytest.importorskip('faiss')
  found = parts.compare(TINY, repeats=1, threads=1)  # several that wait for each other crawl on a busy machine
  assert set(found['sides']) == {'rolegen', 'rolegen_default', *parts.FAISS}
  for side in found['sides'].values():
    assert len(side['seconds']) == 1 and side['median_s'] > 0
    assert (np.diff(side['error']) < 0).all() and 0 < side['error'][-1] < 0.6
  for name, ratio in found['ours_against'].items():
    assert ratio['speed'] == pytest.approx(found['sides'][name]['median_s'] / found['sides']['rolegen']['median_s'])
    assert ratio['error'] < 1.1
  found['sharded'] = sharded
  quantiser_plot.draw(dict(examples={'tiny': found, 'alone': {k: v for k, v in found.items() if k != 'sharded'}}), tmp_path / 'figure.svg')
  assert 0 < (tmp_path / 'figure.svg').stat().st_size < 200_000


def test_eight_devices_find_what_one_finds(sharded):
  assert sharded['devices'] == 8
  assert sharded['equal_codes'] > 0.99 and sharded['codebook_difference'] < 1e-2
  np.testing.assert_allclose(sharded['sides']['one']['error'], sharded['sides']['all']['error'], rtol=1e-3)
