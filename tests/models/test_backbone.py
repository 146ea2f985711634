"""The backbone: no leaks from the future, exact probabilities, little memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.data.batches import Trajectories
from rolegen_jax.models import functional
from rolegen_jax.models.backbone import Backbone
from rolegen_jax.models.experts import EXPERTS, draw_negatives
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids.trie import build_trie
from tests import tiny

SEEDS = st.integers(0, 10**6)


@functools.cache
def scorer(negatives: int = tiny.CAPACITY):

  @jit
  def score(params, rows, queries, trie):
    backbone = tiny.rolegen().bind('backbone', params)
    items = backbone.items(trie)
    memory = backbone.encode(rows, items)
    query_state = backbone.attend(memory, queries.event, queries.timestamp, queries.segment)
    shared = draw_negatives(trie, negatives, jax.random.key(0))
    own = jnp.concatenate([queries.item, rows.item], axis=1)
    choice = backbone.choice_log_prob(query_state, queries.item, own, shared, items)
    codes = jnp.take(trie.item_codes, jnp.maximum(queries.item, 0), axis=0)
    return jnp.stack([choice, backbone.generated(query_state.state, codes)])

  return score


def score(rows, queries, trie=None):
  """log p [2, B, n] of the queried items, by dense, history and popularity, and generated."""
  trie = tiny.trie() if trie is None else trie
  return jax.device_get(scorer()(tiny.params('backbone'), rows, queries, trie))


def packed(rng) -> Trajectories:
  """Rows of two windows each, of different users: segments 1 and 2, then padding."""
  columns = np.arange(tiny.WIDTH)
  cut, end = rng.integers(3, 8, (tiny.USERS, 1)), rng.integers(11, tiny.WIDTH + 1, (tiny.USERS, 1))
  segment = np.where(columns < cut, 1, np.where(columns < end, 2, 0))
  step = rng.integers(0, 3, segment.shape)
  days = np.where(segment == 1, np.cumsum(step, 1), np.cumsum(np.where(segment == 2, step, 0), 1))

  def padded(field, padding):
    return np.where(segment > 0, field, padding).astype(np.int32)

  def draw(high):
    return rng.integers(0, high, segment.shape)

  return Trajectories(
    item=padded(draw(tiny.ITEMS), -1),
    event=padded(draw(6), 0),
    count=padded(1 + draw(4), 0),
    timestamp=padded(days * tiny.DAY + tiny.NOW - 60 * tiny.DAY, 0),
    segment=segment.astype(np.int32),
  )


# What a query sees


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_a_query_sees_earlier_events_of_its_own_window_only(seed):
  """Changes at its timestamp, later, or in another window leave an event's log-prob as it was."""
  rng = np.random.default_rng(seed)
  rows = packed(rng)
  column = rng.integers(0, 11, tiny.USERS)[:, None]
  time, segment = (np.take_along_axis(a, column, 1) for a in (rows.timestamp, rows.segment))
  hidden = (rows.segment != segment) | (rows.timestamp >= time)
  other = packed(rng)
  fields = {
    name: np.where(hidden & (rows.segment > 0), getattr(other, name), getattr(rows, name))
    for name in ('item', 'event', 'count')
  }
  later = hidden & (rows.timestamp > time)
  fields['timestamp'] = np.where(later, rows.timestamp + 7, rows.timestamp)
  before, after = score(rows, rows), score(rows._replace(**fields), rows)
  np.testing.assert_allclose(
    np.take_along_axis(after, column[None], 2),
    np.take_along_axis(before, column[None], 2),
    atol=2e-5,
  )


def test_earlier_events_of_the_window_are_seen():
  rows = packed(np.random.default_rng(0))
  is_first = np.arange(tiny.WIDTH) == 0
  changed = rows._replace(item=np.where(is_first, (rows.item + 1) % tiny.ITEMS, rows.item))
  before, after = score(rows, rows), score(changed, rows)
  later = (rows.segment == 1) & (rows.timestamp > rows.timestamp[:, :1])
  assert later.any() and (np.abs(before - after)[:, later] > 1e-5).all()


