"""Read a log that follows the data contract of `events.py`, part by part.

A log is a folder with items.parquet and events.parquet; either may be a folder of any number of
such files instead, whatever their names, at any depth, and either may be CSV or JSON lines.
`folders.py` says which files are read. The settings of section `data` say what the files call the
columns, in which unit their timestamps are, and what becomes of wrong rows. Text has no types:
where any file of a log is text, all its ids are strings.
"""

from __future__ import annotations

import os
import pathlib
import reprlib
from typing import NamedTuple

import polars as pl

from rolegen_jax.config import EVENT_COLUMNS, EVENT_NAMES, ITEM_COLUMNS, DataConfig
from rolegen_jax.data import columns, records
from rolegen_jax.data.columns import Field
from rolegen_jax.data.events import (
  EVENT_DTYPE,
  OPTIONAL_EVENT_COLUMNS,
  REQUIRED_EVENT_COLUMNS,
  Source,
  first_users,
  id_type,
  require_columns,
  validate_events,
  validate_items,
)
from rolegen_jax.data.faults import Faults
from rolegen_jax.data.files import DataError, as_data_error, read_parquet
from rolegen_jax.data.folders import log_files, partition, say_ignored, text_suffix
from rolegen_jax.data.layouts import Delimited, JsonLines
from rolegen_jax.runtime.progress import say

CHUNK_ROWS = 2_000_000  # events of a parquet file read at a time
CONTRACT = DataConfig('contract', '.')  # the settings of a log that has the contract's own names
_PARQUET = 'a readable parquet file'
_IDS = ('user_id', 'item_id', 'session_id')
_ID = 'a string that is not empty, or an integer'


class Chunk(NamedTuple):
  """Rows first:first + rows of the event file `path`: as many as are in memory at a time.

  Files of text are read whole: their rows are -1.
  """

  path: str
  first: int
  rows: int
  folder: str  # of the log
  items: str  # where the items are, for error messages
  text_ids: bool  # whether ids are strings because a file of the log is text


def read_contract(
  path: str | os.PathLike,
  data: DataConfig = CONTRACT,
  faults: Faults | None = None,
  known: pl.DataFrame | None = None,
  after: int = 0,
) -> tuple[pl.DataFrame, pl.DataFrame]:
  """Read and validate the log in a folder, or that whose events a glob matches.

  data: its columns, time_unit and max_users (the first that many users in file order; 0 = all).
  faults: what becomes of wrong rows, None raises the first; it counts what else is left out too, as
  other_users. known: items of the log that this one continues; events may be of them, too, and the
  table of items may have no rows. after: the time of that log's last event; 0 = there is none.

  Returns (events, items) as `validate` does. Raises DataError for the first fault.
  """
  faults = faults or Faults()
  chunks, items = event_chunks(path, data), read_items(path, data, faults, known)
  listed = items.select('item_id') if known is None else _united(items, known)
  if known is not None:
    chunks = [each._replace(items=f'{each.items} or the log that it continues') for each in chunks]
  tables: list[pl.DataFrame] = []
  users: pl.Series | None = None
  for chunk in chunks:
    events = read_events(chunk, listed, data, faults, after)
    if data.max_users:
      users = first_users(users, events['user_id'], data.max_users)
      kept = events.filter(pl.col('user_id').is_in(users.implode()))
      faults.count('other_users', events.height - kept.height)
      events = kept
    tables.append(events)
  events = pl.concat(tables, how='diagonal')
  if not events.height:
    raise DataError(f'{path}: has no valid event rows; must have at least one')
  return events, items


def event_chunks(
  path: str | os.PathLike, data: DataConfig = CONTRACT, rows: int = CHUNK_ROWS
) -> list[Chunk]:
  """Return the event files of a log, in order of their paths, in chunks of at most `rows` rows.

  A file without rows is a chunk of none. Raises DataError when there is no file or no row, when a
  file is unreadable or lacks a column, or when ids differ in type between files.
  """
  log = log_files(path)
  say_ignored(log.root)
  items = str(log.items[0] if len(log.items) == 1 else log.root / 'items')
  has_text = any(map(text_suffix, log.paths))
  chunks: list[Chunk] = []
  schemas: dict[pathlib.Path, dict[str, pl.DataType]] = {}
  for file in log.events:
    if text_suffix(file):
      chunks.append(Chunk(str(file), 0, -1, str(log.root), items, has_text))
      continue
    with as_data_error(file, _PARQUET):
      table = _scan(file, log.root, data)
      schemas[file] = dict(table.collect_schema())
      height = table.select(pl.len()).collect().item()
    chunks += [
      Chunk(str(file), first, min(rows, height - first), str(log.root), items, has_text)
      for first in range(0, max(height, 1), rows)
    ]
  _check_types(schemas, has_text)
  if not any(chunk.rows for chunk in chunks):
    raise DataError(f'{log.events[0]}: has no rows; must have at least one')
  return chunks


