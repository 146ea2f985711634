import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.data.batches import Trajectories
from rolegen_jax.models import backbone as lib
from rolegen_jax.models import functional
from rolegen_jax.runtime.compile import jit
from tests import tiny

SEEDS = st.integers(0, 10**6)


@functools.cache
def scorer():
  """(params, rows, queried rows, item codes, roles [B, M], intent [B, K], calls) -> (log p [B, n] of the queried items, its generated part, Recall)."""

  @jit
  def score(params, rows, queries, codes, roles, intent, retrieved):
    backbone = tiny.rolegen().bind('backbone', params)
    memory = backbone.add_retrieved(
      backbone.add_roles(backbone.encode(rows, codes), roles), *retrieved
    )
    memory = backbone.add_intent(memory, intent, codes)
    query_state = backbone.attend(memory, queries.event, queries.timestamp, queries.segment)
    return *backbone.log_prob(query_state, memory, queries.item, codes), query_state

  none = (
    np.full((tiny.USERS, 4), -1, np.int32),
    np.full((tiny.USERS, tiny.CODES), lib.NEG_INF, np.float32),
  )
  return (
    lambda rows, queries, codes=tiny.codes(), roles=none[0], intent=none[1], retrieved=tiny.NO_RETRIEVED: (
      jax.device_get(score(tiny.params('backbone'), rows, queries, codes, roles, intent, retrieved))
    )
  )


def packed(rng) -> Trajectories:
  """Rows of two windows each, of different users: segments 1 and 2, then padding."""
  width = tiny.WIDTH
  cut, end = rng.integers(3, 8, (tiny.USERS, 1)), rng.integers(11, width + 1, (tiny.USERS, 1))
  segment = np.where(np.arange(width) < cut, 1, np.where(np.arange(width) < end, 2, 0))
  step = rng.integers(0, 3, segment.shape)
  time = (
    np.where(segment == 1, np.cumsum(step, 1), np.cumsum(np.where(segment == 2, step, 0), 1))
    * tiny.DAY
    + tiny.NOW
    - 60 * tiny.DAY
  )
  keep = lambda a, fill: np.where(segment > 0, a, fill).astype(np.int32)
  draw = lambda high: rng.integers(0, high, segment.shape)
  return Trajectories(
    keep(draw(tiny.ITEMS), -1),
    keep(draw(6), 0),
    keep(1 + draw(4), 0),
    keep(time, 0),
    segment.astype(np.int32),
  )


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_a_query_sees_earlier_events_of_its_own_window_only(seed):
  """Whatever happens at its timestamp, later, or in another window leaves the log-prob of an event as it was."""
  rng = np.random.default_rng(seed)
  rows = packed(rng)
  at = rng.integers(0, 11, tiny.USERS)[:, None]
  time, segment = (np.take_along_axis(a, at, 1) for a in (rows.timestamp, rows.segment))
  hidden = (rows.segment != segment) | (rows.timestamp >= time)
  other = packed(rng)
  changed = rows._replace(
    **{
      name: np.where(hidden & (rows.segment > 0), getattr(other, name), getattr(rows, name))
      for name in ('item', 'event', 'count')
    }
  )
  changed = changed._replace(
    timestamp=np.where(hidden & (rows.timestamp > time), rows.timestamp + 7, rows.timestamp)
  )
  before, after = scorer()(rows, rows)[0], scorer()(changed, rows)[0]
  np.testing.assert_allclose(
    np.take_along_axis(after, at, 1), np.take_along_axis(before, at, 1), atol=1e-5
  )


def test_earlier_events_of_the_window_are_seen():
  rows = packed(np.random.default_rng(0))
  changed = rows._replace(
    item=np.where(np.arange(tiny.WIDTH) == 0, (rows.item + 1) % tiny.ITEMS, rows.item)
  )
  before, after = scorer()(rows, rows)[0], scorer()(changed, rows)[0]
  later = (rows.segment == 1) & (rows.timestamp > rows.timestamp[:, :1])
  assert later.any() and (np.abs(before - after)[later] > 1e-5).all()