def test_packed_windows_score_as_they_do_alone():
  rows = packed(np.random.default_rng(1))
  together, columns = score(rows, rows), np.arange(tiny.WIDTH)
  for number in (1, 2):
    is_own = rows.segment == number
    shift = is_own.argmax(1)[:, None] * (number == 2)  # window 2 moves to the row's beginning
    index = np.minimum(columns + shift, tiny.WIDTH - 1)
    real = np.take_along_axis(is_own, index, 1) & (columns + shift < tiny.WIDTH)
    alone = Trajectories(
      *(
        np.where(real, np.take_along_axis(field, index, 1), padding).astype(np.int32)
        for field, padding in zip(rows, (-1, 0, 0, 0, 0))
      )
    )
    expected = np.take_along_axis(together, index[None], 2)[:, real]
    np.testing.assert_allclose(score(alone, alone)[:, real], expected, atol=5e-5)


# Probabilities


def about(items: np.ndarray) -> Trajectories:
  """Queries at NOW, of every user about each of some items."""
  item = np.tile(items.astype(np.int32), (tiny.USERS, 1))
  ones = np.ones_like(item)
  return Trajectories(item, 5 * ones, ones, tiny.NOW * ones, ones)


def test_both_kinds_of_probability_sum_to_one():
  """Every combination of codes is an item here, 512 in all; with holes less is generated."""
  grid = np.meshgrid(*[np.arange(tiny.CODES)] * tiny.LEVELS, indexing='ij')
  all_codes = np.stack(grid, -1).reshape(-1, tiny.LEVELS).astype(np.int32)
  rows = tiny.histories(np.random.default_rng(2), items=tiny.ITEMS)
  whole = build_trie(all_codes, tiny.CODES, len(all_codes))
  run = scorer(len(all_codes))
  parts = [
    run(tiny.params('backbone'), rows, about(np.arange(start, start + 64)), whole)
    for start in range(0, len(all_codes), 64)
  ]
  # The model has 64 rows; items beyond have none.
  total = np.exp(np.concatenate(parts, axis=2)).sum(-1)
  np.testing.assert_allclose(total, 1.0, atol=1e-4)
  choice, generated = np.exp(score(rows, about(np.arange(tiny.ITEMS)))).sum(-1)
  np.testing.assert_allclose(choice, 1.0, atol=1e-4)
  assert (generated < 1.0).all()


def test_a_choice_is_a_softmax_over_the_catalogue():
  """Where negatives cover it, whatever a row's own items are; all but the generative expert."""

  @jit
  def both(params, history, target, own, trie):
    rolegen = tiny.rolegen()
    backbone = rolegen.bind('backbone', params)
    items = backbone.items(trie)
    now = jnp.full((tiny.USERS,), tiny.NOW)
    query_state = rolegen.query(backbone, backbone.encode(history, items), now)
    shared = draw_negatives(trie, tiny.CAPACITY, jax.random.key(0))
    choice = backbone.choice_log_prob(query_state, target, own, shared, items)[:, 0]
    every = jnp.broadcast_to(jnp.arange(tiny.ITEMS), (tiny.USERS, tiny.ITEMS))
    members = backbone.members(query_state, every, jnp.zeros(every.shape), Conditioning(), items)
    terms = backbone.experts.terms(members).at[..., EXPERTS.index('generative')].set(0.0)
    plain = jax.nn.log_softmax(terms.sum(-1), axis=-1)
    bound = backbone.log_prob(query_state, target[:, 0], history.item, trie)
    generated = backbone.experts.weight('generative') * members.generative
    of_target = [jnp.take_along_axis(x, target, axis=1)[:, 0] for x in (plain, generated)]
    return choice, bound, of_target

  counts = np.random.default_rng(0).integers(0, 9, tiny.ITEMS)
  trie = build_trie(tiny.codes(), tiny.CODES, tiny.CAPACITY, counts=counts)
  examples, history = tiny.examples(), tiny.histories(np.random.default_rng(1))
  target, params = examples.target[:, None], tiny.params('backbone')
  every = np.tile(np.arange(tiny.ITEMS, dtype=np.int32), (tiny.USERS, 1))
  for own in (np.concatenate([history.item, target, history.item[:, ::-1]], axis=1), every):
    choice, bound, (plain, generated) = both(params, history, target, own, trie)
    np.testing.assert_allclose(choice, plain, atol=5e-5)
    np.testing.assert_allclose(bound, plain + generated, atol=5e-5)


