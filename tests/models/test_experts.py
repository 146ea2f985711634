"""What each expert says, against loops over plain numbers; negatives; experts that are off."""

import dataclasses
import functools
import itertools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import BACKBONE_EXPERTS
from rolegen_jax.models import experts as lib
from rolegen_jax.models import functional
from rolegen_jax.models.decode import recommend
from rolegen_jax.models.memory import Conditioning, Memory, view_memory
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids.trie import build_trie
from rolegen_jax.training import losses
from tests import tiny
from tests.models import conditioning

ITEMS = np.tile(np.arange(tiny.ITEMS, dtype=np.int32), (tiny.USERS, 1))
COUNTS = np.random.default_rng(0).integers(0, 50, tiny.ITEMS)
POPULARITY = np.broadcast_to(np.log1p(COUNTS), ITEMS.shape)
OF_HISTORY = ('slot_age', 'slot_event', 'seen_popularity')  # parameters of its formula
PARTS = dict(
  generative={'depth', 'readout'},
  dense={'rows'},
  history=set(),
  popularity=set(),
  trending=set(),
)


def trie(codes=None, counts=COUNTS, **kwargs):
  codes = tiny.codes() if codes is None else codes
  tables = build_trie(codes, tiny.CODES, tiny.CAPACITY, counts=counts, **kwargs)
  return dataclasses.replace(tables, trending=tiny.trending())


@functools.cache
def scorer(*assignments: str):
  rolegen = tiny.rolegen(*assignments)

  @jit
  def score(params, history, item, said, trie):
    backbone = rolegen.bind('backbone', params)
    items = backbone.items(trie)
    memory = backbone.encode(history, items)
    query_state = rolegen.query(backbone, memory, jnp.full((tiny.USERS,), tiny.NOW))
    members = backbone.members(query_state, item, jnp.zeros(item.shape), said, items)
    return backbone.experts.terms(members), backbone.experts.log_probs(members), members

  return score


def score(said=None, item=ITEMS, assignments=(), params=None, of=None):
  """(terms [B, M, E], log p [B, M], members) after the same histories."""
  said = conditioning.random() if said is None else said
  params = tiny.params('backbone') if params is None else params
  history = tiny.histories(np.random.default_rng(0))
  return jax.device_get(
    scorer(*assignments)(params, history, item, said, trie() if of is None else of)
  )


def term(terms, name: str) -> np.ndarray:
  return terms[..., lib.EXPERTS.index(name)]


def weight(name: str) -> float:
  return np.exp(tiny.params('backbone')['experts']['log_weight'][lib.EXPERTS.index(name)])


# Each expert


def histories_now():
  """Histories, and what a query of each sees of them."""
  rows = tiny.histories(np.random.default_rng(1))
  fields = (rows.item, rows.event, rows.timestamp, rows.segment, np.maximum(rows.count, 1))
  memory = Memory(np.zeros((*rows.item.shape, 1), np.float32), *fields)
  now = np.full((tiny.USERS, 1), tiny.NOW, np.int32)
  view = view_memory(jax.tree.map(jnp.asarray, memory), now, np.ones_like(now))
  return rows, view


def test_the_history_expert_starts_as_the_recency_rule():
  """The log of 1 + count * weight(event) * exp(-age / 7 days), summed over an item's events."""
  rows, view = histories_now()
  found = lib.Experts(BACKBONE_EXPERTS).history(view, rows.item, ITEMS, POPULARITY)[:, 0]
  mass = np.zeros((tiny.USERS, tiny.ITEMS))
  for user, slot in zip(*np.nonzero(rows.segment)):
    age = (tiny.NOW - rows.timestamp[user, slot]) / (7 * tiny.DAY)
    worth = rows.count[user, slot] * lib.EVENT_WEIGHTS[rows.event[user, slot]]
    mass[user, rows.item[user, slot]] += worth * np.exp(-age)
  np.testing.assert_allclose(found, np.log1p(mass), rtol=1e-4, atol=1e-5)


def test_the_history_expert_weighs_popular_items_by_a_parameter_of_its_own():
  """An item with c training events has (1 + c)^s times the mass; an item not seen has none."""
  rows, view = histories_now()

  def mass(s: float) -> np.ndarray:
    experts = lib.Experts(BACKBONE_EXPERTS)
    experts.seen_popularity[...] = jnp.array([s])
    return np.expm1(experts.history(view, rows.item, ITEMS, POPULARITY)[:, 0])

  expected = mass(0.0) * (1.0 + COUNTS) ** -0.5
  np.testing.assert_allclose(mass(-0.5), expected, rtol=1e-3, atol=1e-4)
  assert (expected > 1e-3).any()


