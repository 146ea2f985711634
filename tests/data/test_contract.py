"""Logs of the contract as people have them: many files, text, other names and units."""

import datetime
import json

import polars as pl
import pytest
from contract_files import EVENTS, ITEMS, ROWS, TEXT_ROWS, TIME, put, read, rows

from rolegen_jax.config import Config, ConfigError, DataConfig
from rolegen_jax.data.adapters import ADAPTERS, ROOT_VARIABLE, log_fingerprint, log_path
from rolegen_jax.data.files import DataError
from rolegen_jax.data.prepare import read_tables
from rolegen_jax.data.shards import convert
from rolegen_jax.overrides import apply


@pytest.fixture
def root(tmp_path, monkeypatch):
  monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
  return tmp_path


SUFFIXES = ('csv', 'csv.gz', 'csv.zst', 'jsonl', 'jsonl.gz', 'jsonl.zst', 'ndjson')


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_text_beside_parquet(root, suffix):
  put(root / f'shop/items.{suffix}', ITEMS)
  put(root / f'shop/events/date=2026-11-27/a.{suffix}', EVENTS[:2])
  put(root / 'shop/events/date=2026-11-28/b.parquet', EVENTS[2:])
  tables = read()
  assert rows(tables) == TEXT_ROWS  # text has no types: its ids are strings
  assert tables.items.rows() == [('1', 'Tea, "green"'), ('2', None)]
  assert set(log_fingerprint(DataConfig('contract', 'shop'))) == {
    f'items.{suffix}',
    f'events/date=2026-11-27/a.{suffix}',
    'events/date=2026-11-28/b.parquet',
  }


def test_single_files_of_text_and_folders_of_items(root):
  put(root / 'shop/events.jsonl')
  put(root / 'shop/items/a.parquet', ITEMS[:1])
  put(root / 'shop/items/b.parquet', ITEMS[1:])
  assert rows(read()) == TEXT_ROWS
  put(root / 'shop/items/c.parquet', ITEMS[1:])
  with pytest.raises(DataError, match="shop/items: column 'item_id', row 3: '2'; must be unique"):
    read()


def test_a_glob_chooses_events(root):
  put(root / 'shop/items.parquet', ITEMS)
  for day, part in ((26, EVENTS[:1]), (27, EVENTS[1:3]), (28, EVENTS[3:])):
    put(root / f'shop/events/date=2026-11-{day}/a.parquet', part)
  (root / 'shop/events/date=2026-11-28/_SUCCESS').touch()
  assert rows(read('shop/events/date=2026-11-2[78]')) == ROWS[1:]
  assert rows(read('shop/events/*/*.parquet')) == ROWS
  assert list(log_fingerprint(DataConfig('contract', 'shop/events/date=2026-11-28*'))) == [
    'items.parquet',
    'events/date=2026-11-28/a.parquet',
  ]
  plan = convert.make_plan(
    Config(data=DataConfig('contract', 'x')), log_path(DataConfig('contract', 'shop/events/*27'))
  )
  assert plan.events == 2
  assert rows(read('shop/events/**')) == rows(read('shop/events/**/*.parquet')) == ROWS
  with pytest.raises(DataError, match='matches no file; must match at least one'):
    read('shop/events/date=2027*')
  link = root / 'shop/events/date=2026-11-29'
  link.symlink_to('date=2026-11-28')
  with pytest.raises(DataError, match='2026-11-2[89]/?.*: is .* once more; its rows must be there'):
    read('shop/events/date=2026*')
  link.unlink()
  (root / 'shop/events/date=2026-11-28/_delta_log').mkdir()
  with pytest.raises(DataError, match='is a table of Delta Lake'):
    read('shop/events/date=2026-11-28/*.parquet')
  (root / 'shop/events/date=2026-11-28/_delta_log').rmdir()
  (root / 'shop/items.parquet').unlink()
  with pytest.raises(DataError, match='no folder above has items.parquet; must be in one'):
    read('shop/events/*')


@pytest.mark.parametrize('unit, factor', [('s', 1), ('ms', 10**3), ('us', 10**6), ('ns', 10**9)])
@pytest.mark.parametrize('suffix', ['parquet', 'csv', 'jsonl'])
def test_integers_in_the_declared_unit(root, unit, factor, suffix):
  put(root / 'shop/items.parquet', ITEMS)
  in_unit = pl.col('timestamp') * factor + factor // 2
  put(root / f'shop/events.{suffix}', EVENTS.with_columns(in_unit))
  found = read(time_unit=unit).events['timestamp']
  assert found.dtype == pl.Int64 and found.to_list() == EVENTS['timestamp'].to_list()
  other = 'ms' if unit == 's' else 's'
  with pytest.raises(DataError) as error:
    read(time_unit=other)
  assert f'looks like {unit}' in str(error.value) and '1990 to 2036' in str(error.value)
  assert f'set data.time_unit={unit}' in str(error.value)


