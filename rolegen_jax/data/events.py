"""The data contract: two tables, what every column means, and one clear error for the first thing that is wrong.

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

import polars as pl

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.files import DataError, as_data_error, read_parquet

EVENT_DTYPE = pl.Enum(EVENT_NAMES)  # physical value = event code
MAX_TIMESTAMP = 2**31 - 1  # seconds: catches milliseconds, and gaps fit int32 on device

_EVENT_COLUMNS = ('user_id', 'item_id', 'event', 'timestamp', 'session_id', 'price')
_ITEM_COLUMNS = ('item_id', 'title', 'text', 'category_id', 'category_code', 'brand', 'price', 'embedding')
_TEXT_COLUMNS = ('title', 'text', 'category_code', 'brand')


def read_contract(folder: str | os.PathLike) -> tuple[pl.DataFrame, pl.DataFrame]:
  """Reads and validates `folder`/events.parquet and `folder`/items.parquet.

  Returns (events, items) as `validate` does. Raises DataError for the first thing that is wrong.
  """
  events_path, items_path = pathlib.Path(folder) / 'events.parquet', pathlib.Path(folder) / 'items.parquet'
  return validate(read_parquet(events_path), read_parquet(items_path), str(events_path), str(items_path))


def validate(
  events: pl.DataFrame, items: pl.DataFrame, events_name: str = 'events', items_name: str = 'items'
) -> tuple[pl.DataFrame, pl.DataFrame]:
  """Checks both tables against the contract.

  Returns (events, items) in canonical types: integers Int64, ids Int64 or String, event EVENT_DTYPE, price Float64, rows
  in the given order, contract columns only. Raises DataError naming file, column, 1-based data row, the value found and
  what would be right; the names are those of the files the tables came from.
  """
  # Value checks run on whatever a file holds, so a library failure inside them is a fault of the data as well.
  with as_data_error(events_name, 'tables as the data contract says'):
    events, items = _only(events, _EVENT_COLUMNS), _only(items, _ITEM_COLUMNS)
    _require(events, _EVENT_COLUMNS[:4], events_name)
    _require(items, _ITEM_COLUMNS[:1], items_name)

    events = _ids(events, 'user_id', events_name)
    events = _ids(events, 'item_id', events_name)
    events = _event_codes(events, events_name)
    events = _timestamps(events, events_name)
    events = _label(events, 'session_id', events_name)
    events = _price(events, events_name)

    items = _ids(items, 'item_id', items_name)
    items = _label(items, 'category_id', items_name)
    for column in _TEXT_COLUMNS:
      items = _text(items, column, items_name)
    items = _price(items, items_name)
    items = _embedding(items, items_name)

    _same_catalogue(events, items, events_name, items_name)
    return events, items


def _only(frame: pl.DataFrame, columns: tuple[str, ...]) -> pl.DataFrame:
  return frame.select(c for c in columns if c in frame.columns)


def _require(frame: pl.DataFrame, columns: tuple[str, ...], name: str) -> None:
  for column in columns:
    if column not in frame.columns:
      raise DataError(f'{name}: column {column!r} is missing; must have ' + ', '.join(columns))
  if frame.height == 0:
    raise DataError(f'{name}: has no rows; must have at least one')


def _need_type(frame: pl.DataFrame, column: str, ok: bool, right: str, name: str) -> None:
  if not ok:
    raise DataError(f'{name}: column {column!r} has type {frame.schema[column]}; must be {right}')


def _need_rows(frame: pl.DataFrame, column: str, ok: pl.Expr, right: str, name: str) -> None:
  """Raises on the first row of `column` where `ok` is not true (null counts as not true)."""
  bad = frame.select(ok.fill_null(False).not_().arg_true()).to_series()
  if bad.len():
    value = frame[column].slice(bad[0], 1).to_list()[0]
    raise DataError(f'{name}: column {column!r}, row {bad[0] + 1}: {reprlib.repr(value)}; must be {right}')


def _is_string(dtype: pl.DataType) -> bool:
  return dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum))


def _cast_integers(frame: pl.DataFrame, column: str, right: str, name: str) -> pl.DataFrame:
  _need_rows(frame, column, pl.col(column).cast(pl.Int64, strict=False).is_not_null(), right, name)
  return frame.with_columns(pl.col(column).cast(pl.Int64))


def _ids(frame: pl.DataFrame, column: str, name: str) -> pl.DataFrame:
  dtype, right = frame.schema[column], 'an integer that fits 64 bits, or a string'
  _need_type(frame, column, dtype.is_integer() or _is_string(dtype), right, name)
  if dtype.is_integer():
    return _cast_integers(frame, column, right, name)
  frame = frame.with_columns(pl.col(column).cast(pl.String))
  _need_rows(frame, column, pl.col(column) != '', 'a string that is not empty', name)
  return frame


def _event_codes(events: pl.DataFrame, name: str) -> pl.DataFrame:
  right = 'one of ' + ', '.join(EVENT_NAMES)
  _need_type(events, 'event', _is_string(events.schema['event']), f'string, {right}', name)
  if events.schema['event'] == EVENT_DTYPE:
    _need_rows(events, 'event', pl.col('event').is_not_null(), right, name)
    return events
  events = events.with_columns(pl.col('event').cast(pl.String))
  _need_rows(events, 'event', pl.col('event').is_in(EVENT_NAMES), right, name)
  return events.with_columns(pl.col('event').cast(EVENT_DTYPE))


def _timestamps(events: pl.DataFrame, name: str) -> pl.DataFrame:
  right = f'whole seconds UTC, an integer from 1 to {MAX_TIMESTAMP}'
  _need_type(events, 'timestamp', events.schema['timestamp'].is_integer(), right, name)
  _need_rows(events, 'timestamp', pl.col('timestamp').is_between(1, MAX_TIMESTAMP), right, name)
  return events.with_columns(pl.col('timestamp').cast(pl.Int64))


def _label(frame: pl.DataFrame, column: str, name: str) -> pl.DataFrame:
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


def _text(items: pl.DataFrame, column: str, name: str) -> pl.DataFrame:
  if column not in items.columns or items.schema[column] == pl.Null:
    return items.drop(column, strict=False)
  _need_type(items, column, _is_string(items.schema[column]), 'a string or null', name)
  return items.with_columns(pl.col(column).cast(pl.String))


def _price(frame: pl.DataFrame, name: str) -> pl.DataFrame:
  if 'price' not in frame.columns or frame.schema['price'] == pl.Null:
    return frame.drop('price', strict=False)
  right = 'a finite number of at least 0, or null'
  _need_type(frame, 'price', frame.schema['price'].is_numeric(), right, name)
  frame = frame.with_columns(pl.col('price').cast(pl.Float64))
  good = pl.col('price').is_null() | (pl.col('price').is_finite() & (pl.col('price') >= 0))
  _need_rows(frame, 'price', good, right, name)
  return frame


def _embedding(items: pl.DataFrame, name: str) -> pl.DataFrame:
  if 'embedding' not in items.columns:
    return items
  dtype, right = items.schema['embedding'], 'a list of finite floats, the same length for every item'
  is_list = isinstance(dtype, (pl.List, pl.Array)) and dtype.inner.is_float()
  _need_type(items, 'embedding', is_list, right, name)
  items = items.with_columns(pl.col('embedding').cast(pl.List(pl.Float32)))
  width, values = pl.col('embedding').list.len(), pl.col('embedding').list
  finite = values.eval(pl.element().is_finite().fill_null(False)).list.all()
  _need_rows(items, 'embedding', (width == width.first()) & (width > 0) & finite, right, name)
  return items


def _same_catalogue(events: pl.DataFrame, items: pl.DataFrame, events_name: str, items_name: str) -> None:
  kinds = events.schema['item_id'], items.schema['item_id']
  if kinds[0] != kinds[1]:
    raise DataError(
      f"{events_name}: column 'item_id' has type {kinds[0]}, in {items_name} it has type {kinds[1]}; must be the same type"
    )
  _need_rows(items, 'item_id', pl.col('item_id').is_first_distinct(), 'unique: one row per item', items_name)
  known = pl.col('item_id').is_in(items['item_id'].implode())
  _need_rows(events, 'item_id', known, f'an item of {items_name}', events_name)
