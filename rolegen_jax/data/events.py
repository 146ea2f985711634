"""The data contract: two tables, what every column means, and one clear error for the first fault.

A log is a folder with items.parquet and events.parquet; a large one may have a folder events/ with
any number of such files instead, whatever their names, at any depth. `folders.py` says which files
are read.

events.parquet  user_id (integer or string), item_id (integer or string), event (one of
                config.EVENT_NAMES), timestamp (integer seconds UTC), optional session_id (integer
                or string) and price (number).
items.parquet   item_id (as in events), optional title, text, category_code (dotted path) and brand
                (strings), category_id (integer or string), price (number), embedding (floats, one
                length for all items).

Rows of a user with equal timestamps are unordered. The files may have other columns, which are left
out on reading, so that nothing outside the contract can reach a model.
"""

from __future__ import annotations

import os
import pathlib
import reprlib
from typing import NamedTuple

import polars as pl

from rolegen_jax.config import EVENT_NAMES, ConfigError
from rolegen_jax.data.files import DataError, as_data_error, read_parquet
from rolegen_jax.data.folders import log_files, partition, say_ignored
from rolegen_jax.runtime.progress import say

EVENT_DTYPE = pl.Enum(EVENT_NAMES)  # physical value = event code
# Seconds, 2037-01-01 UTC. Devices count in int32, which ends in January 2038: a year is left for
# what is added to a log's last time.
MAX_TIMESTAMP = 2_114_380_800
CHUNK_ROWS = 2_000_000  # events read at a time

_OPTIONAL_EVENT_COLUMNS = ('session_id', 'price')
_REQUIRED_EVENT_COLUMNS = ('user_id', 'item_id', 'event', 'timestamp')
_EVENT_COLUMNS = (*_REQUIRED_EVENT_COLUMNS, *_OPTIONAL_EVENT_COLUMNS)
_REQUIRED_ITEM_COLUMNS = ('item_id',)
_TEXT_COLUMNS = ('title', 'text', 'category_code', 'brand')
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
# Of a second, and when the first plausible time is: 2000-01-01.
_FINER_UNITS = {'milliseconds': 10**3, 'microseconds': 10**6, 'nanoseconds': 10**9}
_FIRST_PLAUSIBLE = 946_684_800
_TABLE = 'a table as the data contract says'
_PARQUET = 'a readable parquet file'


class Chunk(NamedTuple):
  """Rows first:first + rows of the event file `path`: as many as are in memory at a time."""

  path: str
  first: int
  rows: int


class _Source(NamedTuple):
  """Where a table comes from: a file, and how many rows of the file are ahead of the table's."""

  name: str
  rows_before: int = 0

  def __str__(self) -> str:
    return self.name


