"""The data contract: two tables, what every column means, and one clear error for the first fault.

events  user_id and item_id (integer or string), event (one of config.EVENT_NAMES), timestamp
        (integer, or datetime with or without a zone), optional session_id (integer or string) and
        price (number).
items   item_id (as in events), optional title, text, category_code (dotted path) and brand
        (strings), category_id (integer or string), price (number), embedding (floats, one length
        for all items).

Strings may be categorical. Rows of a user with equal timestamps are unordered. The tables may have
other columns, which are left out, so that nothing outside the contract can reach a model.
`contract.py` says which files hold them.
"""

from __future__ import annotations

import datetime
import reprlib
from typing import NamedTuple

import polars as pl

from rolegen_jax.config import EVENT_COLUMNS, EVENT_NAMES, ITEM_COLUMNS, TIME_UNITS, ConfigError
from rolegen_jax.data.faults import Faults
from rolegen_jax.data.files import DataError, as_data_error

EVENT_DTYPE = pl.Enum(EVENT_NAMES)  # physical value = event code
# Seconds, 2037-01-01 UTC. Devices count in int32, which ends in January 2038: a year is left for
# what is added to a log's last time.
MAX_TIMESTAMP = 2_114_380_800
# 1990-01-01 UTC. An earlier time is in another unit than was declared.
FIRST_TIMESTAMP = 631_152_000
_END_OF_UNITS = 4_102_444_800  # 2100-01-01: later times are in a finer unit

OPTIONAL_EVENT_COLUMNS = ('session_id', 'price')
REQUIRED_EVENT_COLUMNS = tuple(c for c in EVENT_COLUMNS if c not in OPTIONAL_EVENT_COLUMNS)
_TEXT_COLUMNS = ('title', 'text', 'category_code', 'brand')
_ROW = '#'  # column of the row's number in its file
_TABLE = 'a table as the data contract says'


class Source(NamedTuple):
  """Where a table comes from."""

  name: str  # of the file
  faults: Faults  # what becomes of its wrong rows
  rows_before: int = 0  # how many rows of the file are ahead of the table's
  # Of its integer timestamps, one of config.TIME_UNITS; '' = seconds from any origin, and no
  # datetimes.
  time_unit: str = ''
  after: int = 0  # its events must be later, seconds: the end of the log that they continue

  def __str__(self) -> str:
    return self.name


def first_users(known: pl.Series | None, users: pl.Series, count: int) -> pl.Series:
  """Return the first `count` distinct users of `known` followed by `users`.

  Raises ConfigError for a negative count.
  """
  if count < 0:
    raise ConfigError(f'data.max_users={count}: must be at least 0')
  if known is not None:
    users = pl.concat([known, users])
  return users.unique(maintain_order=True).head(count)


def validate(
  events: pl.DataFrame, items: pl.DataFrame, events_name: str = 'events', items_name: str = 'items'
) -> tuple[pl.DataFrame, pl.DataFrame]:
  """Check both tables against the contract.

  events_name, items_name: the files that the tables came from, for error messages.

  Returns (events, items) in canonical types: integers Int64, ids Int64 or String, event
  EVENT_DTYPE, price Float64; rows in the given order, contract columns only. Raises DataError
  naming file, column, 1-based data row, the value found and what would be right.
  """
  faults = Faults()
  items = validate_items(items, Source(items_name, faults))
  events = validate_events(events, items, Source(events_name, faults), items_name)
  require_a_row(events, events_name)
  return events, items


def plausible(seconds: int) -> bool:
  """Return whether a time is of 1990 to 2099."""
  return FIRST_TIMESTAMP <= seconds < _END_OF_UNITS


def id_type(dtype: pl.DataType) -> str:
  if _is_string(dtype):
    return 'string'
  return 'integer' if dtype.is_integer() else str(dtype)


def validate_events(
  events: pl.DataFrame, items: pl.DataFrame, source: Source, items_name: str
) -> pl.DataFrame:
  """Return events of any number in canonical types, as `validate` does.

  items: as `validate_items` returned them. items_name: their file, for error messages.
  """
  # Value checks run on whatever a file holds, so a library failure inside them is a data fault too.
  with as_data_error(source, _TABLE):
    require_columns(events.schema, REQUIRED_EVENT_COLUMNS, source.name)
    events = _numbered(events, EVENT_COLUMNS, source)
    events = _ids(events, 'user_id', source)
    events = _ids(events, 'item_id', source)
    events = _event_codes(events, source)
    events = _timestamps(events, source)
    events = _optional_id(events, 'session_id', source)
    events = _price(events, source)
    return _of_known_items(events, items, source, items_name).drop(_ROW, strict=False)


