"""Third-party training at a tiny size: counts, learning, and who reached what when."""

import json

import numpy as np
import pytest

from experiments.benchmarks import beauty, harness
from experiments.benchmarks import third_party_training as training
from experiments.benchmarks.third_party_models import ExampleOrder, IdTokens
from tests import tiny
from tests.benchmarks import third_party
from tests.benchmarks.third_party import BEAMS


@pytest.fixture(scope='module')
def data() -> beauty.Sequences:
  return third_party.sequences()


@pytest.fixture(scope='module')
def ours(data) -> beauty.Ours:
  """Our model. It compiles, so every test has the same one, as another test left it."""
  return third_party.ours(data)


def test_every_training_item_with_a_past_is_an_example_once_an_epoch(data):
  rows = data.training_rows()
  users = zip(data.offsets, data.offsets[1:])
  assert rows.tolist() == [row for begin, end in users for row in range(begin + 1, end - 2)]
  order = ExampleOrder(data, seed=0)
  epochs = np.concatenate([order.take(7) for _ in range(len(rows))]).reshape(7, -1)
  assert all(sorted(epoch) == rows.tolist() for epoch in epochs.tolist())
  assert epochs[0].tolist() != epochs[1].tolist()


def test_histories_end_where_their_target_begins(data):
  rows = data.held_out('valid')
  for row, history in zip(rows, data.histories(rows, 5)):
    begin = max(data.offsets[data.log.user[row]], row - 5)
    before = data.item[begin:row].tolist()
    assert history.tolist() == [-1] * (5 - len(before)) + before
  assert (data.held_out('test') == rows + 1).all()


def test_one_more_code_distinguishes_colliding_items():
  codes = third_party.codes()
  for item, row in enumerate(codes):
    assert row[-1] == (codes[:item, :-1] == row[:-1]).all(axis=1).sum()
  with pytest.raises(ValueError, match='9 items share'):
    beauty.distinct(np.zeros((9, 2), np.int32), 8)


def test_the_config_of_the_benchmarks_is_valid():
  ids = beauty.config().semantic_ids
  assert (ids.levels, ids.codes) == (beauty.QUANTISED + 1, 256)


def test_tokens_lead_back_to_their_items():
  ids = IdTokens(third_party.codes(), tiny.CODES)
  assert ids.items_of(ids.tokens_I).tolist() == list(range(tiny.ITEMS))
  assert (ids.items_of(ids.tokens_I[:, ::-1]) == -1).all()
  tokens, mask = ids.encoder_inputs(np.array([[-1, -1, 4], [-1, 7, 8]]))
  assert tokens[1].tolist() == [*ids.tokens_I[7], *ids.tokens_I[8]]
  assert tokens[0].tolist() == [0, 0, 0, *ids.tokens_I[4]] and mask[0].tolist() == [0] * 3 + [1] * 3
  leaves = [children for prefix, children in ids.children.items() if len(prefix) == 2]
  assert sum(map(len, leaves)) == tiny.ITEMS


@pytest.mark.slow
def test_ours_counts_what_the_loss_trains_on(ours):
  position = ours.batches.position
  rows = next(ours.batches)
  ours.batches.seek(position)
  sequences = targets = 0
  for segment, timestamp in zip(rows.segment, rows.timestamp):
    for window in set(segment[segment > 0].tolist()):
      when = timestamp[segment == window]
      sequences += 1
      targets += int((when > when.min()).sum())  # as `training.losses.sequence_loss` counts
  assert ours.update() == (sequences, targets) and targets > sequences


@pytest.mark.parametrize(
  'name', [pytest.param('ours', marks=pytest.mark.slow), 'hugging_face', 'cornac']
)
def test_a_model_learns_and_ranks_real_items(name, data, ours):
  model = ours if name == 'ours' else getattr(third_party, name)(data)
  losses = []
  for _ in range(30):
    model.update()
    losses.append(model.loss)
  assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
  ranked = model.rank(data.held_out('valid')[:11], BEAMS)
  assert ranked.shape == (11, BEAMS) and ranked.min() >= 0 and ranked.max() < tiny.ITEMS
  assert all(len(set(row)) == BEAMS for row in ranked.tolist())