MOMENTS = {
  'no zone': pl.from_epoch('timestamp'),
  'milliseconds': pl.from_epoch('timestamp').cast(pl.Datetime('ms')),
  'nanoseconds UTC': pl.from_epoch('timestamp').cast(pl.Datetime('ns', 'UTC')),
  'a zone': pl.from_epoch('timestamp')
  .dt.replace_time_zone('UTC')
  .dt.convert_time_zone('Asia/Tokyo'),
}


@pytest.mark.parametrize('column', MOMENTS.values(), ids=MOMENTS)
def test_datetimes_with_and_without_a_zone(root, column):
  put(root / 'shop/items.parquet', ITEMS)
  put(root / 'shop/events.parquet', EVENTS.with_columns(column.alias('timestamp')))
  assert rows(read()) == ROWS
  early = EVENTS.with_columns(
    pl.lit(datetime.datetime(1989, 12, 31, 23, 59, 59)).alias('timestamp')
  )
  put(root / 'shop/events.parquet', early)
  with pytest.raises(DataError, match="'timestamp', row 1: .*1989.*; must be a time UTC of 1990"):
    read()


@pytest.mark.parametrize(
  'text',
  [
    '2023-11-14T22:13:20Z',
    '2023-11-14 22:13:20',
    '2023-11-14 22:13:20.75 UTC',
    '2023-11-15T07:13:20.5+09:00',
    '2023-11-14T18:43:20-0330',
  ],
)
def test_moments_in_text(root, text):
  put(root / 'shop/items.parquet', ITEMS)
  put(root / 'shop/events.csv', EVENTS.with_columns(timestamp=pl.lit(text)))
  assert set(read(time_unit='ms').events['timestamp']) == {TIME}
  for wrong in ('2023-11-14', '14.11.2023 22:13', '2023-13-14 22:13:20', '1989-11-14 22:13:20', ''):
    put(root / 'shop/events.csv', EVENTS.with_columns(timestamp=pl.lit(wrong)))
    with pytest.raises(DataError, match="events.csv: line 2, field 'timestamp': .*ISO 8601"):
      read()


def test_columns_under_other_names(root):
  names = {'user_id': 'customer', 'item_id': 'sku', 'timestamp': 'ts', 'price': 'paid'}
  renamed = EVENTS.rename(names).with_columns(pl.lit('not this').alias('user_id'))
  put(root / 'shop/events/a.parquet', renamed[:2])
  put(root / 'shop/events/b.csv', renamed[2:])
  put(root / 'shop/items.parquet', ITEMS.rename({'item_id': 'sku', 'title': 'name'}))
  assignment = (
    "data.columns=('user_id=customer', 'item_id=sku', 'timestamp=ts', 'events.price=paid', "
    "'items.title=name')"
  )
  data = apply(Config(data=DataConfig('contract', 'shop')), [assignment]).data
  tables = read_tables(data)
  assert rows(tables) == TEXT_ROWS and tables.items['title'].to_list() == ['Tea, "green"', None]
  with pytest.raises(DataError, match="items.parquet: column 'item_id' is missing"):
    read(columns=data.columns[:1] + ('events.item_id=sku', 'timestamp=ts'))
  with pytest.raises(
    DataError, match="a.parquet: column 'when' is missing; must have customer, sku"
  ):
    read(columns=(*data.columns[:2], 'timestamp=when'))


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(columns=('user',)), "data.columns=.*: must be .'COLUMN=name in the files'"),
    (dict(columns=('user=x',)), 'with COLUMN of user_id, item_id, event'),
    (dict(columns=('items.user_id=x',)), 'with COLUMN of'),
    (dict(columns=('price=x',)), 'events.price, items.price'),
    (dict(columns=('user_id=',)), 'with COLUMN of'),
    (dict(columns=('user_id=a', 'user_id=b')), 'one name for each column'),
    (dict(columns=('user_id=item_id',)), 'another column of the files for each column of events'),
    (dict(columns=('items.title=a', 'items.text=a')), 'for each column of items'),
    (dict(columns=('user_id=a',), format='rees46'), r'must be \(\) with format=rees46'),
    (dict(time_unit='min'), "data.time_unit='min': must be one of 's', 'ms', 'us', 'ns'"),
    (dict(time_unit='ms', format='otto'), 'must be s with format=otto, which has its own'),
    (dict(on_error='ignore'), "data.on_error='ignore': must be one of 'stop', 'skip'"),
    (dict(on_error='skip', format='ranked_sequences'), 'must be stop with format=ranked_sequences'),
  ],
)
def test_settings_that_cannot_be(settings, message):
  with pytest.raises(ConfigError, match=message):
    Config(data=DataConfig(**{'format': 'contract', 'path': 'shop'} | settings)).validated()


