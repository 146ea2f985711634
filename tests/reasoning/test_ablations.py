"""Ablations at run time: what is left without the language model, all training, or an expert."""

import dataclasses

import jax
import numpy as np
import pytest

from rolegen_jax import overrides, sharding
from rolegen_jax.config import AT_RUN_TIME, Config, ConfigError, MeshConfig
from rolegen_jax.models import intent
from rolegen_jax.models.decode import retrieve
from rolegen_jax.models.experts import EXPERTS, OFF
from rolegen_jax.models.intent import EQUATIONS
from rolegen_jax.models.memory import Candidates, Conditioning, RetrievedShares
from rolegen_jax.reasoning import predict
from rolegen_jax.reasoning.ablations import REPLACEMENTS, counts_only, no_language_model, without
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids.trie import build_trie
from rolegen_jax.training.calibration import calibrate
from tests import tiny
from tests.text import catalogue


@pytest.fixture(scope='module')
def params() -> dict:
  return {name: tiny.params(name) for name in ('backbone', 'reasoner')}


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(MeshConfig())


def test_every_ablation_at_run_time_has_its_replacement():
  assert tuple(REPLACEMENTS) == AT_RUN_TIME


def test_no_language_model_leaves_the_equations(params, mesh):
  ablated = no_language_model(params, mesh)
  jax.tree.map(np.testing.assert_array_equal, ablated['backbone'], params['backbone'])
  for equation in EQUATIONS:
    left, whole = ablated['reasoner'][equation], params['reasoner'][equation]
    jax.tree.map(np.testing.assert_array_equal, left, whole)
  logits = jit(lambda p, hidden: tiny.rolegen().bind('reasoner', p).logits(hidden, 0, tiny.CODES))
  hidden = np.ones((3, 32), np.float32)
  assert (logits(params['reasoner'], hidden) != 0).any()
  assert (logits(ablated['reasoner'], hidden) == 0).all()


def test_counts_only_has_the_initial_constants(params, mesh):
  ablated = counts_only(params, mesh)
  equation = ablated['reasoner']['intent']
  assert set(equation) == set(params['reasoner']['intent'])
  np.testing.assert_allclose(equation['focus'], [intent.FOCUS])
  np.testing.assert_allclose(equation['counted_focus'], [intent.COUNTED_FOCUS] * 3)
  np.testing.assert_allclose(np.exp(equation['strength']), [intent.OPENS, intent.DRAWS, 1.2], 1e-6)
  assert not ablated['reasoner']['roles']['weight'].any()
  assert not ablated['reasoner']['tokens'].any() and params['reasoner']['tokens'].any()


@pytest.fixture(scope='module')
def recommended(params, mesh):
  """(trie, table, what is recommended with these parameters) of a log of 60 items.

  Of the sizes that the tests of calibration have, whose programs this then runs.
  """
  table = catalogue.log_and_examples()[2].evenly(37)
  items = len(table.log.items)
  trie = build_trie(tiny.codes(items), tiny.CODES, capacity=64)
  trends = tiny.trending(items)
  trends = trends._replace(day=np.arange(len(trends.day), dtype=np.int32))  # the last is of all
  trie = dataclasses.replace(trie, trending=trends)
  rolegen = tiny.rolegen('evaluation.batch=32')

  def recommend(params: dict) -> predict.Predictions:
    return predict.predict(rolegen, params, table, trie, mesh, beams=10)

  return trie, table, recommend


@pytest.mark.parametrize('expert', EXPERTS)
def test_an_expert_that_is_left_out_neither_scores_nor_finds(params, mesh, recommended, expert):
  _, _, recommend = recommended
  rest = without(expert)(params, mesh)
  jax.tree.map(np.testing.assert_array_equal, rest['reasoner'], params['reasoner'])
  whole, left = recommend(params), recommend(rest)
  on, others = EXPERTS.index(expert), [e for e in range(len(EXPERTS)) if EXPERTS[e] != expert]
  assert not left.terms[..., on].any() and whole.terms[..., on].any()
  # What the others say of an item stays.
  row, place, before = np.nonzero(
    (left.item[:, :, None] == whole.item[:, None]) & (left.item >= 0)[:, :, None]
  )
  assert len(row)
  np.testing.assert_allclose(
    left.terms[row, place][:, others], whole.terms[row, before][:, others], atol=1e-4
  )


def test_an_expert_that_is_left_out_finds_nothing(params, mesh):
  examples, trie, k = tiny.examples(), tiny.trie(), 4
  item, share = tiny.retrieved()
  chosen = np.arange(tiny.USERS * 3, dtype=np.int32).reshape(tiny.USERS, 3)
  said = Conditioning(
    candidates=Candidates(chosen, np.zeros_like(chosen), np.zeros(chosen.shape, np.float32)),
    retrieved=RetrievedShares(item, share),
  )

  @jit
  def found(backbone_params):
    rolegen = tiny.rolegen()
    backbone = rolegen.bind('backbone', backbone_params)
    memory = backbone.encode(examples.history, backbone.items(trie))
    query_state = rolegen.query(backbone, memory, examples.timestamp)
    return retrieve(backbone, query_state, said, trie, k)[0]

  whole = np.asarray(found(params['backbone']))
  names = dict(history=examples.history.item, retrieved=item, candidates=chosen)
  for expert in (*names, 'generative'):
    left = np.asarray(found(without(expert)(params, mesh)['backbone']))
    lost = whole[whole != left]
    assert (left[whole != left] == -1).all(), expert
    if expert == 'generative':
      assert len(lost) == tiny.USERS * k
    else:
      items = names[expert]
      assert sorted(lost) == sorted(items[items >= 0]), expert


def test_the_others_are_fitted_again_and_the_weight_stays_zero(params, mesh, recommended):
  trie, table, _ = recommended
  rest = without('dense')(params, mesh)
  rolegen = tiny.rolegen('evaluation.batch=32', 'calibration.steps=12')
  fitted, nll = calibrate(rolegen, rest, table, trie, mesh)
  weights, before = fitted['experts.log_weight'], params['backbone']['experts']['log_weight']
  dense = EXPERTS.index('dense')
  assert weights[dense] == OFF and np.exp(weights[dense], dtype=np.float32) == 0
  assert (np.delete(weights, dense) != np.delete(before, dense)).all()
  assert np.isfinite(nll).all() and nll[-1] < nll[0]


@pytest.mark.parametrize(
  'experts, loop_experts, ablation, message',
  [
    (('generative', 'history'), ('intent',), 'without_generative', 'nothing would find items'),
    (('generative', 'dense'), ('intent',), 'without_retrieved', 'lack that already'),
    (('generative', 'dense'), ('intent',), 'without_history', 'lack that already'),
  ],
)
def test_an_ablation_that_leaves_out_nothing_or_too_much_is_refused(
  experts, loop_experts, ablation, message
):
  settings = [
    f'backbone.experts={experts}',
    f'loop.experts={loop_experts}',
    f"evaluation.ablations=('{ablation}',)",
  ]
  with pytest.raises(ConfigError, match=f'evaluation.ablations=.*{ablation}.*{message}'):
    overrides.apply(Config(), settings)