def test_packed_windows_score_as_they_do_alone():
  rows = packed(np.random.default_rng(1))
  together = scorer()(rows, rows)[0]
  for number in (1, 2):
    own = rows.segment == number
    shift = own.argmax(1)[:, None] * (number == 2)  # window 2 moves to the row's beginning
    index = np.minimum(np.arange(tiny.WIDTH) + shift, tiny.WIDTH - 1)
    real = np.take_along_axis(own, index, 1) & (np.arange(tiny.WIDTH) + shift < tiny.WIDTH)
    alone = Trajectories(
      *(
        np.where(real, np.take_along_axis(a, index, 1), fill).astype(np.int32)
        for a, fill in zip(rows, (-1, 0, 0, 0, 0))
      )
    )
    apart = scorer()(alone, alone)[0]
    np.testing.assert_allclose(apart[real], np.take_along_axis(together, index, 1)[real], atol=2e-5)


@pytest.mark.parametrize(
  'intended, retrieved', [(False, False), (True, False), (False, True), (True, True)]
)
def test_the_mixture_is_a_distribution_over_all_codes(intended, retrieved):
  """Every combination of codes is an item here (512 of them); each row asks one question about all, 16 a call."""
  combinations = (
    np.stack(np.meshgrid(*[np.arange(tiny.CODES)] * tiny.LEVELS, indexing='ij'), -1)
    .reshape(-1, tiny.LEVELS)
    .astype(np.int32)
  )
  rows = tiny.histories(np.random.default_rng(2), items=len(combinations))
  blank = np.zeros((tiny.USERS, tiny.WIDTH), np.int32)
  ask = lambda item: Trajectories(blank + item, blank + 5, blank + 1, blank + tiny.NOW, blank + 1)
  intent = np.where(
    intended,
    np.log(np.random.default_rng(3).dirichlet(np.ones(tiny.CODES), tiny.USERS)),
    lib.NEG_INF,
  ).astype(np.float32)
  retrieved = tiny.retrieve(len(combinations)) if retrieved else tiny.NO_RETRIEVED
  scores = [
    scorer()(
      rows, ask(np.arange(i, i + tiny.WIDTH)), combinations, intent=intent, retrieved=retrieved
    )[0]
    for i in range(0, len(combinations), tiny.WIDTH)
  ]
  probabilities = np.exp(np.concatenate(scores, axis=1))
  np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-4)
  assert (probabilities > 0).all() and (
    probabilities[:, ::2].sum(1) < 1.0
  ).all()  # a catalogue with holes gets less


