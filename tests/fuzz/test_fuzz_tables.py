"""Mutated parquet logs: every row is read as it was written, or the log is refused."""

import datetime
import decimal
import math
import random
from collections.abc import Callable
from typing import NamedTuple

import logs
import mutate
import polars as pl
import pytest

from rolegen_jax.config import DataConfig
from rolegen_jax.data.adapters import ROOT_VARIABLE
from rolegen_jax.data.events import FIRST_TIMESTAMP, MAX_TIMESTAMP
from rolegen_jax.data.prepare import load_prepared, prepare, read_tables


class Change(NamedTuple):
  """What is done to a column of a table, and whether the table is still right."""

  column: str
  is_right: bool
  apply: Callable[[random.Random, pl.DataFrame], pl.DataFrame]


def one(column: str, *values, is_right: bool = False) -> list[Change]:
  """Changes that put a value into a random row."""

  def apply(value, rng, table):
    cells = table[column].to_list()
    cells[rng.randrange(len(cells))] = value
    return table.with_columns(pl.Series(column, cells, strict=False, dtype=_type(table, column)))

  return [
    Change(column, is_right, lambda rng, table, value=value: apply(value, rng, table))
    for value in values
  ]


def _type(table: pl.DataFrame, column: str) -> pl.DataType:
  return pl.Int128() if table.schema[column].is_integer() else table.schema[column]


def each(column: str, *made: pl.Expr, is_right: bool = False) -> list[Change]:
  """Changes that replace the whole column."""
  return [
    Change(column, is_right, lambda rng, table, expr=expr: table.with_columns(expr.alias(column)))
    for expr in made
  ]


def missing(column: str, is_right: bool = False) -> list[Change]:
  """The column is not there, or under another name."""
  others = (f' {column}', column.upper(), f'\ufeff{column}', column[:-1])
  renamed = [
    Change(column, is_right, lambda rng, table, name=name: table.rename({column: name}))
    for name in others
  ]
  return [Change(column, is_right, lambda rng, table: table.drop(column)), *renamed]


def types(*kinds) -> list[pl.DataType]:
  return list(kinds)


