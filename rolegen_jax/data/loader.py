"""Batches for the device: rows in shuffled order, made into arrays ahead of time on each host.

The order is a function of the seed, the position one integer: a run resumes on other hardware with
the very next batch. A row has its place in the global batch whichever process makes it, so what is
drawn by place (dropout, worlds) is drawn alike. The order is that of grain's
MapDataset.shuffle(seed).repeat() under ElasticIterator, whose cost is per row and six times this
one's: at 64 rows more than a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from grain.experimental import ThreadPrefetchDatasetIterator, index_shuffle

AHEAD = 8  # batches that wait for the device, at most

Assemble = Callable[[np.ndarray], Any]  # row numbers -> pytree of numpy arrays


class Batches:
  """An endless iterator of global batches.

  Each process makes its own rows of them, in a thread beside the training step.
  """

  def __init__(
    self, rows: int, batch: int, seed: int, assemble: Assemble, here: np.ndarray | None = None
  ) -> None:
    """Start at the first batch.

    rows: number of rows to draw from. batch: rows of a global batch. here: this process's places in
    the batch (`sharding.rows_here`); None = all.
    """
    if rows < 1:
      raise ValueError('a training stage has no rows to read')
    self.here = np.arange(batch) if here is None else here
    self.batch = batch
    reader = _Reader(rows, batch, seed, assemble, self.here)
    self._prefetch = ThreadPrefetchDatasetIterator(reader, prefetch_buffer_size=AHEAD)

  def __next__(self) -> Any:
    return next(self._prefetch)

  @property
  def position(self) -> dict[str, int]:
    """The position of the next batch; JSON-able, for `seek` in any number of processes."""
    return self._prefetch.get_state()

  def seek(self, position: dict[str, int]) -> None:
    """Continue at `position`."""
    self._prefetch.set_state(position)

  def __del__(self) -> None:
    if hasattr(self, '_prefetch'):  # it is not there when the arguments were refused
      self._prefetch.close()


class _Reader:
  """Makes batches one after the other.

  Its `global_next_index` is the position over all processes.
  """

  def __init__(
    self, rows: int, batch: int, seed: int, assemble: Assemble, here: np.ndarray
  ) -> None:
    self._rows = rows
    self._batch = batch
    self._seed = seed
    self._assemble = assemble
    self._here = here.tolist()
    self._next = 0

  def __next__(self) -> Any:
    places = [self._next + place for place in self._here]
    self._next += self._batch
    return self._assemble(np.array([self._number(*divmod(place, self._rows)) for place in places]))

  def _number(self, epoch: int, place: int) -> int:
    """Return the row at `place` of `epoch`: each epoch has a permutation, made without a table."""
    seed = (self._seed + epoch) % 2**32
    return index_shuffle(place, max_index=self._rows - 1, seed=seed, rounds=4)

  def get_state(self) -> dict[str, int]:
    return {'global_next_index': self._next}

  def set_state(self, state: dict[str, int]) -> None:
    self._next = state['global_next_index']
