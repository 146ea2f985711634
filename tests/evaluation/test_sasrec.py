import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import (
  BackboneConfig,
  Config,
  EvaluationConfig,
  MeshConfig,
  StageConfig,
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
SMALL = Config(
  backbone=BackboneConfig(
    temporal=TransformerConfig(layers=1, width=32, heads=2, kv_heads=1, head_dim=16, mlp=64),
    context=16,
  ),
  warmup=StageConfig(batch=16),
  evaluation=EvaluationConfig(sasrec_steps=80),
)


def cycle(users: int = 60):
  """Everybody buys item n + 1 (mod 12) the day after item n, from a start of their own."""
  rows = [(u, (u * 5 + d) % ITEMS, 'purchase', u % 4 + d) for u in range(users) for d in range(10)]
  return tiny_log.make(rows, ITEMS, split='leave_one_out')


@pytest.mark.parametrize('full', [True, False], ids=['full', 'sampled'])
def test_learns_a_cycle(full, monkeypatch):
  monkeypatch.setattr(sasrec, 'FULL_SOFTMAX_ITEMS', 20_000 if full else 1)
  monkeypatch.setattr(sasrec, 'NEGATIVES', 6)
  log, occasions = cycle()
  rows = baselines.evaluation_rows(log, occasions, TEST)
  with jax.set_mesh(make_mesh(MeshConfig(fsdp=2))):  # an evaluation under the training mesh
    ranking = sasrec.sasrec(tiny_log.inputs(log, occasions, SMALL), rows, ITEMS + 3)
  assert (np.sort(ranking.items[:, :ITEMS]) == np.arange(ITEMS)).all() and (
    ranking.items[:, ITEMS:] == -1
  ).all()
  assert ranking.settings['softmax'].startswith('full' if full else 'sampled')
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
    lambda r: sasrec.SASRec(ITEMS, SMALL.backbone.temporal, rngs=r), jax.random.key(0), mesh
  )
  unchanged = np.array([0, 1, 3, 4])

  def states(item, segment):
    return functional.bind(graphdef, params)(jnp.array([item]), jnp.array([segment]))[0]

  base = states([1, 2, 3, 4, 5], [1, 1, 1, 2, 2])
  other = states([1, 2, 9, 4, 5], [1, 1, 1, 2, 2])
  np.testing.assert_array_equal(base[unchanged], other[unchanged])
  assert not np.allclose(base[2], other[2])


def test_sampled_loss_nears_the_full_one():
  rng = np.random.default_rng(0)
  items, positions = 300, 64
  embedding, state = (
    jnp.array(rng.normal(size=(items, 8)) * 0.5),
    jnp.array(rng.normal(size=(positions, 8))),
  )
  share = rng.dirichlet(np.full(items, 0.3))
  target = jnp.array(rng.choice(items, positions, p=share))
  log_share = jnp.log(jnp.array(share) + 1e-12)
  losses = [
    sasrec.sampled_cross_entropy(
      state, embedding, target, jnp.array(rng.integers(0, items, 2000)), log_share
    )
    for _ in range(5)
  ]
  assert float(np.mean(losses)) == pytest.approx(
    float(sasrec.cross_entropy(state, embedding, target)), abs=0.3
  )


def test_nothing_to_train_on():
  log, occasions = tiny_log.make([(u, u, 'purchase', 1) for u in range(3)], 3)
  with pytest.raises(ValueError, match='two training events'):
    sasrec.sasrec(tiny_log.inputs(log, occasions, SMALL), np.arange(3), 2)
