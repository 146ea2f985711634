"""Beam search against scoring the whole catalogue. 64 beams cover every level of a catalogue of up to 64 items exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax.models.backbone import NEG_INF
from rolegen_jax.models.decode import beam_search
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids.trie import build_trie
from tests import tiny

SEEDS = st.integers(0, 10**6)


@functools.cache
def searcher(beams: int):

  @jit
  def search(params, examples, trie, intent, retrieved):
    rolegen = tiny.rolegen()
    backbone = rolegen.bind('backbone', params)
    memory = backbone.add_retrieved(backbone.encode(examples.history, trie.item_codes), *retrieved)
    memory = backbone.add_intent(memory, intent, trie.item_codes)
    query_state = rolegen.query(backbone, memory, examples.timestamp)
    items = jnp.broadcast_to(jnp.arange(64), (tiny.USERS, 64))
    many = jax.tree.map(lambda x: jnp.repeat(x, 64, axis=1), query_state)
    return beam_search(backbone, query_state, memory, trie, beams), backbone.log_prob(
      many, memory, items, trie.item_codes
    )[0]

  return search


NO_INTENT = np.full((tiny.USERS, tiny.CODES), NEG_INF, np.float32)


def search(
  beams: int,
  seed: int,
  items: int,
  share: float = 1.0,
  intent=NO_INTENT,
  retrieved=tiny.NO_RETRIEVED,
):
  """(ranking, log p of every item [B, items], allowed [items])."""
  allowed = np.random.default_rng(seed + 1).random(items) < share
  trie = tiny.trie(items, seed, allowed)
  ranking, log_prob = jax.device_get(
    searcher(beams)(
      tiny.params('backbone'), tiny.examples(seed, items=items), trie, intent, retrieved
    )
  )
  return ranking, np.where(allowed, log_prob[:, :items], NEG_INF), allowed


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 60), st.sampled_from([1.0, 0.5]))
def test_wide_beams_are_exact(seed, items, share):
  """The same order and scores as scoring everything; with fewer than 64 items it says how many there are."""
  ranking, log_prob, allowed = search(64, seed, items, share)
  n = int(allowed.sum())
  assert (ranking.found == n).all()
  assert (ranking.item[:, n:] == -1).all() and (ranking.score[:, n:] == np.float32(NEG_INF)).all()
  np.testing.assert_allclose(ranking.score[:, :n], -np.sort(-log_prob, axis=1)[:, :n], atol=2e-5)
  np.testing.assert_array_equal(
    np.sort(ranking.item[:, :n], axis=1), np.broadcast_to(np.flatnonzero(allowed), (tiny.USERS, n))
  )


def test_wide_beams_are_exact_with_an_intent():
  """Half of the rows have an intent; it moves their scores, the others stay as they are."""
  intent = jax.nn.log_softmax(
    3 * np.random.default_rng(0).normal(size=(tiny.USERS, tiny.CODES)).astype(np.float32)
  )
  intent = np.where(np.arange(tiny.USERS)[:, None] % 2 == 0, intent, NO_INTENT)
  ranking, log_prob, _ = search(64, 1, 60, intent=intent)
  _, without, _ = search(64, 1, 60)
  np.testing.assert_allclose(ranking.score[:, :60], -np.sort(-log_prob, axis=1), atol=2e-5)
  np.testing.assert_allclose(log_prob[1::2], without[1::2], atol=1e-5)
  assert (np.abs(log_prob - without)[::2].max(1) > 0.1).all()


def test_wide_beams_are_exact_with_calls():
  ranking, log_prob, _ = search(64, 1, 60, retrieved=tiny.retrieve(60))
  _, without, _ = search(64, 1, 60)
  np.testing.assert_allclose(ranking.score[:, :60], -np.sort(-log_prob, axis=1), atol=2e-5)
  assert (np.abs(log_prob - without).max(1) > 0.1).all()


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 60), st.sampled_from([1.0, 0.5]))
def test_narrow_beams_are_distinct_allowed_items_with_their_true_scores(seed, items, share):
  ranking, log_prob, allowed = search(5, seed, items, share)
  for row, score, truth, found in zip(ranking.item, ranking.score, log_prob, ranking.found):
    real = row[row >= 0]
    assert len(real) == found == len(set(real.tolist())) and allowed[real].all()
    assert found == min(5, allowed.sum())
    np.testing.assert_allclose(score[:found], truth[real], atol=2e-5)
    assert (np.diff(score[:found]) <= 0).all()


@functools.cache
def plain_parts():
  """Of one case: what `plain_search` needs, computed prefix by prefix without a cache; item codes come in as an argument."""

  @jit
  def attended(params, examples, item_codes, intent, retrieved):
    rolegen = tiny.rolegen()
    backbone = rolegen.bind('backbone', params)
    memory = backbone.add_intent(
      backbone.add_retrieved(backbone.encode(examples.history, item_codes), *retrieved),
      intent,
      item_codes,
    )
    return memory.item, rolegen.query(backbone, memory, examples.timestamp)

  log_probs = jit(
    lambda params, state, prefix: (
      tiny.rolegen().bind('backbone', params).code_log_probs(state, prefix)[:, -1]
    )
  )
  return attended, log_probs


def plain_search(beams: int, codes, allowed, slots, query_state, log_probs):
  """Beam search over lists for one row: [(log p, item)], best first. `recall` holds that row's values."""
  kept = [((), 0.0)]  # prefix, its generated log-probability
  for level in range(tiny.LEVELS):
    prefixes = [prefix for prefix, _ in kept] + [kept[0][0]] * (beams - len(kept))
    own = log_probs(
      np.repeat(query_state.state, beams, 0), np.array(prefixes, np.int32).reshape(beams, level)
    )
    if level == 0:
      own = np.logaddexp(query_state.log_own[:, None] + own, query_state.intent)
    found = []
    for (prefix, generated), row in zip(kept, own):
      for code in range(tiny.CODES):
        longer = (*prefix, code)
        shares = lambda item: tuple(codes[item, : level + 1]) == longer
        if any(shares(item) for item in np.flatnonzero(allowed)):
          mass = sum(
            np.exp(weight)
            for item, weight in zip(slots, query_state.log_pointer[0])
            if item >= 0 and shares(item)
          )
          score = np.logaddexp(
            query_state.log_generate[0] + generated + row[code],
            query_state.log_gate[0] + np.log(mass) if mass else -np.inf,
          )
          found.append((score, longer, generated + row[code]))
    found = sorted(found, reverse=True)[:beams]
    kept = [(prefix, generated) for _, prefix, generated in found]
  item_of = {tuple(row): item for item, row in enumerate(codes.tolist())}
  return [(score, item_of[prefix]) for score, prefix, _ in found]