col = pl.col
TIME = col('timestamp')
FINER = [TIME * factor for factor in (10**3, 10**6, 10**9)]
NO_TIME = [
  TIME.cast(pl.Float64),
  TIME.cast(pl.String),
  pl.from_epoch(TIME).cast(pl.Date),
  TIME > 0,
]
MOMENTS = [
  pl.from_epoch(TIME),
  pl.from_epoch(TIME).cast(pl.Datetime('ns')),
  pl.from_epoch(TIME).dt.replace_time_zone('UTC').dt.convert_time_zone('Asia/Tokyo'),
]
EVENTS = [
  *missing('user_id'),
  *one('user_id', None, 2**64, -(2**64), 2**63),
  *one('user_id', 0, -5, 2**63 - 1, -(2**63), is_right=True),
  *each(
    'user_id', *(col('user_id').cast(kind) for kind in types(pl.Float64, pl.Boolean, pl.Binary))
  ),
  *each('user_id', pl.lit(''), pl.lit(None), pl.lit(None, pl.String), pl.concat_list('user_id')),
  *each('user_id', *(col('user_id').cast(k) for k in types(pl.UInt64, pl.Int32)), is_right=True),
  *each('user_id', '0' + col('user_id').cast(pl.String), pl.lit(' '), is_right=True),
  *each('user_id', ('u' + col('user_id').cast(pl.String)).cast(pl.Categorical), is_right=True),
  *missing('item_id'),
  *one('item_id', None, -1, 2**63),
  *each('item_id', *(col('item_id').cast(kind) for kind in types(pl.String, pl.Float64))),
  *each('item_id', *(col('item_id').cast(k) for k in types(pl.UInt16, pl.Int128)), is_right=True),
  *missing('event'),
  *one('event', 'View', 'views', ' view', '', None, 'click'),
  *each('event', pl.lit(1), pl.lit(None), pl.lit(True), col('event').str.to_uppercase()),
  *each('event', col('event').cast(pl.Categorical), is_right=True),
  *missing('timestamp'),
  *one(
    'timestamp',
    0,
    1,
    FIRST_TIMESTAMP - 1,
    -1,
    None,
    MAX_TIMESTAMP + 1,
    2**31,
    2**63 - 1,
    -(2**63),
    logs.START * 1000,
  ),
  *one('timestamp', FIRST_TIMESTAMP, MAX_TIMESTAMP, 946_684_800, is_right=True),
  *each('timestamp', *FINER, *NO_TIME, pl.lit(None), -TIME),
  *each('timestamp', *MOMENTS, is_right=True),
  *each('timestamp', *(TIME.cast(kind) for kind in types(pl.UInt32, pl.Int32)), is_right=True),
  *missing('session_id', is_right=True),
  *each('session_id', pl.lit(None), pl.lit(''), pl.lit(7), pl.lit(2**63 - 1), is_right=True),
  *each('session_id', pl.lit(1.5), pl.lit(True), pl.lit(2**63, pl.UInt64), pl.lit([1])),
  *missing('price', is_right=True),
  *one('price', math.nan, math.inf, -math.inf, -0.01),
  *one('price', 0.0, 1e300, 5e-324, is_right=True),
  *each('price', pl.lit('1.5'), pl.lit(True), pl.lit(datetime.date(2026, 1, 1)), pl.lit(-1)),
  *each('price', pl.lit(7), pl.lit(None), pl.lit(decimal.Decimal('2.50')), is_right=True),
  *each('other', pl.lit('x'), pl.lit(None), pl.lit([1, 2]), is_right=True),
  Change('rows', False, lambda rng, table: table.clear()),
  Change('rows', True, lambda rng, table: pl.concat([table, table.head(rng.randint(0, 9))])),
  Change('rows', True, lambda rng, table: table.sample(fraction=1, shuffle=True, seed=1)),
  Change('rows', True, lambda rng, table: table.select(reversed(table.columns))),
]
CATALOGUE = [
  *missing('item_id'),
  *one('item_id', None, 2**63),
  *each('item_id', col('item_id').cast(pl.String), pl.lit(1), pl.lit(None)),
  Change('item_id', False, lambda rng, table: pl.concat([table, table.head(1)])),
  Change('rows', False, lambda rng, table: table.clear()),
  *missing('title', is_right=True),
  *each('title', pl.lit(1), pl.lit([1]), pl.lit(1.5)),
  *each('title', pl.lit(None), pl.lit('\n\0\U0001f375'), is_right=True),
  *each('brand', pl.lit(1), pl.lit(True)),
  *each('category_id', pl.lit(0.5), pl.lit(2**63, pl.UInt64)),
  *each('category_id', pl.lit('x'), pl.lit(None), is_right=True),
  *one('price', math.nan, -1.0, math.inf),
  *one('embedding', None, [], [1.0], [1.0, math.nan], [1.0, math.inf], [1.0, None]),
  *each('embedding', pl.lit([1, 2]), pl.lit('x'), pl.lit(1.0), pl.lit(None)),
  *each('embedding', pl.lit([1.0, -2.0]), is_right=True),
  *missing('embedding', is_right=True),
]
WAYS = [
  dict(compression=name) for name in ('uncompressed', 'snappy', 'gzip', 'brotli', 'lz4', 'zstd')
]
WAYS += [dict(row_group_size=1), dict(row_group_size=7, statistics=False), dict(data_page_size=1)]


@pytest.fixture
def root(tmp_path, monkeypatch):
  monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
  return tmp_path


def changed(rng, table, changes):
  """Apply up to two changes of different columns; return the table and whether it is right."""
  is_right, columns = True, set()
  chosen = rng.sample(changes, rng.choice((0, 1, 1, 1, 2)))
  for change in sorted(chosen, key=lambda change: change.column == 'rows'):  # which may drop all
    if change.column not in columns:
      table = change.apply(rng, table)
      is_right &= change.is_right
      columns.add(change.column)
  return table, is_right


def kept_users(rows: list[tuple], most: int) -> list[tuple]:
  users = list(dict.fromkeys(row[0] for row in rows))[:most] if most else {row[0] for row in rows}
  return [row for row in rows if row[0] in users]


