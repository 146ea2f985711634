"""The benchmark of catalogues at a tiny size: its third-party implementations and tables give the same masks, everything is measured, its picture draws."""

import json

import numpy as np

from experiments.benchmarks import catalogue_parts as parts
from experiments.benchmarks import catalogue_plot
from rolegen_jax.semantic_ids.trie import build_trie

LEVELS, CODES, ITEMS = 3, 40, 1000


def test_simulated_ids_are_different_and_seeded():
  ids = parts.simulated_ids(500, 2, 25, seed=1)  # most of the 625 there are
  assert ids.shape == (500, 2) and len(np.unique(ids, axis=0)) == 500 and ids.min() == 0 and ids.max() == 24
  np.testing.assert_array_equal(ids, parts.simulated_ids(500, 2, 25, seed=1))


def test_peers_and_tables_give_the_same_masks():
  pool = parts.simulated_ids(ITEMS + 100, LEVELS, CODES, seed=0)
  codes, beams = pool[:ITEMS], pool[np.random.default_rng(0).integers(0, ITEMS, (4, 5))]
  trie, csr, tree = build_trie(codes, CODES), parts.Csr(codes, CODES), parts.DictTrie(codes)
  step = parts.Step(trie, beams, None)
  for level, (ours, window) in enumerate(zip(step.calls(trie)['mask'], csr.masks(), strict=True)):
    expected = tree.mask(beams[..., :level].reshape(20, level), CODES).reshape(4, 5, CODES)
    assert expected.any()
    np.testing.assert_array_equal(ours(), expected)
    np.testing.assert_array_equal(window(csr.tables[level], csr.nodes(beams)[level]), expected)
  tree.remove(codes[:100])
  tree.add(pool[ITEMS:], range(100))
  same = parts.DictTrie(np.concatenate([codes[100:], pool[ITEMS:]]))
  np.testing.assert_array_equal(tree.mask(np.zeros((1, 0), int), CODES), same.mask(np.zeros((1, 0), int), CODES))
  assert {key: set(below) for key, below in tree.root.items()} == {key: set(below) for key, below in same.root.items()}


def test_measures_and_draws(tmp_path):
  said = []
  sizes = [parts.measure_size(items, LEVELS, CODES, (4, 5), 2, lambda line, **_: said.append(line)) for items in (ITEMS, 2000)]
  for each in sizes:
    assert each['live']['compilations'] == 0 and each['live']['capacity'] >= each['items']
    assert set(each['live']['swaps']) == {each['items'] // 100, each['items'] // 10} == set(each['live_with_regions']['restocks'])
    assert set(each['live_with_regions']['step']) == {'mask', 'descend', 'mask_of_regions', 'csr'}
    assert all(len(levels) == LEVELS for levels in each['live']['step'].values())
    assert each['live_with_regions']['bytes'].keys() - each['live']['bytes'].keys() == {'regions'}
    assert each['peak_bytes'] > 1e7 and len(each['dict']['step']) == LEVELS
  assert len(said) == 2 * (1 + 2 * (2 + 1))
  found = json.loads(json.dumps(dict(levels=LEVELS, codes=CODES, requests=4, beams=5, sizes=sizes)))
  catalogue_plot.draw(found, tmp_path / 'catalogue.png')
  assert 10_000 < (tmp_path / 'catalogue.png').stat().st_size < 200_000
