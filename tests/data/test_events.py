"""The data contract: good tables pass, a wrong one gives a DataError.

The error says where the fault is and what would be right.
"""

import random

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.contract import read_contract
from rolegen_jax.data.events import EVENT_DTYPE, DataError, validate


def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
  events = pl.DataFrame(
    {
      'user_id': [7, 7, 9],
      'item_id': [30, 31, 30],
      'event': ['view', 'purchase', 'view'],
      'timestamp': [100, 200, 150],
      'session_id': ['a', None, 'b'],
      'price': [1.5, None, 0.0],
    }
  )
  items = pl.DataFrame(
    {
      'item_id': [31, 30],
      'title': ['x', None],
      'price': [2, 3],
      'embedding': [[0.0, 1.0], [1.0, 0.5]],
    }
  )
  return events, items


def test_good_tables_come_back_in_canonical_types():
  events, items = tables()
  events = events.with_columns(
    pl.col('user_id').cast(pl.UInt8), secret=pl.lit('not in the contract')
  )
  valid_events, valid_items = validate(events, items)
  assert valid_events.schema == {
    'user_id': pl.Int64,
    'item_id': pl.Int64,
    'event': EVENT_DTYPE,
    'timestamp': pl.Int64,
    'session_id': pl.String,
    'price': pl.Float64,
  }
  assert valid_events['event'].to_physical().to_list() == [
    EVENT_NAMES.index(e) for e in ('view', 'purchase', 'view')
  ]
  assert valid_items['item_id'].to_list() == [31, 30]  # rows keep their order
  assert validate(valid_events, valid_items)[0].equals(valid_events)


@pytest.mark.parametrize('column', ['user_id', 'item_id', 'event'])
def test_dictionary_encoded_strings_are_strings(column):
  events, items = (
    t.with_columns(pl.col(c).cast(pl.String) for c in ('user_id', 'item_id') if c in t.columns)
    for t in tables()
  )
  assert validate(events.with_columns(pl.col(column).cast(pl.Categorical)), items)[0].height == 3


def put(column, value, row=1, dtype=None):
  def corrupt(frame):
    values = frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values, dtype=dtype))

  return corrupt


def retype(column, dtype):
  return lambda frame: frame.with_columns(pl.col(column).cast(dtype))


WRONG_EVENTS = {
  'missing column': (
    lambda f: f.drop('event'),
    ["column 'event' is missing", 'user_id, item_id, event, timestamp'],
  ),
  'unknown event': (put('event', 'pv'), ["column 'event', row 2: 'pv'", *EVENT_NAMES]),
  'event no string': (lambda f: f.with_columns(event=1), ["column 'event'", 'string', 'purchase']),
  'null user': (put('user_id', None), ["column 'user_id', row 2: None", 'integer']),
  'null item': (put('item_id', None, 2), ["column 'item_id', row 3: None"]),
  'null event': (put('event', None, 0), ["column 'event', row 1: None"]),
  'null coded event': (
    lambda f: retype('event', EVENT_DTYPE)(put('event', None, 0)(f)),
    ["column 'event', row 1: None"],
  ),
  'null time': (put('timestamp', None), ["column 'timestamp', row 2: None"]),
  'zero time': (put('timestamp', 0), ['row 2: 0;', 'from 1 to 2114380800']),
  'negative time': (put('timestamp', -5), ['row 2: -5;', 'seconds UTC']),
  'milliseconds': (
    put('timestamp', 1_511_544_070_000),
    ['row 2: 1511544070000', 'from 1 to 2114380800', 'looks like ms: divide by 1000'],
  ),
  'microseconds': (
    put('timestamp', 1_511_544_070_000_000, dtype=pl.UInt64),
    ['looks like us: divide by 1000000'],
  ),
  'nanoseconds': (
    put('timestamp', 1_511_544_070_000_000_000),
    ['looks like ns: divide by 1000000000'],
  ),
  'one second too late': (put('timestamp', 2_114_380_801), ['row 2: 2114380801; must be whole']),
  'last of int32': (put('timestamp', 2**31 - 1), ['row 2: 2147483647; must be whole']),
  'beyond int64': (put('timestamp', 2**63, dtype=pl.UInt64), ['row 2: 9223372036854775808;']),
  'date': (
    lambda f: f.with_columns(pl.from_epoch('timestamp').dt.date()),
    ["column 'timestamp' has type Date", 'whole seconds UTC'],
  ),
  'datetime with a zone': (
    lambda f: f.with_columns(pl.from_epoch('timestamp').dt.replace_time_zone('Asia/Shanghai')),
    ["column 'timestamp' has type Datetime", 'whole seconds UTC'],
  ),
  'duration': (
    lambda f: f.with_columns(pl.duration(seconds='timestamp').alias('timestamp')),
    ["column 'timestamp' has type Duration", 'whole seconds UTC'],
  ),
  'decimal time': (
    retype('timestamp', pl.Decimal(20, 0)),
    ["column 'timestamp' has type Decimal", 'whole seconds UTC'],
  ),
  'whole float user': (
    retype('user_id', pl.Float64),
    ["column 'user_id' has type Float64", 'an integer'],
  ),
  'float time': (
    retype('timestamp', pl.Float64),
    ["column 'timestamp' has type Float64", 'integer'],
  ),
  'text time': (retype('timestamp', pl.String), ["column 'timestamp' has type String", 'integer']),
  'datetime': (
    lambda f: f.with_columns(pl.from_epoch('timestamp')),
    ["column 'timestamp' has type Datetime", 'seconds'],
  ),
  'float user': (
    retype('user_id', pl.Float32),
    ["column 'user_id' has type Float32", 'an integer', 'a string'],
  ),
  'list item': (
    lambda f: f.with_columns(item_id=pl.concat_list('item_id')),
    ["column 'item_id' has type List(Int64)"],
  ),
  'bool user': (lambda f: f.with_columns(user_id=True), ["column 'user_id' has type Boolean"]),
  'empty user': (
    lambda f: put('user_id', '')(retype('user_id', pl.String)(f)),
    ["column 'user_id', row 2: ''", 'not empty'],
  ),
  'huge user': (
    put('user_id', 2**63, dtype=pl.UInt64),
    ["column 'user_id', row 2: 9223372036854775808", '64 bits'],
  ),
  'types differ': (
    retype('item_id', pl.String),
    ["column 'item_id' has type String", 'in items.parquet it has type Int64'],
  ),
  'unknown item': (put('item_id', 99), ["column 'item_id', row 2: 99", 'an item of items.parquet']),
  'no rows': (lambda f: f.head(0), ['no rows', 'at least one']),
  'float session': (
    lambda f: f.with_columns(session_id=0.5),
    ["column 'session_id' has type Float64"],
  ),
  'text price': (
    lambda f: f.with_columns(price=pl.lit('1')),
    ["column 'price' has type String", 'finite'],
  ),
  'negative price': (put('price', -0.5), ["column 'price', row 2: -0.5"]),
  'infinite price': (put('price', float('inf')), ["column 'price', row 2: inf"]),
  'nan price': (put('price', float('nan')), ["column 'price', row 2: nan"]),
}