def test_the_history_expert_counts_earlier_events_of_the_window_only():
  rows = tiny.histories(np.random.default_rng(1))
  ones = np.ones_like(rows.item)
  memory = Memory(np.zeros((*ones.shape, 1), np.float32), *rows[:2], rows.timestamp, ones, ones)
  earliest = rows.timestamp.max(1)[:, None] - 10 * tiny.DAY
  view = view_memory(jax.tree.map(jnp.asarray, memory), earliest, np.ones_like(earliest))
  found = lib.Experts(BACKBONE_EXPERTS).history(view, rows.item, rows.item, 0.0 * rows.item)[:, 0]
  latest = np.array([[t < e for t in row] for row, e in zip(rows.timestamp, earliest[:, 0])])
  for user in range(tiny.USERS):
    said = set(rows.item[user][latest[user]].tolist()) - {-1}
    np.testing.assert_array_equal(found[user] > 0, np.isin(rows.item[user], sorted(said)))


def test_popularity_is_the_log_of_training_events():
  expected = weight('popularity') * np.log1p(COUNTS)
  np.testing.assert_allclose(term(score()[0], 'popularity'), [expected] * tiny.USERS, rtol=1e-5)


def test_intent_is_the_log_of_the_coarse_codes_lift():
  """Rows without an intent get nothing."""
  said = conditioning.random()
  has_intent = np.arange(tiny.USERS)[:, None] % 2 == 0
  intent = np.where(has_intent, said.intent, NEG_INF).astype(np.float32)
  found = term(score(said._replace(intent=intent))[0], 'intent')
  lift = said.intent[:, tiny.codes()[:, 0]] + np.log(tiny.CODES)
  np.testing.assert_allclose(found, np.where(has_intent, weight('intent') * lift, 0), atol=1e-5)


def test_retrieved_items_add_the_log_of_their_share_over_the_prior():
  said = conditioning.random()
  share = np.zeros((tiny.USERS, tiny.ITEMS))
  np.put_along_axis(share, said.retrieved.item, said.retrieved.share, axis=1)
  prior = np.exp(tiny.params('backbone')['experts']['retrieved_prior'])
  expected = weight('retrieved') * np.log1p(share / prior)
  np.testing.assert_allclose(term(score()[0], 'retrieved'), expected, rtol=1e-4, atol=1e-6)


def test_candidates_add_the_log_of_their_mass():
  """One named twice has both masses; the factual world's count otherwise than the others'."""
  said, mass = conditioning.random().candidates, np.zeros((tiny.USERS, tiny.ITEMS))
  said = said._replace(item=np.where(np.arange(3) == 2, said.item[:, :1], said.item))
  factual, other, by_log_prob = tiny.params('backbone')['experts']['candidate']
  for user, place in np.ndindex(*said.item.shape):
    world = factual if said.world[user, place] == 0 else other
    log_mass = world + by_log_prob * said.log_prob[user, place]
    mass[user, said.item[user, place]] += np.exp(log_mass)
  found = term(score(conditioning.random()._replace(candidates=said))[0], 'candidates')
  np.testing.assert_allclose(found, weight('candidates') * np.log1p(mass), rtol=1e-4, atol=1e-6)


def test_the_trending_expert_knows_the_day_of_the_query():
  table = tiny.trending()
  prior = np.exp(tiny.params('backbone')['experts']['trending_prior'])
  expected = np.zeros(tiny.ITEMS)
  expected[table.item[-1]] = np.log1p(table.share[-1] / prior)
  found = term(score()[0], 'trending')
  np.testing.assert_allclose(
    found, np.broadcast_to(weight('trending') * expected, found.shape), rtol=1e-4, atol=1e-6
  )
  earlier = table._replace(day=table.day + 1)  # its last day is tomorrow
  moved = term(score(of=dataclasses.replace(trie(), trending=earlier))[0], 'trending')
  np.testing.assert_array_equal(np.unique(np.nonzero(moved)[1]), np.sort(table.item[-2]))
  assert not term(score(of=dataclasses.replace(trie(), trending=None))[0], 'trending').any()


# Their product


def test_terms_sum_to_the_score_and_probabilities_to_one():
  terms, log_prob, members = score()
  assert members.generative.shape == members.dense.shape == ITEMS.shape
  assert (np.abs(terms).max((0, 1)) > 0).all()  # every expert has something to say
  total = terms.sum(-1)
  expected = total - np.asarray(jax.nn.logsumexp(total, axis=1, keepdims=True))
  np.testing.assert_allclose(log_prob, expected, atol=1e-4)
  np.testing.assert_allclose(np.exp(log_prob).sum(1), 1.0, atol=1e-4)


