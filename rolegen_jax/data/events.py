"""The data contract: two tables, what every column means, and one clear error for the first thing that is wrong.

A log is a folder with items.parquet and events.parquet; a large one may have events/, a folder of any number of such files.

events.parquet  user_id (integer or string), item_id (integer or string), event (one of config.EVENT_NAMES),
                timestamp (integer seconds UTC), optional session_id (integer or string), price (number).
items.parquet   item_id (as in events), optional title, text, category_code (dotted path), brand (strings),
                category_id (integer or string), price (number), embedding (floats, one length for all items).

Rows of a user with equal timestamps are unordered. Other columns are allowed in the files and left out on reading, so
nothing that is not in the contract can reach a model.
"""

from __future__ import annotations

import os
import pathlib
import reprlib
from typing import NamedTuple

import polars as pl

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.files import DataError, as_data_error, read_parquet

EVENT_DTYPE = pl.Enum(EVENT_NAMES)  # physical value = event code
MAX_TIMESTAMP = 2**31 - 1  # seconds: catches milliseconds, and gaps fit int32 on device

_EVENT_COLUMNS = ('user_id', 'item_id', 'event', 'timestamp', 'session_id', 'price')
_ITEM_COLUMNS = (
  'item_id',
  'title',
  'text',
  'category_id',
  'category_code',
  'brand',
  'price',
  'embedding',
)
_TEXT_COLUMNS = ('title', 'text', 'category_code', 'brand')
_TABLE = 'a table as the data contract says'

CHUNK_ROWS = 2_000_000  # events read at a time


class Part(NamedTuple):
  """Where rows come from: a file, and how many of its rows are ahead of them."""

  name: str
  ahead: int = 0

  def __str__(self) -> str:
    return self.name


class Chunk(NamedTuple):
  """Rows first:first + rows of the event file `path`: as many as are in memory at a time."""

  path: str
  first: int
  rows: int


