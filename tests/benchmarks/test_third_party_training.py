"""The logic of peers_training at a tiny size: what is counted, that sides learn, save and continue, who reached what when."""

import json

import numpy as np
import polars as pl
import pytest

from experiments.benchmarks import beauty, peers_training_parts as parts, peers_training_plot
from experiments.benchmarks.peers_training_sides import Cornac, Examples, HuggingFace, Ours
from rolegen_jax.config import DataConfig
from rolegen_jax.data.events import validate
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from tests import tiny

USERS, BEAMS = 40, 12
SMALL = dict(d_model=16, d_ff=32, d_kv=8, num_heads=2)


@pytest.fixture(scope='module')
def found() -> beauty.Sequences:
  """Sequences of 4 to 30 purchases; item i is mostly followed by i + 1."""
  rng = np.random.default_rng(0)
  rows = []
  for user in range(USERS):
    item = rng.integers(tiny.ITEMS)
    for place in range(rng.integers(4, 31)):
      rows.append((user, item, 'purchase', place + 1))
      item = (item + 1) % tiny.ITEMS if rng.random() < 0.9 else rng.integers(tiny.ITEMS)
  events = pl.DataFrame(dict(zip(('user_id', 'item_id', 'event', 'timestamp'), map(list, zip(*rows)))))
  log = InteractionLog.build(*validate(events, pl.DataFrame({'item_id': range(tiny.ITEMS)})))
  return beauty.Sequences(log, find_occasions(log, DataConfig(split='leave_one_out')))


@pytest.fixture(scope='module')
def codes() -> np.ndarray:
  """IDs of three codes of which the last tells apart, int32 [60, 3]."""
  return beauty.distinct(np.random.default_rng(1).integers(0, tiny.CODES, (tiny.ITEMS, 2)).astype(np.int32), tiny.CODES)


@pytest.fixture(scope='module')
def rolegen(found, codes) -> Ours:
  """Our side. It compiles, so every test has the same one, as another test left it."""
  return Ours(found, codes, tiny.config('warmup.optimizer.warmup_steps=1', 'warmup.optimizer.learning_rate=0.01'), batch=8)


def ours(found, codes, rolegen) -> Ours:
  return rolegen


def hugging_face(found, codes, _=None, cycle: int = 1) -> HuggingFace:
  pytest.importorskip('transformers')
  return HuggingFace(found, codes, 16, cycle, 0.01, tiny.CODES, num_layers=1, num_decoder_layers=1, **SMALL)


def cornac(found, codes, _=None) -> Cornac:
  pytest.importorskip('cornac')
  return Cornac(found, codes, 16, 0.01, tiny.CODES, num_enc_layers=1, num_dec_layers=1, **SMALL)


SIDES = pytest.mark.parametrize('make', [ours, hugging_face, cornac])


def test_every_training_item_with_a_past_is_an_example_once_an_epoch(found):
  expected = [(u, p) for u in range(USERS) for p in range(found.offsets[u] + 1, found.offsets[u + 1] - 2)]
  rows = found.training_rows()
  assert rows.tolist() == [p for _, p in expected]
  examples = Examples(found, seed=0)
  epochs = np.concatenate([examples.take(7) for _ in range(len(rows))]).reshape(7, -1)
  assert all(sorted(epoch) == rows.tolist() for epoch in epochs.tolist())
  assert epochs[0].tolist() != epochs[1].tolist()


def test_histories_end_where_their_target_begins(found):
  rows = found.held_out('valid')
  for row, history in zip(rows, found.histories(rows, 5)):
    user = found.log.user[row]
    before = found.item[max(found.offsets[user], row - 5):row].tolist()
    assert history.tolist() == [-1] * (5 - len(before)) + before
  assert (found.held_out('test') == rows + 1).all()


def test_one_more_code_tells_colliding_items_apart(codes):
  assert len(np.unique(codes, axis=0)) == len(codes)
  for i, row in enumerate(codes):
    assert row[-1] == (codes[:i, :-1] == row[:-1]).all(axis=1).sum()
  with pytest.raises(ValueError, match='9 items share'):
    beauty.distinct(np.zeros((9, 2), np.int32), 8)


def test_tokens_lead_back_to_their_items(codes):
  items = np.arange(len(codes))
  tokens = beauty.labels(items, codes, tiny.CODES)
  assert (beauty.items_of(tokens, codes, tiny.CODES) == items).all()
  assert (beauty.items_of(tokens[:, ::-1], codes, tiny.CODES) == -1).all()
  ids, mask = beauty.encoder_inputs(np.array([[-1, -1, 4], [-1, 7, 8]]), codes, tiny.CODES)
  assert ids[1].tolist() == [*tokens[7], *tokens[8]]
  assert ids[0].tolist() == [beauty.PAD] * 3 + tokens[4].tolist() and mask[0].tolist() == [0] * 3 + [1] * 3
  tree = beauty.prefix_tree(codes, tiny.CODES)
  assert all(tree[tuple(row[:level])].count(row[level]) == 1 for row in tokens.tolist() for level in range(3))
  assert sum(len(following) for prefix, following in tree.items() if len(prefix) == 2) == len(codes)


def test_ours_counts_what_the_loss_trains_on(rolegen):
  rows = rolegen._peek()
  sequences = targets = 0
  for segment, timestamp in zip(rows.segment, rows.timestamp):
    for window in set(segment[segment > 0].tolist()):
      when = timestamp[segment == window]
      sequences += 1
      targets += int((when > when.min()).sum())  # as `training.step.sequence_loss` says
  assert rolegen.update() == (sequences, targets) and targets > sequences