@mutate.seeds(200)
def test_a_mutated_table_is_read_in_full_or_refused(root, attempt, seed):
  rng = random.Random(seed)
  catalogue = logs.items(rng)
  events, events_right = changed(rng, logs.events(rng, catalogue), EVENTS)
  items_right = True
  if rng.random() < 0.4:
    catalogue, items_right = changed(rng, catalogue, CATALOGUE)
  log = root / 'log'
  log.mkdir()
  events.write_parquet(log / 'events.parquet', **rng.choice(WAYS))
  catalogue.write_parquet(log / 'items.parquet', **rng.choice(WAYS))
  data = DataConfig('contract', 'log', max_users=rng.choice((0, 0, 2)))
  read = attempt(lambda: read_tables(data))
  if not (events_right and items_right):
    assert 'must' in read.refusal and str(log) in read.refusal
    if 'looks like' in read.refusal:
      assert 'set data.time_unit=' in read.refusal
    return
  assert not read.refusal
  written = logs.rows_of(events)
  kept = kept_users(written, data.max_users)
  assert logs.rows_of(read.value.events) == kept
  assert sum(read.value.left_out.values()) == len(written) - len(kept)
  names = [name for name in catalogue.columns if name in read.value.items.columns]
  assert (
    read.value.items.select(names).rows()
    == catalogue.with_columns(
      col('embedding').cast(pl.List(pl.Float32)) if 'embedding' in names else []
    )
    .select(names)
    .rows()
  )
  assert all(
    catalogue[n].null_count() == ITEMS for n in CONTRACT & set(catalogue.columns) - set(names)
  )
  check_prepared(data, read.value, kept, root / 'run')


ITEMS = logs.ITEMS
CONTRACT = set(logs.items(random.Random(0)).columns)


def check_prepared(data, tables, rows, folder):
  """The stage `data` keeps every row, in the notes and on disk."""
  prepared = mutate.attempt(lambda: prepare(data, tables, folder))
  if prepared.refusal:
    assert prepared.refusal.startswith('split ') or 'no event purchase' in prepared.refusal
    return
  notes = prepared.value[2]
  assert notes['rows'] == len(rows) and notes['left_out'] == tables.left_out
  log, _ = load_prepared(folder)
  indexed = zip(log.user, log.item, log.event, log.timestamp, log.count)
  found = [
    (log.users[int(u)], log.items['item_id'][int(i)], logs.EVENT_NAMES[e], int(t))
    for u, i, e, t, count in indexed
    for _ in range(count)
  ]
  assert sorted(found) == sorted(row[:4] for row in rows)


@mutate.seeds(40)
def test_a_damaged_file_is_refused_or_keeps_its_rows(root, attempt, seed):
  rng = random.Random(seed)
  catalogue, log = logs.items(rng), root / 'log'
  events = logs.events(rng, catalogue)
  log.mkdir()
  events.write_parquet(log / 'events.parquet', **rng.choice(WAYS))
  catalogue.write_parquet(log / 'items.parquet', **rng.choice(WAYS))
  damaged = log / rng.choice(('events.parquet', 'events.parquet', 'items.parquet'))
  damaged.write_bytes(mutate.mutated(rng, damaged.read_bytes()))
  read = attempt(lambda: read_tables(DataConfig('contract', 'log')))
  if not read.refusal:  # parquet without checksums: a value may be another, a row is not lost
    assert read.value.events.height == events.height
    assert read.value.items.height == catalogue.height


RANKS = [
  *missing('pos'),
  *one('pos', None, -1, MAX_TIMESTAMP, 2**63),
  *each('pos', col('pos').cast(pl.Float64), col('pos').cast(pl.String), pl.lit(None)),
  Change('pos', False, lambda rng, table: pl.concat([table, table.head(1)])),
  *each('timestamp', pl.lit(None), TIME * 1000, pl.lit('x'), is_right=True),
  *missing('timestamp', is_right=True),
  *[change for change in EVENTS if change.column in ('user_id', 'item_id', 'event')],
]


@mutate.seeds(40)
def test_ranked_sequences_keep_rank_and_rows(root, attempt, seed):
  rng = random.Random(seed)
  catalogue, log = logs.items(rng), root / 'log'
  table = logs.events(rng, catalogue).with_columns(pos=pl.int_range(pl.len()).over('user_id'))
  table, is_right = changed(rng, table, RANKS)
  log.mkdir()
  table.write_parquet(log / 'events.parquet')
  catalogue.write_parquet(log / 'items.parquet')
  data = DataConfig('ranked_sequences', 'log', max_users=rng.choice((0, 2)))
  read = attempt(lambda: read_tables(data))
  if is_right and table.select(pl.struct('user_id', 'pos').is_duplicated().any()).item():
    is_right = False  # users became one
  assert bool(read.refusal) != is_right
  if is_right:
    rows = logs.rows_of(table.with_columns(timestamp=col('pos') + 1))
    kept = kept_users(rows, data.max_users)
    assert logs.rows_of(read.value.events) == kept
    assert sum(read.value.left_out.values()) == len(rows) - len(kept)