def validate_items(items: pl.DataFrame, source: Source) -> pl.DataFrame:
  """Return items in canonical types, as `validate` does."""
  with as_data_error(source, _TABLE):
    require_columns(items.schema, ('item_id',), source.name)
    require_a_row(items, source.name)
    items = _numbered(items, ITEM_COLUMNS, source)
    items = _ids(items, 'item_id', source)
    items = _optional_id(items, 'category_id', source)
    for column in _TEXT_COLUMNS:
      items = _text(items, column, source)
    items = _price(items, source)
    items = _embedding(items, source)
    unique = pl.col('item_id').is_first_distinct()
    right = 'unique: one row per item'
    items = good_rows(items, 'item_id', unique, right, source, 'repeated_item_id')
    return items.drop(_ROW, strict=False)


def _numbered(frame: pl.DataFrame, columns: tuple[str, ...], source: Source) -> pl.DataFrame:
  """Return the contract's columns, where rows can be skipped with their numbers in the file."""
  known = frame.select(c for c in columns if c in frame.columns)
  if not source.faults.skips:  # a column of one piece would have all others copied
    return known
  return known.with_row_index(_ROW, source.rows_before + 1)


def require_columns(schema: pl.Schema, columns: tuple[str, ...], name: str) -> None:
  """Raise DataError naming the first column that the file `name` lacks."""
  for column in columns:
    if column not in schema:
      raise DataError(f'{name}: column {column!r} is missing; must have ' + ', '.join(columns))


def require_a_row(frame: pl.DataFrame, name: str) -> None:
  """Raise DataError for a table of the file `name` without rows."""
  if frame.height == 0:
    raise DataError(f'{name}: has no rows; must have at least one')


def _require_type(
  frame: pl.DataFrame, column: str, good: bool, expected: str, source: Source
) -> None:
  if not good:
    raise DataError(
      f'{source}: column {column!r} has type {frame.schema[column]}; must be {expected}'
    )


def good_rows(
  frame: pl.DataFrame, column: str, good: pl.Expr, expected: str, source: Source, kind: str = ''
) -> pl.DataFrame:
  """Return the rows where `good` is true; `source.faults` is told of the others.

  frame: as `_numbered` returned it. kind: of the fault, '' = a wrong `column`.
  """
  bad = frame.select(good.fill_null(False).not_().arg_true()).to_series()
  if not bad.len():
    return frame
  value = frame[column].slice(bad[0], 1).to_list()[0]
  row = frame[_ROW][bad[0]] if _ROW in frame.columns else source.rows_before + bad[0] + 1
  hint = _likely_unit(value, source.time_unit) if column == 'timestamp' else ''
  source.faults.found(
    kind or f'wrong_{column}',
    bad.len(),
    f'{source}: column {column!r}, row {row}: {_shown(value)}; must be {expected}{hint}',
  )
  return frame.filter(good.fill_null(False))


def _shown(value: object) -> str:
  return str(value) if isinstance(value, datetime.datetime) else reprlib.repr(value)


def _likely_unit(value: object, declared: str) -> str:
  """Return in words in which other unit a number would be a time of 1990 to 2099, if in any."""
  for unit, factor in TIME_UNITS.items():
    if unit != (declared or 's') and isinstance(value, int) and plausible(value // factor):
      return f'; {value} looks like {unit}: ' + _remedy(unit, declared)
  return ''


def _remedy(unit: str, declared: str) -> str:
  return f'set data.time_unit={unit}' if declared else f'divide by {TIME_UNITS[unit]}'


def _is_string(dtype: pl.DataType) -> bool:
  return dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum))


def _ids(frame: pl.DataFrame, column: str, source: Source) -> pl.DataFrame:
  dtype, expected = frame.schema[column], 'an integer that fits 64 bits, or a string'
  _require_type(frame, column, dtype.is_integer() or _is_string(dtype), expected, source)
  if dtype.is_integer():
    fits = pl.col(column).cast(pl.Int64, strict=False).is_not_null()
    frame = good_rows(frame, column, fits, expected, source)
    return frame.with_columns(pl.col(column).cast(pl.Int64))
  frame = frame.with_columns(pl.col(column).cast(pl.String))
  return good_rows(frame, column, pl.col(column) != '', 'a string that is not empty', source)


