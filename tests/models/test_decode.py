"""Recommending against scoring the whole catalogue by all experts.

Where 64 items are found by each expert, the union is a catalogue of up to 64 items.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig
from rolegen_jax.models import decode, functional
from rolegen_jax.models.experts import EXPERTS
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids.trie import build_trie
from tests import tiny
from tests.models import conditioning

SEEDS = st.integers(0, 10**6)
NONE = Conditioning()
COUNTS = np.random.default_rng(0).integers(0, 9, tiny.ITEMS)
# A request for the items of all regions lists what one without a mask does, and runs the program of
# those with masks.
EVERYWHERE = np.full(tiny.USERS, 7, np.uint32)


def asked(rolegen, backbone, examples, trie):
  memory = backbone.encode(examples.history, backbone.items(trie))
  return rolegen.query(backbone, memory, examples.timestamp)


@functools.cache
def recommender(k: int, *assignments: str):
  rolegen = tiny.rolegen(*assignments)

  @jit
  def recommend(params, examples, trie, said, allow):
    backbone = rolegen.bind('backbone', params)
    query_state = asked(rolegen, backbone, examples, trie)
    item = jnp.broadcast_to(jnp.arange(tiny.CAPACITY), (tiny.USERS, tiny.CAPACITY))
    weight = jnp.zeros(item.shape)
    members = backbone.members(query_state, item, weight, said, backbone.items(trie))
    arguments = backbone, query_state, said, trie, k, allow
    ranking, (found, _) = decode.recommend(*arguments), decode.retrieve(*arguments)
    return ranking, found, backbone.experts.terms(members)

  return recommend


def recommend(k, seed, items, allowed_share=1.0, said=None, assignments=(), allow=None):
  """(ranking, what the experts find, terms of every item [B, 64, E], allowed [64])."""
  allowed = np.random.default_rng(seed + 1).random(items) < allowed_share
  rng = np.random.default_rng(seed)
  regions = None if allow is None else rng.integers(1, 8, items).astype(np.uint32)
  trie = build_trie(
    tiny.codes(items, seed), tiny.CODES, tiny.CAPACITY, allowed, regions, COUNTS[:items]
  )
  trie = dataclasses.replace(trie, trending=tiny.trending(items))
  examples = tiny.examples(seed, items=items)
  params = tiny.random_params(tiny.rolegen(*assignments).model_fns['backbone'])
  results = recommender(k, *assignments)(params, examples, trie, said or NONE, allow)
  if allow is not None:
    allowed = allowed & (regions & allow[:, None] != 0)
  allowed = np.broadcast_to(allowed, (tiny.USERS, items))
  return *jax.device_get(results), np.pad(allowed, ((0, 0), (0, tiny.CAPACITY - items)))


def assert_ranks(ranking, terms, members, k: int):
  """A ranking is that of `members`, bool [B, 64], by all experts, normalized among them."""
  score = np.where(members, terms.sum(-1), -np.inf)
  for row in range(tiny.USERS):
    found = min(k, members[row].sum())
    item, own = ranking.item[row], score[row]
    assert ranking.found[row] == found
    assert (item[found:] == -1).all() and (ranking.score[row, found:] == np.float32(NEG_INF)).all()
    real = item[:found]
    assert len(set(real.tolist())) == found and members[row, real].all()
    if not found:
      continue
    log_prob = own - np.log(np.exp(own - own.max()).sum()) - own.max()
    np.testing.assert_allclose(ranking.score[row, :found], -np.sort(-log_prob)[:found], atol=1e-4)
    np.testing.assert_allclose(ranking.score[row, :found], log_prob[real], atol=1e-4)
    np.testing.assert_allclose(ranking.terms[row, :found], terms[row, real], atol=1e-4)


# The product of all experts


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(2, 60), st.sampled_from([1.0, 0.5]))
def test_a_union_of_everything_is_exact(seed, items, allowed_share):
  """Items and scores are those of scoring everything, also with fewer than k items."""
  said = conditioning.random(seed, max(items, tiny.RETRIEVED))
  ranking, _, terms, allowed = recommend(64, seed, items, allowed_share, said, allow=EVERYWHERE)
  assert_ranks(ranking, terms, allowed, 64)


@pytest.mark.parametrize(
  'experts, says',
  [
    (('dense',), ()),
    (('generative',), ()),
    (('generative', 'history'), ('intent',)),
    (('dense', 'popularity'), ('candidates', 'retrieved')),
  ],
)
def test_a_union_of_everything_is_exact_with_any_experts(experts, says):
  said = conditioning.random()
  said = Conditioning(**{part: getattr(said, part) for part in says})
  assignments = (f'backbone.experts={experts}',)
  ranking, _, terms, allowed = recommend(64, 1, 60, 0.5, said, assignments)
  on = [name in experts + says for name in EXPERTS]
  assert (terms.any((0, 1)) == on).all()
  assert_ranks(ranking, terms, allowed, 64)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(4, 60), st.sampled_from([1.0, 0.5]))
def test_a_narrow_union_is_ranked_exactly(seed, items, allowed_share):
  """It holds what each expert finds: the history, the best by table and by beams, what is said."""
  said = conditioning.random(seed, items)
  ranking, found, terms, allowed = recommend(5, seed, items, allowed_share, said, allow=EVERYWHERE)
  members, kept, likely = np.zeros_like(allowed), 0, 0
  for row in range(tiny.USERS):
    members[row] = np.isin(np.arange(tiny.CAPACITY), found[row])
    history = tiny.examples(seed, items=items).history.item[row]
    named = [*history, *said.candidates.item[row], *said.retrieved.item[row]]
    assert members[row, [item for item in named if item >= 0]].all()
    assert members[row, best(by_table(terms[row]), allowed[row], 5)].all()
    likeliest = best(terms[row, :, EXPERTS.index('generative')], allowed[row], 5)
    kept += members[row, likeliest].sum()
    likely += len(likeliest)
  assert kept >= 0.5 * likely  # beams are narrow, but not by chance
  assert_ranks(ranking, terms, members & allowed, 5)


def by_table(terms: np.ndarray) -> np.ndarray:
  """The score [...] by the experts that rank the whole catalogue."""
  return sum(
    terms[..., EXPERTS.index(name)] for name in ('dense', 'popularity', 'trending', 'intent')
  )


def best(score: np.ndarray, allowed: np.ndarray, k: int) -> np.ndarray:
  """The k best of the allowed items, fewer where there are fewer."""
  return np.argsort(-np.where(allowed, score, -np.inf))[: min(k, allowed.sum())]


def test_masks_of_requests():
  """A row gets the items of its regions, with the scores that they have among each other."""
  allow = np.array([1, 2, 4, 3, 6, 7, 0, 8], np.uint32)
  for k in (5, 64):
    ranking, found, terms, allowed = recommend(k, 2, 60, said=conditioning.random(), allow=allow)
    assert not ranking.found[-2:].any() and ranking.found[:-2].all()
    union = np.array([np.isin(np.arange(tiny.CAPACITY), row) for row in found])
    assert_ranks(ranking, terms, allowed & union, k)
    assert k == 5 or (allowed <= union).all()


def test_another_catalogue_within_capacity_compiles_nothing():
  compiled = set()
  for items in (7, 31, 60):
    recommend(64, 0, items, said=conditioning.random(0, items), allow=EVERYWHERE)
    compiled.add(recommender(64)._cache_size())
  assert len(compiled) == 1


# The whole catalogue at once


@functools.cache
def nearest(capacity: int, devices: int, k: int):
  """(items and scores of `decode.nearest`, terms of all items), laid out as in decoding."""
  rolegen, mesh = RoleGen(tiny.config(), capacity), mesh_of(devices)
  said = conditioning.random()._replace(candidates=None, retrieved=None)

  def run(params, examples, trie):
    with sharding.layout(rolegen.decoding):
      backbone = rolegen.gathered('backbone', params)
      query_state = asked(rolegen, backbone, examples, trie)
      item = jnp.broadcast_to(jnp.arange(tiny.ITEMS), (tiny.USERS, tiny.ITEMS))
      weight, items = jnp.zeros(item.shape), backbone.items(trie)
      members = backbone.members(query_state, item, weight, said, items)
      found = decode.nearest(backbone, query_state, said.intent, trie, k)
      return *found, backbone.experts.terms(members)

  with jax.set_mesh(mesh):
    params = tiny.random_params(rolegen.model_fns['backbone'])
    return jax.device_get(jit(run)(params, tiny.examples(), listing(capacity)))


def mesh_of(devices: int) -> jax.sharding.Mesh:
  sizes = {1: (1, 1, 1), 8: (2, 2, 2)}[devices]
  return sharding.make_mesh(MeshConfig(*sizes), jax.devices()[:devices])


LISTED = np.arange(tiny.ITEMS) % 7 != 0


def listing(capacity: int):
  trie = build_trie(tiny.codes(), tiny.CODES, capacity, LISTED, counts=COUNTS)
  return dataclasses.replace(trie, trending=tiny.trending())


@pytest.mark.parametrize('devices, capacity, k', [(1, 64, 12), (8, 64, 12), (8, 61, 64)])
def test_the_nearest_items_are_exact_on_any_devices(devices, capacity, k):
  """Also where the devices do not divide the items, and where there are fewer than k."""
  item, score, terms = nearest(capacity, devices, k)
  for row, expected in enumerate(by_table(terms)):
    order = best(expected, LISTED, k)
    n = len(order)
    assert item[row, :n].tolist() == order.tolist() and (item[row, n:] == -1).all()
    np.testing.assert_allclose(score[row, :n], expected[order], rtol=1e-4, atol=1e-4)


def test_no_item_table_travels():
  """Rows and scores of items stay where they lie: nothing gathered has an axis of them."""
  rolegen, capacity, mesh = RoleGen(tiny.config(), 4096), 4096, mesh_of(8)
  make_backbone = rolegen.model_fns['backbone']

  def run(params, examples, trie, said):
    with sharding.layout(rolegen.decoding):
      backbone = rolegen.gathered('backbone', params)
      query_state = asked(rolegen, backbone, examples, trie)
      return decode.recommend(backbone, query_state, said, trie, 5)

  with jax.set_mesh(mesh):
    params = jax.device_put(
      tiny.random_params(make_backbone), functional.shardings(make_backbone, mesh)
    )
    batch = jax.device_put(
      (tiny.examples(), conditioning.random()), sharding.sharding(mesh, 'batch')
    )
    trie = jax.device_put(listing(capacity), sharding.sharding(mesh))
    text = jit(run).lower(params, batch[0], trie, batch[1]).compile().as_text()
  gathered = [line.split(' all-gather')[0] for line in text.splitlines() if ' all-gather' in line]
  shapes = re.findall(r'\[([\d,]+)\]', ' '.join(gathered))
  of_items = {str(capacity // parts) for parts in (1, 2, 4, 8)}
  assert shapes and not [shape for shape in shapes if of_items & set(shape.split(','))]


# Beams


@functools.cache
def searcher(beams: int):

  @jit
  def search(params, examples, trie):
    backbone = tiny.rolegen().bind('backbone', params)
    state = asked(tiny.rolegen(), backbone, examples, trie).state[:, 0]
    codes = jnp.broadcast_to(trie.item_codes, (tiny.USERS, *trie.item_codes.shape))
    every = backbone.generated_from(state, codes)
    return *decode.beam_search(backbone, state, trie, beams), every, state

  return search


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 60), st.sampled_from([1.0, 0.5]))
def test_wide_beams_are_exact(seed, items, allowed_share):
  allowed = np.random.default_rng(seed + 1).random(items) < allowed_share
  trie, examples = tiny.trie(items, seed, allowed), tiny.examples(seed, items=items)
  found = searcher(64)(tiny.params('backbone'), examples, trie)
  item, score, every, _ = jax.device_get(found)
  n, listed = allowed.sum(), np.flatnonzero(allowed)
  np.testing.assert_allclose(score[:, :n], -np.sort(-every[:, listed], axis=1), atol=2e-5)
  np.testing.assert_array_equal(np.sort(item[:, :n], axis=1), [listed] * tiny.USERS)
  assert (item[:, n:] == -1).all() and (score[:, n:] == np.float32(NEG_INF)).all()


@functools.cache
def next_code():

  @jit
  def log_probs(params, state, prefix):
    backbone = tiny.rolegen().bind('backbone', params)
    hidden = backbone._depth_hidden(state, prefix)[:, -1]
    return jax.nn.log_softmax(hidden @ backbone.readout[...][prefix.shape[1]].T)

  return lambda state, prefix: np.asarray(log_probs(tiny.params('backbone'), state, prefix))


def plain_search(beams: int, codes, allowed, state):
  """Beam search over lists for one row, which encodes every prefix anew: [(log p, item)]."""
  beam = [(0.0, ())]
  for level in range(tiny.LEVELS):
    prefixes = [prefix for _, prefix in beam]
    prefixes += [prefixes[0]] * (beams - len(prefixes))
    prefixes = np.array(prefixes, np.int32).reshape(beams, level)
    exists = {tuple(code) for code in codes[allowed][:, : level + 1].tolist()}
    longer = [
      (score + row[code], (*prefix, code))
      for (score, prefix), row in zip(beam, next_code()(np.repeat(state[None], beams, 0), prefixes))
      for code in range(tiny.CODES)
      if (*prefix, code) in exists
    ]
    beam = sorted(longer, reverse=True)[:beams]
  item_of = {tuple(code): item for item, code in enumerate(codes.tolist())}
  return [(score, item_of[prefix]) for score, prefix in beam]


@settings(max_examples=5, deadline=None)
@given(SEEDS, st.integers(20, 60), st.sampled_from([1.0, 0.5]))
def test_narrow_beams_are_those_of_a_plain_search(seed, items, allowed_share):
  allowed = np.random.default_rng(seed + 1).random(items) < allowed_share
  trie, examples = tiny.trie(items, seed, allowed), tiny.examples(seed, items=items)
  found = searcher(5)(tiny.params('backbone'), examples, trie)
  item, score, _, states = jax.device_get(found)
  for row in range(0, tiny.USERS, 3):
    expected = plain_search(5, tiny.codes(items, seed), allowed, states[row])
    scores, items_of = np.array([s for s, _ in expected]), [i for _, i in expected]
    np.testing.assert_allclose(score[row, : len(scores)], scores, atol=2e-5)
    if (np.diff(scores) < -1e-4).all():  # no near tie
      assert item[row, : len(scores)].tolist() == items_of