def test_the_order_of_a_rows_members_changes_nothing():
  order = np.random.default_rng(0).permutation(tiny.ITEMS)
  for one, other in zip(score()[:2], score(item=ITEMS[:, order])[:2]):
    np.testing.assert_allclose(other, one[:, order], atol=1e-4)


def test_the_order_of_experts_in_the_settings_changes_nothing():
  expected = score()[0]
  for names in itertools.islice(itertools.permutations(BACKBONE_EXPERTS), 5, 24, 9):
    found = score(assignments=(f'backbone.experts={names}',))[0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('part', Conditioning._fields)
def test_a_part_that_says_nothing_is_as_none(part):
  said = conditioning.random()
  silent = said._replace(**{part: getattr(conditioning.NEUTRAL, part)})
  absent = score(said._replace(**{part: None}))[0]
  np.testing.assert_allclose(score(silent)[0], absent, atol=1e-6)
  assert not term(absent, part).any() and term(score()[0], part).any()


# Items that nothing was learned about


def changed_rows(items):
  """Parameters in which the own rows of some items are others."""
  params = tiny.params('backbone')
  rows = params['rows'].copy()
  rows[items] += 1.0
  return params | dict(rows=rows)


def test_an_item_without_training_events_has_no_row_of_its_own():
  cold = np.flatnonzero(COUNTS == 0)
  assert len(cold) and len(cold) < tiny.ITEMS
  before, same = score()[0], score(params=changed_rows(cold))[0]
  np.testing.assert_array_equal(same, before)
  other = score(params=changed_rows(np.flatnonzero(COUNTS)))[0]
  assert (term(other, 'dense') != term(before, 'dense'))[:, COUNTS > 0].all()


def test_the_score_of_an_unseen_item_follows_its_text():
  """It is the only thing that tells an item from another with the same codes."""
  width, rng = 5, np.random.default_rng(0)
  rolegen = RoleGen(tiny.config(), tiny.CAPACITY, text=width)
  params = tiny.random_params(rolegen.model_fns['backbone'])
  text = rng.normal(size=(tiny.ITEMS, width)).astype(np.float32)

  @jit
  def dense(params, trie):
    backbone = rolegen.bind('backbone', params)
    items = backbone.items(trie)
    state = jnp.ones((1, 32))
    return backbone.vectors(items, jnp.arange(tiny.ITEMS)) @ state[0]

  counts = np.where(np.arange(tiny.ITEMS) < 10, 0, 3)
  found = [dense(params, trie(counts=counts, text=x)) for x in (text, 0 * text, text[::-1])]
  for x, with_text in ((text, found[0]), (text[::-1], found[2])):
    expected = (x @ params['text']).sum(-1)
    np.testing.assert_allclose((with_text - found[1]), expected, atol=1e-4)
  other = params | dict(rows=np.where(np.arange(tiny.CAPACITY)[:, None] < 10, 9, params['rows']))
  np.testing.assert_array_equal(dense(other, trie(counts=counts, text=text)), found[0])


# Negatives


def test_a_small_catalogue_is_taken_whole():
  allowed = np.arange(tiny.ITEMS) % 2 == 0
  found = lib.draw_negatives(tiny.trie(allowed=allowed), 64, jax.random.key(0))
  listed = np.asarray(found.item)[np.asarray(found.log_weight) == 0]
  assert sorted(listed.tolist()) == np.flatnonzero(allowed).tolist()


@pytest.mark.parametrize('own_items', [0, 6])
@pytest.mark.parametrize('batch_items', [0, 20])
def test_the_sum_over_a_large_catalogue_is_unbiased(batch_items, own_items):
  """The mean over keys of the estimate nears the sum, whatever rows and batches hold."""
  rng = np.random.default_rng(0)
  worth = jnp.exp(rng.normal(size=tiny.CAPACITY))
  own = jnp.asarray(rng.integers(-1, tiny.ITEMS, (1, own_items)), jnp.int32)
  batch = jnp.asarray(rng.integers(-1, 12, batch_items), jnp.int32) if batch_items else None

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, None))
  def estimate(key, table):
    negatives = lib.draw_negatives(table, 16, key, batch)
    item, log_weight = lib.with_negatives(own, negatives)
    return jnp.sum(jnp.exp(log_weight) * worth[jnp.maximum(item, 0)])

  table = build_trie(tiny.codes(), tiny.CODES, tiny.CAPACITY)
  found = estimate(jax.random.split(jax.random.key(0), 4000), table)
  error = found.std() / np.sqrt(len(found))
  assert found.std() > 0
  assert abs(found.mean() - worth[: tiny.ITEMS].sum()) < 4 * error