def read_events(
  chunk: Chunk,
  items: pl.DataFrame,
  data: DataConfig = CONTRACT,
  faults: Faults | None = None,
  after: int = 0,
) -> pl.DataFrame:
  """Read the rows of `chunk` and return them as `validate` returns events.

  items: what `read_items` returned for the same log. after: as in `read_contract`.
  """
  faults = faults or Faults()
  file = pathlib.Path(chunk.path)
  if text_suffix(file):
    events = _read_text(file, event_fields(data), data.renamed('events'), faults)
    source = Source(chunk.path, faults, after=after)
  else:
    with as_data_error(file, _PARQUET):
      events = _scan(file, chunk.folder, data, chunk.first, chunk.rows).collect()
    if events.height != chunk.rows:
      raise DataError(f'{file}: has lost rows since it was listed; must stay as it is meanwhile')
    source = Source(chunk.path, faults, chunk.first, data.time_unit, after)
  _check_partition(events, file, chunk)
  if chunk.text_ids:
    events = _with_text_ids(events)
  return validate_events(events, items, source, chunk.items)


def read_items(
  path: str | os.PathLike,
  data: DataConfig = CONTRACT,
  faults: Faults | None = None,
  known: pl.DataFrame | None = None,
) -> pl.DataFrame:
  """Read the items of a log and return them as `validate` does; `known` as in `read_contract`.

  Of several files, rows are numbered over all of them. Raises DataError where their ids are of
  another type than those of `known`.
  """
  faults = (faults or Faults()).of('items')
  log = log_files(path)
  tables = [_items_of(file, data, faults) for file in log.items]
  if any(map(text_suffix, log.paths)):
    tables = [_with_text_ids(table) for table in tables]
  name = str(log.items[0] if len(tables) == 1 else log.root / 'items')
  with as_data_error(name, 'tables with the same types of columns'):
    items = pl.concat(tables, how='diagonal')
  if known is None:
    return validate_items(items, Source(name, faults))
  if not items.height:
    return known.clear()
  items = items.with_columns(_null_columns(items, known, any(map(text_suffix, log.items))))
  items = validate_items(items, Source(name, faults))
  found, expected = items.schema['item_id'], known.schema['item_id']
  if found != expected:
    raise DataError(
      f"{name}: column 'item_id' has type {found}, in the log that it continues {expected}; "
      'must be the same type'
    )
  return items


def _null_columns(items: pl.DataFrame, known: pl.DataFrame, is_text: bool) -> list[pl.Series]:
  """Return the columns of `known` in which all of `items` are null: those that lost their type.

  In text they are no columns any more, see `_read_text`.
  """
  here = {c: items.schema.get(c, pl.Null if is_text else None) for c in known.columns}
  empty = known.clear(items.height)
  return [empty[column] for column, dtype in here.items() if dtype == pl.Null]


