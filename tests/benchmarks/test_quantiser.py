"""The quantiser benchmark at a tiny size: vectors have structure, errors are true, results plot."""

import json

import numpy as np
import pytest

from experiments.benchmarks import harness, quantiser

# Faiss warns with fewer than 40 rows per code.
ROWS, WIDTH, ITERATIONS = 10_240, 16, 6


def test_simulated_vectors_are_seeded_and_have_structure():
  x = quantiser.simulate(4000, 32)
  np.testing.assert_array_equal(x, quantiser.simulate(4000, 32))
  np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
  spectrum = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
  assert spectrum[:4].sum() > 3 * spectrum[-16:].sum()  # decays
  factor = np.linalg.cholesky(np.cov(x.T)).T
  noise = np.random.default_rng(0).standard_normal((4000, 32)) @ factor

  def nearest(a: np.ndarray) -> float:
    distance = np.square(a[:200, None] - a[None, 200:]).sum(axis=-1)
    return distance.min(axis=1).mean() / a.var(axis=0).sum()

  assert nearest(x) < 0.7 * nearest(noise)  # clusters, unlike normal vectors of this covariance


def test_error_is_that_of_the_approximations(monkeypatch):
  monkeypatch.setattr(quantiser, 'BLOCK', 7)
  rng = np.random.default_rng(0)
  x = rng.standard_normal((20, 4), np.float32)
  books = rng.standard_normal((3, quantiser.CODES, 4), np.float32)
  codes = rng.integers(0, quantiser.CODES, (20, 3))
  error = quantiser.relative_error(x, codes, books)
  for level in range(3):
    approximation = sum(books[i][codes[:, i]] for i in range(level + 1))
    expected = np.square(x - approximation).sum() / np.square(x).sum()
    assert error[level] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope='module')
def sharded() -> dict:
  return quantiser.sharded(ROWS, WIDTH, ITERATIONS, repeats=1)


@pytest.mark.slow
def test_eight_devices_find_what_one_finds(sharded):
  assert sharded['devices'] == 8
  assert sharded['equal_codes'] > 0.99 and sharded['codebook_difference'] < 1e-2
  one, eight = (sharded['sides'][name]['error'] for name in ('one', 'all'))
  np.testing.assert_allclose(one, eight, rtol=1e-3)


@pytest.mark.slow
def test_all_sides_are_measured_and_drawn(sharded, monkeypatch, tmp_path):
  pytest.importorskip('faiss')
  size = f'{ROWS}x{WIDTH}'
  monkeypatch.setattr(quantiser, 'SIZES', {size: ITERATIONS})
  monkeypatch.setattr(harness, 'call_in_process', lambda *_, **__: sharded)
  # One thread: several that wait for each other crawl on a busy machine.
  monkeypatch.setattr(quantiser.os, 'sched_getaffinity', lambda _: {0})
  results = quantiser.measure(harness.Store(), sizes=(size,), repeats=1)
  point = results['points'][size]
  assert set(point['sides']) == {'rolegen', 'rolegen_default', *quantiser.FAISS}
  for side in point['sides'].values():
    assert side['n'] == 1 and side['median_s'] > 0
    assert (np.diff(side['error']) < 0).all() and 0 < side['error'][-1] < 0.6
  assert all(ratio['error'] < 1.1 for ratio in point['faster'].values())
  plot_and_tabulate(json.loads(json.dumps(results)), tmp_path)


def test_committed_results_plot_and_tabulate(tmp_path):
  plot_and_tabulate(json.loads((harness.FOLDER / 'quantiser.json').read_text()), tmp_path)


def plot_and_tabulate(results: dict, folder) -> None:
  assert len(quantiser.table(results).splitlines()) == 1 + 8 * len(results['points'])
  quantiser.plot(results, folder / 'quantiser.png')
  assert 10_000 < (folder / 'quantiser.png').stat().st_size < harness.MAX_FIGURE_BYTES