@pytest.mark.parametrize('corrupt, words', WRONG_EVENTS.values(), ids=WRONG_EVENTS)
def test_errors_name_the_fault_in_events(corrupt, words):
  events, items = tables()
  with pytest.raises(DataError) as error:
    validate(corrupt(events), items, 'events.parquet', 'items.parquet')
  assert str(error.value).startswith('events.parquet: ')
  assert all(word in str(error.value) for word in words), str(error.value)


WRONG_ITEMS = {
  'twice': (lambda f: pl.concat([f, f]), ["column 'item_id', row 3: 31", 'unique']),
  'no rows': (lambda f: f.head(0), ['no rows']),
  'no id': (lambda f: f.drop('item_id'), ["column 'item_id' is missing"]),
  'title no text': (lambda f: f.with_columns(title=1), ["column 'title' has type", 'string']),
  'negative price': (put('price', -1), ["column 'price', row 2: -1.0"]),
  'embedding widths': (
    put('embedding', [1.0]),
    ["column 'embedding', row 2: [1.0]", 'same length'],
  ),
  'embedding nan': (
    put('embedding', [1.0, float('nan')]),
    ["column 'embedding', row 2: [1.0, nan]", 'finite'],
  ),
  'embedding null': (put('embedding', None), ["column 'embedding', row 2: None"]),
  'embedding of text': (
    lambda f: f.with_columns(embedding=pl.lit('x')),
    ["column 'embedding' has type String"],
  ),
}


@pytest.mark.parametrize('corrupt, words', WRONG_ITEMS.values(), ids=WRONG_ITEMS)
def test_errors_name_the_fault_in_items(corrupt, words):
  events, items = tables()
  with pytest.raises(DataError) as error:
    validate(events, corrupt(items), 'events.parquet', 'items.parquet')
  assert str(error.value).startswith('items.parquet: ')
  assert all(word in str(error.value) for word in words), str(error.value)


def test_errors_name_the_unreadable_file(tmp_path):
  events, items = tables()
  with pytest.raises(DataError, match='events.parquet: no such file; must be'):
    read_contract(tmp_path)
  events.write_csv(tmp_path / 'events.parquet')
  items.write_parquet(tmp_path / 'items.parquet')
  with pytest.raises(DataError, match='events.parquet: cannot be read .*parquet file'):
    read_contract(tmp_path)
  (tmp_path / 'events.parquet').unlink()
  (tmp_path / 'events.parquet').mkdir()
  with pytest.raises(DataError, match='events.parquet'):
    read_contract(tmp_path)