# The depth decoder


def plain_generated(backbone, state_BxQxD, codes_BxQxL):
  """`Backbone.generated` from the distributions over all codes, [B, Q, L, K] in one piece."""
  codes = codes_BxQxL.reshape(-1, tiny.LEVELS)
  state = state_BxQxD.reshape(len(codes), -1)
  hidden = backbone._depth_hidden(state, codes[:, :-1])
  logits = jnp.einsum('nld,lkd->nlk', hidden, backbone.readout[...])
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], axis=-1)
  return chosen.sum((1, 2)).reshape(codes_BxQxL.shape[:2])


def generated_from(backbone, state_BxQxD, codes_BxQxL):
  """The same by `Backbone.generated_from`, every query a row with one item."""
  b, q, d = state_BxQxD.shape
  flat = codes_BxQxL.reshape(b * q, 1, tiny.LEVELS)
  return backbone.generated_from(state_BxQxD.reshape(b * q, d), flat).reshape(b, q)


def weighted_score(form, queries: int, codes: int = tiny.CODES):
  """(params, states) -> (weighted sum, log-probs [B, Q]) of random items."""
  rng = np.random.default_rng(7)
  ids = rng.integers(0, codes, (tiny.USERS, queries, tiny.LEVELS)).astype(np.int32)
  weight = rng.normal(size=(tiny.USERS, queries)).astype(np.float32)

  def run(params, state):
    backbone = tiny.rolegen(f'semantic_ids.codes={codes}').bind('backbone', params)
    log_probs = form(backbone, state, jnp.asarray(ids))
    return jnp.sum(log_probs * weight), log_probs

  return run


def states(queries: int) -> np.ndarray:
  rng = np.random.default_rng(8)
  return rng.normal(size=(tiny.USERS, queries, 32)).astype(np.float32)


@pytest.mark.parametrize(
  'form, queries',
  [
    pytest.param(Backbone.generated, 16, id='8 parts'),
    pytest.param(Backbone.generated, 5, id='5 parts', marks=pytest.mark.slow),
    pytest.param(Backbone.generated, 1, id='whole', marks=pytest.mark.slow),
    pytest.param(generated_from, 3, id='cached'),
  ],
)
def test_generated_items_have_the_log_probs_and_gradients_of_the_plain_form(form, queries):
  results = []
  for one in (plain_generated, form):
    gradient = jax.grad(weighted_score(one, queries), argnums=(0, 1), has_aux=True)
    results.append(jax.device_get(jit(gradient)(tiny.params('backbone'), states(queries))))
  (expected, plain), (found, log_probs) = results
  np.testing.assert_allclose(log_probs, plain, rtol=1e-5, atol=1e-5)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(expected))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-6 * largest), expected, found)


def test_the_items_of_a_row_share_its_first_position():
  """Many items of one row, against a query for each of them."""
  codes = np.tile(tiny.codes(), (tiny.USERS, 1, 1))
  state = states(1)

  @jit
  def both(params):
    backbone = tiny.rolegen().bind('backbone', params)
    apart = jnp.repeat(state, tiny.ITEMS, axis=1)
    return backbone.generated_from(state[:, 0], codes), plain_generated(backbone, apart, codes)

  together, apart = both(tiny.params('backbone'))
  np.testing.assert_allclose(together, apart, atol=2e-5)


def test_the_backward_pass_keeps_no_distributions_over_codes():
  """No array that `jax.vjp` keeps ends in an axis of the codes, parameters aside."""
  codes = 24  # a size that nothing else has
  shapes = functional.abstract(tiny.rolegen(f'semantic_ids.codes={codes}').model_fns['backbone'])[1]

  def kept(form):
    run = weighted_score(form, 16, codes)
    backward = jax.eval_shape(lambda params: jax.vjp(run, params, states(16))[1], shapes)
    return [x.shape for x in jax.tree.leaves(backward) if x.shape[-1:] == (codes,)]

  assert kept(plain_generated) and not kept(Backbone.generated)
