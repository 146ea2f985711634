"""What candidates of a world are worth, and what the losses of the experts are taken over."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.models.experts import draw_negatives
from rolegen_jax.models.memory import Candidates, Conditioning, RetrievedShares
from rolegen_jax.reasoning import language
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids.trie import build_trie
from rolegen_jax.training import losses
from tests import tiny
from tests.reasoning import chains
from tests.text import catalogue


def score(params, examples, rollout, trie):
  """The members of the loss of all experts."""
  rolegen = tiny.rolegen()
  backbone = rolegen.bind('backbone', params)
  items = backbone.items(trie)
  memory = backbone.encode(examples.history, items)
  query_state = rolegen.query(backbone, memory, examples.timestamp)
  key = jax.random.key(0)
  return losses._scored(rolegen, params, query_state, examples, rollout, trie, items, key)


@functools.cache
def scored():
  """(members, the rollout): the same for all tests."""
  examples = tiny.examples()
  rollout = chains.rollout(examples)
  return jit(score)(tiny.params('backbone'), examples, rollout, tiny.trie()), rollout


@functools.cache
def gains():
  return jit(functools.partial(losses.execution_gain, tiny.rolegen()))


def gain(rollout) -> np.ndarray:
  """What the candidates of each world are worth, [B, W]."""
  return np.asarray(gains()(tiny.params('backbone'), scored()[0], rollout))


def said_by(rollout, world: int, has_candidates: bool) -> Conditioning:
  """What one world says."""
  item = rollout.candidates[:, world] if has_candidates else -1 + 0 * rollout.candidates[:, world]
  return Conditioning(
    Candidates(item, np.full_like(item, world), rollout.candidate_log_prob[:, world]),
    RetrievedShares(rollout.retrieved[:, world], rollout.retrieved_share[:, world]),
    rollout.intent[:, world],
  )


def test_what_is_scored_begins_with_the_target_and_holds_all_that_is_named():
  members, rollout = scored()
  examples, item = tiny.examples(), np.asarray(members.item)
  np.testing.assert_array_equal(item[:, 0], examples.target)
  assert (np.asarray(members.log_weight)[:, 0] == 0).all()
  for row in range(tiny.USERS):
    counted = item[row][np.asarray(members.log_weight)[row] == 0]
    assert len(set(counted.tolist())) == len(counted)
    named = [examples.history.item[row], rollout.candidates[row], rollout.retrieved[row]]
    named = np.concatenate([x.reshape(-1) for x in named])
    assert np.isin(named[named >= 0], counted).all()
    # So small a catalogue is there whole.
    assert sorted(counted.tolist()) == list(range(tiny.ITEMS))


def test_a_world_without_candidates_gains_nothing():
  """Whatever its intervention made of intent and retrieved items."""
  rollout = scored()[1]
  assert (rollout.intent[:, 1:] != rollout.intent[:, :1]).any()
  assert (gain(rollout._replace(candidates=np.full_like(rollout.candidates, -1))) == 0).all()
  one_world = rollout.candidates.copy()
  one_world[:, 2] = -1
  found = gain(rollout._replace(candidates=one_world))
  assert ((found == 0) == (np.arange(tiny.WORLDS) == 2)).all()


def test_a_world_gains_what_its_candidates_add_beside_its_own_intent_and_retrieved_items():
  """log p(target) by its intent, retrieved items and candidates, less that without the last."""
  members, rollout = scored()
  experts = tiny.rolegen().bind('backbone', jax.tree.map(jnp.asarray, tiny.params('backbone')))
  experts, found = experts.experts, gain(rollout)
  for world in range(tiny.WORLDS):
    with_candidates, without = (
      experts.log_probs(members._replace(conditioning=said_by(rollout, world, has)))[:, 0]
      for has in (True, False)
    )
    np.testing.assert_allclose(found[:, world], with_candidates - without, atol=2e-5)


def test_a_world_that_names_the_target_alone_gains():
  rollout, target = scored()[1], tiny.examples().target
  alone = np.full_like(rollout.candidates, -1)
  alone[:, 1, 0] = target
  found = gain(rollout._replace(candidates=alone))
  assert (found[:, 1] > 0).all() and not np.delete(found, 1, axis=1).any()
  wrong = alone.copy()
  wrong[:, 1, 0] = (target + 1) % tiny.ITEMS
  worse = gain(rollout._replace(candidates=wrong))[:, 1]
  assert (worse <= 0).all() and worse.min() < -1e-4


def test_the_loss_of_all_experts_teaches_their_numbers_alone():
  """What an expert says of an item it learns from its own loss: nothing here has a gradient."""

  @jit
  def gradient(params, *arguments):
    def total(params):
      members = score(params, *arguments)
      return members.dense.sum() + members.generative.sum()

    return jax.grad(total)(params)

  found = gradient(tiny.params('backbone'), tiny.examples(), scored()[1], tiny.trie())
  assert not any(np.any(g) for g in jax.tree.leaves(found))


@pytest.mark.parametrize('share, number', [(0.25, 4), (1.0, tiny.WIDTH)])
@pytest.mark.parametrize('experts', [('dense', 'generative'), ('generative',)])
def test_the_generative_expert_learns_from_what_is_drawn_and_alone_from_all(share, number, experts):
  rolegen = tiny.rolegen(f'backbone.generation_share={share}', f'backbone.experts={experts}')
  backbone = rolegen.bind('backbone', tiny.random_params(rolegen.model_fns['backbone']))
  trie, rows = tiny.trie(), tiny.examples().history
  items, key = backbone.items(trie), jax.random.key(1)
  query = backbone.attend(backbone.encode(rows, items), rows.event, rows.timestamp, rows.segment)
  weight = jnp.asarray(rows.segment > 0, jnp.float32)
  negatives = draw_negatives(trie, 8, key)
  given = query, rows.item, rows.item, weight, negatives, items, key
  _, nll, _ = losses.choices_loss(backbone, *given)
  codes = jnp.take(items.codes, jnp.maximum(rows.item, 0), axis=0)
  log_prob = backbone.generated(query.state, codes)
  if experts != ('generative',):
    drawn = losses.draw_queries(weight, number, key)
    log_prob, weight = (jnp.take_along_axis(x, drawn, axis=1) for x in (log_prob, weight))
  expected = -jnp.sum(log_prob * weight) / jnp.sum(weight)
  np.testing.assert_allclose(nll['generative'], expected, rtol=1e-5)


def test_queries_with_weight_are_drawn_first_and_none_twice():
  weight = jnp.array([[0.0, 5.0, 0.0, 0.2, 0.2, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
  keys = jax.random.split(jax.random.key(0), 40)
  drawn = np.asarray(jax.vmap(lambda key: losses.draw_queries(weight, 2, key))(keys))
  assert {*drawn[:, 0].flat} == {1, 3, 4} and (drawn[:, 1] == 5).any(-1).all()
  assert all(len({*row}) == 2 for row in drawn.reshape(-1, 2).tolist())


def test_words_beside_examples_add_their_loss_to_that_of_the_chains():
  """So nothing of `align` is forgotten, in `reason` as in the loop."""
  config = catalogue.config('text.replay=48')
  rolegen, alignment = RoleGen(config), catalogue.alignment('text.replay=48')
  _, codes, table = catalogue.log_and_examples()
  trie = build_trie(codes, tiny.CODES, tiny.CAPACITY)
  params = tiny.random_params(rolegen.model_fns['reasoner'])
  numbers = np.arange(8)
  plain = table.rows(numbers, tiny.WIDTH)
  beside = plain._replace(words=alignment.replay(numbers, 'reason'))
  loss = jit(functools.partial(losses.reason_loss, rolegen))
  (alone, few), (both, more) = (loss(params, x, trie, None) for x in (plain, beside))
  read = jit(lambda params, x: language.words_loss(rolegen.bind('reasoner', params), x))
  of_words, of_tasks = read(params, beside.words)
  np.testing.assert_allclose(both - alone, of_words, rtol=1e-4)
  assert more['tokens'] == few['tokens'] + (beside.words.segment > 0).sum()
  assert of_words > 1 and set(of_tasks) - {'tokens'} <= set(more) - set(few)
