"""Batches: an epoch hands out every row once, whatever the number of processes.

A position continues in any number of processes.
"""

import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import ConfigError, MeshConfig
from rolegen_jax.data.loader import Batches

ROWS, BATCH, SEED = 96, 8, 3


def processes(count: int) -> list[Batches]:
  """Return what each process of a job of `count` makes for itself."""
  return [
    Batches(ROWS, BATCH, SEED, lambda rows: rows, here)
    for here in np.arange(BATCH).reshape(count, -1)
  ]


def steps(processes_batches: list[Batches], count: int) -> np.ndarray:
  """Return global batches, int [steps, BATCH], every process's rows at their places."""
  rows = np.full((count, BATCH), -1)
  for step in range(count):
    for batches in processes_batches:
      rows[step, batches.here] = next(batches)
  return rows


@pytest.fixture(scope='module')
def one_process():
  return steps([Batches(ROWS, BATCH, SEED, lambda rows: rows)], 3 * ROWS // BATCH)


@pytest.mark.parametrize('count', [1, 2, 4, 8])
def test_every_row_once_an_epoch_and_the_batches_of_one_process(count, one_process):
  rows = steps(processes(count), 3 * ROWS // BATCH)
  epochs = [tuple(epoch) for epoch in np.split(rows.reshape(-1), 3)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(ROWS))
  assert len(set(epochs)) == 3  # in another order each time
  np.testing.assert_array_equal(rows, one_process)  # step by step, the same rows in the same places


@pytest.mark.parametrize('count, then', [(1, 4), (2, 1), (2, 4), (4, 2), (8, 1)])
def test_a_position_continues_in_another_number_of_processes(count, then, one_process):
  before = processes(count)
  steps(before, 17)  # in the middle of the second epoch
  position = before[0].position
  assert all(batches.position == position for batches in before)
  after = processes(then)
  for batches in after:
    batches.seek(position)
  np.testing.assert_array_equal(steps(after, 10), one_process[17:27])


def test_rows_of_a_process_get_their_places_in_the_global_batch():
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
