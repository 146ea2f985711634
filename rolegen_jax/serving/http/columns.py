"""What is known of items by column: brand, category, price and whatever else they are tagged with.

Each value is a number in a dictionary of the column, so a filter is a look-up of whole arrays.

Shapes: N items by number (`items.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from rolegen_jax.serving.http.schema import MOST_COLUMNS, Filter, Range, Refused, Value
from rolegen_jax.serving.http.views import Column, Share

PATHS = ('category_code',)  # columns of dotted paths: a value stands for everything below it
MOST_COMMON = 200  # values of a column that are named


def grown(array: np.ndarray, size: int, fill: float) -> np.ndarray:
  """Return the array with room for `size` rows, more than asked for where it has to grow."""
  if size <= len(array):
    return array
  more = np.full((max(size, 2 * len(array)) - len(array), *array.shape[1:]), fill, array.dtype)
  return np.concatenate([array, more])


class _Column:
  def __init__(self, values: list[Any]):
    self.code_of: dict[Value, int] = {}
    self.values: list[Value] = []
    self.code = np.full(len(values), -1, np.int32)  # int32 [N]; -1 = no value
    self.number = np.full(len(values), np.nan)  # fp [N]; nan where the value is no number
    self.has_numbers = False
    for item, value in enumerate(values):
      self.set(item, value)

  def set(self, item: int, value: Value | None) -> None:
    is_number = _is_number(value)
    self.code, self.number = grown(self.code, item + 1, -1), grown(self.number, item + 1, np.nan)
    self.number[item] = float(value) if is_number else np.nan  # type: ignore[arg-type]
    self.has_numbers |= is_number
    if value is None:
      self.code[item] = -1
      return
    code = self.code_of.setdefault(_key(value), len(self.values))
    if code == len(self.values):
      self.values.append(value)
    self.code[item] = code

  @property
  def is_numeric(self) -> bool:
    """Whether items have values here, and all of them are numbers."""
    has_value = self.code >= 0
    return bool(has_value.any()) and not np.isnan(self.number[has_value]).any()

  def get(self, item: int) -> Value | None:
    code = self.code[item] if item < len(self.code) else -1
    return self.values[code] if code >= 0 else None


def _is_number(value: Value | None) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _key(value: Value) -> Any:
  """Return what values that are the same have in common: 5 and 5.0, but not True and 1."""
  return (value,) if isinstance(value, bool) else value


def _with_paths_above(counts: Iterable[tuple[Value, int]]) -> list[tuple[Value, int]]:
  """Return how many items each path has, those below it too."""
  total: dict[Value, int] = {}
  for value, count in counts:
    parts = str(value).split('.')
    for length in range(1, len(parts) + 1):
      above = '.'.join(parts[:length])
      total[above] = total.get(above, 0) + count
  return [*total.items()]


class Columns:
  """The columns of all items by number."""

  def __init__(self, items: pl.DataFrame):
    """Take every column of the items table of a log but its ids and embeddings."""
    kept = [name for name in items.columns if name not in ('item_id', 'embedding')]
    self._columns = {name: _Column(items[name].to_list()) for name in kept}
    self._of_log = frozenset(kept)

  def get(self, item: int, name: str) -> Value | None:
    """Return the value of an item in a column, None where it has none."""
    return self._columns[name].get(item) if name in self._columns else None

  def row(self, item: int) -> dict[str, Value]:
    """Return all values of an item."""
    found = {name: column.get(item) for name, column in list(self._columns.items())}
    return {name: value for name, value in found.items() if value is not None}

  def described(self, items: np.ndarray) -> list[Column]:
    """Return what the columns hold of some items, int [n]."""
    return [self._described(name, column, items) for name, column in self._columns.items()]

  def _described(self, name: str, column: _Column, items: np.ndarray) -> Column:
    code = self._first(column.code, int(items.max(initial=-1)) + 1, -1)[items]
    code = code[code >= 0]
    count = np.bincount(code, minlength=len(column.values))
    # Pairs, as a dictionary takes True and 1 for one value.
    found = [(column.values[i], int(count[i])) for i in np.flatnonzero(count)]
    distinct = len(found)
    if column.is_numeric:
      numbers = [float(value) for value, _ in found]
      low, high = min(numbers, default=None), max(numbers, default=None)
      return Column(name, 'number', len(code), distinct, low, high, [])
    if name in PATHS:
      found = _with_paths_above(found)
    has_groups = 2 * distinct <= len(code)
    common = sorted(found, key=lambda of: (-of[1], str(of[0])))[:MOST_COMMON]
    values = [Share(value, items) for value, items in common] if has_groups else []
    kind = 'path' if name in PATHS else 'value'
    return Column(name, kind, len(code), distinct, None, None, values)  # type: ignore[arg-type]

  def update(self, item: int, values: Mapping[str, Value | None]) -> dict[str, Value | None]:
    """Give an item new values in some columns; return those it had.

    A column that the log does not have is there for as long as some item has a value in it.
    """
    before = {name: self.get(item, name) for name in values}
    for name, value in values.items():
      column = self._columns.setdefault(name, _Column([]))
      column.set(item, value)
      if name not in self._of_log and value is None and not (column.code >= 0).any():
        del self._columns[name]
    return before

  def check_new(self, given: Mapping[str, Mapping[str, Value | None]]) -> None:
    """Raise Refused where values that items are given, by field of the request, cannot be theirs.

    There may be too many columns with theirs, or a value is not what its column holds.
    """
    names: set[str] = set()
    there = set(self._columns)
    for field, values in given.items():
      names |= values.keys()
      there |= values.keys()
      if len(there) > MOST_COLUMNS:
        raise Refused(422, field, f'must leave the catalogue at most {MOST_COLUMNS} columns')
    numeric = {name for name in names & self._columns.keys() if self._columns[name].is_numeric}
    for field, values in given.items():
      if 'item_id' in values:
        raise Refused(422, f'{field}.item_id', 'is not a column of the items: an item keeps its id')
      for name in numeric & values.keys():
        if not (values[name] is None or _is_number(values[name])):
          raise Refused(422, f'{field}.{name}', 'must be a number, as its other values are')

  def same(self, name: str, value: Value, size: int) -> np.ndarray:
    """Return which of the first `size` items have this value in a column, bool [size]."""
    column = self._columns.get(name)
    code = -1 if column is None else column.code_of.get(_key(value), -1)
    if column is None or code < 0:
      return np.zeros(size, bool)
    return self._first(column.code, size, -1) == code

  def check(self, where: Mapping[str, Filter]) -> None:
    """Raise Refused naming a filter that makes no sense."""
    for name, wanted in where.items():
      column = self._columns.get(name)
      if column is None:
        known = ', '.join(sorted(self._columns)) or 'none: items have no columns'
        raise Refused(422, f'where.{name}', f'is not a column of the items; must be one of {known}')
      if not isinstance(wanted, Range):
        continue
      if not column.has_numbers:
        raise Refused(422, f'where.{name}', 'has no numbers; must be a value or a list of values')
      if wanted.min is not None and wanted.max is not None and wanted.min > wanted.max:
        raise Refused(422, f'where.{name}.min', f'must be at most max, {wanted.max:g}')

  def satisfy(self, where: Mapping[str, Filter], size: int) -> np.ndarray:
    """Return which of the first `size` items satisfy all filters, bool [size].

    An item without a value satisfies none. A column that is gone by now is satisfied by nothing.
    """
    satisfied = np.ones(size, bool)
    for name, wanted in where.items():
      column = self._columns.get(name)
      if column is None:
        return np.zeros(size, bool)
      if isinstance(wanted, Range):
        number = self._first(column.number, size, np.nan)
        low = -np.inf if wanted.min is None else wanted.min
        high = np.inf if wanted.max is None else wanted.max
        satisfied &= (number >= low) & (number <= high)
      else:
        values = wanted if isinstance(wanted, list) else [wanted]
        codes = self._codes(name, column, values)
        satisfied &= np.isin(self._first(column.code, size, -1), codes)
    return satisfied

  def _codes(self, name: str, column: _Column, values: list[Value]) -> list[int]:
    codes = [column.code_of.get(_key(value), -2) for value in values]
    if name in PATHS:
      above = tuple(f'{value}.' for value in values)
      codes += [i for i, value in enumerate(column.values) if f'{value}.'.startswith(above)]
    return codes

  @staticmethod
  def _first(array: np.ndarray, size: int, fill: float) -> np.ndarray:
    return grown(array, size, fill)[:size]
