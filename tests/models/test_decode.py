"""Beam search against scoring the whole catalogue.

64 beams cover every level of a catalogue of up to 64 items exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.models.decode import beam_search
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids.trie import build_trie
from tests import tiny
from tests.models import conditioning

SEEDS = st.integers(0, 10**6)
NEUTRAL = Conditioning(retrieved=conditioning.NEUTRAL.retrieved, intent=conditioning.NEUTRAL.intent)


def conditioned(backbone, examples, item_codes, said):
  """(memory, state of the one query of each row)."""
  memory = backbone.encode(examples.history, item_codes)
  memory = backbone.condition(memory, said, item_codes)
  return memory, tiny.rolegen().query(backbone, memory, examples.timestamp)


@functools.cache
def searcher(beams: int):

  @jit
  def search(params, examples, trie, said):
    backbone = tiny.rolegen().bind('backbone', params)
    memory, query_state = conditioned(backbone, examples, trie.item_codes, said)
    items = jnp.broadcast_to(jnp.arange(64), (tiny.USERS, 64))
    every = jax.tree.map(lambda x: jnp.repeat(x, 64, axis=1), query_state)
    log_prob, _ = backbone.log_prob(every, memory, items, trie.item_codes)
    return beam_search(backbone, query_state, memory, trie, beams), log_prob

  return search


def search(beams: int, seed: int, items: int, allowed_share: float = 1.0, said=NEUTRAL):
  """(ranking, log p of every item [B, items], allowed [items])."""
  allowed = np.random.default_rng(seed + 1).random(items) < allowed_share
  trie = tiny.trie(items, seed, allowed)
  examples = tiny.examples(seed, items=items)
  ranking, log_prob = jax.device_get(searcher(beams)(tiny.params('backbone'), examples, trie, said))
  return ranking, np.where(allowed, log_prob[:, :items], NEG_INF), allowed


def assert_exact(ranking, log_prob):
  """Scores are those of the whole catalogue in falling order."""
  n = log_prob.shape[1]
  np.testing.assert_allclose(ranking.score[:, :n], -np.sort(-log_prob, axis=1), atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 60), st.sampled_from([1.0, 0.5]))
def test_wide_beams_are_exact(seed, items, allowed_share):
  """Order and scores are those of scoring everything, also with fewer than 64 items."""
  ranking, log_prob, allowed = search(64, seed, items, allowed_share)
  n = int(allowed.sum())
  assert (ranking.found == n).all()
  assert (ranking.item[:, n:] == -1).all()
  assert (ranking.score[:, n:] == np.float32(NEG_INF)).all()
  assert_exact(ranking, log_prob[:, allowed])
  every = np.broadcast_to(np.flatnonzero(allowed), (tiny.USERS, n))
  np.testing.assert_array_equal(np.sort(ranking.item[:, :n], axis=1), every)


def test_wide_beams_are_exact_with_an_intent():
  """Half of the rows have an intent; it moves their scores, the others stay as they are."""
  logits = 3 * np.random.default_rng(0).normal(size=(tiny.USERS, tiny.CODES))
  intent = np.asarray(jax.nn.log_softmax(logits.astype(np.float32)))
  has_intent = np.arange(tiny.USERS)[:, None] % 2 == 0
  said = NEUTRAL._replace(intent=np.where(has_intent, intent, NEUTRAL.intent))
  ranking, log_prob, _ = search(64, 1, 60, said=said)
  _, without, _ = search(64, 1, 60)
  assert_exact(ranking, log_prob)
  np.testing.assert_allclose(log_prob[1::2], without[1::2], atol=1e-5)
  assert (np.abs(log_prob - without)[::2].max(1) > 0.1).all()


def test_wide_beams_are_exact_with_retrieved_items():
  said = NEUTRAL._replace(retrieved=conditioning.retrieved(60))
  ranking, log_prob, _ = search(64, 1, 60, said=said)
  _, without, _ = search(64, 1, 60)
  assert_exact(ranking, log_prob)
  assert (np.abs(log_prob - without).max(1) > 0.1).all()


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 60), st.sampled_from([1.0, 0.5]))
def test_narrow_beams_are_distinct_allowed_items_with_their_true_scores(seed, items, allowed_share):
  ranking, log_prob, allowed = search(5, seed, items, allowed_share)
  for row, score, expected, found in zip(ranking.item, ranking.score, log_prob, ranking.found):
    real = row[row >= 0]
    assert len(real) == found == len(set(real.tolist())) == min(5, allowed.sum())
    assert allowed[real].all()
    np.testing.assert_allclose(score[:found], expected[real], atol=2e-5)
    assert (np.diff(score[:found]) <= 0).all()


@functools.cache
def plain_parts():
  """What `plain_search` needs, computed prefix by prefix without a cache."""

  @jit
  def attend(params, examples, item_codes, said):
    backbone = tiny.rolegen().bind('backbone', params)
    memory, query_state = conditioned(backbone, examples, item_codes, said)
    return memory.item, query_state

  @jit
  def next_code(params, state, prefix):
    backbone = tiny.rolegen().bind('backbone', params)
    return backbone.code_log_probs(state, prefix)[:, -1]

  return attend, next_code


def plain_search(beams: int, codes, allowed, slots, query_state, next_code):
  """Beam search over lists for one row: [(log p, item)], best first.

  `slots` are the items of memory, `query_state` holds that row's values.
  """
  beam = [((), 0.0)]  # prefix, its generated log-probability
  for level in range(tiny.LEVELS):
    prefixes = [prefix for prefix, _ in beam]
    prefixes += [prefixes[0]] * (beams - len(prefixes))
    state = np.repeat(query_state.state, beams, 0)
    own = next_code(state, np.array(prefixes, np.int32).reshape(beams, level))
    if level == 0:
      log_intent, log_own = query_state.intent
      own = np.logaddexp(log_own[:, None] + own, log_intent)
    scored = []
    for (prefix, generated), row in zip(beam, own):
      for code in range(tiny.CODES):
        longer = (*prefix, code)

        def begins(item):
          return tuple(codes[item, : level + 1]) == longer

        if not any(begins(item) for item in np.flatnonzero(allowed)):
          continue
        weights = zip(slots, np.exp(query_state.log_pointer[0]))
        mass = sum(weight for item, weight in weights if item >= 0 and begins(item))
        copied = query_state.log_copy[0] + np.log(mass) if mass else -np.inf
        score = np.logaddexp(query_state.log_generate[0] + generated + row[code], copied)
        scored.append((score, longer, generated + row[code]))
    scored = sorted(scored, reverse=True)[:beams]
    beam = [(prefix, generated) for _, prefix, generated in scored]
  item_of = {tuple(row): item for item, row in enumerate(codes.tolist())}
  return [(score, item_of[prefix]) for score, prefix, _ in scored]


@settings(max_examples=5, deadline=None)
@given(SEEDS, st.integers(20, 60), st.sampled_from([1.0, 0.5]))
def test_narrow_beams_are_those_of_a_plain_search(seed, items, allowed_share):
  """The plain search encodes every prefix anew and sums the pointer over all slots."""
  logits = np.random.default_rng(seed).normal(size=(tiny.USERS, tiny.CODES))
  said = Conditioning(
    retrieved=conditioning.retrieved(items, seed),
    intent=np.asarray(jax.nn.log_softmax(logits.astype(np.float32))),
  )
  ranking, _, allowed = search(5, seed, items, allowed_share, said)
  attend, next_code = plain_parts()
  params, codes = tiny.params('backbone'), tiny.codes(items, seed)
  examples, item_codes = tiny.examples(seed, items=items), tiny.trie(items, seed).item_codes
  slots, query_state = jax.device_get(attend(params, examples, item_codes, said))

  def next_code_of(state, prefix):
    return np.asarray(next_code(params, state, prefix))

  for row in range(0, tiny.USERS, 3):
    one = jax.tree.map(lambda a: a[row], query_state)
    expected = plain_search(5, codes, allowed, slots[row], one, next_code_of)
    score, item = np.array([s for s, _ in expected]), [i for _, i in expected]
    np.testing.assert_allclose(ranking.score[row, : len(score)], score, atol=2e-5)
    if (np.diff(score) < -1e-4).all():  # no near tie
      assert ranking.item[row, : len(score)].tolist() == item


def test_masks_of_requests():
  """A row gets the items of its regions, in the order and with the scores of no mask."""
  regions = np.random.default_rng(0).integers(1, 8, 60).astype(np.uint32)
  allow = np.array([1, 2, 4, 3, 6, 7, 0, 8], np.uint32)
  trie = build_trie(tiny.codes(), tiny.CODES, 64, regions=regions)

  @jit
  def search_twice(params, examples, allow):
    rolegen = tiny.rolegen()
    backbone = rolegen.bind('backbone', params)
    memory = backbone.encode(examples.history, trie.item_codes)
    query_state = rolegen.query(backbone, memory, examples.timestamp)
    return [beam_search(backbone, query_state, memory, trie, 64, a) for a in (None, allow)]

  every, ranking = jax.device_get(search_twice(tiny.params('backbone'), tiny.examples(), allow))
  for row, bits in enumerate(allow):
    keep = regions[every.item[row, :60]] & bits != 0
    n = ranking.found[row]
    assert n == keep.sum()
    assert ranking.item[row, :n].tolist() == every.item[row, :60][keep].tolist()
    np.testing.assert_allclose(ranking.score[row, :n], every.score[row, :60][keep], atol=1e-6)


def test_another_catalogue_within_capacity_compiles_nothing():
  for items in (7, 31, 60):
    search(64, 0, items)
  assert searcher(64)._cache_size() == 1