def read_contract(
  folder: str | os.PathLike, max_users: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
  """Read and validate the log in `folder`.

  max_users: keep the first that many users in file order; 0 keeps all.

  Returns (events, items) as `validate` does. Raises DataError for the first fault.
  """
  chunks, items = event_chunks(folder), read_items(folder)
  return read_chunks(folder, chunks, items, max_users), items


def read_chunks(
  folder: str | os.PathLike, chunks: list[Chunk], items: pl.DataFrame, max_users: int = 0
) -> pl.DataFrame:
  """Read `chunks` of the log in `folder` and return them as `validate` returns events.

  items: what `read_items` returned for the same folder. max_users: as in `read_contract`.
  """
  tables: list[pl.DataFrame] = []
  kept_users: pl.Series | None = None
  for chunk in chunks:
    events = read_events(folder, chunk, items)
    if max_users:
      kept_users = first_users(kept_users, events['user_id'], max_users)
      events = events.filter(pl.col('user_id').is_in(kept_users.implode()))
    tables.append(events)
  return pl.concat(tables, how='diagonal')


def first_users(known: pl.Series | None, users: pl.Series, count: int) -> pl.Series:
  """Return the first `count` distinct users of `known` followed by `users`.

  Raises ConfigError for a negative count.
  """
  if count < 0:
    raise ConfigError(f'data.max_users={count}: must be at least 0')
  if known is not None:
    users = pl.concat([known, users])
  return users.unique(maintain_order=True).head(count)


def event_chunks(folder: str | os.PathLike, rows: int = CHUNK_ROWS) -> list[Chunk]:
  """Return the event files of a log, in order of their paths, in chunks of at most `rows` rows.

  A file without rows is a chunk of none. Raises DataError when there is no file or no row, when a
  file is unreadable or lacks a column, or when ids differ in type between files.
  """
  _, paths = log_files(folder)
  say_ignored(folder)
  chunks: list[Chunk] = []
  id_types: dict[str, tuple[pathlib.Path, str]] = {}  # column -> first file that has it, its type
  lacking: dict[str, list[pathlib.Path]] = {column: [] for column in _OPTIONAL_EVENT_COLUMNS}
  for path in paths:
    table = _scan(path)
    with as_data_error(path, _PARQUET):
      schema, height = table.collect_schema(), table.select(pl.len()).collect().item()
    for column in partition(path, folder):
      if column in _EVENT_COLUMNS and column not in schema:
        raise DataError(
          f'{path}: column {column!r} is in the name of its folder only; must be in the file'
        )
    _require_columns(schema, _REQUIRED_EVENT_COLUMNS, _Source(str(path)))
    for column, files in lacking.items():
      if column not in schema:
        files.append(path)
    for column in ('user_id', 'item_id', 'session_id'):
      if schema.get(column, pl.Null()) == pl.Null:
        continue
      kind = _id_type(schema[column])
      first_path, first_kind = id_types.setdefault(column, (path, kind))
      if kind != first_kind:
        raise DataError(
          f'{path}: column {column!r} has type {kind}, in {first_path} it has type {first_kind}; '
          'must be the same type'
        )
    chunks += [
      Chunk(str(path), first, min(rows, height - first)) for first in range(0, max(height, 1), rows)
    ]
  if not any(chunk.rows for chunk in chunks):
    raise DataError(f'{paths[0]}: has no rows; must have at least one')
  for column, files in lacking.items():
    if 0 < len(files) < len(paths):
      say(f'{files[0]}: no column {column!r} here and in {len(files) - 1} more files; read as null')
  return chunks


def read_events(folder: str | os.PathLike, chunk: Chunk, items: pl.DataFrame) -> pl.DataFrame:
  """Read the rows of `chunk` and return them as `validate` returns events.

  items: what `read_items` returned for the same folder.
  """
  table = _scan(chunk.path)
  with as_data_error(chunk.path, _PARQUET):
    columns = [c for c in _EVENT_COLUMNS if c in table.collect_schema()]
    events = table.select(columns).slice(chunk.first, chunk.rows).collect()
  if events.height != chunk.rows:
    raise DataError(
      f'{chunk.path}: has lost rows since it was listed; must stay as it is meanwhile'
    )
  source = _Source(chunk.path, chunk.first)
  for column, value in partition(chunk.path, folder).items():
    if column in _EVENT_COLUMNS:
      same = pl.col(column).cast(pl.String) == value
      _require_rows(events, column, same, f'{value!r}, as the name of its folder says', source)
  return _validate_events(events, items, source, _items_path(folder))


def read_items(folder: str | os.PathLike) -> pl.DataFrame:
  """Read the items of a log and return them as `validate` does."""
  path = _items_path(folder)
  return _validate_items(read_parquet(path), _Source(path))


def validate(
  events: pl.DataFrame, items: pl.DataFrame, events_name: str = 'events', items_name: str = 'items'
) -> tuple[pl.DataFrame, pl.DataFrame]:
  """Check both tables against the contract.

  events_name, items_name: the files that the tables came from, for error messages.

  Returns (events, items) in canonical types: integers Int64, ids Int64 or String, event
  EVENT_DTYPE, price Float64; rows in the given order, contract columns only. Raises DataError
  naming file, column, 1-based data row, the value found and what would be right.
  """
  items = _validate_items(items, _Source(items_name))
  events = _validate_events(events, items, _Source(events_name), items_name)
  _require_a_row(events, _Source(events_name))
  return events, items


def _items_path(folder: str | os.PathLike) -> str:
  return str(pathlib.Path(folder) / 'items.parquet')


def _scan(path: str | os.PathLike) -> pl.LazyFrame:
  with as_data_error(path, _PARQUET):
    return pl.scan_parquet(os.fspath(path), glob=False, hive_partitioning=False)


def _id_type(dtype: pl.DataType) -> str:
  if _is_string(dtype):
    return 'string'
  return 'integer' if dtype.is_integer() else str(dtype)


def _validate_events(
  events: pl.DataFrame, items: pl.DataFrame, source: _Source, items_name: str
) -> pl.DataFrame:
  # Value checks run on whatever a file holds, so a library failure inside them is a data fault too.
  with as_data_error(source, _TABLE):
    events = _only(events, _EVENT_COLUMNS)
    _require_columns(events.schema, _REQUIRED_EVENT_COLUMNS, source)
    events = _ids(events, 'user_id', source)
    events = _ids(events, 'item_id', source)
    events = _event_codes(events, source)
    events = _timestamps(events, source)
    events = _optional_id(events, 'session_id', source)
    events = _price(events, source)
    _require_known_items(events, items, source, items_name)
    return events


def _validate_items(items: pl.DataFrame, source: _Source) -> pl.DataFrame:
  with as_data_error(source, _TABLE):
    items = _only(items, _ITEM_COLUMNS)
    _require_columns(items.schema, _REQUIRED_ITEM_COLUMNS, source)
    _require_a_row(items, source)
    items = _ids(items, 'item_id', source)
    items = _optional_id(items, 'category_id', source)
    for column in _TEXT_COLUMNS:
      items = _text(items, column, source)
    items = _price(items, source)
    items = _embedding(items, source)
    unique = pl.col('item_id').is_first_distinct()
    _require_rows(items, 'item_id', unique, 'unique: one row per item', source)
    return items


def _only(frame: pl.DataFrame, columns: tuple[str, ...]) -> pl.DataFrame:
  return frame.select(c for c in columns if c in frame.columns)


def _require_columns(schema: pl.Schema, columns: tuple[str, ...], source: _Source) -> None:
  for column in columns:
    if column not in schema:
      raise DataError(f'{source}: column {column!r} is missing; must have ' + ', '.join(columns))


def _require_a_row(frame: pl.DataFrame, source: _Source) -> None:
  if frame.height == 0:
    raise DataError(f'{source}: has no rows; must have at least one')


def _require_type(
  frame: pl.DataFrame, column: str, good: bool, expected: str, source: _Source
) -> None:
  if not good:
    raise DataError(
      f'{source}: column {column!r} has type {frame.schema[column]}; must be {expected}'
    )


def _require_rows(
  frame: pl.DataFrame, column: str, good: pl.Expr, expected: str, source: _Source
) -> None:
  """Raise DataError for the first row of `column` where `good` is false or null."""
  bad = frame.select(good.fill_null(False).not_().arg_true()).to_series()
  if bad.len():
    row = bad[0]
    value = frame[column].slice(row, 1).to_list()[0]
    raise DataError(
      f'{source}: column {column!r}, row {source.rows_before + row + 1}: {reprlib.repr(value)}; '
      f'must be {expected}'
    )


def _is_string(dtype: pl.DataType) -> bool:
  return dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum))


