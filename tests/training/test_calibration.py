"""Calibration lowers the NLL of its examples and moves the experts' numbers and nothing else.

How much the language model counts is the weight by which intents are likeliest.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig
from rolegen_jax.models import functional
from rolegen_jax.models.experts import EXPERTS
from rolegen_jax.reasoning import predict
from rolegen_jax.reasoning.frcot import build_prompt, demonstration
from rolegen_jax.reasoning.likelihood import likelihood
from rolegen_jax.reasoning.worlds import Tree
from rolegen_jax.semantic_ids.trie import build_trie
from rolegen_jax.serving.history_filter import holds
from rolegen_jax.training.calibration import LANGUAGE, calibrate, intent_weights
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
  trie = build_trie(tiny.codes(items), tiny.CODES, tiny.CAPACITY, counts=counts)
  return dataclasses.replace(trie, trending=tiny.trending(items))


def fit(devices: int, params=PARAMS, examples=None, **options):
  """(fitted numbers by path, NLLs) of all items, which negatives and what is found cover."""
  rolegen = tiny.rolegen(f'calibration.steps={STEPS}', 'evaluation.batch=32')
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


def test_the_nll_falls_and_only_the_numbers_of_experts_move():
  numbers, nll = fitted(8)
  assert len(nll) == STEPS + 1 and np.isfinite(nll).all() and nll[-1] < nll[0] - 0.05
  before = functional.flatten(dict(experts=PARAMS['backbone']['experts']))
  assert set(numbers) == set(before)
  for name, value in numbers.items():
    assert value.shape == before[name].shape and (value != before[name]).any(), name


def test_without_a_reasoner_what_it_says_has_no_weight_to_fit():
  numbers, nll = fit(8, reasoning=False)
  before = functional.flatten(dict(experts=PARAMS['backbone']['experts']))
  moved = {name for name in numbers if (numbers[name] != before[name]).any()}
  of_history = ('slot_age', 'slot_event', 'seen_popularity')
  backbones = ('log_weight', 'trending_prior', *of_history)
  assert moved == {f'experts.{name}' for name in backbones}
  of_weight = numbers['experts.log_weight'] != before['experts.log_weight']
  assert of_weight.tolist() == [True] * 5 + [False] * 3 and nll[-1] < nll[0]


@functools.cache
def fitted_to_new_targets(bars_history: bool):
  """Fitted to examples whose target is not in the history, as many as `fitted` has.

  bars_history: whether their lists leave out the history.
  """
  held = holds(table().log, table().user, table().end, table().target[:, None])[:, 0]
  known = table().picked(np.resize(np.flatnonzero(~held), len(held)))
  barred = functools.partial(holds, known.log, known.user, known.end)
  return fit(8, examples=known, is_barred=barred if bars_history else None)


def test_where_lists_leave_out_the_history_nothing_of_it_stands_against_a_target():
  (_, nll), (_, without) = fitted_to_new_targets(False), fitted_to_new_targets(True)
  assert without[0] < nll[0] - 0.05


def test_where_lists_leave_out_the_history_its_expert_has_nothing_to_fit():
  """Its weight would grow without bound if a target of the history stood among the examples."""
  numbers, _ = fitted_to_new_targets(True)
  before, name = PARAMS['backbone']['experts'], EXPERTS.index('history')
  np.testing.assert_array_equal(numbers['experts.slot_age'], before['slot_age'])
  assert numbers['experts.log_weight'][name] == before['log_weight'][name]


def test_eight_devices_fit_what_one_does():
  """L-BFGS searches along lines: rounding moves where it looks, little where it ends."""
  (one, nll), (spread, spread_nll) = fitted(1), fitted(8)
  np.testing.assert_allclose(spread_nll[0], nll[0], atol=1e-5)
  np.testing.assert_allclose(spread_nll[-1], nll[-1], atol=1e-2)
  assert set(one) == set(spread)


def test_what_is_recommended_is_scored_by_what_was_fitted():
  """The NLL after it is where a calibration begins that starts from its result."""
  numbers, nll = fitted(8)
  _, again = fit(8, after(numbers))
  assert again[0] == pytest.approx(nll[-1], abs=1e-4)
  rolegen = tiny.rolegen('evaluation.batch=32', 'evaluation.ks=1,10')
  found = predict.predict(rolegen, after(numbers), table(), trie(), mesh_of(8), beams=10)
  name = EXPERTS.index('popularity')
  popularity = np.exp(numbers['experts.log_weight'][name]) * np.log1p(trie().item_count)
  real = found.item >= 0
  np.testing.assert_allclose(
    found.terms[..., name][real], popularity[found.item[real]], rtol=1e-4, atol=1e-6
  )


def test_the_same_examples_give_the_same_numbers_and_others_give_others():
  jax.tree.map(np.testing.assert_array_equal, fit(8), fitted(8))
  others = dataclasses.replace(table(), target=(table().target + 1) % 60)
  other, _ = fit(8, examples=others)
  assert (other['experts.slot_age'] != fitted(8)[0]['experts.slot_age']).any()


def with_tables(scale: float):
  """The parameters of both models, what the language model says multiplied."""
  reasoner = PARAMS['reasoner']
  return {**PARAMS, 'reasoner': reasoner | {'tokens': scale * reasoner['tokens']}}


def test_a_language_model_of_noise_gets_no_weight_and_a_silent_one_keeps_its_own():
  rolegen = tiny.rolegen('evaluation.batch=32')
  asked = table(), trie(), mesh_of(8)
  (weight, *pooled), nll = intent_weights(rolegen, with_tables(8.0), *asked)
  assert (
    pooled == [1.0, 0.0]
    and weight <= 0.1
    and nll[LANGUAGE.index(weight)] == nll.min() < nll[0] - 0.5
  )
  (weight, *_), nll = intent_weights(rolegen, with_tables(0.0), *asked)
  np.testing.assert_allclose(nll, nll[0], rtol=1e-6)
  assert weight == LANGUAGE[0] == 1.0


def test_intents_are_as_likely_at_a_weight_as_chains_find_them_at_it():
  rolegen, examples = tiny.rolegen('evaluation.batch=32'), table().rows(np.arange(32), tiny.WIDTH)
  params = with_tables(2.0)
  reasoner = params['reasoner']
  _, nll = intent_weights(rolegen, params, table().picked(np.arange(32)), trie(), mesh_of(1))
  layout, tables = rolegen.layout, jax.tree.map(jnp.asarray, trie())
  prompt = build_prompt(
    layout, examples.history, examples.excites, examples.timestamp, tables.item_codes
  )
  chains = demonstration(layout, examples, tables.item_codes)
  for weight in (1.0, 0.3, 0.0):
    intent = reasoner['intent'] | {'language': jnp.full(1, weight)}
    model = rolegen.bind('reasoner', reasoner | {'intent': intent})
    found = likelihood(model, Tree(layout), prompt, chains.tokens, tables, temperature=1.0)
    expected = -float(found.log_prob[:, layout.intent_slots[0, 0]].mean())
    assert nll[LANGUAGE.index(weight)] == pytest.approx(expected, abs=1e-4), weight
