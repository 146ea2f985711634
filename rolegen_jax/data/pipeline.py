"""Batches for the device: a grain pipeline of row numbers, made into fixed-shape arrays on each host.

The order is a function of the seed; the position is one integer, the same on every process and at every process count, so
a run resumes on other hardware with the very next batch.
"""

from __future__ import annotations

from collections.abc import Callable

import grain
import jax
import numpy as np
from grain.experimental import ElasticIterator


class Batches:
  """An endless iterator of global batches; each process makes its own rows of them."""

  def __init__(self, rows: int, batch: int, seed: int, assemble: Callable[[np.ndarray], object]):
    """`assemble(row numbers) -> pytree of numpy arrays`. Raises ValueError when the processes do not divide the batch."""
    if rows < 1:
      raise ValueError('a training stage has no rows to read')
    if batch % jax.process_count():
      raise ValueError(f'batch={batch}: must be a multiple of {jax.process_count()} processes')
    order = grain.MapDataset.range(rows).shuffle(seed=seed).repeat()
    # One reading thread is enough for integers; rows are made by vectorised numpy.
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    self._rows = ElasticIterator(order, batch, grain.sharding.ShardOptions(jax.process_index(), jax.process_count()), read_options=read)
    self._assemble = assemble

  def __next__(self):
    return self._assemble(np.asarray(next(self._rows)))

  @property
  def position(self) -> dict:
    """JSON-able; give it to `seek` in any number of processes."""
    return self._rows.get_state()

  def seek(self, position: dict) -> None:
    self._rows.set_state(position)