def read_contract(
  folder: str | os.PathLike, max_users: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
  """Reads and validates the log in `folder`; with max_users > 0 only the first that many users, in file order, are kept.

  Returns (events, items) as `validate` does. Raises DataError for the first thing that is wrong.
  """
  chunks, items = event_chunks(folder), read_items(folder)
  tables, kept = [], None
  for chunk in chunks:
    events = read_events(folder, chunk, items)
    if max_users:
      users = events['user_id'] if kept is None else pl.concat([kept, events['user_id']])
      kept = users.unique(maintain_order=True).head(max_users)
      events = events.filter(pl.col('user_id').is_in(kept.implode()))
    tables.append(events)
  return pl.concat(tables, how='diagonal'), items


def event_chunks(folder: str | os.PathLike, rows: int = CHUNK_ROWS) -> list[Chunk]:
  """The event files of a log in order of their names, in chunks of at most `rows` rows.

  Raises DataError when there is no file or no row, when a file is unreadable, or when ids differ in type between files.
  """
  paths = _event_paths(pathlib.Path(folder))
  chunks, first_seen = [], {}
  for path in paths:
    table = _scan(path)
    with as_data_error(path, 'a readable parquet file'):
      schema, height = table.collect_schema(), table.select(pl.len()).collect().item()
    for column in ('user_id', 'item_id', 'session_id'):
      if schema.get(column, pl.Null) == pl.Null:
        continue
      kind = (
        'string'
        if _is_string(schema[column])
        else 'integer'
        if schema[column].is_integer()
        else str(schema[column])
      )
      other, expected = first_seen.setdefault(column, (path, kind))
      if kind != expected:
        raise DataError(
          f'{path}: column {column!r} has type {kind}, in {other} it has type {expected}; must be the same type'
        )
    chunks += [
      Chunk(str(path), first, min(rows, height - first)) for first in range(0, height, rows)
    ]
  if not chunks:
    raise DataError(f'{paths[0]}: has no rows; must have at least one')
  return chunks


def read_events(folder: str | os.PathLike, chunk: Chunk, items: pl.DataFrame) -> pl.DataFrame:
  """The rows of `chunk` as `validate` returns events; `items` is what `read_items` returned for the same folder."""
  table = _scan(chunk.path)
  with as_data_error(chunk.path, 'a readable parquet file'):
    columns = [c for c in _EVENT_COLUMNS if c in table.collect_schema()]
    events = table.select(columns).slice(chunk.first, chunk.rows).collect()
  return _validate_events(events, items, Part(chunk.path, chunk.first), _items_path(folder))


def read_items(folder: str | os.PathLike) -> pl.DataFrame:
  """The items of a log as `validate` returns them."""
  path = _items_path(folder)
  return _validate_items(read_parquet(path), Part(path))


def _items_path(folder: str | os.PathLike) -> str:
  return str(pathlib.Path(folder) / 'items.parquet')


def _event_paths(folder: pathlib.Path) -> list[pathlib.Path]:
  whole, parts = folder / 'events.parquet', folder / 'events'
  if not parts.is_dir():
    return [whole]
  if whole.exists():
    raise DataError(
      f'{folder}: has both events.parquet and a folder events/; must have one of them'
    )
  paths = sorted(parts.glob('*.parquet'))
  if not paths:
    raise DataError(f'{parts}: has no file *.parquet; must have at least one')
  return paths


def _scan(path: str | os.PathLike) -> pl.LazyFrame:
  with as_data_error(path, 'a readable parquet file'):
    return pl.scan_parquet(path, glob=False, hive_partitioning=False)


def validate(
  events: pl.DataFrame, items: pl.DataFrame, events_name: str = 'events', items_name: str = 'items'
) -> tuple[pl.DataFrame, pl.DataFrame]:
  """Checks both tables against the contract.

  Returns (events, items) in canonical types: integers Int64, ids Int64 or String, event EVENT_DTYPE, price Float64, rows
  in the given order, contract columns only. Raises DataError naming file, column, 1-based data row, the value found and
  what would be right; the names are those of the files the tables came from.
  """
  items = _validate_items(items, Part(items_name))
  return _validate_events(events, items, Part(events_name), items_name), items


def _validate_events(
  events: pl.DataFrame, items: pl.DataFrame, name: Part, items_name: str
) -> pl.DataFrame:
  # Value checks run on whatever a file holds, so a library failure inside them is a fault of the data as well.
  with as_data_error(name, _TABLE):
    events = _only(events, _EVENT_COLUMNS)
    _require(events, _EVENT_COLUMNS[:4], name)
    events = _ids(events, 'user_id', name)
    events = _ids(events, 'item_id', name)
    events = _event_codes(events, name)
    events = _timestamps(events, name)
    events = _label(events, 'session_id', name)
    events = _price(events, name)
    _same_catalogue(events, items, name, items_name)
    return events


def _validate_items(items: pl.DataFrame, name: Part) -> pl.DataFrame:
  with as_data_error(name, _TABLE):
    items = _only(items, _ITEM_COLUMNS)
    _require(items, _ITEM_COLUMNS[:1], name)
    items = _ids(items, 'item_id', name)
    items = _label(items, 'category_id', name)
    for column in _TEXT_COLUMNS:
      items = _text(items, column, name)
    items = _price(items, name)
    items = _embedding(items, name)
    _need_rows(
      items, 'item_id', pl.col('item_id').is_first_distinct(), 'unique: one row per item', name
    )
    return items


def _only(frame: pl.DataFrame, columns: tuple[str, ...]) -> pl.DataFrame:
  return frame.select(c for c in columns if c in frame.columns)


def _require(frame: pl.DataFrame, columns: tuple[str, ...], name: Part) -> None:
  for column in columns:
    if column not in frame.columns:
      raise DataError(f'{name}: column {column!r} is missing; must have ' + ', '.join(columns))
  if frame.height == 0:
    raise DataError(f'{name}: has no rows; must have at least one')


def _need_type(frame: pl.DataFrame, column: str, ok: bool, right: str, name: Part) -> None:
  if not ok:
    raise DataError(f'{name}: column {column!r} has type {frame.schema[column]}; must be {right}')


def _need_rows(frame: pl.DataFrame, column: str, ok: pl.Expr, right: str, name: Part) -> None:
  """Raises on the first row of `column` where `ok` is not true (null counts as not true)."""
  bad = frame.select(ok.fill_null(False).not_().arg_true()).to_series()
  if bad.len():
    value = frame[column].slice(bad[0], 1).to_list()[0]
    raise DataError(
      f'{name}: column {column!r}, row {name.ahead + bad[0] + 1}: {reprlib.repr(value)}; must be {right}'
    )


def _is_string(dtype: pl.DataType) -> bool:
  return dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum))


def _cast_integers(frame: pl.DataFrame, column: str, right: str, name: Part) -> pl.DataFrame:
  _need_rows(frame, column, pl.col(column).cast(pl.Int64, strict=False).is_not_null(), right, name)
  return frame.with_columns(pl.col(column).cast(pl.Int64))


