"""Allocators of table space: runs of entries by width, and item indices.

They live on the host and work on whole arrays of runs or indices at a time.
"""

from __future__ import annotations

import numpy as np


def concatenated_ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Return starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ... as one int64 array."""
  ends = np.cumsum(counts, dtype=np.int64)
  total = ends[-1] if len(ends) else 0
  return np.repeat(starts - (ends - counts), counts) + np.arange(total)


class RunAllocator:
  """Allocates runs of consecutive entries in a table of `size` entries.

  The first `used` are taken. Widths are powers of two. Released runs are kept by width and used
  again first.
  """

  def __init__(self, size: int, used: int) -> None:
    self.size = size
    self.used = used
    # Width -> arrays of the starts of released runs, all below `used`.
    self.released: dict[int, list[np.ndarray]] = {}

  def lacks_space(self, counts: np.ndarray) -> bool:
    """Return whether counts[w] runs of each width w do not fit."""
    needed = 0
    for width in np.flatnonzero(counts):
      n_released = sum(map(len, self.released.get(int(width), ())))
      needed += int(width) * max(int(counts[width]) - n_released, 0)
    return self.used + needed > self.size

  def allocate(self, width: int, n: int) -> np.ndarray:
    """Return the starts int64 [n] of n runs, released ones first."""
    stack = self.released.setdefault(width, [])
    parts = []
    while n and stack:
      starts = stack.pop()
      if len(starts) > n:
        stack.append(starts[n:])
      parts.append(starts[:n])
      n -= len(parts[-1])
    parts.append(self.used + width * np.arange(n))
    self.used += width * n
    return np.concatenate(parts)

  def release(self, width: int, starts: np.ndarray) -> None:
    """Take back the runs of one width that begin at `starts`."""
    if len(starts):
      self.released.setdefault(width, []).append(starts)


class IndexAllocator:
  """A queue of free indices below `size`: first those never used, then the longest released."""

  def __init__(self, used: int, size: int) -> None:
    self.queue = np.arange(used, used + size, dtype=np.int32) % size
    self.first = 0
    self.count = size - used

  def __len__(self) -> int:
    return self.count

  def allocate(self, n: int) -> np.ndarray:
    """Return n <= len(self) indices, int64 [n]."""
    indices = self.queue[(self.first + np.arange(n)) % len(self.queue)]
    self.first = (self.first + n) % len(self.queue)
    self.count -= n
    return indices.astype(np.int64)

  def take(self, indices: np.ndarray) -> None:
    """Take these indices, all of them free, out of the queue; the others keep their order."""
    waiting = self.queue[(self.first + np.arange(self.count)) % len(self.queue)]
    waiting = waiting[~np.isin(waiting, indices)]
    self.first, self.count = 0, len(waiting)
    self.queue[: self.count] = waiting

  def release(self, indices: np.ndarray) -> None:
    """Append indices to the end of the queue."""
    slots = (self.first + self.count + np.arange(len(indices))) % len(self.queue)
    self.queue[slots] = indices
    self.count += len(indices)
