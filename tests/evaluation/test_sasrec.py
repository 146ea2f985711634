import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import (
  BackboneConfig,
  Config,
  EvaluationConfig,
  MeshConfig,
  SasrecConfig,
  TransformerConfig,
)
from rolegen_jax.data.batches import Trajectories
from rolegen_jax.data.occasions import TEST
from rolegen_jax.evaluation import baselines, sasrec
from rolegen_jax.evaluation.metrics import Pairs, hit, ranks
from rolegen_jax.models import functional
from rolegen_jax.sharding import make_mesh
from tests.evaluation import tiny_log

ITEMS = 12
SIZES = SasrecConfig(widths=(32,), context=16, dropout=0.1, steps=120, check_every=40)
SMALL = Config(evaluation=EvaluationConfig(sasrec=SIZES))


def config(**sizes) -> Config:
  changed = dataclasses.replace(SIZES, **sizes)
  return Config(evaluation=EvaluationConfig(sasrec=changed))


def cycle(users: int = 60):
  """Everybody buys item n + 1 (mod 12) the day after item n, from a start of their own."""
  rows = [(u, (u * 5 + d) % ITEMS, 'purchase', u % 4 + d) for u in range(users) for d in range(10)]
  return tiny_log.make(rows, ITEMS, split='leave_one_out')


@pytest.mark.parametrize('full', [True, False], ids=['full', 'sampled'])
def test_learns_a_cycle_that_popularity_does_not(full):
  log, occasions = cycle()
  settings = config(full_softmax=20_000 if full else 1, negatives=6)
  rows = baselines.evaluation_rows(log, occasions, TEST)
  with jax.set_mesh(make_mesh(MeshConfig(fsdp=2))):  # an evaluation under the training mesh
    ranking = sasrec.sasrec(tiny_log.inputs(log, occasions, settings), rows, ITEMS + 3)
  assert (np.sort(ranking.items[:, :ITEMS]) == np.arange(ITEMS)).all() and (
    ranking.items[:, ITEMS:] == -1
  ).all()
  assert ranking.settings['softmax'] == ('full' if full else '6 uniform negatives')
  pairs = Pairs.of(occasions, rows)
  assert hit(ranks(ranking.items, pairs), 1).mean() > 0.9
  popularity = baselines.popularity(tiny_log.inputs(log, occasions, SMALL), rows, 5)
  assert hit(ranks(popularity.items, pairs), 1).mean() < 0.3


def test_source_is_strictly_earlier_and_of_the_same_window():

  def row(*values):
    return np.array([values], np.int32)

  time, segment = row(1, 1, 2, 2, 5, 1, 3, 0), row(1, 1, 1, 1, 1, 2, 2, 0)
  rows = Trajectories(time, time, time, time, segment)
  assert sasrec.tie_source(rows).tolist() == [[-1, -1, 1, 1, 3, -1, 5, -1]]


def test_states_read_nothing_later_and_nothing_of_others():
  mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
  graphdef, params = functional.init(
    lambda r: sasrec.SASRec(ITEMS, sasrec.transformer(SIZES, 32), rngs=r), jax.random.key(0), mesh
  )
  unchanged = np.array([0, 1, 3, 4])

  def states(item, segment):
    return functional.bind(graphdef, params)(jnp.array([item]), jnp.array([segment]))[0]

  base = states([1, 2, 3, 4, 5], [1, 1, 1, 2, 2])
  other = states([1, 2, 9, 4, 5], [1, 1, 1, 2, 2])
  np.testing.assert_array_equal(base[unchanged], other[unchanged])
  assert not np.allclose(base[2], other[2])


def test_the_sampled_loss_is_over_the_target_and_the_negatives_that_are_not_it():
  rng = np.random.default_rng(0)
  embedding, state = jnp.array(rng.normal(size=(9, 4))), jnp.array(rng.normal(size=(3, 4)))
  target, negative = np.array([1, 5, 8]), np.array([0, 5, 3, 3])
  got = sasrec.sampled_cross_entropy(state, embedding, jnp.array(target), jnp.array(negative))
  logits = np.asarray(state @ embedding.T)
  for row, own in enumerate(target):
    others = [logits[row, item] for item in negative if item != own]
    log_total = np.log(np.exp([logits[row, own], *others]).sum())
    assert float(got[row]) == pytest.approx(log_total - logits[row, own], rel=1e-5)


def test_the_loss_over_every_other_item_is_the_full_one():
  rng = np.random.default_rng(0)
  embedding, state = jnp.array(rng.normal(size=(9, 4))), jnp.array(rng.normal(size=(3, 4)))
  target, negative = jnp.array([1, 5, 8]), jnp.arange(9)
  np.testing.assert_allclose(
    sasrec.sampled_cross_entropy(state, embedding, target, negative),
    sasrec.cross_entropy(state, embedding, target),
    rtol=1e-5,
  )


@pytest.mark.slow
def test_the_width_that_is_best_on_validation_is_kept(monkeypatch):
  log, occasions = cycle()
  trained = []
  original = sasrec._train

  def train(inputs, batches, width, k, mesh):
    model = original(inputs, batches, width, k, mesh)
    trained.append(model)
    return model

  monkeypatch.setattr(sasrec, '_train', train)
  settings = config(widths=(2, 32, 4), steps=80)
  fitted = sasrec.fit(tiny_log.inputs(log, occasions, settings), 5)
  assert [model.settings['width'] for model in trained] == [2, 32, 4]
  assert fitted.settings['width'] == 32
  assert fitted.settings['validation NDCG@10'] == max(
    model.settings['validation NDCG@10'] for model in trained
  )


def test_training_ends_when_validation_stops_rising():
  log, occasions = cycle()
  settings = config(steps=400, check_every=10, patience=2)
  chosen = sasrec.fit(tiny_log.inputs(log, occasions, settings), 5).settings
  assert chosen['steps'] == chosen['kept_step'] + 20 < 400


def test_it_is_the_same_whatever_the_backbone_is():
  log, occasions = cycle(20)
  rows = baselines.evaluation_rows(log, occasions, TEST)
  wide = BackboneConfig(temporal=TransformerConfig(width=32, head_dim=8), context=7, dropout=0.9)
  plain = config(steps=5)
  lists = [
    sasrec.sasrec(tiny_log.inputs(log, occasions, settings), rows, 5).items
    for settings in (plain, dataclasses.replace(plain, backbone=wide))
  ]
  np.testing.assert_array_equal(*lists)


def test_every_event_with_an_earlier_one_is_predicted_and_purchases_weigh_more():
  rows = [(0, 0, 'view', 0), (0, 1, 'view', 1), (0, 2, 'purchase', 2), (0, 3, 'view', 2)]
  log, occasions = tiny_log.make(rows + [(0, 4, 'purchase', 80), (1, 4, 'purchase', 90)], 5)
  inputs = tiny_log.inputs(log, occasions, config(view_weight=0.25, context=4))
  end = occasions.train_end(log)[0]
  batch = next(sasrec._Batches(inputs).draw(np.random.default_rng(0)))
  assert end == 4
  assert batch.item[0].tolist()[:2] == [0, 1]
  by_item = dict(zip(batch.item[0].tolist(), zip(batch.weight[0], batch.source[0])))
  assert by_item == {0: (0, 0), 1: (0.25, 0), 2: (1, 1), 3: (0.25, 1)}


def test_nothing_to_train_on():
  log, occasions = tiny_log.make([(u, u, 'purchase', 1) for u in range(3)], 3)
  with pytest.raises(ValueError, match='two training events'):
    sasrec.sasrec(tiny_log.inputs(log, occasions, SMALL), np.arange(3), 2)
