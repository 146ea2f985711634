"""Calibration lowers the NLL of its examples and moves the mixing weights and nothing else."""

import dataclasses

import jax
import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig
from rolegen_jax.models import functional
from rolegen_jax.reasoning import predict
from rolegen_jax.reasoning.rolegen import history_keys
from rolegen_jax.semantic_ids.trie import build_trie
from rolegen_jax.training.calibration import BIASES, VECTORS, calibrate
from tests import tiny
from tests.text import catalogue

SETTINGS = ('calibration.steps=30', 'evaluation.batch=32')


@pytest.fixture(scope='module')
def table():
  return catalogue.log_and_examples()[2].evenly(37)  # no multiple of the devices


@pytest.mark.parametrize(
  'reasoning, devices',
  [(True, 1), (False, 8), pytest.param(True, 8, marks=pytest.mark.slow)],
)
def test_only_the_mixing_weights_move_and_the_nll_falls(table, reasoning, devices):
  rolegen = tiny.rolegen(*SETTINGS)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
  trie = build_trie(tiny.codes(len(table.log.items)), tiny.CODES, capacity=64)
  params = {name: tiny.params(name) for name in ('backbone', 'reasoner')}
  fitted, nll = calibrate(rolegen, params, table, trie, mesh, reasoning=reasoning)
  assert len(nll) == 31 and np.isfinite(nll).all() and nll[-1] < nll[0] - 0.05
  assert set(fitted) == {*VECTORS, *BIASES}
  before = functional.flatten(params['backbone'])
  for name in BIASES:
    np.testing.assert_array_equal(fitted[name][:-1], before[name][:-1])
  moved = {name for name in fitted if not np.array_equal(fitted[name], before[name])}
  # Without a reasoner there is no intent.
  without_intent = {'pointer.gate', 'pointer.slot_age', 'pointer.slot_event'}
  assert moved == ({*fitted} if reasoning else without_intent)
  if reasoning and devices == 1:
    return  # the other forms score again what was fitted

  # What recommending scores is what was minimized: the same NLL over the same noise.
  after = {**params, 'backbone': functional.unflatten(before | fitted)}

  def scored(p, trie, examples):
    backbone = rolegen.bind('backbone', p['backbone'])
    memory = backbone.encode(examples.history, trie.item_codes)
    if reasoning:
      keys = history_keys(rolegen.config.seed, examples)
      rollout = rolegen.rollout(p['reasoner'], examples, trie, keys)
      memory = rolegen.add_reasoning(
        backbone, memory, rollout, np.ones(examples.timestamp.shape, bool), trie
      )
    return (
      backbone.log_prob(
        rolegen.query(backbone, memory, examples.timestamp),
        memory,
        examples.target[:, None],
        trie.item_codes,
      )[0][:, 0],
    )

  for p, expected in ((params, nll[0]), (after, nll[-1])):
    (log_prob,) = predict.over(
      rolegen, scored, (p, jax.device_put(trie, sharding.sharding(mesh))), table, mesh, 'scored'
    )
    assert -log_prob.mean() == pytest.approx(expected, abs=1e-4)


def test_the_same_examples_give_the_same_weights(table):
  rolegen, mesh = tiny.rolegen(*SETTINGS), sharding.make_mesh(MeshConfig())
  trie = build_trie(tiny.codes(len(table.log.items)), tiny.CODES, capacity=64)
  params = {'backbone': tiny.params('backbone')}
  found = [calibrate(rolegen, params, table, trie, mesh, reasoning=False) for _ in range(2)]
  jax.tree.map(np.testing.assert_array_equal, *found)
  other, _ = calibrate(
    rolegen,
    params,
    dataclasses.replace(table, target=(table.target + 1) % 60),
    trie,
    mesh,
    reasoning=False,
  )
  assert (other['pointer.slot_age'] != found[0][0]['pointer.slot_age']).any()
