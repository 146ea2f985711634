"""A catalogue that changes while it serves, on the host: its items, and swaps of items.

A swap removes items, then adds new ones. Afterwards the tables mean what tables built afresh would
mean, and only the entries that changed were written.

Legend: as in trie.py; n changed items, sorted by ID, their codes as columns [L, n].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rolegen_jax.semantic_ids import trie as trie_lib
from rolegen_jax.semantic_ids.allocator import IndexAllocator
from rolegen_jax.semantic_ids.mutable_layout import Layout
from rolegen_jax.semantic_ids.mutable_tables import MutableTables, Write
from rolegen_jax.semantic_ids.trie import Trie, runs_of


class Path(NamedTuple):
  """How far down the tables know each of n IDs."""

  # Per level l < L, int64 [n]: the row of the first l codes; -1 = none.
  rows: list[np.ndarray]
  # int64 [n]: the deepest level with a row.
  depth: np.ndarray
  # int64 [n]: the only item whose ID begins with the codes up to `depth` and the next one;
  # -1 = there is none.
  item: np.ndarray


class MutableTrie:
  """The catalogue: `tables` is a Trie of numpy arrays."""

  def __init__(
    self,
    codes: np.ndarray,
    codes_per_level: int,
    capacity: int | None = None,
    regions: np.ndarray | None = None,
  ) -> None:
    """Build the tables of `codes` [I, L]; item i is row i. Arguments and errors of `build_trie`."""
    codes = np.asarray(codes, np.int32)
    n_items, self.levels = codes.shape
    self.capacity = trie_lib.default_capacity(n_items) if capacity is None else capacity
    trie_lib.check_room(n_items, self.capacity)
    trie_lib.check_codes(codes, codes_per_level)
    self.codes_per_level = codes_per_level
    # bool [capacity]: which indices are items of the catalogue.
    self.listed = np.arange(self.capacity) < n_items
    self._indices = IndexAllocator(n_items, self.capacity)
    self._layout = Layout(self.levels, codes_per_level, self.capacity)
    item_regions = None if regions is None else _checked_regions(regions, n_items)
    self._store = MutableTables(codes, self._layout, item_regions)

  @property
  def tables(self) -> Trie:
    """The current state, as numpy arrays that later changes write into."""
    return self._store.tables

  @property
  def items(self) -> int:
    """How many items the catalogue has."""
    return self.capacity - len(self._indices)

  def changes(self) -> list[Write]:
    """Return what changed in the tables since the last call."""
    return self._store.changes()

  # Long by its docstring, and by the checks that come before anything changes.
  def swap(
    self,
    add: np.ndarray,
    remove: np.ndarray,
    regions: np.ndarray | None = None,
    indices: np.ndarray | None = None,
    counts: np.ndarray | None = None,
  ) -> np.ndarray:
    """Remove items, then add new ones; return the indices of the new ones, int64 [n].

    Indices never used come first, then those of removed items, the longest removed first. Until its
    index is used again, a removed item keeps its codes in `item_codes`.

    Args:
      add: int [n, L], codes of the new items.
      remove: int [m], indices of items.
      regions: uint32 [n], of the new items.
      indices: int [n], free ones for the new items, -1 = any: a removed item comes back in place.
      counts: [n], their `item_count`. Default: 0, no model has learned about them.

    Raises ValueError, and leaves the catalogue as before, for a code out of range, an ID that is
    taken or given twice, an item to remove that does not exist or is named twice, more items than
    capacity, regions that are missing or not used, and indices that are not free.
    """
    add = np.asarray(add, np.int32).reshape(-1, self.levels)
    remove = np.asarray(remove, np.int64)
    self._check_listed(remove)
    if indices is not None:
      indices = np.asarray(indices, np.int64)
      self._check_free(indices, len(add), remove)
    trie_lib.check_room(self.items - len(remove) + len(add), self.capacity)
    trie_lib.check_codes(add, self.codes_per_level)
    if (regions is None) != (self.tables.regions is None):
      raise ValueError(
        'trie: new items need regions if, and only if, the catalogue was built with regions'
      )
    new_codes, order = self._sort_by_id(add.T)
    trie_lib.check_distinct(order, new_codes, 'new items')
    new_regions = None if regions is None else _checked_regions(regions, len(add))[order]
    old_codes, old_order = self._sort_by_id(self._codes(remove))

    self._remove(old_codes)
    path = self._find_path(new_codes)
    taken = np.flatnonzero(self._is_whole_id(path, new_codes))
    if len(taken):
      removed = remove[old_order]
      old_regions = None if regions is None else self._store.regions(self.levels)[removed]
      self._insert(removed, old_codes, self._find_path(old_codes), old_regions)
      first = taken[0]
      raise ValueError(
        f'trie: new item {order[first]} has the ID {new_codes[:, first].tolist()} '
        f'of item {path.item[first]}'
      )

    self.listed[remove] = False
    self._indices.release(remove)
    indices = self._allocated(len(add), indices)
    self.listed[indices] = True
    self._store.write('item_codes', None, indices, add)
    learned = np.zeros(len(add)) if counts is None else counts
    self._store.write('item_count', None, indices, np.asarray(learned, np.float32))
    self._insert(indices[order], new_codes, path, new_regions)
    return indices

  def find(self, codes: np.ndarray) -> np.ndarray:
    """Return the indices int64 [n] of the items whose IDs are codes int [n, L]; -1 = none."""
    sorted_codes, order = self._sort_by_id(np.asarray(codes, np.int32).reshape(-1, self.levels).T)
    path = self._find_path(sorted_codes)
    found = np.empty(len(order), np.int64)
    found[order] = np.where(self._is_whole_id(path, sorted_codes), path.item, -1)
    return found

  def set_regions(self, items: np.ndarray, regions: np.ndarray) -> None:
    """Give items int [n] new regions uint32 [n]: sold out in one store, back in another.

    Raises ValueError as `swap` does.
    """
    items = np.asarray(items, np.int64)
    self._check_listed(items)
    if self.tables.regions is None:
      raise ValueError('trie: the catalogue was built without regions')
    regions = _checked_regions(regions, len(items))
    codes, order = self._sort_by_id(self._codes(items))
    self._store.write('regions', self.levels - 1, items[order], regions[order])
    self._refresh_regions(self._find_path(codes))

  def _check_listed(self, items: np.ndarray) -> None:
    known = (items >= 0) & (items < self.capacity)
    known[known] = self.listed[items[known]]
    if not known.all():
      unknown = items[~known]
      raise ValueError(
        f'trie: item {unknown[0]} is not in the catalogue, '
        f'nor are {len(unknown) - 1} others that were named'
      )
    named = np.zeros(self.capacity, bool)
    named[items] = True
    if np.count_nonzero(named) < len(items):
      ordered = np.sort(items)
      repeated = ordered[1:][ordered[1:] == ordered[:-1]]
      raise ValueError(f'trie: item {repeated[0]} is named twice')

  def _check_free(self, indices: np.ndarray, n: int, remove: np.ndarray) -> None:
    given = indices[indices >= 0]
    in_range = ((indices >= -1) & (indices < self.capacity)).all()
    if len(indices) != n or not in_range or len(np.unique(given)) < len(given):
      raise ValueError(f'trie: indices must be {n} different ones below {self.capacity}, or -1')
    taken = given[self.listed[given] & ~np.isin(given, remove)]
    if len(taken):
      raise ValueError(f'trie: index {taken[0]} is that of an item of the catalogue')

  def _allocated(self, n: int, indices: np.ndarray | None) -> np.ndarray:
    """Take n indices, int64 [n]: the given ones, and any where none is given."""
    if indices is None:
      return self._indices.allocate(n)
    is_any = indices < 0
    self._indices.take(indices[~is_any])
    taken = indices.copy()
    taken[is_any] = self._indices.allocate(int(is_any.sum()))
    return taken

  def _codes(self, items: np.ndarray) -> np.ndarray:
    """Return the codes int32 [L, n] of items [n]."""
    flat = self.tables.item_codes.reshape(-1)
    return np.stack([flat.take(items * self.levels + level) for level in range(self.levels)])

  def _sort_by_id(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (codes int64 [L, n] in the order of their IDs, that order [n]) of codes [L, n]."""
    order = trie_lib.id_order(codes, self.codes_per_level)
    return np.stack([column.take(order).astype(np.int64) for column in codes]), order

  # Finding

  def _find_path(self, codes: np.ndarray) -> Path:
    """Follow IDs, codes [L, n], as far down as there are rows."""
    n, last_direct = codes.shape[1], self._layout.last_direct
    rows = [np.zeros(n, np.int64)]
    for level in range(self.levels - 1):
      is_direct = level < last_direct
      rows.append(
        rows[level] * self.codes_per_level + codes[level] if is_direct else np.full(n, -1)
      )
    path = Path(rows, np.full(n, last_direct), np.full(n, -1))
    selected = np.arange(n)
    for level in range(last_direct, self.levels):
      selected = self._advance(path, codes, level, selected)
    return path

  def _is_whole_id(self, path: Path, codes: np.ndarray) -> np.ndarray:
    """Return whether the item that each path leads to has just these codes [L, n], bool [n]."""
    same = self._codes(np.maximum(path.item, 0)) == codes
    return (path.item >= 0) & same.all(axis=0)

  def _advance(self, path: Path, codes: np.ndarray, level: int, selected: np.ndarray) -> np.ndarray:
    """Follow the IDs `selected`, which have a row at this level, to the next level.

    Updates `path` and returns those that have a row there.
    """
    child = self._store.find_child(level, path.rows[level][selected], codes[level, selected])
    rows_below = self._layout.rows[level + 1]
    path.item[selected] = np.where(child >= rows_below, child - rows_below, -1)
    has_row = np.flatnonzero((child >= 0) & (child < rows_below))
    if len(has_row):
      path.rows[level + 1][selected[has_row]] = child[has_row]
      path.depth[selected[has_row]] = level + 1
    return selected[has_row]

  # Removing

  def _remove(self, codes: np.ndarray) -> None:
    """Remove items by their codes [L, n], and every row that is left with no item or with one."""
    path, store, layout = self._find_path(codes), self._store, self._layout
    # IDs, each standing for a row of the level below: `removed` rows are gone, `collapsed` rows
    # were replaced by their only item.
    removed, collapsed = np.arange(0), np.arange(0)
    for level in reversed(range(layout.last_direct, self.levels)):
      is_removed = path.depth == level
      is_removed[removed] = True
      removed = np.flatnonzero(is_removed)
      is_empty = store.remove_children(level, path.rows[level][removed], codes[level, removed])
      if level == layout.last_direct:
        break
      is_removed[collapsed] = True
      touched = np.flatnonzero(is_removed)
      row = path.rows[level][touched]
      starts = runs_of(row)[0]
      touched, row = touched[starts], row[starts]
      child, count = store.children(level, row)
      only_child = np.full(len(row), -1)
      only_child[count > 0] = child[(np.cumsum(count) - count)[count > 0]]
      removed = touched[count == 0]

      rows_below = layout.rows[level + 1]
      single = np.flatnonzero((count == 1) & (only_child >= rows_below))
      item, collapsed = only_child[single] - rows_below, touched[single]
      store.remove_children(level, row[single], self._codes(item)[level].astype(np.int64))
      parent, code = path.rows[level - 1][collapsed], codes[level - 1, collapsed]
      store.renumber_children(level - 1, parent, code, layout.rows[level] + item)
      store.release_rows(level, np.concatenate([row[count == 0], row[single]]))
    for level in reversed(range(layout.last_direct)):
      removed = removed[is_empty]
      removed = removed[runs_of(path.rows[level + 1][removed])[0]]
      if not len(removed):
        break
      store.release_rows(level + 1, path.rows[level + 1][removed])
      is_empty = store.remove_children(level, path.rows[level][removed], codes[level, removed])
    if self.tables.regions is not None:
      self._refresh_regions(path)

  # Adding

  def _insert(
    self, items: np.ndarray, codes: np.ndarray, path: Path, regions: np.ndarray | None
  ) -> None:
    """Add items [n] of codes [L, n] and regions uint32 [n], none of which is in the tables."""
    self._expand_single_items(codes, path, regions)
    opens = _opens(codes)
    self._add_nodes(items, codes, path, opens)
    if regions is not None:
      self._add_regions(items, path, opens, regions)

  def _expand_single_items(self, codes: np.ndarray, path: Path, regions: np.ndarray | None) -> None:
    """Give a row to every prefix of a single item that new IDs share from now on."""
    store, layout = self._store, self._layout
    for level in range(layout.last_direct, self.levels - 1):
      sharing = np.flatnonzero((path.depth == level) & (path.item >= 0))
      starts, run_of = runs_of(path.item[sharing])
      first = sharing[starts]
      present = path.item[first]
      row = store.allocate_rows(level + 1, len(present))
      store.renumber_children(level, path.rows[level][first], codes[level, first], row)
      next_code = self._codes(present)[level + 1].astype(np.int64)
      store.add_children(level + 1, row, next_code, layout.rows[level + 2] + present)
      if regions is not None:
        store.write('regions', level, row, store.regions(self.levels)[present])
      path.rows[level + 1][sharing] = row[run_of]
      path.depth[sharing] = level + 1
      self._advance(path, codes, level + 1, sharing)

  def _add_nodes(self, items: np.ndarray, codes: np.ndarray, path: Path, opens: np.ndarray) -> None:
    """Add the nodes of new IDs below the deepest row of each."""
    store, layout = self._store, self._layout
    for level in range(layout.last_direct, self.levels):
      selected = np.flatnonzero(path.depth == level)
      starts = np.flatnonzero(opens[level + 1][selected])
      first = selected[starts]
      number = layout.rows[level + 1] + items[first]
      size = np.diff(starts, append=len(selected))
      shared = np.flatnonzero(size > 1)
      if len(shared):
        number[shared] = store.allocate_rows(level + 1, len(shared))
        is_shared = np.repeat(size > 1, size)
        path.rows[level + 1][selected[is_shared]] = np.repeat(number, size)[is_shared]
        path.depth[selected[is_shared]] = level + 1
      was_empty = store.add_children(level, path.rows[level][first], codes[level, first], number)
      if level == layout.last_direct:
        # A row that had no child may be unknown to the rows above it.
        for above in reversed(range(level)):
          first = first[was_empty]
          was_empty = store.add_direct_children(above, path.rows[above][first], codes[above, first])

  def _add_regions(
    self, items: np.ndarray, path: Path, opens: np.ndarray, regions: np.ndarray
  ) -> None:
    """Set the regions of new items, and or them into the rows above."""
    self._store.write('regions', self.levels - 1, items, regions)
    for level in range(1, self.levels):
      selected = np.flatnonzero(path.rows[level] >= 0)
      starts = np.flatnonzero(opens[level][selected])
      row = path.rows[level][selected[starts]]
      if len(row):
        added = np.bitwise_or.reduceat(regions[selected], starts)
        self._store.write('regions', level - 1, row, self._store.regions(level)[row] | added)

  def _refresh_regions(self, path: Path) -> None:
    """Bring the regions of the rows on `path`, below which something changed, up to date."""
    changed = np.arange(len(path.depth))  # one ID for each node of the level below that changed
    for level in reversed(range(1, self.levels)):
      has_row = np.flatnonzero(path.rows[level][changed] >= 0)
      others, selected = np.delete(changed, has_row), changed[has_row]
      selected = selected[runs_of(path.rows[level][selected])[0]]
      row = path.rows[level][selected]
      is_alive = ~self._store.is_childless(level, row)
      regions = np.zeros(len(row), np.uint32)
      regions[is_alive] = self._store.regions_below(level, row[is_alive])
      differs = is_alive & (regions != self._store.regions(level)[row])
      self._store.write('regions', level - 1, row[differs], regions[differs])
      changed = np.sort(np.concatenate([others, selected[~is_alive | differs]]))


def _checked_regions(regions: np.ndarray, n: int) -> np.ndarray:
  """Return regions as uint32 [n]. Raises ValueError on another shape."""
  regions = np.asarray(regions, np.uint32)
  if regions.shape != (n,):
    raise ValueError(
      f'trie: regions of shape {regions.shape}, must be one number for each of {n} items'
    )
  return regions


def _opens(codes: np.ndarray) -> np.ndarray:
  """Return bool [L + 1, n]: whether ID i of sorted codes [L, n] is the first with its l codes."""
  opens = np.zeros((len(codes) + 1, codes.shape[1]), bool)
  opens[:, :1] = True
  for level, column in enumerate(codes):
    opens[level + 1, 1:] = opens[level, 1:] | (column[1:] != column[:-1])
  return opens
