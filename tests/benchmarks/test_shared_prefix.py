"""Both sides at the tiny size: the same samples, the library's rollout among them, and nothing measured twice."""

import copy
import json

import jax
import numpy as np
import pytest

from experiments.benchmarks import shared_prefix_parts as lib
from experiments.benchmarks import shared_prefix_plot
from rolegen_jax.compile import jit
from rolegen_jax.config import ConfigError
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.rollout import read, rollout_worlds
from tests import tiny

AXES = dict(dtype=('float32',), events=(6,), worlds=(2, 4))


@pytest.fixture(scope='module')
def config():
  return tiny.config('loop_stage.batch=8')


@pytest.fixture(scope='module')
def found(config):
  saved = []
  result = lib.measured(config, tiny.ITEMS, AXES, 3, {}, lambda r: saved.append(len(r['points'])))
  assert saved == [1, 2]
  return json.loads(json.dumps(result))


def test_sides_sample_the_same_and_as_training_has_it(found):
  for p in found['points'].values():
    assert p['tokens_equal'] == 1 and p['off_each_other'] < 1e-4 and p['users'] == 8
    for side in p['sides'].values():
      assert side['off_training']['max'] < 1e-4 and side['off_training']['tokens'] > 100 and side['median_s'] > 0
  two, four = found['points'].values()
  caches = lambda p, side: p['sides'][side]['cache_bytes']
  slot = 2 * 2 * 2 * 8 * 4  # two layers of keys and values, two heads of eight numbers
  assert two['shared_slots'] == 10 and caches(four, 'naive') == 2 * caches(two, 'naive') == slot * 4 * (two['prompt'] + two['completion'])
  assert [caches(p, 'naive') - caches(p, 'shared') for p in (two, four)] == [slot * 10, 3 * slot * 10]
  assert four['bytes_saved'] > two['bytes_saved']


def test_the_shared_side_is_the_library(config):
  rolegen, key, cases, trie = tiny.rolegen('loop_stage.batch=8'), jax.random.key(3), tiny.cases(), tiny.trie()
  params, tree = tiny.params('reasoner'), lib.tree_of(config, rolegen)
  done = jit(lambda cases, trie: lib.interventions_of(rolegen, cases, trie, key))(cases, trie)
  assert (np.asarray(done.removed).any((0, 2)) == [False, False, False, True]).all() and (np.asarray(done.role) >= 0).any()

  @jit
  def whole(params, cases, trie, done):
    reasoner = rolegen.bind('reasoner', params)
    prompt = build_prompt(rolegen.layout, cases.history, cases.excites, cases.timestamp, trie.item_codes)
    found = rollout_worlds(reasoner, tree, prompt, read(reasoner, tree, prompt), done, trie, key)
    return found.tokens, found.log_prob

  sides = {side: jit(lambda p, c, t, d, side=side: lib.rollout(rolegen, side, p, c, d, t, key))(params, cases, trie, done) for side in lib.SIDES}
  for side, (tokens, log_prob) in sides.items():
    expected = whole(params, cases, trie, done)
    np.testing.assert_array_equal(tokens, expected[0], err_msg=side)
    np.testing.assert_allclose(log_prob, expected[1], atol=1e-4)


def test_what_was_found_is_not_measured_again(config, found):
  again = lib.measured(config, tiny.ITEMS, AXES, 3, found, pytest.fail)
  assert json.loads(json.dumps(again)) == found


def test_samples_that_are_off_are_refused(found):
  point = next(iter(found['points'].values()))
  lib.check('as it is', point)
  for change, says in ((('sides', 'naive', 'off_training', 'max'), 'nats off the training forward'), (('tokens_equal',), 'of the tokens')):
    wrong = at = copy.deepcopy(point)
    for name in change[:-1]:
      at = at[name]
    at[change[-1]] = 0.5
    with pytest.raises(ConfigError, match=says):
      lib.check('wrong', wrong)


def test_table_and_picture(found, tmp_path):
  assert 'float32' in lib.table(found) and '100.00 %' in lib.table(found)
  shared_prefix_plot.draw(found, tmp_path / 'shared_prefix.png')
  assert 2_000 < (tmp_path / 'shared_prefix.png').stat().st_size < 200_000
