"""Batches: an epoch hands out every row once, whatever the number of processes, and a position continues in any number of them."""

import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import ConfigError, MeshConfig
from rolegen_jax.data.loader import Batches

ROWS, BATCH, SEED = 96, 8, 3


def processes(count: int) -> list[Batches]:
  """What each process of a job of `count` makes for itself."""
  return [
    Batches(ROWS, BATCH, SEED, lambda rows: rows, here)
    for here in np.arange(BATCH).reshape(count, -1)
  ]


def steps(made: list[Batches], count: int) -> np.ndarray:
  """int [steps, BATCH]: the global batches, every process's rows at their places."""
  found = np.full((count, BATCH), -1)
  for step in range(count):
    for batches in made:
      found[step, batches.here] = next(batches)
  return found


@pytest.fixture(scope='module')
def one():
  return steps([Batches(ROWS, BATCH, SEED, lambda rows: rows)], 3 * ROWS // BATCH)


@pytest.mark.parametrize('count', [1, 2, 4, 8])
def test_every_row_once_an_epoch_and_the_batches_of_one_process(count, one):
  found = steps(processes(count), 3 * ROWS // BATCH)
  for epoch in np.split(found.reshape(-1), 3):
    assert sorted(epoch) == list(range(ROWS))
  assert (
    len({tuple(epoch) for epoch in np.split(found.reshape(-1), 3)}) == 3
  )  # in another order each time
  np.testing.assert_array_equal(found, one)  # step by step the same rows at the same places


@pytest.mark.parametrize('count, then', [(1, 4), (2, 1), (2, 4), (4, 2), (8, 1)])
def test_a_position_continues_in_another_number_of_processes(count, then, one):
  before = processes(count)
  steps(before, 17)  # in the middle of the second epoch
  position = before[0].position
  assert all(batches.position == position for batches in before)
  after = processes(then)
  for batches in after:
    batches.seek(position)
  np.testing.assert_array_equal(steps(after, 10), one[17:27])


def test_the_rows_of_a_process_are_placed_where_they_belong():
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  here = sharding.rows_here(mesh, BATCH)
  np.testing.assert_array_equal(here, np.arange(BATCH))  # one process holds all
  local = np.arange(3 * BATCH).reshape(BATCH, 3)
  shuffled = np.random.default_rng(0).permutation(BATCH)
  placed = sharding.global_batch(mesh, local[shuffled], shuffled, BATCH)
  np.testing.assert_array_equal(placed, local)
  assert placed.sharding.is_equivalent_to(sharding.sharding(mesh, 'batch'), 2)


def test_a_mesh_that_does_not_divide_the_batch_is_refused():
  with pytest.raises(
    ConfigError, match='batch=6: must be a multiple of 4, the devices of mesh axes data x fsdp'
  ):
    sharding.rows_here(sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), 6)
