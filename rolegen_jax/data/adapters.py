"""From the ORIGINAL files of a log to the data contract, whatever its format.

An adapter is `f(path, data_config) -> (events, items, left_out)`: the two tables of the contract as
polars frames, and counts of what was left out. Public logs are described in `formats/` and read by
one function; to add one, describe it there and name it in `FORMATS` and in `config.FORMATS`.
"""

from __future__ import annotations

import fnmatch
import itertools
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import polars as pl

from rolegen_jax.config import EVENT_COLUMNS, ITEM_COLUMNS, DataConfig
from rolegen_jax.data import records
from rolegen_jax.data.contract import read_contract
from rolegen_jax.data.events import MAX_TIMESTAMP, first_users, validate
from rolegen_jax.data.faults import Faults
from rolegen_jax.data.files import DataError, read_parquet
from rolegen_jax.data.folders import (
  IGNORED,
  Fingerprint,
  fingerprint,
  is_glob,
  listed,
  log_files,
  say_ignored,
  text_suffix,
)
from rolegen_jax.data.formats import media, recbole, shops
from rolegen_jax.data.formats.description import Format, Table
from rolegen_jax.fields import local_path
from rolegen_jax.runtime import mirror, storage

Adapted = tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]
Adapter = Callable[[pathlib.Path, DataConfig], Adapted]

ROOT_VARIABLE = 'ROLEGEN_DATA'
FORMATS: dict[str, Format] = {
  'alibaba2014': shops.ALIBABA2014,
  'taobao_userbehavior': shops.TAOBAO_USERBEHAVIOR,
  'rees46': shops.REES46,
  'recbole': recbole.described(DataConfig()),
  'amazon_reviews2023': media.AMAZON_REVIEWS2023,
  'movielens': media.MOVIELENS,
  'retailrocket': shops.RETAILROCKET,
  'tmall': shops.TMALL,
  'otto': shops.OTTO,
  'kuairand': media.KUAIRAND,
  'yambda': media.YAMBDA,
  'merrec': shops.MERREC,
}
SOURCES = {
  'contract': 'your own log: events.parquet and items.parquet as rolegen_jax/data/events.py '
  'describes them',
  'ranked_sequences': 'Amazon Reviews 2014, Beauty 5-core, as events.parquet (with pos) and '
  'items.parquet: https://jmcauley.ucsd.edu/data/amazon/',
  **{name: log.source for name, log in FORMATS.items()},
}


def log_path(data: DataConfig) -> pathlib.Path:
  """Return where the log of `data` lies: `data.path` under $ROLEGEN_DATA.

  Without the variable the root is data/ in the working directory. Either may be in a bucket: what
  is returned then is its mirror. Raises DataError naming the full path, the variable and where the
  log is to be had.
  """
  folder = local_path(os.environ.get(ROOT_VARIABLE) or 'data', f'${ROOT_VARIABLE}', urls=True)
  root = folder if storage.is_remote(folder) else os.path.abspath(folder)
  whole = data.path if storage.is_remote(data.path) else os.path.join(root, data.path)
  path = _opened(os.path.normpath(whole) if whole.startswith('/') else whole)
  if not path.exists() and not is_glob(path):
    raise DataError(
      f'{path}: no such file or folder (data.path={data.path!r} under ${ROOT_VARIABLE}={root}); '
      f'set ${ROOT_VARIABLE} to the folder that holds it, or get it: {SOURCES[data.format]}'
    )
  return path


def _opened(name: str) -> pathlib.Path:
  """Return a path of this machine or of a mirror, of a glob that of the folder above its events."""
  if not storage.is_remote(name):
    return pathlib.Path(name)
  fixed = itertools.takewhile(lambda part: not set(part) & set('*?['), name.split('/'))
  above = '/'.join(fixed)
  if above != name:
    above = above.rpartition('/')[0]
  return mirror.opened(above) / name[len(above) :].strip('/')


