"""Sums of sparse matrices that may outgrow memory: what counting over a log adds up, part by part.

Up to HELD entries a sum is one matrix in memory, as if there were no parts. What is beyond goes to
files that are mapped and read by ranges of rows, so memory stays as it is however large the sum is.
The files lie where temporary files do ($TMPDIR) and have no names: they go with the process.

R rows, C columns.
"""

from __future__ import annotations

import functools
import operator
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp

from rolegen_jax.data.log import ranges

HELD = 4_000_000  # entries of a sum in memory, of 8 or 12 bytes
BLOCK = 8_000_000  # entries of a sum on files that are in memory at a time, about
_CELLS = 1 << 22  # entries that are partitioned at a time
IN_MEMORY = 2**28  # bytes of a table that is no file


class SparseSum:
  """What is added up: matrices [R, C], in the order in which they are added."""

  def __init__(self, rows: int, columns: int, dtype: type) -> None:
    """Start at zero."""
    self.shape = rows, columns
    self.held = sp.csr_array(self.shape, dtype=dtype)
    self.files: list[sp.csr_array] = []

  def add(self, matrix: sp.csr_array) -> None:
    """Add a matrix [R, C]."""
    self.held = self.held + matrix
    if self.held.nnz > HELD:
      self.files.append(_mapped(self.held))
      self.held = sp.csr_array(self.shape, dtype=self.held.dtype)


class Counts:
  """The sum of several sums [R, C], to be read: as one matrix where all of it is in memory."""

  def __init__(self, sums: Sequence[SparseSum]) -> None:
    """Take the sums; what is added to them later is not seen for certain."""
    self.shape = sums[0].shape
    self._parts = [part for each in sums for part in (*each.files, each.held)]
    self.in_memory = not any(each.files for each in sums)

  @functools.cached_property
  def _matrix(self) -> sp.csr_array:
    return functools.reduce(operator.add, self._parts)

  def take(self, rows: np.ndarray) -> sp.csr_array:
    """Return some rows, [len(rows), C]."""
    if self.in_memory:
      return self._matrix[rows]
    return functools.reduce(operator.add, [_rows(part, rows) for part in self._parts])

  def blocks(self) -> Iterator[tuple[int, sp.csr_array]]:
    """Yield the first row of each block of rows, and the block; one where all is in memory."""
    if self.in_memory:
      yield 0, self._matrix
      return
    n_rows, entries = self.shape[0], sum(part.nnz for part in self._parts)
    size = max(n_rows * BLOCK // entries, 1)
    for first in range(0, n_rows, size):
      yield first, self.take(np.arange(first, min(first + size, n_rows)))

  def at(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return the entries at these places [n]."""
    distinct, place = np.unique(row, return_inverse=True)
    return np.asarray(self.take(distinct)[place, column])

  def sum(self, axis: int | None = None) -> np.ndarray:
    """Return the sum over rows (0), columns (1) or both (None)."""
    sums = [block.sum(axis=axis) for _, block in self.blocks()]
    return np.concatenate(sums) if axis == 1 else functools.reduce(operator.add, sums)

  def toarray(self) -> np.ndarray:
    """Return all of it as a dense array [R, C]."""
    return np.concatenate([block.toarray() for _, block in self.blocks()])


def strongest_entries(matrix: sp.csr_array, keep: int) -> tuple[np.ndarray, ...]:
  """Return (row, rank, column, value) of the `keep` largest entries of each row, [.] each.

  Columns of a row are in order. Ranks count from 0, the largest entry first, equal ones by column.
  """
  row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
  column, value = matrix.indices, matrix.data
  if len(value):
    least = _least_kept(matrix, keep)[row]
    # Of those that equal the last one kept, the first columns stay.
    is_above, is_last = value > least, value == least
    n_above = np.bincount(row[is_above], minlength=matrix.shape[0])
    last = np.cumsum(is_last)
    last -= np.append(0, last)[matrix.indptr[:-1]][row]
    kept = is_above | (is_last & (last <= (keep - n_above)[row]))
    row, column, value = row[kept], column[kept], value[kept]
  order = np.lexsort((column, -value, row))
  rank = np.arange(len(row)) - np.searchsorted(row, row)
  return row, rank, column[order], value[order]


def _least_kept(matrix: sp.csr_array, keep: int) -> np.ndarray:
  """Return the `keep`-th largest entry of each row, -inf where there are not more, fp [R]."""
  sizes, least = np.diff(matrix.indptr), np.full(matrix.shape[0], -np.inf)
  # Rows of about one size at a time, so that padding them costs little.
  sizes_log2 = np.frexp(sizes)[1]
  for size_log2 in np.unique(sizes_log2[sizes > keep]):
    rows = np.flatnonzero((sizes_log2 == size_log2) & (sizes > keep))
    width = int(sizes[rows].max())
    for some in np.array_split(rows, -(-len(rows) * width // _CELLS)):
      place, owner = ranges(matrix.indptr[:-1][some], sizes[some])
      padded = np.full((len(some), width), -np.inf)
      starts = np.cumsum(sizes[some]) - sizes[some]
      padded[owner, np.arange(len(owner)) - starts[owner]] = matrix.data[place]
      least[some] = np.partition(padded, width - keep, axis=1)[:, width - keep]
  return least


def largest_entries(matrix: sp.csr_array, keep: int) -> sp.csr_array:
  """Return a matrix without all but the `keep` largest entries of each row."""
  if keep >= matrix.shape[1]:
    return matrix
  row, _, column, value = strongest_entries(matrix, keep)
  return sp.csr_array((value, (row, column)), shape=matrix.shape)


def table(shape: tuple[int, ...], dtype: type) -> np.ndarray:
  """Return an array of zeros: in memory up to IN_MEMORY bytes, beyond that in a mapped file."""
  if np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize <= IN_MEMORY:
    return np.zeros(shape, dtype)
  with tempfile.TemporaryFile() as file:  # the mapping outlives it
    return np.memmap(file, dtype, 'w+', shape=shape).view(np.ndarray)


def _rows(matrix: sp.csr_array, rows: np.ndarray) -> sp.csr_array:
  """Return rows of a matrix whose arrays may be mapped; nothing else of them is read."""
  first, last = matrix.indptr[:-1][rows], matrix.indptr[1:][rows]
  place, _ = ranges(first, last - first)
  indptr = np.concatenate([[0], np.cumsum(last - first)])
  shape = len(rows), matrix.shape[1]
  return sp.csr_array((matrix.data[place], matrix.indices[place], indptr), shape=shape)


def _mapped(matrix: sp.csr_array) -> sp.csr_array:
  """Return the same matrix, its entries in mapped files without names."""
  mapped = sp.csr_array(matrix.shape, dtype=matrix.dtype)
  mapped.data, mapped.indices = _map(matrix.data), _map(matrix.indices)
  mapped.indptr = matrix.indptr
  return mapped


def _map(array: np.ndarray) -> np.ndarray:
  with tempfile.TemporaryFile() as file:
    array.tofile(file)
    file.flush()
    return np.memmap(file, array.dtype, 'r', shape=array.shape).view(np.ndarray)