IDS = {
  'narrow': pl.col('user_id').cast(pl.UInt8),
  'wide': pl.col('user_id').cast(pl.Int128),
  'categorical': pl.col('user_id').cast(pl.String).cast(pl.Categorical),
  'enum': pl.col('user_id').cast(pl.String).cast(pl.Enum(['7', '8'])),
}


@pytest.mark.parametrize('column', IDS.values(), ids=IDS)
def test_ids_of_any_type(root, column):
  put(root / 'shop/items.parquet', ITEMS)
  put(root / 'shop/events.parquet', EVENTS.with_columns(column))
  users = read().events['user_id']
  assert users.dtype in (pl.Int64, pl.String) and list(map(str, users)) == ['7', '7', '8', '8']


def test_large_strings_and_dictionaries_of_arrow(root):
  # Apache Beam, of requirements-cluster.txt, brings it.
  arrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  table = EVENTS.with_columns(pl.col('user_id', 'item_id').cast(pl.String)).to_arrow()
  fields = {name: table.column(name) for name in table.column_names}
  fields['user_id'] = fields['user_id'].cast(arrow.large_string())
  fields['event'] = fields['event'].cast(arrow.string()).dictionary_encode()
  (root / 'shop').mkdir()
  parquet.write_table(arrow.table(fields), root / 'shop/events.parquet')
  put(root / 'shop/items.parquet', ITEMS.with_columns(pl.col('item_id').cast(pl.String)))
  assert rows(read()) == TEXT_ROWS


def test_embeddings_in_text(root):
  put(root / 'shop/events.parquet')
  (root / 'shop/items.csv').write_text('item_id,embedding\n1,"[0.5, 1]"\n2,"1.5,-2"\n')
  assert read().items['embedding'].to_list() == [[0.5, 1.0], [1.5, -2.0]]
  (root / 'shop/items.csv').unlink()
  items = [{'item_id': 1, 'embedding': [0.5, 1]}, {'item_id': 2, 'embedding': [1.5, 'x']}]
  (root / 'shop/items.jsonl').write_text('\n'.join(map(json.dumps, items)))
  with pytest.raises(DataError, match="items.jsonl: column 'embedding', row 2: .*; must be a list"):
    read()


@pytest.mark.parametrize(
  'text, message',
  [
    ('user_id,item_id,event\n', 'line 1 is .*; must be the header user_id,item_id,event,timestamp'),
    ('', 'must be the header'),
    ('user_id,item_id,event,timestamp,user_id\n', "has two columns 'user_id'; must have one"),
    ('user_id,item_id,event,timestamp\n7,"1"x,view,9\n', 'line 2 has .*quotes'),
  ],
)
def test_csv_that_is_none(root, text, message):
  put(root / 'shop/items.parquet', ITEMS)
  (root / 'shop/events.csv').write_text(text)
  with pytest.raises(DataError, match=message):
    read()


def test_shards_take_names_and_units_but_no_text_and_no_skipping(root):
  put(root / 'shop/items.parquet', ITEMS)
  other = EVENTS.rename({'user_id': 'u'}).with_columns(pl.col('timestamp') * 1000)
  put(root / 'shop/events.parquet', other)
  data = DataConfig('contract', 'shop', columns=('user_id=u',), time_unit='ms')
  plan = convert.make_plan(Config(data=data), root / 'shop', 1)
  (table,) = [convert.split(plan, chunk) for chunk in plan.chunks]
  assert table.sort('timestamp')['timestamp'].to_list() == EVENTS['timestamp'].to_list()
  assert table['user_id'].to_list() == [7, 7, 8, 8]
  skipping = Config(data=DataConfig('contract', 'shop', on_error='skip'))
  with pytest.raises(ConfigError, match="data.on_error='skip': must be 'stop' here"):
    convert.make_plan(skipping, root / 'shop', 1)
  (root / 'shop/events.parquet').unlink()
  put(root / 'shop/events.csv.gz')
  with pytest.raises(
    DataError, match='events.csv.gz: is text; must be parquet for a log that goes'
  ):
    convert.make_plan(Config(data=DataConfig('contract', 'shop')), root / 'shop', 1)


def test_shards_made_before_these_settings_stay_valid(root):
  put(root / 'shop/items.parquet', ITEMS)
  put(root / 'shop/events.parquet')
  plan = convert.make_plan(Config(data=DataConfig('contract', 'shop')), root / 'shop', 1)
  known = {k: v for k, v in convert.settings(plan.config).items() if k not in convert.LATER}
  assert plan.key == convert.digest(convert.FORMAT, plan.files, plan.shards, known)


def test_the_first_users_of_a_log_of_both_kinds(root):
  put(root / 'shop/items.parquet', ITEMS)
  put(root / 'shop/events/a.csv', EVENTS[2:])
  put(root / 'shop/events/b.parquet', EVENTS)
  events, _, left_out = ADAPTERS['contract'](
    root / 'shop', DataConfig('contract', 'x', max_users=1)
  )
  assert set(events['user_id']) == {'8'} and left_out['other_users'] == 2