def log_fingerprint(data: DataConfig) -> Fingerprint:
  """Return what `folders.fingerprint` says of the files that the adapter of `data` reads.

  Raises DataError when one is missing, and for a file that would not be read.
  """
  root, paths = _files_of(log_path(data), data)
  return fingerprint(root, paths)


def fetched_log(data: DataConfig) -> pathlib.Path:
  """Return `log_path`, the files that the adapter of `data` reads being on this machine."""
  path = log_path(data)
  mirror.fetch(*_files_of(path, data)[1])
  return path


def _files_of(path: pathlib.Path, data: DataConfig) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """Return a folder above all files of a log, and the files."""
  if data.format in FORMATS:
    files = _public_files(path, _format(data))
    return files.root, [*files.items, *files.events]
  log = log_files(path)
  return log.root, log.paths


def ranked_sequences(path: pathlib.Path, data: DataConfig) -> Adapted:
  """Read a folder whose events have a chronological rank `pos` within their user.

  The timestamp becomes pos + 1: order only, no durations, and no common clock between users. Use it
  with data.split='leave_one_out'. A timestamp column in events.parquet may have nulls and is not
  used.
  """
  log = log_files(path)
  for file in log.paths:
    if text_suffix(file):
      raise DataError(f'{file}: is text; ranked sequences must be parquet')
  for files in (log.events, log.items):
    if len(files) > 1:
      raise DataError(f'{files[1]}: is a second file; ranked sequences must be in one')
  events_name, items_name = str(log.events[0]), str(log.items[0])
  events = read_parquet(events_name)
  if 'pos' not in events.columns or not events.schema['pos'].is_integer():
    raise DataError(
      f"{events_name}: column 'pos' is missing or no integer; "
      'must be the chronological rank in the user, from 0'
    )
  in_range = pl.col('pos').is_between(0, MAX_TIMESTAMP - 1)
  _require_pos(events, in_range, f'; must be from 0 to {MAX_TIMESTAMP - 1}', events_name)
  if 'user_id' in events.columns:  # its absence is the contract's to report
    is_first = pl.struct('user_id', 'pos').is_first_distinct()
    _require_pos(events, is_first, ' again; must be unique within a user', events_name)
  events = events.with_columns(timestamp=pl.col('pos').cast(pl.Int64) + 1)
  events, items = validate(events, read_parquet(items_name), events_name, items_name)
  if not data.max_users:
    return events, items, {}
  users = first_users(None, events['user_id'], data.max_users)
  kept = events.filter(pl.col('user_id').is_in(users.implode()))
  return kept, items, {'other_users': events.height - kept.height}


def contract(path: pathlib.Path, data: DataConfig) -> Adapted:
  """Read a log that follows the data contract already."""
  faults = Faults(data)
  events, items = read_contract(path, data, faults)
  return events, items, dict(faults.counts)


def public(path: pathlib.Path, data: DataConfig) -> Adapted:
  """Read a public log from its original files, as its format describes them."""
  log, faults = _format(data), Faults(data)
  files = _public_files(path, log)
  table = files.table
  say_ignored(path)
  events = records.read(
    files.events,
    table.layout,
    table.fields,
    data.max_users,
    faults,
    where=table.where,
    may_be_cut=True,
  )
  events = events.with_columns(**table.made)
  if log.window:
    inside = events.filter(log.window.keep)
    faults.count(log.window.reason, events.height - inside.height)
    if not inside.height:
      raise DataError(
        f"{path}: field 'timestamp' is {events['timestamp'][0]} in the first line and in no line "
        f'{log.window.right}; must have lines there'
      )
    events = inside
  items = _latest(events, log.attributes)
  if files.items_table:
    items = items.join(_items(files.items, files.items_table, faults), on='item_id', how='left')
  return (
    events.select(column for column in EVENT_COLUMNS if column in events.columns),
    items.select(column for column in ITEM_COLUMNS if column in items.columns),
    dict(faults.counts),
  )


