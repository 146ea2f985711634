"""Histories that are encoded piece by piece: the same states as in one go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.data.batches import Trajectories
from rolegen_jax.models.encoded import More, Pool, extended, pool_shapes, right_aligned, slot_bytes
from rolegen_jax.runtime.compile import jit
from tests import tiny

SLOTS, FEW = 12, 3


@pytest.fixture(scope='module')
def programs():
  rolegen, trie = tiny.rolegen(), tiny.trie()

  def extend(params, pool, more):
    backbone = rolegen.bind('backbone', params)
    return extended(backbone, pool, more, backbone.items(trie))

  def encode(params, rows):
    backbone = rolegen.bind('backbone', params)
    return backbone.encode(rows, backbone.items(trie)).hidden[:, 1:]

  return jit(extend), jit(encode)


def followers(rows: Trajectories, missing: np.ndarray, first: np.ndarray, width: int):
  """Events from place `first` on of right-aligned rows, behind the one before them."""
  more = Trajectories(*np.zeros((5, len(first), 1 + width), np.int32))
  more.item[:] = -1
  for row, (gap, start) in enumerate(zip(missing, first)):
    for column in range(1 + width):
      place = gap + start - 1 + column
      if gap <= place < rows.item.shape[1]:
        for to, field in zip(more, rows):
          to[row, column] = field[row, place]
  return more


def test_piece_by_piece_is_as_in_one_go(programs):
  extend, encode = programs
  rng, n = np.random.default_rng(0), tiny.WIDTH
  rows = tiny.histories(rng)
  missing = n - (rows.segment > 0).sum(1)
  params, config = tiny.params('backbone'), tiny.rolegen().config.backbone
  shapes = pool_shapes(config, SLOTS)
  pool = Pool(*(jnp.full(x.shape, jnp.nan, x.dtype) for x in shapes))
  slot = rng.permutation(SLOTS)[: tiny.USERS].astype(np.int32)

  # The first few events in one go, the others by up to FEW.
  begun = rng.integers(1, 5, tiny.USERS).astype(np.int32)
  start = followers(rows, missing, np.zeros_like(begun), n)
  for field in start:
    field[np.arange(n + 1) > begun[:, None]] = 0
  pool = extend(params, pool, More(start, np.zeros_like(begun), slot))
  while (begun < n - missing).any():
    step = np.minimum(rng.integers(0, FEW + 1, tiny.USERS), n - missing - begun)
    more = followers(rows, missing, begun, FEW)
    for field in more:
      field[np.arange(FEW + 1) > step[:, None]] = 0
    nowhere = np.where(step > 0, slot, SLOTS).astype(np.int32)
    pool = extend(params, pool, More(more, begun, nowhere))
    begun = (begun + step).astype(np.int32)

  real = rows.segment > 0
  found = np.asarray(right_aligned(pool.hidden, jnp.asarray(slot), jnp.asarray(rows.segment)))
  expected = np.asarray(encode(params, rows))
  np.testing.assert_allclose(found[real], expected[real], atol=2e-5)
  unused = np.setdiff1d(np.arange(SLOTS), slot)
  assert np.isnan(pool.hidden[unused]).all() and np.isnan(pool.key[:, unused]).all()


def test_slots_have_the_size_that_is_said():
  config = tiny.rolegen().config.backbone
  bytes_of = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool_shapes(config, 5)))
  assert bytes_of == 5 * slot_bytes(config)