def _united(items: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
  """Return the ids of both tables."""
  return pl.concat([known.select('item_id'), items.select('item_id')])


def _items_of(file: pathlib.Path, data: DataConfig, faults: Faults) -> pl.DataFrame:
  if text_suffix(file):
    return _read_text(file, item_fields(data), data.renamed('items'), faults)
  table = read_parquet(file)
  names = data.renamed('items')
  require_columns(table.schema, tuple(({'item_id': 'item_id'} | names).values()), str(file))
  return table.select(_renamed(table.schema, ITEM_COLUMNS, names))


def _scan(
  file: pathlib.Path, root: str | os.PathLike, data: DataConfig, first: int = 0, rows: int = -1
) -> pl.LazyFrame:
  """Scan the contract's columns of an event file under their own names. Raises DataError.

  first, rows: which of its rows; -1 = all that follow.
  """
  table = pl.scan_parquet(os.fspath(file), glob=False, hive_partitioning=False)
  table = table.slice(first, rows if rows >= 0 else None)
  names, schema = data.renamed('events'), table.collect_schema()
  found = [column for column in EVENT_COLUMNS if names.get(column, column) in schema]
  _check_folder_names(file, root, found)
  required = {column: column for column in REQUIRED_EVENT_COLUMNS} | names
  require_columns(schema, tuple(required.values()), str(file))
  return table.select(_renamed(schema, EVENT_COLUMNS, names))


def _renamed(schema: pl.Schema, wanted: tuple[str, ...], names: dict[str, str]) -> list[pl.Expr]:
  """Return the columns of the contract that a file has, under the contract's names."""
  in_file = {column: names.get(column, column) for column in wanted}
  return [pl.col(name).alias(column) for column, name in in_file.items() if name in schema]


def event_fields(data: DataConfig) -> tuple[Field, ...]:
  """Return the fields of events in text, as `data` names them."""
  names = data.renamed('events')
  codes = columns.coded({name: name for name in EVENT_NAMES}, EVENT_DTYPE)
  name = {column: names.get(column, column) for column in EVENT_COLUMNS}
  return (
    Field(name['user_id'], 'user_id', columns.label, _ID, json=columns.ID),
    Field(name['item_id'], 'item_id', columns.label, _ID, json=columns.ID),
    Field(name['event'], 'event', codes, 'one of ' + ', '.join(EVENT_NAMES)),
    columns.time_field(name['timestamp'], data.time_unit, settable=True),
    *(_optional(column, names) for column in OPTIONAL_EVENT_COLUMNS),
  )


def item_fields(data: DataConfig) -> tuple[Field, ...]:
  """Return the fields of items in text, as `data` names them."""
  names = data.renamed('items')
  item_id = Field(names.get('item_id', 'item_id'), 'item_id', columns.label, _ID, json=columns.ID)
  return (item_id, *(_optional(column, names) for column in ITEM_COLUMNS[1:]))


def _optional(column: str, names: dict[str, str]) -> Field:
  """Return a field that may be empty, and missing unless `names` says what it is called."""
  an_id = (columns.label, 'a string or an integer', columns.ID)
  kinds = {
    'price': (columns.price, columns.PRICE, columns.SCALAR),
    'embedding': (columns.floats, 'numbers with commas or spaces between them', columns.LISTS),
    'session_id': an_id,
    'category_id': an_id,
  }
  text = (columns.label, 'text or a list of texts', columns.LISTS)
  parse, right, types = kinds.get(column, text)
  name = names.get(column, column)
  return Field(name, column, parse, right, True, column not in names, json=types)


def _read_text(
  file: pathlib.Path, fields: tuple[Field, ...], names: dict[str, str], faults: Faults
) -> pl.DataFrame:
  """Return a table of text without columns that are null everywhere, as JSON has no header.

  Raises DataError where `names` says what such a column is called.
  """
  layout = Delimited(quoted=True) if text_suffix(file) == '.csv' else JsonLines()
  table = records.read([file], layout, fields, faults=faults, may_be_empty=True)
  null = [column for column in table.columns if table[column].null_count() == table.height]
  for column in null:
    if table.height and column in names:
      raise DataError(
        f'{file}: no row has {names[column]!r}, the {column!r} of data.columns; must be in some'
      )
  return table.drop(null) if table.height else table


def _with_text_ids(table: pl.DataFrame) -> pl.DataFrame:
  """Return the table with integer ids as text."""
  ids = [c for c in _IDS if c in table.columns and table.schema[c].is_integer()]
  return table.with_columns(pl.col(ids).cast(pl.String))


def _check_types(schemas: dict[pathlib.Path, dict[str, pl.DataType]], has_text: bool) -> None:
  """Raise DataError where ids differ in type between files; say which files lack a column."""
  id_types: dict[str, tuple[pathlib.Path, str]] = {}  # column -> first file that has it, its type
  for file, schema in schemas.items():
    for column in _IDS:
      if has_text or schema.get(column, pl.Null()) == pl.Null:
        continue
      kind = id_type(schema[column])
      first_file, first_kind = id_types.setdefault(column, (file, kind))
      if kind != first_kind:
        raise DataError(
          f'{file}: column {column!r} has type {kind}, in {first_file} it has type {first_kind}; '
          'must be the same type'
        )
  for column in OPTIONAL_EVENT_COLUMNS:
    lacking = [file for file, schema in schemas.items() if column not in schema]
    if 0 < len(lacking) < len(schemas):
      others = f'here and in {len(lacking) - 1} more files'
      say(f'{lacking[0]}: no column {column!r} {others}; read as null')


def _check_folder_names(file: pathlib.Path, root: str | os.PathLike, found: list[str]) -> None:
  """Raise DataError where a column of the contract is in the name of a folder only."""
  for column in partition(file, root):
    if column in EVENT_COLUMNS and column not in found:
      raise DataError(
        f'{file}: column {column!r} is in the name of its folder only; must be in the file'
      )


def _check_partition(events: pl.DataFrame, file: pathlib.Path, chunk: Chunk) -> None:
  """Raise DataError for the first row that is not in the folder of its value."""
  _check_folder_names(file, chunk.folder, events.columns)
  for column, value in partition(file, chunk.folder).items():
    if column not in EVENT_COLUMNS:
      continue
    with as_data_error(file, f'a table whose column {column!r} is {value!r}'):
      same = (pl.col(column).cast(pl.String) == value).fill_null(False)
      wrong = events.select((~same).arg_true()).to_series()
    if wrong.len():
      found = events[column].slice(wrong[0], 1).to_list()[0]
      raise DataError(
        f'{file}: column {column!r}, row {chunk.first + wrong[0] + 1}: {reprlib.repr(found)}; '
        f'must be {value!r}, as the name of its folder says'
      )