@SIDES
def test_a_side_learns_and_ranks_real_items(make, found, codes, rolegen):
  side = make(found, codes, rolegen)
  losses = []
  for _ in range(30):
    side.update()
    losses.append(side.loss)
  assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
  rows = found.held_out('valid')[:11]
  ranked = side.rank(rows, BEAMS)
  assert ranked.shape == (11, BEAMS) and ranked.min() >= 0 and ranked.max() < tiny.ITEMS
  assert all(len(set(row)) == BEAMS for row in ranked.tolist())


@SIDES
def test_a_saved_side_ranks_the_same_and_goes_on_with_new_examples(make, found, codes, rolegen, tmp_path):
  side, rows = make(found, codes, rolegen), found.held_out('valid')
  side.update()
  side.save(tmp_path / 'state')
  before, after, loss = side.rank(rows, BEAMS), side.update(), side.loss
  side.update()
  again = make(found, codes, rolegen)  # of a peer another object, ours itself
  again.load(tmp_path / 'state')
  assert (again.rank(rows, BEAMS) == before).all()
  assert again.update() == after
  assert again.loss == loss or make is not ours  # the third-party implementations' dropout goes on by torch's own generator


def test_batches_of_like_length_are_drawn_together(found, codes):
  side = hugging_face(found, codes, cycle=4)
  length = lambda rows: np.minimum(rows - found.offsets[found.log.user[rows]], beauty.HISTORY)
  batches = [side._next() for _ in range(4)]
  spans = sorted((length(rows).min(), length(rows).max()) for rows in batches)
  assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:]))
  assert sorted(np.concatenate(batches)) == sorted(Examples(found, 0).take(64))


def test_ndcg_by_hand():
  ranked = np.array([[5, *range(20, 31)], [20, 5, *range(21, 31)], [*range(20, 30), 5, 30]])
  found = parts.scored(ranked, np.array([5, 5, 5]))
  assert found['ndcg'] == pytest.approx((1 + 1 / np.log2(3)) / 3) and found['hits'] == 2


def test_a_race_continues_where_it_was_left(found, rolegen, tmp_path):
  rows = found.held_out('valid')
  model_fns = dict(rolegen=lambda: rolegen, hf_t5=lambda: rolegen)  # the order and the files are in question here
  marks = dict(rolegen=[0.01, 0.02], hf_t5=[0.015])
  run = lambda key, leave=lambda: False: parts.race(model_fns, marks, rows, found.item[rows], BEAMS, tmp_path, key, leave)
  asked = []
  assert run('a', lambda: asked.append(0) or len(asked) > 1) is None
  first = {name: json.loads((tmp_path / f'{name}.json').read_text())['curve'] for name in model_fns}
  assert [p['mark'] for p in first['rolegen']] == [0.01] and [p['mark'] for p in first['hf_t5']] == [0.015]
  curves = run('a')
  assert curves['rolegen'][:1] == first['rolegen'] and curves['hf_t5'] == first['hf_t5']
  one, two = curves['rolegen']
  assert two['mark'] == 0.02 and two['train_s'] >= 0.02 and (two['updates'] > one['updates'] or one['train_s'] >= 0.02)
  assert sorted(p.suffix for p in tmp_path.iterdir()) == ['.json', '.json', '.state', '.state']
  assert [p['mark'] for p in run('another key')['rolegen']] == [0.01, 0.02]


def test_reach_is_the_first_evaluation_that_is_no_worse():
  point = lambda s, value: dict(train_s=s, ndcg=value, compile_s=5.0)
  curves = dict(
      rolegen=[point(5, 0.01), point(10, 0.02), point(20, 0.04)], slow=[point(50, 0.01), point(100, 0.02), point(150, 0.02)], good=[point(50, 0.05)],
  )
  found = parts.reach(curves)
  assert found['slow'] == dict(ndcg=0.02, peer_s=100, ours_s=10, ratio=10.0, ratio_with_compile=100 / 15)
  assert found['good'] == dict(ndcg=0.05, peer_s=50, ours_s=None, ratio=None, ratio_with_compile=None)


def test_rates_and_the_picture(rolegen, tmp_path):
  side, tried = parts.fastest(lambda batch: rolegen, [8, 16], updates=1)
  assert side is rolegen and min(tried.values()) > 0
  assert parts.nearly_fastest({'32': 80.0, '64': 90.0, '128': 100.0}) == 64
  rates = parts.throughput(dict(rolegen=side, hf_t5=side), repeats=3)
  one = rates['sides']['rolegen']
  assert one['targets_per_s']['median'] == pytest.approx(np.median(np.array(one['targets']) / one['seconds']))
  assert rates['ratios']['hf_t5']['targets'] == one['targets_per_s']['median'] / rates['sides']['hf_t5']['targets_per_s']['median']
  curve = [dict(train_s=float(s), ndcg=0.01 * s, standard_error=0.002) for s in (1, 2, 4)]
  found = dict(throughput=rates, ndcg=dict(curves=dict(rolegen=curve, cornac=curve[:2]), users=9, popularity=dict(ndcg=0.01)))
  for parts_there in (found, dict(throughput=rates)):
    for suffix in ('svg', 'png'):
      picture = tmp_path / f'picture.{suffix}'
      peers_training_plot.draw(parts_there, picture)
      assert 1000 < picture.stat().st_size < 200_000
