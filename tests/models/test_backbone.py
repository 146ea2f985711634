"""The backbone: no leaks from the future, a mixture that is a distribution, little memory."""

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
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.runtime.compile import jit
from tests import tiny
from tests.models import conditioning

SEEDS = st.integers(0, 10**6)
NEUTRAL = conditioning.NEUTRAL._replace(candidates=None)


@functools.cache
def scorer():

  @jit
  def score(params, rows, queries, codes, conditioning):
    backbone = tiny.rolegen().bind('backbone', params)
    memory = backbone.condition(backbone.encode(rows, codes), conditioning, codes)
    query_state = backbone.attend(memory, queries.event, queries.timestamp, queries.segment)
    return *backbone.log_prob(query_state, memory, queries.item, codes), query_state

  return score


def score(rows, queries, codes=None, conditioning=NEUTRAL):
  """(log p [B, n] of the queried items, its generated part, the query state)."""
  codes = tiny.codes() if codes is None else codes
  return jax.device_get(scorer()(tiny.params('backbone'), rows, queries, codes, conditioning))


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


def at_now(rows: Trajectories) -> Trajectories:
  """Queries about the items of rows, all at NOW and in segment 1."""
  return rows._replace(
    timestamp=np.full_like(rows.timestamp, tiny.NOW), segment=np.ones_like(rows.segment)
  )


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
  before, after = score(rows, rows)[0], score(rows._replace(**fields), rows)[0]
  np.testing.assert_allclose(
    np.take_along_axis(after, column, 1), np.take_along_axis(before, column, 1), atol=1e-5
  )


def test_earlier_events_of_the_window_are_seen():
  rows = packed(np.random.default_rng(0))
  is_first = np.arange(tiny.WIDTH) == 0
  changed = rows._replace(item=np.where(is_first, (rows.item + 1) % tiny.ITEMS, rows.item))
  before, after = score(rows, rows)[0], score(changed, rows)[0]
  later = (rows.segment == 1) & (rows.timestamp > rows.timestamp[:, :1])
  assert later.any() and (np.abs(before - after)[later] > 1e-5).all()


def test_packed_windows_score_as_they_do_alone():
  rows = packed(np.random.default_rng(1))
  together, columns = score(rows, rows)[0], np.arange(tiny.WIDTH)
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
    expected = np.take_along_axis(together, index, 1)[real]
    np.testing.assert_allclose(score(alone, alone)[0][real], expected, atol=2e-5)


@pytest.mark.parametrize(
  'with_intent, with_retrieved', [(False, False), (True, False), (False, True), (True, True)]
)
def test_the_mixture_is_a_distribution_over_all_codes(with_intent, with_retrieved):
  """Every combination of codes is an item here, 512 in all; each row asks about 16 at a time."""
  grid = np.meshgrid(*[np.arange(tiny.CODES)] * tiny.LEVELS, indexing='ij')
  all_codes = np.stack(grid, -1).reshape(-1, tiny.LEVELS).astype(np.int32)
  rows = tiny.histories(np.random.default_rng(2), items=len(all_codes))
  zeros = np.zeros((tiny.USERS, tiny.WIDTH), np.int32)
  said = NEUTRAL
  if with_intent:
    said = said._replace(intent=conditioning.intent(np.random.default_rng(3)))
  if with_retrieved:
    said = said._replace(retrieved=conditioning.retrieved(len(all_codes)))
  log_probs = []
  for start in range(0, len(all_codes), tiny.WIDTH):
    items = zeros + np.arange(start, start + tiny.WIDTH)
    queries = Trajectories(items, zeros + 5, zeros + 1, zeros + tiny.NOW, zeros + 1)
    log_probs.append(score(rows, queries, all_codes, said)[0])
  probabilities = np.exp(np.concatenate(log_probs, axis=1))
  np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-4)
  assert (probabilities > 0).all()
  assert (probabilities[:, ::2].sum(1) < 1.0).all()  # a catalogue with holes gets less


