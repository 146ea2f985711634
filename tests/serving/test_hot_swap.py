"""Swaps on the device: the host's tables entry by entry, no compilation, never half a change."""

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import MeshConfig
from rolegen_jax.models.decode import recommend
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids import trie as trie_lib
from rolegen_jax.serving import hot_swap
from rolegen_jax.serving.hot_swap import MutableCatalogue
from rolegen_jax.sharding import make_mesh, sharding
from tests import tiny

CODES, LEVELS = 40, 3


def random_ids(seed: int, n: int) -> np.ndarray:
  """Distinct IDs int32 [n, L], most of them in a few coarse codes."""
  rng = np.random.default_rng(seed)
  draws = np.minimum(rng.geometric(0.1, (8 * n, LEVELS)) - 1, CODES - 1)
  return rng.permutation(np.unique(draws, axis=0))[:n].astype(np.int32)


@jax.jit
def find_items(trie, codes_NxL):
  """The item int32 [N] of each ID; -1 = none."""
  node = trie_lib.root(codes_NxL.shape[:1])
  for level in range(trie.levels):
    node = trie_lib.descend(trie, level, node, codes_NxL[:, level])
  return trie_lib.leaf(trie, node)


def assert_device_equals_host(catalogue: MutableCatalogue):
  with catalogue.serving() as trie:
    on_device = jax.device_get(trie)
  assert jax.tree.structure(catalogue._host.tables) == jax.tree.structure(on_device)
  jax.tree.map(np.testing.assert_array_equal, catalogue._host.tables, on_device)


def record_compilations() -> list[str]:
  """A list that gets an entry for every program that XLA compiles from now on."""
  events = []

  def listen(event, *args, **kwargs):
    if 'backend_compile' in event:
      events.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return events


@pytest.mark.parametrize('mesh', [None, MeshConfig(data=-1)])
def test_swaps_on_the_device_compile_nothing(mesh, monkeypatch):
  """Swaps of a tenth of the items and more, in pieces that a swap fills partly or several times."""
  monkeypatch.setattr(hot_swap, 'PIECES', (16, 256))
  ids, n = random_ids(0, 3000), 1500
  placement = None if mesh is None else sharding(make_mesh(mesh))
  rng = np.random.default_rng(0)
  row = np.full(2048, -1)  # in `ids`, of each item
  row[:n] = np.arange(n)
  compiled = record_compilations()
  regions = rng.integers(0, 2**32, n, dtype=np.uint32)
  catalogue = MutableCatalogue(ids[:n], CODES, 2048, regions, placement)
  for i in range(10):
    if i == 1:  # by now `find_items` has been compiled too
      assert compiled
      compiled.clear()
    listed, size = np.flatnonzero(row >= 0), int(rng.integers(1, 400))
    remove = rng.choice(listed, size, replace=False)
    row[remove] = -1
    free = np.setdiff1d(np.arange(3000), row)
    add = rng.choice(free, size + int(rng.integers(0, 20)), replace=False)
    items = catalogue.swap(ids[add], remove, rng.integers(0, 2**32, len(add), dtype=np.uint32))
    row[items] = add
    catalogue.set_regions(items[:5], np.arange(5))
    with catalogue.serving() as trie:
      found = np.asarray(find_items(trie, ids))
    expected = np.full(3000, -1)
    expected[row[row >= 0]] = np.flatnonzero(row >= 0)
    np.testing.assert_array_equal(found, expected)
  assert catalogue.items == (row >= 0).sum() and compiled == []
  assert_device_equals_host(catalogue)


def test_a_refused_swap_leaves_the_device_as_it_was():
  ids = random_ids(1, 200)
  catalogue = MutableCatalogue(ids[:100], CODES, 128)
  with pytest.raises(ValueError, match='has the ID'):
    catalogue.swap(ids[[150, 20]], np.arange(5))
  assert_device_equals_host(catalogue)
  with catalogue.serving() as trie:
    items = find_items(trie, ids)
  np.testing.assert_array_equal(items, np.where(np.arange(200) < 100, np.arange(200), -1))