def _ids(frame: pl.DataFrame, column: str, name: Part) -> pl.DataFrame:
  dtype, right = frame.schema[column], 'an integer that fits 64 bits, or a string'
  _need_type(frame, column, dtype.is_integer() or _is_string(dtype), right, name)
  if dtype.is_integer():
    return _cast_integers(frame, column, right, name)
  frame = frame.with_columns(pl.col(column).cast(pl.String))
  _need_rows(frame, column, pl.col(column) != '', 'a string that is not empty', name)
  return frame


def _event_codes(events: pl.DataFrame, name: Part) -> pl.DataFrame:
  right = 'one of ' + ', '.join(EVENT_NAMES)
  _need_type(events, 'event', _is_string(events.schema['event']), f'string, {right}', name)
  if events.schema['event'] == EVENT_DTYPE:
    _need_rows(events, 'event', pl.col('event').is_not_null(), right, name)
    return events
  events = events.with_columns(pl.col('event').cast(pl.String))
  _need_rows(events, 'event', pl.col('event').is_in(EVENT_NAMES), right, name)
  return events.with_columns(pl.col('event').cast(EVENT_DTYPE))


def _timestamps(events: pl.DataFrame, name: Part) -> pl.DataFrame:
  right = f'whole seconds UTC, an integer from 1 to {MAX_TIMESTAMP}'
  _need_type(events, 'timestamp', events.schema['timestamp'].is_integer(), right, name)
  _need_rows(events, 'timestamp', pl.col('timestamp').is_between(1, MAX_TIMESTAMP), right, name)
  return events.with_columns(pl.col('timestamp').cast(pl.Int64))


def _label(frame: pl.DataFrame, column: str, name: Part) -> pl.DataFrame:
  """An optional integer or string column; nulls are allowed."""
  if column not in frame.columns or frame.schema[column] == pl.Null:
    return frame.drop(column, strict=False)
  dtype, right = frame.schema[column], 'an integer that fits 64 bits, a string or null'
  _need_type(frame, column, dtype.is_integer() or _is_string(dtype), right, name)
  if not dtype.is_integer():
    return frame.with_columns(pl.col(column).cast(pl.String))
  fits = pl.col(column).is_null() | pl.col(column).cast(pl.Int64, strict=False).is_not_null()
  _need_rows(frame, column, fits, right, name)
  return frame.with_columns(pl.col(column).cast(pl.Int64))


def _text(items: pl.DataFrame, column: str, name: Part) -> pl.DataFrame:
  if column not in items.columns or items.schema[column] == pl.Null:
    return items.drop(column, strict=False)
  _need_type(items, column, _is_string(items.schema[column]), 'a string or null', name)
  return items.with_columns(pl.col(column).cast(pl.String))


def _price(frame: pl.DataFrame, name: Part) -> pl.DataFrame:
  if 'price' not in frame.columns or frame.schema['price'] == pl.Null:
    return frame.drop('price', strict=False)
  right = 'a finite number of at least 0, or null'
  _need_type(frame, 'price', frame.schema['price'].is_numeric(), right, name)
  frame = frame.with_columns(pl.col('price').cast(pl.Float64))
  good = pl.col('price').is_null() | (pl.col('price').is_finite() & (pl.col('price') >= 0))
  _need_rows(frame, 'price', good, right, name)
  return frame


def _embedding(items: pl.DataFrame, name: Part) -> pl.DataFrame:
  if 'embedding' not in items.columns:
    return items
  dtype, right = (
    items.schema['embedding'],
    'a list of finite floats, the same length for every item',
  )
  is_list = isinstance(dtype, (pl.List, pl.Array)) and dtype.inner.is_float()
  _need_type(items, 'embedding', is_list, right, name)
  items = items.with_columns(pl.col('embedding').cast(pl.List(pl.Float32)))
  width, values = pl.col('embedding').list.len(), pl.col('embedding').list
  finite = values.eval(pl.element().is_finite().fill_null(False)).list.all()
  _need_rows(items, 'embedding', (width == width.first()) & (width > 0) & finite, right, name)
  return items


def _same_catalogue(events: pl.DataFrame, items: pl.DataFrame, name: Part, items_name: str) -> None:
  kinds = events.schema['item_id'], items.schema['item_id']
  if kinds[0] != kinds[1]:
    raise DataError(
      f"{name}: column 'item_id' has type {kinds[0]}, in {items_name} it has type {kinds[1]}; must be the same type"
    )
  known = pl.col('item_id').is_in(items['item_id'].implode())
  _need_rows(events, 'item_id', known, f'an item of {items_name}', name)
