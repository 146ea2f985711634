"""Calibration ranks its examples better and moves the experts' numbers and nothing else."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig
from rolegen_jax.models import functional
from rolegen_jax.models.experts import EXPERTS
from rolegen_jax.reasoning import predict
from rolegen_jax.semantic_ids.trie import build_trie
from rolegen_jax.training.calibration import calibrate
from tests import tiny
from tests.text import catalogue

STEPS = 12
PARAMS = {name: tiny.params(name) for name in ('backbone', 'reasoner')}


@functools.cache
def table():
  return catalogue.log_and_examples()[2].evenly(37)  # no multiple of the devices


def mesh_of(devices: int) -> jax.sharding.Mesh:
  return sharding.make_mesh(MeshConfig(), jax.devices()[:devices])


def trie():
  items = len(table().log.items)
  counts = np.random.default_rng(0).integers(0, 20, items)
  return build_trie(tiny.codes(items), tiny.CODES, tiny.CAPACITY, counts=counts)


def fit(devices: int, params=PARAMS, examples=None, steps: int = STEPS, **options):
  """(fitted numbers by path, Fit) over all items, which negatives and what is found cover."""
  rolegen = tiny.rolegen(f'calibration.steps={steps}', 'evaluation.batch=32')
  examples = table() if examples is None else examples
  return calibrate(rolegen, params, examples, trie(), mesh_of(devices), **options)


@functools.cache
def fitted(devices: int):
  return fit(devices)


def after(numbers) -> dict:
  """The parameters with fitted numbers."""
  leaves = functional.flatten(PARAMS['backbone'])
  assert set(numbers) <= set(leaves)
  return {**PARAMS, 'backbone': functional.unflatten(leaves | numbers)}


def test_nll_falls_then_mrr_rises_and_only_the_numbers_of_experts_move():
  numbers, found = fitted(8)
  assert len(found.nll) == STEPS + 1
  assert found.nll[-1] < found.nll[0] - 0.05
  assert found.ndcg[1] > found.ndcg[0] + 0.005
  assert found.calibrated_nll < found.nll[0]
  before = functional.flatten(dict(experts=PARAMS['backbone']['experts']))
  assert set(numbers) == set(before)
  for name, value in numbers.items():
    assert value.shape == before[name].shape and (value != before[name]).any(), name


def test_without_a_reasoner_what_it_says_keeps_its_weights_beside_each_other():
  numbers, found = fit(8, reasoning=False)
  before = functional.flatten(dict(experts=PARAMS['backbone']['experts']))
  moved = {name for name in numbers if (numbers[name] != before[name]).any()}
  assert moved == {f'experts.{name}' for name in ('log_weight', 'slot_age', 'slot_event')}
  by = numbers['experts.log_weight'] - before['experts.log_weight']
  np.testing.assert_allclose(by[4:], by[4], atol=1e-6)  # the common factor alone
  assert len(set(by[:4].tolist())) == 4 and found.calibrated_nll < found.nll[0]


def test_where_lists_leave_out_the_history_it_counts_for_no_rank():
  with_history, without = fit(8)[1], fit(8, bars_history=True)[1]
  assert without.ndcg[0] > with_history.ndcg[0]


def test_eight_devices_fit_what_one_does():
  """L-BFGS searches along lines: rounding moves where it looks, little where it ends."""
  (one, alone), (spread, together) = fitted(1), fitted(8)
  np.testing.assert_allclose(together.nll[0], alone.nll[0], atol=1e-5)
  np.testing.assert_allclose(together.nll[-1], alone.nll[-1], atol=1e-2)
  np.testing.assert_allclose(together.ndcg[-1], alone.ndcg[-1], atol=1e-2)
  assert set(one) == set(spread)


def test_what_is_recommended_is_scored_by_what_was_fitted():
  """The NLL after it is where a calibration begins that starts from its result."""
  numbers, found = fitted(8)
  _, again = fit(8, after(numbers), steps=0)
  assert float(again.nll[0]) == pytest.approx(float(found.calibrated_nll), abs=1e-4)
  rolegen = tiny.rolegen('evaluation.batch=32', 'evaluation.ks=1,10')
  listed = predict.predict(rolegen, after(numbers), table(), trie(), mesh_of(8), beams=10)
  name = EXPERTS.index('popularity')
  popularity = np.exp(numbers['experts.log_weight'][name]) * np.log1p(trie().item_count)
  real = listed.item >= 0
  np.testing.assert_allclose(
    listed.terms[..., name][real], popularity[listed.item[real]], rtol=1e-4, atol=1e-6
  )


def test_the_same_examples_give_the_same_numbers_and_others_give_others():
  jax.tree.map(np.testing.assert_array_equal, fit(8), fitted(8))
  others = dataclasses.replace(table(), target=(table().target + 1) % 60)
  other, _ = fit(8, examples=others)
  assert (other['experts.slot_age'] != fitted(8)[0]['experts.slot_age']).any()