def test_an_item_outside_memory_gets_generated_mass_only():
  rows = tiny.histories(np.random.default_rng(3), items=tiny.ITEMS // 2)
  absent = rows._replace(item=rows.item + tiny.ITEMS // 2)
  real = rows.segment > 0
  log_prob, generated, query_state = score(rows, at_now(absent))
  expected = (generated + query_state.log_generate)[real]
  np.testing.assert_allclose(log_prob[real], expected, atol=1e-6)
  log_prob, generated, query_state = score(rows, at_now(rows))
  assert (log_prob > generated + query_state.log_generate)[real].all()
  np.testing.assert_allclose(np.exp(query_state.log_pointer).sum(-1), 1.0, atol=1e-5)
  copied_or_generated = np.exp(query_state.log_copy) + np.exp(query_state.log_generate)
  np.testing.assert_allclose(copied_or_generated, 1.0, atol=1e-6)


def test_retrieved_items_have_a_share_of_the_whole():
  """Rows that retrieve nothing answer as before.

  In the others every other probability shrinks by one factor, and the rest is shared out.
  """
  rows = tiny.histories(np.random.default_rng(5))
  queries = at_now(rows)._replace(item=np.tile(np.arange(tiny.WIDTH), (tiny.USERS, 1)))
  item, share = conditioning.retrieved(tiny.WIDTH)
  item = np.where(np.arange(tiny.USERS)[:, None] % 2, item, -1).astype(np.int32)
  some = NEUTRAL._replace(retrieved=NEUTRAL.retrieved._replace(item=item, share=share))
  plain, _, alone = score(rows, queries)
  log_prob, _, query_state = score(rows, queries, conditioning=some)
  np.testing.assert_allclose(log_prob[::2], plain[::2], atol=1e-5)
  rest = np.exp(query_state.log_generate - alone.log_generate)
  for row in range(1, tiny.USERS, 2):
    expected = rest[row] * np.exp(plain[row])
    np.add.at(expected, item[row], (1 - rest[row])[item[row]] * share[row])
    np.testing.assert_allclose(np.exp(log_prob[row]), expected, rtol=1e-4)
    assert ((0 < rest[row]) & (rest[row] < 1)).all()


def test_with_nothing_to_point_at_everything_is_generated():
  rows = tiny.histories(np.random.default_rng(4))
  before_all = np.full_like(rows.timestamp, tiny.NOW - 400 * tiny.DAY)
  log_prob, generated, query_state = score(rows, rows._replace(timestamp=before_all))
  np.testing.assert_array_equal(query_state.log_generate, 0.0)
  np.testing.assert_allclose(log_prob, generated, atol=1e-6)


def test_roles_of_the_last_events_do_not_reach_earlier_queries():
  rows = tiny.histories(np.random.default_rng(5))
  roles = np.random.default_rng(6).integers(0, 8, NEUTRAL.roles.shape).astype(np.int32)
  with_roles = NEUTRAL._replace(roles=roles)
  before, after = score(rows, rows)[0], score(rows, rows, conditioning=with_roles)[0]
  earlier = (rows.segment > 0) & (rows.timestamp <= rows.timestamp[:, -4:-3])
  np.testing.assert_array_equal(after[earlier], before[earlier])
  late = rows._replace(timestamp=np.full_like(rows.timestamp, tiny.NOW))
  difference = score(rows, late)[0] - score(rows, late, conditioning=with_roles)[0]
  assert np.abs(difference[rows.segment > 0]).min() > 0


def plain_log_prob(backbone, query_state, memory, item_BxQ, codes_IxL):
  """`Backbone.log_prob` from the distributions over all codes, [B, Q, L, K] in one piece."""
  b, q, d = query_state.state.shape
  codes = jnp.take(codes_IxL, item_BxQ, axis=0)
  prefix = codes.reshape(b * q, -1)[:, :-1]
  own = backbone.code_log_probs(query_state.state.reshape(b * q, d), prefix)
  own = own.reshape(b, q, tiny.LEVELS, -1)
  first = backbone.first_code(query_state, own[:, :, 0])
  mixed = jnp.concatenate([first[:, :, None], own[:, :, 1:]], axis=2)
  generated = jnp.take_along_axis(mixed, codes[..., None], axis=-1)[..., 0].sum(-1)
  same = memory.item[:, None] == item_BxQ[..., None]
  copied = jax.nn.logsumexp(jnp.where(same, query_state.log_pointer, NEG_INF), axis=-1)
  log_prob = jnp.logaddexp(query_state.log_generate + generated, query_state.log_copy + copied)
  return log_prob, generated


def weighted_score(log_prob_fn, queries: int, with_intent: bool, codes: int = tiny.CODES):
  """params -> (weighted sum, log-probs [2, B, Q]) of the last events, by a form of `log_prob`."""
  rng = np.random.default_rng(7)
  rows, ids = jax.tree.map(jnp.asarray, tiny.histories(rng)), jnp.asarray(tiny.codes())
  logits = jnp.asarray(rng.normal(size=(tiny.USERS, codes)), jnp.float32)
  said = Conditioning(intent=jax.nn.log_softmax(logits) if with_intent else None)
  asked = jax.tree.map(lambda x: x[:, -queries:], rows)
  weight = jnp.asarray(rng.normal(size=(2, tiny.USERS, queries)), jnp.float32)

  def run(params):
    backbone = tiny.rolegen(f'semantic_ids.codes={codes}').bind('backbone', params)
    memory = backbone.condition(backbone.encode(rows, ids), said, ids)
    query_state = backbone.attend(memory, asked.event, asked.timestamp, asked.segment)
    log_probs = log_prob_fn(backbone, query_state, memory, jnp.maximum(asked.item, 0), ids)
    return jnp.sum(jnp.stack(log_probs) * weight), jnp.stack(log_probs)

  return run


@pytest.mark.parametrize(
  'queries, with_intent',
  [
    pytest.param(16, False, id='8 parts', marks=pytest.mark.slow),
    pytest.param(5, True, id='5 parts'),
    pytest.param(1, True, id='whole', marks=pytest.mark.slow),
  ],
)
def test_log_probs_in_parts_equal_the_plain_form(queries, with_intent):
  results = []
  for log_prob_fn in (plain_log_prob, Backbone.log_prob):
    run = weighted_score(log_prob_fn, queries, with_intent)
    results.append(jit(jax.grad(run, has_aux=True))(tiny.params('backbone')))
  (plain_gradient, plain), (gradient, log_probs) = results
  np.testing.assert_allclose(log_probs, plain, rtol=1e-6, atol=1e-6)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(plain_gradient))
  jax.tree.map(
    lambda expected, actual: np.testing.assert_allclose(actual, expected, atol=1e-6 * largest),
    plain_gradient,
    gradient,
  )


def test_the_backward_pass_keeps_no_distributions_over_codes():
  """No array that `jax.vjp` keeps ends in an axis of the codes, parameters aside."""
  codes = 24  # a size that nothing else has
  shapes = functional.abstract(tiny.rolegen(f'semantic_ids.codes={codes}').model_fns['backbone'])[1]

  def kept(log_prob_fn):
    run = weighted_score(log_prob_fn, 16, False, codes)
    backward = jax.eval_shape(lambda params: jax.vjp(run, params)[1], shapes)
    return [x.shape for x in jax.tree.leaves(backward) if x.shape[-1:] == (codes,)]

  assert kept(plain_log_prob) and not kept(Backbone.log_prob)
