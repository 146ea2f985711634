"""Swaps on the device: the host's tables place by place, no compilation, and decoding that sees all of a change or nothing."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import MeshConfig
from rolegen_jax.models.decode import beam_search
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids import trie as trie_lib
from rolegen_jax.serving import hot_swap
from rolegen_jax.serving.hot_swap import MutableCatalogue
from rolegen_jax.sharding import make_mesh, sharding
from tests import tiny

CODES, LEVELS = 40, 3


def ids(seed: int, n: int) -> np.ndarray:
  """Different IDs int32 [n, L], most of them in a few coarse codes."""
  rng = np.random.default_rng(seed)
  found = np.unique(np.minimum(rng.geometric(0.1, (8 * n, LEVELS)) - 1, CODES - 1), axis=0)
  return rng.permutation(found)[:n].astype(np.int32)


@functools.cache
def item_of():

  @jax.jit
  def walk(trie, codes_NxL):
    node = trie_lib.root(codes_NxL.shape[:1])
    for level in range(trie.levels):
      node = trie_lib.descend(trie, level, node, codes_NxL[:, level])
    return trie_lib.leaf(trie, node)

  return walk


def assert_same_tables(catalogue: MutableCatalogue):
  with catalogue.serving() as trie:
    host, device = jax.tree.flatten(catalogue._host.tables), jax.tree.flatten(jax.device_get(trie))
  assert host[1] == device[1]
  for a, b in zip(host[0], device[0], strict=True):
    np.testing.assert_array_equal(a, b)


def compilations() -> list[str]:
  """A list that gets an entry for every program that XLA compiles from now on."""
  found = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: found.append(event) if 'backend_compile' in event else None
  )
  return found


@pytest.mark.parametrize('mesh', [None, MeshConfig(data=-1)])
def test_swaps_on_the_device_without_compiling(mesh, monkeypatch):
  """Ten swaps of a tenth of the items and more, in pieces that a swap does not fill or fills several times."""
  monkeypatch.setattr(hot_swap, 'PIECE', 256)
  table, n = ids(0, 3000), 1500
  where = None if mesh is None else sharding(make_mesh(mesh))
  rng = np.random.default_rng(0)
  row = np.full(2048, -1)  # of each item
  row[:n] = np.arange(n)
  compiled = compilations()
  catalogue = MutableCatalogue(
    table[:n], CODES, 2048, rng.integers(0, 2**32, n, dtype=np.uint32), where
  )
  for i in range(10):
    if i == 1:  # by now the walk has been compiled too
      assert compiled
      compiled.clear()
    listed, size = np.flatnonzero(row >= 0), int(rng.integers(1, 400))
    remove = rng.choice(listed, size, replace=False)
    row[remove] = -1
    add = rng.choice(
      np.setdiff1d(np.arange(3000), row), size + int(rng.integers(0, 20)), replace=False
    )
    numbers = catalogue.swap(table[add], remove, rng.integers(0, 2**32, len(add), dtype=np.uint32))
    row[numbers] = add
    catalogue.set_regions(numbers[:5], np.arange(5))
    with catalogue.serving() as trie:
      found = np.asarray(item_of()(trie, table))
    truth = np.full(3000, -1)
    truth[row[row >= 0]] = np.flatnonzero(row >= 0)
    np.testing.assert_array_equal(found, truth)
  assert catalogue.items == (row >= 0).sum() and compiled == []
  assert_same_tables(catalogue)


def test_a_refused_swap_leaves_the_device_as_it_was():
  table = ids(1, 200)
  catalogue = MutableCatalogue(table[:100], CODES, 128)
  with pytest.raises(ValueError, match='has the ID'):
    catalogue.swap(table[[150, 20]], np.arange(5))
  assert_same_tables(catalogue)
  with catalogue.serving() as trie:
    np.testing.assert_array_equal(
      item_of()(trie, table), np.where(np.arange(200) < 100, np.arange(200), -1)
    )


@functools.partial(jax.jit, static_argnums=1)
def masks(trie, level, prefix_nxl, allow_B):
  """bool [B, n, K]: which codes may follow each prefix, for each request."""
  node = trie_lib.root(prefix_nxl.shape[:1])
  for l in range(level):
    node = trie_lib.descend(trie, l, node, prefix_nxl[:, l])
  return trie_lib.children_mask(
    trie, level, jnp.broadcast_to(node, allow_B.shape + node.shape), allow_B
  )[0]


def test_requests_of_one_batch_have_their_own_regions():
  """The masks of every prefix are those of the items that the request may see, in live and in compact tables."""
  table, rng = ids(2, 60), np.random.default_rng(0)
  words = rng.integers(0, 8, 60).astype(np.uint32)
  allow = np.array([1, 2, 6, 0], np.uint32)
  live, compact = (
    MutableCatalogue(table, CODES, 64, words),
    trie_lib.build_trie(table, CODES, 64, regions=words),
  )
  for level in range(LEVELS):
    prefix = np.unique(table[:, :level], axis=0)
    below = (table[:, None, :level] == prefix).all(-1)  # [I, n]
    want = np.zeros((len(allow), len(prefix), CODES), bool)
    for item, at in zip(*np.nonzero(below)):
      want[:, at, table[item, level]] |= (words[item] & allow) != 0
    with live.serving() as trie:
      np.testing.assert_array_equal(masks(trie, level, prefix, allow), want)
    np.testing.assert_array_equal(masks(compact, level, prefix, allow), want)
  with pytest.raises(ValueError, match='built without regions'):
    masks(trie_lib.build_trie(table, CODES, 64), 0, prefix, allow)


def test_decoding_after_a_swap_equals_decoding_with_fresh_tables():
  rolegen, params, examples = tiny.rolegen(), tiny.params('backbone'), tiny.examples()

  @jit
  def search(params, examples, trie):
    backbone = rolegen.bind('backbone', params)
    memory = backbone.encode(examples.history, trie.item_codes)
    return beam_search(
      backbone, rolegen.query(backbone, memory, examples.timestamp), memory, trie, 16
    )

  table = tiny.codes(90)
  catalogue = MutableCatalogue(table[:60], tiny.CODES, 64)
  numbers = catalogue.swap(table[60:], np.arange(5, 35))
  with catalogue.serving() as trie:
    found = jax.device_get(search(params, examples, trie))
  listed = np.isin(np.arange(64), [*range(5), *range(35, 60), *numbers])
  fresh = trie_lib.build_trie(np.asarray(trie.item_codes), tiny.CODES, 64, allowed=listed)
  expected = jax.device_get(search(params, examples, fresh))
  np.testing.assert_array_equal(found.item, expected.item)
  np.testing.assert_allclose(found.score, expected.score, atol=1e-5)
  assert listed[found.item].all() and np.isin(found.item, numbers).any()


def test_decoding_in_other_threads_sees_whole_swaps():
  """Two sets of items that replace each other: every answer holds one of them entirely."""
  table = ids(3, 200)
  catalogue = MutableCatalogue(table[:100], CODES, 128)
  answers, stop = [], threading.Event()

  def serve():
    while not stop.is_set():
      with catalogue.serving() as trie:
        answer = item_of()(trie, table)
      answers.append(np.asarray(answer) >= 0)

  threads = [threading.Thread(target=serve) for _ in range(2)]
  for thread in threads:
    thread.start()
  for i in range(20):
    catalogue.swap(
      table[100:] if i % 2 == 0 else table[:100], np.flatnonzero(catalogue._host.listed)
    )
  stop.set()
  for thread in threads:
    thread.join()
  first = np.arange(200) < 100
  assert answers and all((seen == first).all() or (seen == ~first).all() for seen in answers)