def test_an_item_counts_once_in_a_row():
  own = np.array([[3, 5, 3, -1]], np.int32)
  negatives = lib.Negatives(jnp.array([5, 7, 7, -1]), jnp.array([0.5, 0.5, 0.5, NEG_INF]))
  item, log_weight = lib.with_negatives(own, negatives)
  assert item.tolist() == [[3, 5, 3, -1, 5, 7, 7, -1]]
  none = np.float32(NEG_INF)
  assert log_weight.tolist() == [[0, 0, none, none, none, 0.5, 0.5, none]]


# Experts that are off


@functools.cache
def without(expert: str | None) -> RoleGen:
  names = tuple(name for name in BACKBONE_EXPERTS if name != expert)
  sizes = f'semantic_ids.codes={CODES}', f'backbone.experts={names}'
  return RoleGen(tiny.config(*sizes), CAPACITY)


CODES, CAPACITY = 24, 61  # sizes that nothing else has


def operations(jaxpr):
  """(primitive, output shape) of everything in a jaxpr."""
  for equation in jaxpr.eqns:
    for out in equation.outvars:
      yield equation.primitive.name, out.aval.shape
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from operations(inner)


@functools.cache
def traced(expert: str | None):
  """The operations of the warm-up's gradient and of recommending, without an expert."""
  rolegen = without(expert)
  shapes = functional.abstract(rolegen.model_fns['backbone'])[1]
  table = build_trie(tiny.codes(), CODES, CAPACITY)
  examples, key = jax.tree.map(jnp.asarray, tiny.examples()), jax.random.key(0)

  def warm(params):
    return losses.warmup_loss(rolegen, params, examples.history, table, key)[0]

  def ranked(params):
    backbone = rolegen.bind('backbone', params)
    memory = backbone.encode(examples.history, backbone.items(table))
    query_state = rolegen.query(backbone, memory, examples.timestamp)
    return recommend(backbone, query_state, Conditioning(), table, 5)

  return [
    op for f in (jax.grad(warm), ranked) for op in operations(jax.make_jaxpr(f)(shapes).jaxpr)
  ]


def is_of(expert: str, primitive: str, shape: tuple[int, ...]) -> bool:
  if expert == 'generative':
    return len(shape) > 1 and shape[-1] == CODES and primitive == 'dot_general'
  return CAPACITY in shape and primitive == 'dot_general'


@pytest.mark.parametrize('expert', ['generative', 'dense'])
def test_an_expert_that_is_off_is_not_computed(expert):
  def names(rolegen):
    return set(functional.abstract(rolegen.model_fns['backbone'])[1])

  assert names(without(None)) - names(without(expert)) == PARTS[expert]
  assert any(is_of(expert, *op) for op in traced(None))
  assert not any(is_of(expert, *op) for op in traced(expert))


@functools.cache
def gradient(names: tuple[str, ...]):
  """The warm-up's gradient by what the experts have, where these are on."""
  # Of items that are equally popular, the weight's gradient is 0 but for rounding.
  counts, rolegen = np.arange(tiny.ITEMS) ** 2, tiny.rolegen(f'backbone.experts={names}')

  def loss(experts, params, rows, trie):
    return losses.warmup_loss(rolegen, params | {'experts': experts}, rows, trie, jax.random.key(0))

  params, rows = tiny.params('backbone'), tiny.examples().history
  gradient_of = jit(jax.grad(loss, has_aux=True))
  return jax.device_get(gradient_of(params['experts'], params, rows, trie(counts=counts))[0])


@pytest.mark.parametrize('expert', ['history', 'popularity'])
def test_an_expert_that_is_off_is_not_trained(expert):
  """Its weight and the parameters of its formula have no gradient."""

  def of_its_own(names):
    found, of_formula = gradient(names), OF_HISTORY if expert == 'history' else ()
    own = [found['log_weight'][lib.EXPERTS.index(expert)], *(found[name] for name in of_formula)]
    return [np.abs(x).max() for x in own]

  names = BACKBONE_EXPERTS
  assert min(of_its_own(names)) > 1e-4
  assert max(of_its_own(tuple(name for name in names if name != expert))) == 0