ADAPTERS: dict[str, Adapter] = {
  'contract': contract,
  'ranked_sequences': ranked_sequences,
  **dict.fromkeys(FORMATS, public),
}


def _format(data: DataConfig) -> Format:
  return recbole.described(data) if data.format == 'recbole' else FORMATS[data.format]


class _Files(NamedTuple):
  """The files of a public log, and which of its tables they are."""

  root: pathlib.Path  # a folder above all of them
  events: list[pathlib.Path]
  table: Table
  items: list[pathlib.Path]
  items_table: Table | None


def _public_files(path: pathlib.Path, log: Format) -> _Files:
  """Find the files of a log. A single file holds events, whatever its name.

  Raises DataError naming a file of a folder that would not be read, and where there are no events
  or those of two forms.
  """
  root, files = listed(path)
  if path.is_file():
    table = next((table for table in log.events if _is_named(path, table.files)), log.events[0])
    return _Files(root, files, table, [], None)
  patterns = ', '.join(pattern for table in log.events for pattern in table.files)
  found: dict[int, list[pathlib.Path]] = {}
  tables = [*log.items, *log.events]  # names of items are the narrower ones
  for file in files:
    number = next((n for n, table in enumerate(tables) if _is_named(file, table.files)), None)
    if number is not None:
      found.setdefault(number, []).append(file)
    elif not _is_named(file, log.unread):
      raise DataError(
        f'{file}: would not be read; must be named {patterns}, or lie elsewhere '
        f'(only {", ".join(IGNORED)} are ignored)'
      )
  events = [number for number in sorted(found) if number >= len(log.items)]
  items = [number for number in sorted(found) if number < len(log.items)]
  if not events:
    raise DataError(f'{path}: has no file of events; must have one named {patterns}')
  for numbers in (events, items):
    if len(numbers) > 1:
      first, second = (found[number][0].name for number in numbers[:2])
      raise DataError(
        f'{path}: has {first} and {second}, two forms of a log; must have one of them'
      )
  items_table = tables[items[0]] if items else None
  return _Files(
    root,
    found[events[0]],
    tables[events[0]],
    found[items[0]] if items else [],
    items_table,
  )


def _is_named(file: pathlib.Path, patterns: tuple[str, ...]) -> bool:
  return any(fnmatch.fnmatchcase(file.name.lower(), pattern) for pattern in patterns)


def _items(files: list[pathlib.Path], table: Table, faults: Faults) -> pl.DataFrame:
  """Return what the files say of items, one row per item."""
  rows = records.read(
    files,
    table.layout,
    table.fields,
    faults=faults.of('items'),
    may_be_empty=True,
    where=table.where,
    may_be_cut=True,
  )
  rows = rows.with_columns(**table.made)
  known = [column for column in ITEM_COLUMNS[1:] if column in rows.columns]
  return _latest(rows, tuple(known))


def _latest(rows: pl.DataFrame, columns: tuple[str, ...]) -> pl.DataFrame:
  """Return one row per item of `rows`, sorted by id, with the latest non-null value per column.

  Without timestamps the later row counts.
  """
  timed = [column for column in ('timestamp',) if columns and column in rows.columns]
  described = rows.lazy().select('item_id', *columns, *timed)
  if timed:
    described = described.sort('timestamp', maintain_order=True)
  last = (pl.col(column).drop_nulls().last() for column in columns)
  return described.group_by('item_id').agg(last).sort('item_id').collect()


def _require_pos(events: pl.DataFrame, good: pl.Expr, fault: str, name: str) -> None:
  """Raise DataError for the first row whose `pos` is not good. fault: what follows its value."""
  bad = events.select(good.fill_null(False).not_().arg_true()).to_series()
  if bad.len():
    row = bad[0]
    raise DataError(f"{name}: column 'pos', row {row + 1}: {events['pos'][row]}{fault}")
