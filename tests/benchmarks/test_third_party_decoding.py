"""Third-party decoding at a tiny size: lists are real, cells add up, our search finds the best."""

import json

import numpy as np
import pytest

from experiments.benchmarks import beauty, harness
from experiments.benchmarks import third_party_decoding as decoding
from tests import tiny
from tests.benchmarks import third_party

WIDTH, BATCH, BEAMS = 6, 4, 5


@pytest.fixture(scope='module')
def data() -> beauty.Sequences:
  return third_party.sequences()


@pytest.fixture(scope='module')
def ours(data) -> beauty.Ours:
  return third_party.ours(data)


@pytest.fixture(scope='module')
def histories(data) -> np.ndarray:
  return data.full_histories(BATCH, WIDTH)


def test_histories_are_full_and_real(data, histories):
  ends = data.held_out('test')
  real = {tuple(data.item[end - WIDTH : end]) for end in ends}
  assert len({tuple(row) for row in histories} & real) == BATCH
  joined = data.full_histories(3, 40)  # longer than anybody's
  assert joined.shape == (3, 40) and joined.min() >= 0
  whole = [data.item[begin:end] for begin, end in zip(data.offsets, ends)]
  assert any((joined[0, : len(items)] == items).all() for items in whole)


@pytest.mark.slow
def test_ours_against_every_score(ours, histories):
  for check in decoding.check_covered(ours, histories, (7, 40)):
    assert check['same_but_ties'] == check['requests'] == BATCH
    assert check['max_nats'] < 2 * decoding.TIE
  score, items = ours.score_all(histories), ours.serve(histories, BEAMS)
  assert score.shape == (BATCH, tiny.ITEMS)
  along = np.take_along_axis(score, items, 1)
  np.testing.assert_allclose(ours.ranking(histories, BEAMS).terms.sum(-1), along, atol=2e-5)
  two, five = decoding.share_found(ours, histories, (BEAMS,), (2, 5))
  best = np.argsort(-score, axis=1)
  share = [len({*row[:2]} & {*true[:2]}) / 2 for row, true in zip(items, best)]
  assert two['share'] == pytest.approx(np.mean(share)) and two['all_found'] == share.count(1.0)
  assert (five['beams'], five['top'], five['requests']) == (BEAMS, 5, BATCH)


@pytest.mark.slow
def test_a_shape_is_compiled_once(ours, histories):
  ours.serve(histories, 3)
  programs = dict(ours._serve_programs)
  ours.serve(histories[::-1], 3)
  ours.ranking(histories, 3, ours.catalogue(np.arange(tiny.ITEMS) < 20))
  assert ours._serve_programs == programs and (BATCH, WIDTH, 3) in programs


def test_third_parties_search_their_own_scores(data, histories):
  hugging_face, cornac = third_party.hugging_face(data), third_party.cornac(data)
  for model in (hugging_face, cornac):  # as many beams as items: every item once
    items = model.serve(histories[:2], tiny.ITEMS)
    assert (np.sort(items, axis=1) == np.arange(tiny.ITEMS)).all()
  cornac.model.scoring, cornac.model.max_len = 'exact', WIDTH
  exact = cornac.model.score(0, histories[0].tolist())
  along = exact[cornac.serve(histories[:1], tiny.ITEMS)[0]]
  assert (np.diff(along) <= decoding.TIE).all()


def test_requests_at_once_fit_the_memory(data):
  model = third_party.hugging_face(data)
  request = 2 * 2 * 8 * 4 * BEAMS * WIDTH * 3  # keys and values, heads, width, bytes, tokens
  assert model.requests_at_once(WIDTH, BEAMS, gib=1.0) == 2**30 // request
  assert model.requests_at_once(WIDTH, BEAMS, gib=1e-9) == 1
  assert [decoding.largest_divisor(64, most) for most in (1, 7, 64, 100)] == [1, 4, 64, 64]


def test_faults_by_hand():
  items = np.array([[3, 1, 3, -1], [2, 2, 2, 9]])
  assert decoding.count_faults(items, n_items=5) == dict(invalid=2, duplicate=3)


def test_measured_results_plot_and_tabulate(data, monkeypatch, tmp_path):
  monkeypatch.setattr(decoding, 'COVERED', (7,))
  monkeypatch.setattr(decoding, 'COVERAGE_BEAMS', (10,))
  monkeypatch.setattr(decoding, 'CHECK_HISTORY', WIDTH)
  monkeypatch.setattr(beauty, 'sequences', lambda: data)
  monkeypatch.setattr(beauty, 'codes', third_party.codes)
  monkeypatch.setattr(beauty, 'config', lambda: tiny.config(*third_party.OVERRIDES))
  hugging_face, cornac = third_party.hugging_face(data), third_party.cornac(data)
  monkeypatch.setattr(decoding.models, 'HuggingFace', lambda *_: hugging_face)
  monkeypatch.setattr(decoding.models, 'Cornac', lambda *_: cornac)
  store, settings = harness.Store(), dict(users=2, updates=2, budget=0.0)
  results = decoding.measure(store, histories=(WIDTH,), batches=(1, 8), beams=(BEAMS,), **settings)
  cell = store.points[f'history {WIDTH}, batch 8, beams {BEAMS}']
  requests = {name: side['requests'] for name, side in cell['sides'].items()}
  assert requests == dict(rolegen=8, hf_t5=8, cornac=4)
  for side in cell['sides'].values():
    assert side['n'] == decoding.MIN_ROUNDS and side['invalid'] == side['duplicate'] == 0
  plot_and_tabulate(json.loads(json.dumps(results)), tmp_path, 2)


def test_committed_results_plot_and_tabulate(tmp_path):
  committed = json.loads((harness.FOLDER / 'third_party_decoding.json').read_text())
  plot_and_tabulate(committed, tmp_path, cells=18)


def plot_and_tabulate(results: dict, folder, cells: int) -> None:
  assert len(decoding.table(results).splitlines()) > 1 + cells
  decoding.plot(results, folder / 'figure.png')
  assert 10_000 < (folder / 'figure.png').stat().st_size < harness.MAX_FIGURE_BYTES