def _ids(frame: pl.DataFrame, column: str, source: _Source) -> pl.DataFrame:
  dtype, expected = frame.schema[column], 'an integer that fits 64 bits, or a string'
  _require_type(frame, column, dtype.is_integer() or _is_string(dtype), expected, source)
  if dtype.is_integer():
    fits = pl.col(column).cast(pl.Int64, strict=False).is_not_null()
    _require_rows(frame, column, fits, expected, source)
    return frame.with_columns(pl.col(column).cast(pl.Int64))
  frame = frame.with_columns(pl.col(column).cast(pl.String))
  _require_rows(frame, column, pl.col(column) != '', 'a string that is not empty', source)
  return frame


def _event_codes(events: pl.DataFrame, source: _Source) -> pl.DataFrame:
  dtype, expected = events.schema['event'], 'one of ' + ', '.join(EVENT_NAMES)
  _require_type(events, 'event', _is_string(dtype), f'string, {expected}', source)
  if dtype == EVENT_DTYPE:
    _require_rows(events, 'event', pl.col('event').is_not_null(), expected, source)
    return events
  events = events.with_columns(pl.col('event').cast(pl.String))
  _require_rows(events, 'event', pl.col('event').is_in(EVENT_NAMES), expected, source)
  return events.with_columns(pl.col('event').cast(EVENT_DTYPE))


