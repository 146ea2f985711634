"""Batches: an epoch hands out every row once, whatever the number of processes, and a position continues in any number of them."""

import jax
import numpy as np
import pytest

from rolegen_jax.data.pipeline import Batches

ROWS, BATCH, SEED = 96, 8, 3


def processes(monkeypatch, count: int) -> list[Batches]:
  """What each process of a job of `count` makes for itself."""
  made = []
  monkeypatch.setattr(jax, 'process_count', lambda: count)
  for index in range(count):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    made.append(Batches(ROWS, BATCH, SEED, lambda rows: rows))
  return made


def steps(made: list[Batches], count: int) -> np.ndarray:
  """int [steps, BATCH]: the global batches, the rows of process 0 first."""
  return np.stack([np.concatenate([next(batches) for batches in made]) for _ in range(count)])


@pytest.fixture(scope='module')
def one():
  return steps([Batches(ROWS, BATCH, SEED, lambda rows: rows)], 3 * ROWS // BATCH)


@pytest.mark.parametrize('count', [1, 2, 4, 8])
def test_every_row_once_an_epoch_and_the_batches_of_one_process(count, one, monkeypatch):
  found = steps(processes(monkeypatch, count), 3 * ROWS // BATCH)
  for epoch in np.split(found.reshape(-1), 3):
    assert sorted(epoch) == list(range(ROWS))
  assert len({tuple(epoch) for epoch in np.split(found.reshape(-1), 3)}) == 3  # in another order each time
  np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(one, axis=1))  # step by step the same rows, whoever reads which


@pytest.mark.parametrize('count, then', [(1, 4), (2, 1), (2, 4), (4, 2), (8, 1)])
def test_a_position_continues_in_another_number_of_processes(count, then, one, monkeypatch):
  before = processes(monkeypatch, count)
  steps(before, 17)  # in the middle of the second epoch
  position = before[0].position
  assert all(batches.position == position for batches in before)
  after = processes(monkeypatch, then)
  for batches in after:
    batches.seek(position)
  np.testing.assert_array_equal(np.sort(steps(after, 10), axis=1), np.sort(one[17:27], axis=1))


def test_processes_that_do_not_divide_the_batch_are_refused(monkeypatch):
  with pytest.raises(ValueError, match='batch=8: must be a multiple of 3 processes'):
    processes(monkeypatch, 3)
