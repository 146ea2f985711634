"""Who has which place of a table: runs of places by width, and item numbers. On the host, many at a time."""

from __future__ import annotations

import numpy as np


def each_of(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """int64 [sum of counts]: starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ..."""
  ends = np.cumsum(counts, dtype=np.int64)
  return np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)


class Runs:
  """Runs of a table of `size` places, of which the first `used` are taken. Widths are powers of two."""

  def __init__(self, size: int, used: int):
    self.size, self.used = size, used
    self.free: dict[int, list[np.ndarray]] = {}  # width -> starts of free runs below `used`

  def lacks(self, counts: np.ndarray) -> bool:
    """Is there no place for counts[w] runs of each width w?"""
    fresh = (
      width * max(int(counts[width]) - sum(map(len, self.free.get(int(width), ()))), 0)
      for width in np.flatnonzero(counts)
    )
    return self.used + sum(fresh) > self.size

  def take(self, width: int, n: int) -> np.ndarray:
    """int64 [n]: starts of n runs, given back ones first."""
    stack, parts = self.free.setdefault(width, []), []
    while n and stack:
      part = stack.pop()
      if len(part) > n:
        stack.append(part[n:])
      parts.append(part[:n])
      n -= len(parts[-1])
    parts.append(self.used + width * np.arange(n))
    self.used += width * n
    return np.concatenate(parts)

  def give(self, width: int, starts: np.ndarray) -> None:
    if len(starts):
      self.free.setdefault(width, []).append(starts)


class Numbers:
  """Free numbers below `size` in a queue: those never used, then those given back, the longest free first."""

  def __init__(self, used: int, size: int):
    self.queue = np.arange(used, used + size, dtype=np.int32) % size
    self.first, self.count = 0, size - used

  def __len__(self) -> int:
    return self.count

  def take(self, n: int) -> np.ndarray:
    """int64 [n]; n is at most the length."""
    found = self.queue[(self.first + np.arange(n)) % len(self.queue)]
    self.first, self.count = (self.first + n) % len(self.queue), self.count - n
    return found.astype(np.int64)

  def give(self, numbers: np.ndarray) -> None:
    self.queue[(self.first + self.count + np.arange(len(numbers))) % len(self.queue)] = numbers
    self.count += len(numbers)