def _event_codes(events: pl.DataFrame, source: Source) -> pl.DataFrame:
  dtype, expected = events.schema['event'], 'one of ' + ', '.join(EVENT_NAMES)
  _require_type(events, 'event', _is_string(dtype), f'string, {expected}', source)
  if dtype == EVENT_DTYPE:
    return good_rows(events, 'event', pl.col('event').is_not_null(), expected, source)
  events = events.with_columns(pl.col('event').cast(pl.String))
  events = good_rows(events, 'event', pl.col('event').is_in(EVENT_NAMES), expected, source)
  return events.with_columns(pl.col('event').cast(EVENT_DTYPE))


def _timestamps(events: pl.DataFrame, source: Source) -> pl.DataFrame:
  """Return events with whole seconds UTC; a datetime without a zone is UTC."""
  dtype, unit = events.schema['timestamp'], source.time_unit
  factor, first = TIME_UNITS[unit or 's'], FIRST_TIMESTAMP if unit else 1
  expected = f'whole seconds UTC, an integer from {first} to {MAX_TIMESTAMP}'
  if unit:
    expected = f'a time UTC of 1990 to 2036, an integer in {unit} (data.time_unit) or a datetime'
  is_moment = unit != '' and isinstance(dtype, pl.Datetime)
  _require_type(events, 'timestamp', is_moment or dtype.is_integer(), expected, source)
  time = pl.col('timestamp')
  seconds = time.dt.epoch('s') if is_moment else time // factor if factor > 1 else time
  events = good_rows(
    events, 'timestamp', seconds.is_between(first, MAX_TIMESTAMP), expected, source
  )
  events = events.with_columns(seconds.cast(pl.Int64).alias('timestamp'))
  if not source.after:
    return events
  end = f'{source.after} ({datetime.datetime.fromtimestamp(source.after, datetime.UTC)})'
  right = f'after the last event of the log, at {end}'
  return good_rows(events, 'timestamp', time > source.after, right, source, 'not_after_the_log')


def _optional_id(frame: pl.DataFrame, column: str, source: Source) -> pl.DataFrame:
  """Check an optional integer or string column, in which nulls are allowed."""
  if column not in frame.columns or frame.schema[column] == pl.Null:
    return frame.drop(column, strict=False)
  dtype, expected = frame.schema[column], 'an integer that fits 64 bits, a string or null'
  _require_type(frame, column, dtype.is_integer() or _is_string(dtype), expected, source)
  if not dtype.is_integer():
    return frame.with_columns(pl.col(column).cast(pl.String))
  fits = pl.col(column).is_null() | pl.col(column).cast(pl.Int64, strict=False).is_not_null()
  frame = good_rows(frame, column, fits, expected, source)
  return frame.with_columns(pl.col(column).cast(pl.Int64))


def _text(items: pl.DataFrame, column: str, source: Source) -> pl.DataFrame:
  if column not in items.columns or items.schema[column] == pl.Null:
    return items.drop(column, strict=False)
  _require_type(items, column, _is_string(items.schema[column]), 'a string or null', source)
  return items.with_columns(pl.col(column).cast(pl.String))


def _price(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
  if 'price' not in frame.columns or frame.schema['price'] == pl.Null:
    return frame.drop('price', strict=False)
  expected = 'a finite number of at least 0, or null'
  _require_type(frame, 'price', frame.schema['price'].is_numeric(), expected, source)
  frame = frame.with_columns(pl.col('price').cast(pl.Float64))
  good = pl.col('price').is_null() | (pl.col('price').is_finite() & (pl.col('price') >= 0))
  return good_rows(frame, 'price', good, expected, source)


def _embedding(items: pl.DataFrame, source: Source) -> pl.DataFrame:
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
  usual = items.select(length.filter(length > 0).mode(maintain_order=True).first()).item()
  good = (length == usual) & finite
  right = f'{expected}, of which most have {usual}' if usual else expected
  return good_rows(items, 'embedding', good, right, source)


def _of_known_items(
  events: pl.DataFrame, items: pl.DataFrame, source: Source, items_name: str
) -> pl.DataFrame:
  """Return the events whose item is in `items`. Raises DataError for ids of another type."""
  event_type, item_type = events.schema['item_id'], items.schema['item_id']
  if event_type != item_type:
    raise DataError(
      f"{source}: column 'item_id' has type {event_type}, in {items_name} it has type {item_type}; "
      'must be the same type'
    )
  known = pl.col('item_id').is_in(items['item_id'].implode())
  return good_rows(events, 'item_id', known, f'an item of {items_name}', source, 'unknown_item')
