"""The logic of peers_decoding at a tiny size: every side lists real items, cells add up, our search is held against true scores."""

import numpy as np
import polars as pl
import pytest

from experiments.benchmarks import beauty, peers_decoding_parts as parts, peers_decoding_plot
from rolegen_jax.config import DataConfig
from rolegen_jax.data.events import validate
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from tests import tiny

USERS, WIDTH, BATCH, BEAMS = 30, 6, 4, 5
SMALL = dict(d_model=16, d_ff=32, d_kv=8, num_heads=2)


@pytest.fixture(scope='module')
def found() -> beauty.Sequences:
  """Sequences of 4 to 15 purchases."""
  rng = np.random.default_rng(0)
  rows = [(user, rng.integers(tiny.ITEMS), 'purchase', place + 1) for user in range(USERS) for place in range(rng.integers(4, 16))]
  events = pl.DataFrame(dict(zip(('user_id', 'item_id', 'event', 'timestamp'), map(list, zip(*rows)))))
  log = InteractionLog.build(*validate(events, pl.DataFrame({'item_id': range(tiny.ITEMS)})))
  return beauty.Sequences(log, find_occasions(log, DataConfig(split='leave_one_out')))


@pytest.fixture(scope='module')
def codes() -> np.ndarray:
  """IDs of three codes of which the last tells apart, int32 [60, 3]."""
  return beauty.distinct(np.random.default_rng(1).integers(0, tiny.CODES, (tiny.ITEMS, 2)).astype(np.int32), tiny.CODES)


@pytest.fixture(scope='module')
def rolegen(codes) -> parts.Ours:
  return parts.Ours(codes, tiny.config(), tiny.params('backbone'))


@pytest.fixture(scope='module')
def histories(found) -> np.ndarray:
  return parts.full_histories(found, BATCH, WIDTH)


def test_histories_are_full_and_real(found, histories):
  """The latest items before the test item of users who have as many; else whole histories in a row."""
  end = found.held_out('test')
  real = {tuple(found.item[e - WIDTH:e]) for e, begin in zip(end, found.offsets) if e - begin >= WIDTH}
  assert len({tuple(row) for row in histories} & real) == BATCH
  joined = parts.full_histories(found, 3, 20)  # longer than anybody's
  assert joined.shape == (3, 20) and joined.min() >= 0
  whole = [found.item[begin:e] for begin, e in zip(found.offsets, end)]
  assert any((joined[0, :len(items)] == items).all() for items in whole if len(items) >= 3)


def test_ours_against_every_score(rolegen, histories, codes):
  """Beams for all items: the order of the scores. Fewer beams: their recall, by hand."""
  for one in parts.exact(rolegen, histories, [7, 40]):
    assert one['same_but_ties'] == one['requests'] == BATCH and one['most_nats'] < parts.TIE * 2
    assert one['same_order'] >= BATCH - 1
  score, item = rolegen.score_all(histories), rolegen.serve(histories, BEAMS)
  assert score.shape == (BATCH, tiny.ITEMS)
  np.testing.assert_allclose(rolegen.ranking(histories, BEAMS).score, np.take_along_axis(score, item, 1), atol=2e-5)
  two, five = parts.attend(rolegen, histories, [BEAMS], [2, 5])
  best = np.argsort(-score, axis=1)
  share = [len({*row[:2]} & {*true[:2]}) / 2 for row, true in zip(item, best)]
  assert two['recall'] == pytest.approx(np.mean(share)) and two['all_found'] == share.count(1.0)
  assert (five['beams'], five['top'], five['requests']) == (BEAMS, 5, BATCH)


def test_a_shape_is_compiled_once(rolegen, histories):
  rolegen.serve(histories, 3)
  spent = dict(rolegen.compile_s)
  rolegen.serve(histories[::-1], 3)
  rolegen.ranking(histories, 3, rolegen.catalogue(np.arange(tiny.ITEMS) < 20))
  assert rolegen.compile_s == spent and (BATCH, WIDTH, 3) in spent


def peers(found, codes) -> dict:
  pytest.importorskip('transformers')
  pytest.importorskip('cornac')
  return dict(
      hf_t5=parts.HuggingFace(codes, tiny.CODES, num_layers=1, num_decoder_layers=1, **SMALL),
      cornac=parts.Cornac(found, codes, tiny.CODES, requests=3, num_enc_layers=1, num_dec_layers=1, **SMALL),
  )


def test_a_cell_times_all_sides_and_counts_their_faults(rolegen, found, codes, histories):
  made = peers(found, codes)
  one = parts.cell({parts.OURS: rolegen} | made, histories, BEAMS, budget_s=0.0)
  assert {name: side['requests'] for name, side in one['sides'].items()} == {parts.OURS: BATCH, 'hf_t5': BATCH, 'cornac': 2}
  for name, side in one['sides'].items():
    assert len(side['seconds']) == parts.FEWEST and side['entries'] == side['requests'] * BEAMS
    assert side['invalid'] == side['duplicate'] == 0
    assert side['p50_s'] == pytest.approx(BATCH / side['requests_per_s'])
  assert one['sides']['cornac']['p50_s'] == pytest.approx(2 * np.median(one['sides']['cornac']['seconds']))
  assert one['ratios']['hf_t5'] == one['sides']['hf_t5']['p50_s'] / one['sides'][parts.OURS]['p50_s']


def test_peers_search_their_own_scores(found, codes, histories):
  """Beams for all items: cornac's list is the order of its own exact scores; both third-party implementations list every item once."""
  made = peers(found, codes)
  for side in made.values():
    assert (np.sort(side.serve(histories[:2], tiny.ITEMS), axis=1) == np.arange(tiny.ITEMS)).all()
  model = made['cornac'].model
  model.scoring, model.max_len = 'exact', WIDTH
  exact = model.score(0, histories[0].tolist())
  along = exact[made['cornac'].serve(histories[:1], tiny.ITEMS)[0]]
  assert (np.diff(along) <= parts.TIE).all()


def test_room_of_keys_and_values(codes):
  pytest.importorskip('transformers')
  side = parts.HuggingFace(codes, tiny.CODES, gib=1.0, num_layers=1, num_decoder_layers=3, **SMALL)
  one = 2 * 3 * 2 * 8 * 4 * BEAMS * WIDTH * 3  # keys and values, layers, heads, width, bytes, beams, tokens
  assert side.room(WIDTH, BEAMS) == 2**30 // one
  side.gib = 1e-9
  assert side.room(WIDTH, BEAMS) == 1
  assert [parts.piece(64, room) for room in (1, 7, 64, 100)] == [1, 4, 64, 64]


def test_faults_by_hand():
  assert parts.faults(np.array([[3, 1, 3, -1], [2, 2, 2, 9]]), n_items=5) == dict(entries=8, invalid=2, duplicate=3)


def test_the_picture(tmp_path):
  side = lambda rate: dict(requests_per_s=rate)
  cells = [
      dict(batch=batch, history=history, beams=beams, sides=dict(rolegen=side(900.0 / beams), hf_t5=side(20.0), cornac=side(4.0)))
      for batch in (1, 8) for history in (20, 200) for beams in (10, 50)
  ]
  for suffix in ('svg', 'png'):
    picture = tmp_path / f'picture.{suffix}'
    peers_decoding_plot.draw(dict(cells=cells), picture)
    assert 1000 < picture.stat().st_size < 200_000