def test_an_item_outside_memory_gets_generated_mass_only():
  rows = tiny.histories(np.random.default_rng(3), items=tiny.ITEMS // 2)
  absent, present = rows._replace(item=rows.item + tiny.ITEMS // 2), rows
  late = lambda t: t._replace(
    timestamp=np.full_like(t.timestamp, tiny.NOW), segment=np.ones_like(t.segment)
  )
  real = rows.segment > 0
  log_prob, generated, query_state = scorer()(rows, late(absent))
  np.testing.assert_allclose(
    log_prob[real], (generated + query_state.log_generate)[real], atol=1e-6
  )
  log_prob, generated, query_state = scorer()(rows, late(present))
  assert (log_prob > generated + query_state.log_generate)[real].all()
  np.testing.assert_allclose(np.exp(query_state.log_pointer).sum(-1), 1.0, atol=1e-5)
  np.testing.assert_allclose(
    np.exp(query_state.log_gate) + np.exp(query_state.log_generate), 1.0, atol=1e-6
  )


def test_what_is_called_for_has_its_share_of_the_whole():
  """Where nothing is, the answer stays as it was; elsewhere every other probability shrinks by one factor and the rest is shared out."""
  rows = tiny.histories(np.random.default_rng(5))
  late = rows._replace(
    timestamp=np.full_like(rows.timestamp, tiny.NOW),
    segment=np.ones_like(rows.segment),
    item=np.tile(np.arange(tiny.WIDTH), (tiny.USERS, 1)),
  )
  items, share = tiny.retrieve(tiny.WIDTH)
  items, share = np.where(np.arange(tiny.USERS)[:, None] % 2, items, -1).astype(np.int32), share
  plain, _, alone = scorer()(rows, late)
  found, _, query_state = scorer()(rows, late, retrieved=(items, share))
  np.testing.assert_allclose(found[::2], plain[::2], atol=1e-5)
  rest = np.exp(query_state.log_generate - alone.log_generate)
  for row in range(1, tiny.USERS, 2):
    expected = rest[row] * np.exp(plain[row])
    np.add.at(expected, items[row], (1 - rest[row])[items[row]] * share[row])
    np.testing.assert_allclose(np.exp(found[row]), expected, rtol=1e-4)
    assert ((0 < rest[row]) & (rest[row] < 1)).all()


def test_nothing_to_point_at_means_all_mass_is_generated():
  rows = tiny.histories(np.random.default_rng(4))
  first = rows._replace(
    timestamp=np.full_like(rows.timestamp, tiny.NOW - 400 * tiny.DAY)
  )  # asked before anything happened
  log_prob, generated, query_state = scorer()(rows, first)
  np.testing.assert_array_equal(query_state.log_generate, 0.0)
  np.testing.assert_allclose(log_prob, generated, atol=1e-6)


def test_roles_of_the_last_events_do_not_reach_earlier_questions():
  rows = tiny.histories(np.random.default_rng(5))
  roles = np.random.default_rng(6).integers(0, 8, (tiny.USERS, 4)).astype(np.int32)
  before, after = scorer()(rows, rows)[0], scorer()(rows, rows, roles=roles)[0]
  earlier = (rows.segment > 0) & (rows.timestamp <= rows.timestamp[:, -4:-3])
  np.testing.assert_array_equal(after[earlier], before[earlier])
  late = rows._replace(timestamp=np.full_like(rows.timestamp, tiny.NOW))
  assert (
    np.abs(scorer()(rows, late)[0] - scorer()(rows, late, roles=roles)[0])[rows.segment > 0].min()
    > 0
  )


def plain_log_prob(backbone, query_state, memory, item_BxQ, codes_IxL):
  """`Backbone.log_prob` from the distributions over all codes, [B, Q, L, K] in one piece."""
  b, q, d = query_state.state.shape
  codes = jnp.take(codes_IxL, item_BxQ, axis=0)
  own = backbone.code_log_probs(
    query_state.state.reshape(b * q, d), codes.reshape(b * q, -1)[:, :-1]
  ).reshape(b, q, tiny.LEVELS, -1)
  mixed = jnp.concatenate(
    [backbone.first_code(query_state, own[:, :, 0])[:, :, None], own[:, :, 1:]], axis=2
  )
  generated = jnp.take_along_axis(mixed, codes[..., None], axis=-1)[..., 0].sum(-1)
  copied = jax.nn.logsumexp(
    jnp.where(memory.item[:, None] == item_BxQ[..., None], query_state.log_pointer, lib.NEG_INF),
    axis=-1,
  )
  return jnp.logaddexp(
    query_state.log_generate + generated, query_state.log_gate + copied
  ), generated


def scores(log_prob, queries: int, intended: bool, codes: int = tiny.CODES):
  """params -> (weighted sum, log-probs [2, B, Q]) of the last `queries` events, by one of two forms of `log_prob`."""
  rng = np.random.default_rng(7)
  rows, ids = jax.tree.map(jnp.asarray, tiny.histories(rng)), jnp.asarray(tiny.codes())
  intent = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(tiny.USERS, codes)), jnp.float32))
  asked = jax.tree.map(lambda x: x[:, -queries:], rows)
  weight = jnp.asarray(rng.normal(size=(2, tiny.USERS, queries)), jnp.float32)

  def score(params):
    backbone = tiny.rolegen(f'semantic_ids.codes={codes}').bind('backbone', params)
    memory = backbone.encode(rows, ids)
    memory = backbone.add_intent(memory, intent, ids) if intended else memory
    query_state = backbone.attend(memory, asked.event, asked.timestamp, asked.segment)
    found = jnp.stack(log_prob(backbone, query_state, memory, jnp.maximum(asked.item, 0), ids))
    return jnp.sum(found * weight), found

  return score


