"""A catalogue that changes while it serves: tables on the device, written in place, under one lock.

The host's copy (`MutableTrie`) determines what a change writes where. That goes to the device in
pieces of few sizes: whatever changes, the programs are those compiled at the start. Tables are
donated, so a write copies nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from rolegen_jax.features.trending import Trending
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids.mutable_tables import Write
from rolegen_jax.semantic_ids.mutable_trie import MutableTrie
from rolegen_jax.semantic_ids.trie import Trie, padded

PIECES = 1 << 10, 1 << 14  # entries per call of the writing program
# The fields of Trie that are tuples of tables.
PER_LEVEL = ('first_child', 'child_bits', 'lists', 'regions')
BY_ROW = ('item_codes', 'item_text')  # the tables of which whole rows change


def scatter(table: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
  """Return `table` with value [n] at index [n] of its entries in order, or [n, width] of its rows.

  Indices beyond the end write nothing; an index may be there again, with the same value.
  """
  return table.reshape(-1, *value.shape[1:]).at[index].set(value, mode='drop').reshape(table.shape)


class MutableCatalogue:
  """Tables for decoding while items come and go.

  `with catalogue.serving() as trie: result = decode(params, trie, examples)` passes the current
  tables to a compiled function. They are valid inside the block only; the call must be made there,
  it need not finish there. A change waits for such a block, and on the device for the calls made
  before. In a job of several processes every process makes the same changes in the same order.
  """

  # Nine parameters: those of `build_trie`, what trends, and where the tables lie.
  def __init__(
    self,
    codes: np.ndarray,
    codes_per_level: int,
    capacity: int | None = None,
    regions: np.ndarray | None = None,
    sharding: jax.sharding.Sharding | None = None,
    counts: np.ndarray | None = None,
    text: np.ndarray | None = None,
    trending: Trending | None = None,
  ) -> None:
    """Build the tables and compile what writes into them.

    Arguments and errors are those of `build_trie`; `trending`: what trends among these items.
    `sharding` is that of every table, e.g. replicated over a mesh; default: the first device.
    """
    if sharding is None:
      sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    self._sharding = sharding
    self._scatter = jit(scatter, donate_argnums=0, out_shardings=self._sharding)
    self._lock = threading.RLock()
    self._host = MutableTrie(codes, codes_per_level, capacity, regions)
    tables = self._host.tables
    self._tables: dict[tuple[str, int | None], jax.Array] = {
      ('item_codes', None): self._put(tables.item_codes),
      ('item_count', None): self._put(
        tables.item_count if counts is None else padded(counts, self.capacity, np.float32)
      ),
    }
    self._text_width = 0 if text is None else text.shape[1]
    if text is not None:
      self._tables['item_text', None] = self._put(padded(text, self.capacity, np.float32))
    # Which item each index is, by names that no other item ever gets; -1 = one that has no name.
    self._name = np.arange(self.capacity)
    self._trending = trending
    if trending is not None:
      self.set_trending(trending, trending.item)
    for name in PER_LEVEL:
      for level, table in enumerate(getattr(tables, name) or ()):
        if table is not None:
          self._tables[name, level] = self._put(table)
    # What writes nothing compiles the programs for tables of this shape.
    for (name, table_level), table in list(self._tables.items()):
      row = table.shape[1:] if name in BY_ROW else ()
      for piece in PIECES:
        nowhere = np.full(piece, len(table) if row else table.size)
        self._write(Write(name, table_level, nowhere, np.zeros((piece, *row), table.dtype)))
    jax.block_until_ready(self._trie())

  @property
  def items(self) -> int:
    """How many items the catalogue has."""
    return self._host.items

  @property
  def capacity(self) -> int:
    """How many items the catalogue has room for."""
    return self._host.capacity

  @property
  def listed(self) -> np.ndarray:
    """Which indices are items of the catalogue, bool [capacity]."""
    return self._host.listed

  @property
  def codes(self) -> np.ndarray:
    """Codes int32 [capacity, L] of the items, and of removed ones whose index is still free."""
    return self._host.tables.item_codes

  @property
  def codes_per_level(self) -> int:
    """K."""
    return self._host.codes_per_level

  def find(self, codes: np.ndarray) -> np.ndarray:
    """Return the indices int64 [n] of the items whose IDs are codes int [n, L]; -1 = none."""
    return self._host.find(codes)

  @contextlib.contextmanager
  def serving(self) -> Iterator[Trie]:
    """Yield the tables for calls made inside the block: the next change overwrites them."""
    with self._lock:
      yield self._trie()

  def swap(
    self,
    add: np.ndarray,
    remove: np.ndarray,
    regions: np.ndarray | None = None,
    text: np.ndarray | None = None,
    indices: np.ndarray | None = None,
    counts: np.ndarray | None = None,
    names: np.ndarray | None = None,
  ) -> np.ndarray:
    """Do `MutableTrie.swap`, then the same on the device.

    There it may still be under way on return: the next call waits for it. `text` are the text
    vectors fp32 [n, E] of the new items, zeros by default. `returns`, bool [n], are items that the
    catalogue began with, at their index: what trended there is theirs again, and no other's. The
    others are those of `MutableTrie.swap`. Raises ValueError, and changes nothing, as that does and
    when the catalogue has vectors of another width, or none.
    """
    shape = len(np.reshape(add, (-1, self._host.levels))), self._text_width
    if text is not None and text.shape != shape:
      raise ValueError(f'trie: text vectors of shape {text.shape}, must be {shape}')
    with self._lock:
      try:
        indices = self._host.swap(add, remove, regions, indices, counts)
      finally:  # what is refused may have moved a list, and back to another place
        self._send()
      if self._text_width:
        vectors = np.zeros(shape, np.float32) if text is None else np.asarray(text, np.float32)
        self._write(Write('item_text', None, indices, vectors))
      self._name[indices] = -1 if names is None else names
      self._assign_trending(indices)
      return indices

  def set_trending(self, trending: Trending, name_DxA: np.ndarray) -> None:
    """Replace what trends by a table of the same shape; name: which item each entry is of."""
    with self._lock:
      days_and_items = self._put(trending.day), self._put(trending.item)
      is_own = self._name.take(trending.item, mode='clip') == name_DxA
      share = self._put(np.where(is_own, trending.share, np.float32(0)))
      # From here on nothing can fail: what trends is never of two tables.
      self._trending, self._trending_name = trending, name_DxA
      self._trends = np.isin(np.arange(self.capacity), trending.item[trending.share > 0])
      self._days_and_items, self._tables['trending_share', None] = days_and_items, share

  def set_regions(self, items: np.ndarray, regions: np.ndarray) -> None:
    """Do `MutableTrie.set_regions`, on the device too."""
    with self._lock:
      self._host.set_regions(items, regions)
      self._send()

  def _assign_trending(self, indices: np.ndarray) -> None:
    """Make new items no heirs of what trended under their index, but for what is their own."""
    # Most new items go where nothing trended: the whole table is looked through for others alone.
    if self._trending is None or not self._trends[indices].any():
      return
    entries = np.flatnonzero(np.isin(self._trending.item, indices))
    item, share, name = (x.reshape(-1)[entries] for x in (*self._trending[1:], self._trending_name))
    is_own = self._name[item] == name
    self._write(Write('trending_share', None, entries, np.where(is_own, share, np.float32(0))))

  def _trie(self) -> Trie:
    levels = range(self._host.levels)
    per_level: dict[str, Any] = {
      name: tuple(self._tables.get((name, level)) for level in levels) for name in PER_LEVEL
    }
    if self._host.tables.regions is None:
      per_level['regions'] = None
    trending = None
    if self._trending is not None:
      trending = Trending(*self._days_and_items, self._tables['trending_share', None])
    return Trie(
      leaf_item=None,
      item_codes=self._tables['item_codes', None],
      item_count=self._tables['item_count', None],
      item_text=self._tables.get(('item_text', None)),
      codes_per_level=self._host.codes_per_level,
      trending=trending,
      **per_level,
    )

  def _put(self, table: np.ndarray) -> jax.Array:
    # Never an alias: the host goes on writing into its own array.
    return jax.block_until_ready(jax.device_put(table, self._sharding, may_alias=False))

  def _send(self) -> None:
    for write in self._host.changes():
      self._write(write)

  def _write(self, write: Write) -> None:
    key, n = (write.table, write.level), len(write.value)
    if write.entries is None:
      self._tables[key] = self._put(write.value)
      return
    row, start = write.value.shape[1:], 0
    beyond_end = len(self._tables[key]) if row else self._tables[key].size
    while start < n:
      piece = next((piece for piece in PIECES if piece >= n - start), PIECES[-1])
      stop = min(start + piece, n)
      index = np.full(piece, beyond_end, np.int32)
      value = np.zeros((piece, *row), write.value.dtype)
      index[: stop - start] = write.entries[start:stop]
      value[: stop - start] = write.value[start:stop]
      self._tables[key] = self._scatter(self._tables[key], index, value)
      start = stop
