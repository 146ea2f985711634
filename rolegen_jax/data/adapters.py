"""One adapter per public log format, from the ORIGINAL files to the data contract.

An adapter is `f(path, data_config) -> (events, items, left_out)`: the two tables of the contract as
polars frames, and counts of what was left out. To add a format, write such a function, put it into
`ADAPTERS`, and say in `SOURCES` where the log is to be had and in `log_fingerprint` which files it
reads.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import polars as pl

from rolegen_jax.config import DataConfig
from rolegen_jax.data import delimited
from rolegen_jax.data.delimited import INTEGER, NUMBER, Field, coded, integer, label, number
from rolegen_jax.data.events import (
  EVENT_DTYPE,
  MAX_TIMESTAMP,
  event_chunks,
  first_users,
  read_chunks,
  read_items,
  validate,
)
from rolegen_jax.data.files import DataError, read_parquet
from rolegen_jax.data.folders import csv_files, fingerprint, log_files
from rolegen_jax.fields import local_path

Adapted = tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]
Adapter = Callable[[pathlib.Path, DataConfig], Adapted]

ROOT_VARIABLE = 'ROLEGEN_DATA'
SOURCES = {
  'contract': 'your own log: events.parquet and items.parquet as rolegen_jax/data/events.py '
  'describes them',
  'alibaba2014': 'Alibaba 2014 big-data contest, season 1, Tmall brand recommendation '
  '(t_alibaba_data.csv): https://tianchi.aliyun.com, '
  'copy at https://github.com/yezhang/BuyingBehaviourPredict',
  'taobao_userbehavior': 'Taobao UserBehavior (UserBehavior.csv): '
  'https://tianchi.aliyun.com/dataset/649',
  'rees46': 'REES46 eCommerce behavior data from multi category store '
  '(2019-Oct.csv, or a folder of it and later months): '
  'https://www.kaggle.com/datasets/mkechinov/ecommerce-behavior-data-from-multi-category-store',
  'ranked_sequences': 'Amazon Reviews 2014, Beauty 5-core, as events.parquet (with pos) and '
  'items.parquet: https://jmcauley.ucsd.edu/data/amazon/',
}

# Seconds UTC of 2017-11-25 00:00 and 2017-12-04 00:00 (exclusive) in UTC+8.
TAOBAO_WINDOW = (1511539200, 1512316800)
# The file has no year; the contest opened in March 2014 with a log of the April to August before.
ALIBABA_YEAR = 2013


def log_path(data: DataConfig) -> pathlib.Path:
  """Return where the log of `data` lies: `data.path` under $ROLEGEN_DATA.

  Without the variable the root is data/ in the working directory. Raises DataError naming the full
  path, the variable and where the log is to be had.
  """
  folder = local_path(os.environ.get(ROOT_VARIABLE) or 'data', f'${ROOT_VARIABLE}')
  root = pathlib.Path(folder).absolute()
  path = root / data.path
  if not path.exists():
    raise DataError(
      f'{path}: no such file or folder (data.path={data.path!r} under ${ROOT_VARIABLE}={root}); '
      f'set ${ROOT_VARIABLE} to the folder that holds it, or get it: {SOURCES[data.format]}'
    )
  return path


def log_fingerprint(data: DataConfig) -> dict[str, list[int]]:
  """Return what `folders.fingerprint` says of the files that the adapter of `data` reads.

  Raises DataError when one is missing, and for a file that would not be read.
  """
  path = log_path(data)
  if data.format in ('contract', 'ranked_sequences'):
    items_path, event_paths = log_files(path)
    return fingerprint(path, [items_path, *event_paths])
  return fingerprint(path, csv_files(path))


def alibaba2014(path: pathlib.Path, data: DataConfig) -> Adapted:
  """Read user_id,brand_id,type,visit_datetime.

  An item is a brand. Days are 'M-D', taken as midnight UTC of that day in 2013.
  """
  kinds = {'0': 'view', '1': 'purchase', '2': 'fav', '3': 'cart'}
  kinds_expected = '0 (click), 1 (purchase), 2 (favorite) or 3 (cart)'
  fields = (
    Field('user_id', 'user_id', integer, INTEGER),
    Field('brand_id', 'item_id', integer, INTEGER),
    Field('type', 'event', coded(kinds, EVENT_DTYPE), kinds_expected),
    Field('visit_datetime', 'timestamp', _alibaba_day, f'a date M-D of {ALIBABA_YEAR}'),
  )
  table, left_out = delimited.read(path, fields, header=True, max_users=data.max_users)
  return table, _items_of(table), left_out


def taobao_userbehavior(path: pathlib.Path, data: DataConfig) -> Adapted:
  """Read user,item,category,behavior,timestamp without a header.

  Rows outside the nine days that the log's documentation names are dropped and counted.
  """
  kinds = {'pv': 'view', 'fav': 'fav', 'cart': 'cart', 'buy': 'purchase'}
  kinds_expected = 'one of ' + ', '.join(kinds)
  fields = (
    Field('user ID', 'user_id', integer, INTEGER),
    Field('item ID', 'item_id', integer, INTEGER),
    Field('category ID', 'category_id', integer, INTEGER),
    Field('behavior type', 'event', coded(kinds, EVENT_DTYPE), kinds_expected),
    Field('timestamp', 'timestamp', integer, 'whole seconds UTC'),
  )
  table, left_out = delimited.read(path, fields, header=False, max_users=data.max_users)
  inside = table.filter(pl.col('timestamp').is_between(*TAOBAO_WINDOW, closed='left'))
  left_out['dropped_outside_window'] = table.height - inside.height
  if inside.height == 0:
    raise DataError(
      f"{path}: field 'timestamp' is {table['timestamp'][0]} in the first line and in no line in "
      f'seconds {TAOBAO_WINDOW[0]} to {TAOBAO_WINDOW[1] - 1}; must have lines there'
    )
  return inside.drop('category_id'), _items_of(inside, 'category_id'), left_out


def rees46(path: pathlib.Path, data: DataConfig) -> Adapted:
  """Read event_time,event_type,product_id,...

  Times are UTC. An item has its latest category, brand and price.
  """
  kinds = {'view': 'view', 'cart': 'cart', 'remove_from_cart': 'remove', 'purchase': 'purchase'}
  kinds_expected = 'one of ' + ', '.join(kinds)
  fields = (
    Field('event_time', 'timestamp', _rees46_time, "a time 'YYYY-MM-DD hh:mm:ss UTC'"),
    Field('event_type', 'event', coded(kinds, EVENT_DTYPE), kinds_expected),
    Field('product_id', 'item_id', integer, INTEGER),
    Field('category_id', 'category_id', integer, INTEGER),
    Field('category_code', 'category_code', label, 'text', optional=True),
    Field('brand', 'brand', label, 'text', optional=True),
    Field('price', 'price', number, NUMBER, optional=True),
    Field('user_id', 'user_id', integer, INTEGER),
    Field('user_session', 'session_id', label, 'text', optional=True),
  )
  table, left_out = delimited.read(path, fields, header=True, max_users=data.max_users)
  in_time_order = table.sort('timestamp', maintain_order=True)
  items = _items_of(in_time_order, 'category_id', 'category_code', 'brand', 'price')
  events = table.select('user_id', 'item_id', 'event', 'timestamp', 'session_id', 'price')
  return events, items, left_out


def ranked_sequences(path: pathlib.Path, data: DataConfig) -> Adapted:
  """Read a folder whose events have a chronological rank `pos` within their user.

  The timestamp becomes pos + 1: order only, no durations, and no common clock between users. Use it
  with data.split='leave_one_out'. A timestamp column in events.parquet may have nulls and is not
  used.
  """
  items_path, event_paths = log_files(path)
  events_name, items_name = str(event_paths[0]), str(items_path)
  if len(event_paths) > 1:
    raise DataError(f'{event_paths[1]}: is a second event file; ranked sequences must be in one')
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
  """Read a folder that follows the data contract already."""
  chunks, items = event_chunks(path), read_items(path)
  events = read_chunks(path, chunks, items, data.max_users)
  if not data.max_users:
    return events, items, {}
  return events, items, {'other_users': sum(chunk.rows for chunk in chunks) - events.height}


ADAPTERS: dict[str, Adapter] = {
  'contract': contract,
  'alibaba2014': alibaba2014,
  'taobao_userbehavior': taobao_userbehavior,
  'rees46': rees46,
  'ranked_sequences': ranked_sequences,
}


def _alibaba_day(text: pl.Expr) -> pl.Expr:
  day = (pl.lit(f'{ALIBABA_YEAR}-') + text).str.to_date('%Y-%m-%d', strict=False)
  return day.cast(pl.Datetime).dt.epoch('s')


def _rees46_time(text: pl.Expr) -> pl.Expr:
  return text.str.to_datetime('%Y-%m-%d %H:%M:%S UTC', strict=False).dt.epoch('s')


def _items_of(table: pl.DataFrame, *columns: str) -> pl.DataFrame:
  """Return one row per item of `table`, sorted by id, with the last non-null value per column."""
  last = (pl.col(column).drop_nulls().last() for column in columns)
  return table.lazy().group_by('item_id').agg(last).sort('item_id').collect()


def _require_pos(events: pl.DataFrame, good: pl.Expr, fault: str, name: str) -> None:
  """Raise DataError for the first row whose `pos` is not good. fault: what follows its value."""
  bad = events.select(good.fill_null(False).not_().arg_true()).to_series()
  if bad.len():
    row = bad[0]
    raise DataError(f"{name}: column 'pos', row {row + 1}: {events['pos'][row]}{fault}")
