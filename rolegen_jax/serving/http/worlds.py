"""Worlds of users, kept for as long as no event changes them: least recently used go first.

The key is what was read: the history's events, who the user is to the counted tables, and the day.
So an event that is appended needs no invalidation, and two requests with one history share the
worlds, but a list for one day never uses worlds that were rolled out for another.
Items are numbers (`items.py`): of those that have gone meanwhile nothing is left.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np


def key_of(*read: Any) -> bytes:
  """Return the key of arrays and numbers."""
  content = hashlib.blake2b(digest_size=16)
  for part in read:
    content.update(np.ascontiguousarray(part).tobytes())
  return content.digest()


class WorldCache:
  """What was reasoned, as trees of numpy arrays by key, within a budget of bytes."""

  def __init__(self, most_bytes: int):
    self._most_bytes, self.bytes = most_bytes, 0
    self._kept: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

  def __len__(self) -> int:
    return len(self._kept)

  def get(self, key: Hashable) -> Any:
    """Return what is kept, None where nothing is."""
    if key in self._kept:
      self._kept.move_to_end(key)
    return self._kept.get(key)

  def put(self, key: Hashable, worlds: Any) -> None:
    """Keep a tree of arrays; what was used least recently goes where the budget is exceeded."""
    if key in self._kept:
      self.bytes -= _size(self._kept.pop(key))
    self._kept[key] = worlds
    self.bytes += _size(worlds)
    while self.bytes > self._most_bytes:
      self.bytes -= _size(self._kept.popitem(last=False)[1])


def _size(worlds: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(worlds))