def random_values(rng: random.Random, count: int) -> pl.Series:
  """Return a column of a random type, in or outside the contract."""
  integers = [rng.choice((-1, 0, 1, 100, 2**31, 2**40)) for _ in range(count)]
  text = [rng.choice(('view', 'VIEW', '', 'purchase', '\ud7ff\u0000', '12')) for _ in range(count)]
  kinds = {
    'int': lambda: pl.Series(integers, dtype=pl.Int64),
    'wide': lambda: pl.Series([2**64 - 1 - abs(i) for i in integers], dtype=pl.UInt64),
    'huge': lambda: pl.Series(integers, dtype=pl.Int128),
    'float': lambda: pl.Series(
      [rng.choice((1.0, float('nan'), float('inf'), -2.5)) for _ in range(count)]
    ),
    'text': lambda: pl.Series(text),
    'category': lambda: pl.Series(text, dtype=pl.Categorical),
    'bytes': lambda: pl.Series([t.encode() + b'\xff' for t in text], dtype=pl.Binary),
    'bool': lambda: pl.Series([i > 0 for i in integers]),
    'null': lambda: pl.Series([None] * count, dtype=pl.Null),
    'list': lambda: pl.Series([[i] * rng.randrange(3) for i in integers], dtype=pl.List(pl.Int64)),
    'struct': lambda: pl.Series([{'a': i} for i in integers]),
    'date': lambda: pl.Series([abs(i) % 10_000 for i in integers]).cast(pl.Date),
    'decimal': lambda: pl.Series(integers).cast(pl.Decimal(20, 2)),
  }
  return kinds[rng.choice(sorted(kinds))]()


def corrupt_table(rng: random.Random, events: pl.DataFrame) -> pl.DataFrame:
  column = rng.choice(events.columns)
  kind = rng.randrange(6)
  if kind == 0:
    return events.drop(column)
  if kind == 1:
    return events.rename({column: column.upper()})
  if kind == 2:
    return events.with_columns(random_values(rng, events.height).alias(column))
  if kind == 3:  # one null
    is_kept = pl.int_range(pl.len()) != rng.randrange(events.height)
    return events.with_columns(pl.when(is_kept).then(pl.col(column)).alias(column))
  if kind == 4:
    if rng.random() < 0.3:
      return events.clear()
    return events.sample(5, with_replacement=True, seed=rng.randrange(99))
  value = rng.choice((-7, 0, 2**31, 10**12))
  row = rng.randrange(events.height)
  target = rng.choice(('timestamp', 'item_id', 'price'))
  if target not in events.columns:
    return events
  changed = pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(pl.col(target))
  if not events.schema[target].is_numeric():
    return events
  return events.with_columns(changed.alias(target))


def corrupt_bytes(rng: random.Random, content: bytes) -> bytes:
  kind = rng.randrange(4)
  if kind == 0:
    return content[: rng.randrange(len(content))]
  if kind == 1:
    return bytes(rng.randrange(256) for _ in range(rng.randrange(200)))
  changed = bytearray(content)
  # The footer holds the structure; its bytes lead to the rarer failures, panics among them.
  low = 0 if kind == 2 else len(content) * 2 // 3
  for _ in range(rng.randint(1, 8)):
    changed[rng.randrange(low, len(changed))] = rng.randrange(256)
  return bytes(changed)


@pytest.mark.parametrize('files', [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_malformed_files_give_data_errors_only(tmp_path, files):
  rng, draws = random.Random(0), np.random.default_rng(0)
  good = pl.DataFrame(
    {
      'user_id': draws.integers(0, 5, 30),
      'item_id': draws.integers(0, 9, 30),
      'event': draws.choice(EVENT_NAMES, 30),
      'timestamp': draws.integers(10**9, 10**9 + 10**6, 30),
      'session_id': draws.choice(['s', 't'], 30),
      'price': draws.uniform(0, 9, 30),
    }
  )
  pl.DataFrame({'item_id': range(9)}).write_parquet(tmp_path / 'items.parquet')
  path = tmp_path / 'events.parquet'
  refused = 0
  for number in range(files):
    events = good
    for _ in range(rng.randint(0, 2) if number % 2 else rng.randint(1, 3)):
      events = corrupt_table(rng, events) if events.height and events.width else events
    events.write_parquet(path)
    if number % 2:
      path.write_bytes(corrupt_bytes(rng, path.read_bytes()))
    try:
      read, _ = read_contract(tmp_path)
    except DataError as error:
      refused += 1
      assert 'must' in str(error) and 'parquet' in str(error), str(error)
    else:
      assert read.height and read.schema['event'] == EVENT_DTYPE and read['timestamp'].min() >= 1
  assert refused > 0.7 * files