@functools.partial(jax.jit, static_argnums=1)
def masks(trie, level, prefix_nxl, allow_B):
  """bool [B, n, K]: which codes may follow each prefix, for each request."""
  node = trie_lib.root(prefix_nxl.shape[:1])
  for above in range(level):
    node = trie_lib.descend(trie, above, node, prefix_nxl[:, above])
  nodes_Bxn = jnp.broadcast_to(node, allow_B.shape + node.shape)
  return trie_lib.children_mask(trie, level, nodes_Bxn, allow_B)[0]


def test_requests_of_one_batch_have_their_own_regions():
  """The masks of every prefix are those of the items that the request may see, in both tables."""
  ids, rng = random_ids(2, 60), np.random.default_rng(0)
  regions = rng.integers(0, 8, 60).astype(np.uint32)
  allow = np.array([1, 2, 6, 0], np.uint32)
  mutable = MutableCatalogue(ids, CODES, 64, regions)
  compact = trie_lib.build_trie(ids, CODES, 64, regions=regions)
  # The same where regions come with the call, into tables without any.
  padded = np.pad(regions, (0, 4), constant_values=7)  # what is no item has no say
  with MutableCatalogue(ids, CODES, 64).serving() as trie:
    plain = trie_lib.build_trie(ids, CODES, 64), trie
    with_the_call = [jax.jit(trie_lib.with_regions)(tables, padded) for tables in plain]
  for level in range(LEVELS):
    prefix = np.unique(ids[:, :level], axis=0)
    has_prefix_Ixn = (ids[:, None, :level] == prefix).all(-1)
    expected = np.zeros((len(allow), len(prefix), CODES), bool)
    for item, index in zip(*np.nonzero(has_prefix_Ixn)):
      expected[:, index, ids[item, level]] |= (regions[item] & allow) != 0
    with mutable.serving() as trie:
      np.testing.assert_array_equal(masks(trie, level, prefix, allow), expected)
    np.testing.assert_array_equal(masks(compact, level, prefix, allow), expected)
    for tables in with_the_call:
      np.testing.assert_array_equal(masks(tables, level, prefix, allow), expected)
  with pytest.raises(ValueError, match='built without regions'):
    masks(trie_lib.build_trie(ids, CODES, 64), 0, prefix, allow)


def test_nothing_was_learned_about_items_that_come():
  """Not even where their index was an item's before: whatever its row is, they have none."""
  codes, rolegen = tiny.codes(90), tiny.rolegen()
  catalogue = MutableCatalogue(codes[:60], tiny.CODES, tiny.CAPACITY)
  new = catalogue.swap(codes[60:], np.arange(5, 35))
  assert np.isin(new, np.arange(5, 35)).any()
  params = tiny.params('backbone')
  other = params | dict(rows=params['rows'] + 1.0)

  @jax.jit
  def vectors(params, trie):
    backbone = rolegen.bind('backbone', params)
    return backbone.vectors(backbone.items(trie), jnp.arange(tiny.CAPACITY))

  with catalogue.serving() as trie:
    is_new = np.isin(np.arange(tiny.CAPACITY), new)
    np.testing.assert_array_equal(trie.item_count, ~is_new & (np.arange(tiny.CAPACITY) < 60))
    same = (vectors(params, trie) == vectors(other, trie)).all(-1)
  assert (same == is_new).all()


def test_counts_and_text_vectors_move_with_the_items():
  """Initial items keep their own; a new item has no count, and its text vector or zeros."""
  codes, rng = tiny.codes(64), np.random.default_rng(0)
  counts, text = rng.integers(1, 9, 60), rng.normal(size=(64, 3)).astype(np.float32)
  catalogue = MutableCatalogue(codes[:60], tiny.CODES, tiny.CAPACITY, counts=counts, text=text[:60])
  told = catalogue.swap(codes[60:62], np.array([4, 9]), text=text[60:62])
  untold = catalogue.swap(codes[62:], np.array([7]))
  with pytest.raises(ValueError, match=r'of shape \(1, 2\), must be \(1, 3\)'):
    catalogue.swap(codes[4:5], np.zeros(0, int), text=text[:1, :2])
  expected_text, expected_count = np.zeros((64, 3), np.float32), np.zeros(64, np.float32)
  expected_text[:60], expected_count[:60] = text[:60], counts
  new = np.concatenate([told, untold])
  expected_text[new], expected_count[new] = 0, 0
  expected_text[told] = text[60:62]
  with catalogue.serving() as trie:
    np.testing.assert_array_equal(trie.item_text, expected_text)
    np.testing.assert_array_equal(trie.item_count, expected_count)
    assert catalogue.items == 61