def test_batches_of_like_length_are_drawn_together(data):
  model = third_party.hugging_face(data, cycle=4)
  batches = [model.next_batch() for _ in range(4)]
  spans = []
  for rows in batches:
    length = np.minimum(rows - data.offsets[data.log.user[rows]], beauty.HISTORY)
    spans.append((length.min(), length.max()))
  spans.sort()
  assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:]))
  assert sorted(np.concatenate(batches)) == sorted(ExampleOrder(data, 0).take(64))


def test_ndcg_by_hand():
  others = np.arange(20, 31)
  ranked = np.array([[5, *others], [20, 5, *others[1:]], [*others[:-1], 5, 30]])
  result = training.score(ranked, np.array([5, 5, 5]))
  assert result['ndcg'] == pytest.approx((1 + 1 / np.log2(3)) / 3) and result['hits'] == 2


@pytest.mark.slow
def test_a_race_trains_to_its_marks_by_turns(ours, capsys):
  marks = dict(rolegen=[0.01, 0.03], hf_t5=[0.02])
  curves = training.race(dict(rolegen=ours, hf_t5=ours), marks, lambda model: dict(ndcg=0.5))
  assert [len(curves[name]) for name in marks] == [2, 1]
  for name, of_model in marks.items():
    assert all(p['train_s'] >= mark for p, mark in zip(curves[name], of_model))
  lines = capsys.readouterr().err.splitlines()
  assert [line.split(':')[0] for line in lines] == ['rolegen', 'hf_t5', 'rolegen']


def test_reach_is_the_first_evaluation_that_is_no_worse():
  def curve(*points: tuple[float, float]) -> list[dict]:
    return [dict(train_s=s, ndcg=ndcg, compile_s=5.0) for s, ndcg in points]

  curves = dict(rolegen=curve((5, 0.01), (10, 0.02), (20, 0.04)), good=curve((50, 0.05)))
  curves['slow'] = curve((50, 0.01), (100, 0.02), (150, 0.02))
  reached = training.first_to_reach(curves)
  expected = dict(ndcg=0.02, their_s=100, our_s=10, ratio=10.0, ratio_with_compile=100 / 15)
  assert reached['slow'] == expected
  never = dict(our_s=None, ratio=None, ratio_with_compile=None)
  assert reached['good'] == dict(ndcg=0.05, their_s=50) | never


def test_measured_results_plot_and_tabulate(data, monkeypatch, tmp_path):
  third_party.cornac(data), third_party.hugging_face(data)  # skips where one is not installed

  def make_model_fns(*_: object) -> training.ModelFns:
    return dict(
      rolegen=lambda batch: third_party.ours(data),
      hf_t5=lambda batch: third_party.hugging_face(data, batch),
      hf_t5_grouped=lambda batch: third_party.hugging_face(data, batch, cycle=2),
      cornac=lambda batch: third_party.cornac(data, batch),
    )

  monkeypatch.setattr(training, 'make_model_fns', make_model_fns)
  monkeypatch.setattr(training, 'OUR_ROWS', (8,))
  monkeypatch.setattr(training, 'EXAMPLES', (16, 32))
  monkeypatch.setattr(beauty, 'sequences', lambda: data)
  monkeypatch.setattr(beauty, 'codes', third_party.codes)
  settings = dict(repeats=2, budget=0.1, users=9, beams=BEAMS)
  results = training.measure(harness.Store(), **settings)
  rates = results['points']['rates']
  ours, t5 = (rates['sides'][name]['targets_per_s']['median'] for name in ('rolegen', 'hf_t5'))
  assert rates['ratios']['hf_t5']['targets'] == ours / t5
  plot_and_tabulate(json.loads(json.dumps(results)), tmp_path)


def test_the_smallest_of_the_nearly_fastest_batches_races():
  assert training.nearly_fastest({'32': 80.0, '64': 90.0, '128': 100.0}) == 64


def test_committed_results_plot_and_tabulate(tmp_path):
  committed = json.loads((harness.FOLDER / 'third_party_training.json').read_text())
  plot_and_tabulate(committed, tmp_path)


def plot_and_tabulate(results: dict, folder) -> None:
  assert len(training.table(results).splitlines()) == 4
  training.plot(results, folder / 'figure.png')
  assert 10_000 < (folder / 'figure.png').stat().st_size < harness.MAX_FIGURE_BYTES
