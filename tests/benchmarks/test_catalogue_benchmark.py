"""The catalogue benchmark at a tiny size: masks are right, results plot and tabulate."""

import json
import pathlib

import numpy as np
import pytest

from experiments.benchmarks import catalogue, harness
from rolegen_jax.semantic_ids.trie import build_trie

CODES, LEVELS, ITEMS = 40, 3, 1000


def test_simulated_ids_are_distinct_and_seeded():
  ids = catalogue.simulated_ids(500, 2, 25, seed=1)  # most of the 625 that exist
  assert ids.shape == (500, 2) and len(np.unique(ids, axis=0)) == 500
  assert ids.min() == 0 and ids.max() == 24
  np.testing.assert_array_equal(ids, catalogue.simulated_ids(500, 2, 25, seed=1))


def test_both_tries_make_the_masks_of_the_prefixes():
  codes = catalogue.simulated_ids(ITEMS, LEVELS, CODES, seed=0)
  prefixes_BxkxL = codes[np.random.default_rng(0).integers(0, ITEMS, (4, 5))]
  ours = catalogue.trie_mask_calls(build_trie(codes, CODES), prefixes_BxkxL)
  csr = catalogue.Csr(codes, CODES).mask_calls(prefixes_BxkxL)
  for level in range(LEVELS):
    expected = np.zeros((4, 5, CODES), bool)
    for index in np.ndindex(4, 5):
      same = (codes[:, :level] == prefixes_BxkxL[index][:level]).all(axis=1)
      expected[index][codes[same, level]] = True
    np.testing.assert_array_equal(ours[level](), expected)
    np.testing.assert_array_equal(csr[level](), expected)


@pytest.fixture(scope='module')
def measured() -> dict:
  results = catalogue.measure(harness.Store(), sizes=(ITEMS,), repeats=2)
  return json.loads(json.dumps(results))


@pytest.mark.slow
def test_a_size_is_measured(measured):
  point = measured['points'][str(ITEMS)]
  assert set(point['live']['swaps']) == {'10', '100'}
  assert set(point['live_with_regions']['restocks']) == {'10', '100'}
  assert set(point['live_with_regions']['mask_s']) == {'mask', 'mask_of_regions', 'csr'}
  assert set(point['live_with_regions']['bytes']) - set(point['live']['bytes']) == {'regions'}
  assert point['peak_bytes'] > 1e7


@pytest.mark.slow
def test_results_plot_and_tabulate(measured, tmp_path):
  committed = json.loads((harness.FOLDER / 'catalogue.json').read_text())
  for results in (measured, committed):
    assert len(catalogue.table(results).splitlines()) == 1 + len(results['points'])
    path = pathlib.Path(tmp_path / 'catalogue.png')
    catalogue.plot(results, path)
    assert 10_000 < path.stat().st_size < harness.MAX_FIGURE_BYTES