def test_a_new_item_is_no_heir_of_what_trended_under_its_index():
  codes, trends = tiny.codes(90), tiny.trending()
  catalogue = MutableCatalogue(codes[:60], tiny.CODES, 60, trending=trends)
  gone = trends.item[-1, :2]
  new = catalogue.swap(codes[60:62], gone)
  assert sorted(new) == sorted(gone)  # there is no other room
  with catalogue.serving() as trie:
    found = jax.device_get(trie.trending)
  np.testing.assert_array_equal(found.share, np.where(np.isin(trends.item, gone), 0, trends.share))
  np.testing.assert_array_equal(found.item, trends.item)
  # One returns to its index, under which another had no part in it; the other does not.
  catalogue.swap(codes[gone], new, indices=gone, names=np.array([gone[0], 99]))
  with catalogue.serving() as trie:
    share = jax.device_get(trie.trending.share)
  np.testing.assert_array_equal(share, np.where(trends.item == gone[1], 0, trends.share))


@pytest.mark.slow
def test_recommending_after_a_swap_equals_recommending_from_fresh_tables():
  rolegen, params, examples = tiny.rolegen(), tiny.params('backbone'), tiny.examples()

  @jit
  def search(params, examples, trie):
    backbone = rolegen.bind('backbone', params)
    memory = backbone.encode(examples.history, backbone.items(trie))
    query_state = rolegen.query(backbone, memory, examples.timestamp)
    return recommend(backbone, query_state, Conditioning(), trie, 16)

  codes = tiny.codes(90)
  trends = tiny.trending()
  catalogue = MutableCatalogue(codes[:60], tiny.CODES, tiny.CAPACITY, trending=trends)
  new = catalogue.swap(codes[60:], np.arange(5, 35))
  with catalogue.serving() as trie:
    ranking = jax.device_get(search(params, examples, trie))
    tables = jax.device_get(trie)
  listed = np.isin(np.arange(64), [*range(5), *range(35, 60), *new])
  fresh = trie_lib.build_trie(
    tables.item_codes, tiny.CODES, 64, allowed=listed, counts=tables.item_count
  )
  left = np.where(np.isin(trends.item, new), 0, trends.share)
  fresh = dataclasses.replace(fresh, trending=trends._replace(share=left))
  expected = jax.device_get(search(params, examples, fresh))
  np.testing.assert_array_equal(ranking.item, expected.item)
  np.testing.assert_allclose(ranking.score, expected.score, atol=1e-5)
  assert listed[ranking.item].all() and np.isin(ranking.item, new).any()


def test_decoding_in_other_threads_sees_whole_swaps():
  """Two sets of items replace each other: every answer holds exactly one of them."""
  ids = random_ids(3, 200)
  catalogue = MutableCatalogue(ids[:100], CODES, 128)
  answers, stop = [], threading.Event()

  def serve():
    while not stop.is_set():
      with catalogue.serving() as trie:
        items = find_items(trie, ids)
      answers.append(np.asarray(items) >= 0)

  threads = [threading.Thread(target=serve) for _ in range(2)]
  for thread in threads:
    thread.start()
  for i in range(20):
    other_set = ids[100:] if i % 2 == 0 else ids[:100]
    catalogue.swap(other_set, np.flatnonzero(catalogue._host.listed))
  stop.set()
  for thread in threads:
    thread.join()
  first_set = np.arange(200) < 100
  assert answers
  assert all((seen == first_set).all() or (seen == ~first_set).all() for seen in answers)