@settings(max_examples=5, deadline=None)
@given(SEEDS, st.integers(20, 60), st.sampled_from([1.0, 0.5]))
def test_narrow_beams_are_those_of_a_plain_search(seed, items, share):
  """The same lists as beam search prefix by prefix, which encodes every prefix anew and sums the pointer over all slots."""
  intent = np.asarray(
    jax.nn.log_softmax(
      np.random.default_rng(seed).normal(size=(tiny.USERS, tiny.CODES)).astype(np.float32)
    )
  )
  retrieved = tiny.retrieve(items, seed)
  ranking, _, allowed = search(5, seed, items, share, intent, retrieved)
  attended, log_probs = plain_parts()
  params, codes = tiny.params('backbone'), tiny.codes(items, seed)
  slots, query_state = jax.device_get(
    attended(
      params, tiny.examples(seed, items=items), tiny.trie(items, seed).item_codes, intent, retrieved
    )
  )
  for row in range(0, tiny.USERS, 3):
    one = jax.tree.map(lambda a: a[row], query_state)
    expected = plain_search(
      5,
      codes,
      allowed,
      slots[row],
      one,
      lambda state, prefix: np.asarray(log_probs(params, state, prefix)),
    )
    score, item = np.array([s for s, _ in expected]), [i for _, i in expected]
    np.testing.assert_allclose(ranking.score[row, : len(score)], score, atol=2e-5)
    if (np.diff(score) < -1e-4).all():  # no near tie
      assert ranking.item[row, : len(score)].tolist() == item


def test_masks_of_requests():
  """A row gets the items of its regions, in the order and with the scores that they have without a mask."""
  regions = np.random.default_rng(0).integers(1, 8, 60).astype(np.uint32)
  allow = np.array([1, 2, 4, 3, 6, 7, 0, 8], np.uint32)
  trie = build_trie(tiny.codes(), tiny.CODES, 64, regions=regions)

  @jit
  def masked(params, examples, allow):
    rolegen = tiny.rolegen()
    backbone = rolegen.bind('backbone', params)
    memory = backbone.encode(examples.history, trie.item_codes)
    return [
      beam_search(
        backbone, rolegen.query(backbone, memory, examples.timestamp), memory, trie, 64, given
      )
      for given in (None, allow)
    ]

  every, ranking = jax.device_get(masked(tiny.params('backbone'), tiny.examples(), allow))
  for row, bits in enumerate(allow):
    keep = regions[every.item[row, :60]] & bits != 0
    n = ranking.found[row]
    assert n == keep.sum() and ranking.item[row, :n].tolist() == every.item[row, :60][keep].tolist()
    np.testing.assert_allclose(ranking.score[row, :n], every.score[row, :60][keep], atol=1e-6)


def test_another_catalogue_within_capacity_compiles_nothing():
  for items in (7, 31, 60):
    search(64, 0, items)
  assert searcher(64)._cache_size() == 1