def _timestamps(events: pl.DataFrame, source: _Source) -> pl.DataFrame:
  expected = f'whole seconds UTC, an integer from 1 to {MAX_TIMESTAMP}'
  _require_type(events, 'timestamp', events.schema['timestamp'].is_integer(), expected, source)
  in_range = pl.col('timestamp').is_between(1, MAX_TIMESTAMP)
  late = events['timestamp'].filter(events['timestamp'] > MAX_TIMESTAMP)
  for unit, factor in _FINER_UNITS.items():
    if late.len() and _FIRST_PLAUSIBLE <= late[0] // factor <= MAX_TIMESTAMP:
      expected += f'; {late[0]} looks like {unit}: divide by {factor}'
  _require_rows(events, 'timestamp', in_range, expected, source)
  return events.with_columns(pl.col('timestamp').cast(pl.Int64))


def _optional_id(frame: pl.DataFrame, column: str, source: _Source) -> pl.DataFrame:
  """Check an optional integer or string column, in which nulls are allowed."""
  if column not in frame.columns or frame.schema[column] == pl.Null:
    return frame.drop(column, strict=False)
  dtype, expected = frame.schema[column], 'an integer that fits 64 bits, a string or null'
  _require_type(frame, column, dtype.is_integer() or _is_string(dtype), expected, source)
  if not dtype.is_integer():
    return frame.with_columns(pl.col(column).cast(pl.String))
  fits = pl.col(column).is_null() | pl.col(column).cast(pl.Int64, strict=False).is_not_null()
  _require_rows(frame, column, fits, expected, source)
  return frame.with_columns(pl.col(column).cast(pl.Int64))


def _text(items: pl.DataFrame, column: str, source: _Source) -> pl.DataFrame:
  if column not in items.columns or items.schema[column] == pl.Null:
    return items.drop(column, strict=False)
  _require_type(items, column, _is_string(items.schema[column]), 'a string or null', source)
  return items.with_columns(pl.col(column).cast(pl.String))


def _price(frame: pl.DataFrame, source: _Source) -> pl.DataFrame:
  if 'price' not in frame.columns or frame.schema['price'] == pl.Null:
    return frame.drop('price', strict=False)
  expected = 'a finite number of at least 0, or null'
  _require_type(frame, 'price', frame.schema['price'].is_numeric(), expected, source)
  frame = frame.with_columns(pl.col('price').cast(pl.Float64))
  good = pl.col('price').is_null() | (pl.col('price').is_finite() & (pl.col('price') >= 0))
  _require_rows(frame, 'price', good, expected, source)
  return frame


def _embedding(items: pl.DataFrame, source: _Source) -> pl.DataFrame:
  if 'embedding' not in items.columns:
    return items
  dtype = items.schema['embedding']
  expected = 'a list of finite floats, the same length for every item'
  # `inner` is a class only where a type was declared without its parameters, which no table is.
  is_float_list = isinstance(dtype, (pl.List, pl.Array)) and dtype.inner.is_float()
  _require_type(items, 'embedding', is_float_list, expected, source)
  items = items.with_columns(pl.col('embedding').cast(pl.List(pl.Float32)))
  length, values = pl.col('embedding').list.len(), pl.col('embedding').list
  finite = values.eval(pl.element().is_finite().fill_null(False)).list.all()
  good = (length == length.first()) & (length > 0) & finite
  _require_rows(items, 'embedding', good, expected, source)
  return items


def _require_known_items(
  events: pl.DataFrame, items: pl.DataFrame, source: _Source, items_name: str
) -> None:
  """Raise DataError unless every event's item is in `items`, with ids of the same type."""
  event_type, item_type = events.schema['item_id'], items.schema['item_id']
  if event_type != item_type:
    raise DataError(
      f"{source}: column 'item_id' has type {event_type}, in {items_name} it has type {item_type}; "
      'must be the same type'
    )
  known = pl.col('item_id').is_in(items['item_id'].implode())
  _require_rows(events, 'item_id', known, f'an item of {items_name}', source)