@pytest.mark.parametrize(
  'queries, intended', [(16, False), (5, True), (1, True)]
)  # in 8 parts, in 5, at once
def test_log_probs_in_parts_equal_the_plain_form(queries, intended):
  forms = (scores(form, queries, intended) for form in (plain_log_prob, lib.Backbone.log_prob))
  (plain, of_plain), (parts, of_parts) = (
    jit(jax.grad(form, has_aux=True))(tiny.params('backbone'))[::-1] for form in forms
  )
  np.testing.assert_allclose(parts, plain, rtol=1e-6, atol=1e-6)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(of_plain))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(b, a, atol=1e-6 * largest), of_plain, of_parts
  )


def test_the_backward_pass_keeps_no_distributions_over_codes():
  """Arrays that `jax.vjp` holds for it and whose last axis is the codes, parameters aside."""
  codes = 24  # a size that nothing else has
  shapes = functional.abstract(tiny.rolegen(f'semantic_ids.codes={codes}').model_fns['backbone'])[1]

  def held(log_prob):
    backward = jax.eval_shape(
      lambda params: jax.vjp(scores(log_prob, 16, False, codes), params)[1], shapes
    )
    return [x.shape for x in jax.tree.leaves(backward) if x.shape[-1:] == (codes,)]

  assert held(plain_log_prob) and not held(lib.Backbone.log_prob)


@pytest.mark.parametrize(
  'seconds, bucket',
  [(-5, 0), (0, 0), (59, 2), (60, 3), (180, 6), (3600, 17), (86_400, 31), (2**31 - 1, 63)],
)
def test_gap_buckets(seconds, bucket):
  assert int(lib.gap_bucket(jnp.array(seconds))) == bucket


def test_count_buckets():
  assert lib.count_bucket(jnp.array([0, 1, 2, 3, 4, 7, 8, 1000])).tolist() == [
    0,
    0,
    1,
    1,
    2,
    2,
    3,
    7,
  ]


def test_age_features_are_bounded():
  ages = jnp.array([-1, 0, 60, 86_400, 2**31 - 1])
  features = np.array(
    lib.age_features(ages, jnp.array([0, 1, 5, 100, 10**6]), jnp.array([0, 1, 2, 3, 1000]))
  )
  assert (
    features.shape == (5, lib.AGE_FEATURES)
    and np.isfinite(features).all()
    and np.abs(features).max() <= 8.0
  )


def test_the_pointer_starts_as_the_recency_rule():
  """count * weight(event) * exp(-age / 7 days): a cart seen twice a week ago against a view seen once now."""
  weigh = lambda event, count, days: float(
    lib.age_features(jnp.array(days * tiny.DAY), jnp.array(0), jnp.array(count))
    @ jnp.array(lib.RECENCY_RULE)
    + jnp.log(lib.EVENT_WEIGHTS[event])
  )
  assert weigh(3, 2, 7) - weigh(1, 1, 0) == pytest.approx(np.log(2 * 3) - 1.0, abs=1e-5)


def test_dropout_keeps_the_mean_and_needs_a_key():
  x = jnp.ones((200, 200))
  assert lib.dropout(x, 0.3, None) is x
  dropped = lib.dropout(x, 0.3, jax.random.key(0))
  assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02) and float(
    (dropped == 0).mean()
  ) == pytest.approx(0.3, abs=0.02)
