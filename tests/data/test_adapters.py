"""Adapters: small files in each original format, and the real logs.

Real logs are compared with tables that other code made of them.
"""

import calendar
import gzip
import random

import polars as pl
import pytest
import real_logs

from rolegen_jax.config import Config, DataConfig
from rolegen_jax.data import adapters
from rolegen_jax.data.adapters import ADAPTERS
from rolegen_jax.data.events import DataError, validate
from rolegen_jax.data.formats import shops

EVENT = ['user_id', 'item_id', 'event', 'timestamp']
ALIBABA = 'user_id,brand_id,type,visit_datetime\n'
REES46 = (
  'event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n'
)


def adapt(tmp_path, kind, text, **fields):
  path = tmp_path / 'log.csv'
  path.write_text(text)
  events, items, left_out = ADAPTERS[kind](path, DataConfig(format=kind, **fields))
  return *validate(events, items), left_out


def seconds(*date):
  return calendar.timegm((*date, 0, 0, 0)[:6])


def test_every_real_format_of_the_config_has_an_adapter_and_a_source():
  for kind in ADAPTERS:
    Config(data=DataConfig(format=kind, path='x')).validated()
  assert set(ADAPTERS) == set(adapters.SOURCES)


def test_alibaba2014(tmp_path):
  events, items, _ = adapt(
    tmp_path, 'alibaba2014', ALIBABA + '9,5,0,4-15\n9,5,1,8-1\n8,4,2,12-31\n8,5,3,6-04\n'
  )
  assert events.select(EVENT).rows() == [
    (9, 5, 'view', seconds(2013, 4, 15)),
    (9, 5, 'purchase', seconds(2013, 8, 1)),
    (8, 4, 'fav', seconds(2013, 12, 31)),
    (8, 5, 'cart', seconds(2013, 6, 4)),
  ]
  assert items['item_id'].to_list() == [4, 5]


def test_taobao_userbehavior_drops_and_counts_rows_outside_the_window(tmp_path):
  first, end = shops.TAOBAO_WINDOW
  assert (first, end) == (seconds(2017, 11, 24, 16), seconds(2017, 12, 3, 16))
  lines = [
    (1, 7, 70, 'pv', first),
    (1, 8, 80, 'buy', end - 1),
    (2, 8, 81, 'fav', end),
    (3, 7, 70, 'cart', -4),
  ]
  text = ''.join(','.join(map(str, line)) + '\n' for line in lines)
  events, items, left_out = adapt(tmp_path, 'taobao_userbehavior', text)
  assert events.select(EVENT).rows() == [(1, 7, 'view', first), (1, 8, 'purchase', end - 1)]
  assert items.rows() == [(7, 70), (8, 80)] and left_out['dropped_outside_window'] == 2


def test_rees46_keeps_the_latest_attributes(tmp_path):
  events, items, _ = adapt(
    tmp_path,
    'rees46',
    REES46
    + (
      '2019-10-01 00:00:02 UTC,remove_from_cart,5,70,a.b,acme,2.50,1,s\n'
      '2019-10-01 00:00:03 UTC,purchase,5,70,,,,1,\n'
      '2019-10-01 00:00:01 UTC,cart,5,70,a.c,other,1.00,2,t\n'
    ),
  )
  assert events.rows() == [
    (1, 5, 'remove', seconds(2019, 10, 1) + 2, 's', 2.5),
    (1, 5, 'purchase', seconds(2019, 10, 1) + 3, None, None),
    (2, 5, 'cart', seconds(2019, 10, 1) + 1, 't', 1.0),
  ]
  assert items.select('category_id', 'category_code', 'brand', 'price').rows() == [
    (70, 'a.b', 'acme', 2.5)
  ]


@pytest.mark.parametrize(
  'kind, text, words',
  [
    ('alibaba2014', ALIBABA + '9,5,4,4-15\n', ["line 2, field 'type': '4'", '0 (click)']),
    ('alibaba2014', ALIBABA + '9,5,0,2-30\n', ["line 2, field 'visit_datetime': '2-30'", 'M-D']),
    ('alibaba2014', '9,5,0,4-15\n', ['must be the header user_id,brand_id,type,visit_datetime']),
    (
      'taobao_userbehavior',
      '1,2,3,click,4\n',
      ["line 1, field 'behavior type': 'click'", 'pv, fav, cart, buy'],
    ),
    ('taobao_userbehavior', '1,2,3,pv,4.0\n', ["line 1, field 'timestamp': '4.0'", 'seconds UTC']),
    (
      'rees46',
      REES46 + '2019-10-01 00:00:02,view,5,70,a.b,acme,2.50,1,s\n',
      ["line 2, field 'event_time'", 'UTC'],
    ),
    (
      'rees46',
      REES46 + '2019-10-01 00:00:02 UTC,view,5,70,a.b,acme,1\n',
      ['line 2 has 7 fields', 'must have 9'],
    ),
    (
      'rees46',
      REES46 + '2019-10-01 00:00:02 UTC,view,5,70,a.b,acme,nan,1,s\n',
      ["line 2, field 'price': 'nan'", 'finite'],
    ),
  ],
  ids=range(8),
)
def test_errors_name_the_wrong_line(tmp_path, kind, text, words):
  with pytest.raises(DataError) as error:
    adapt(tmp_path, kind, text)
  assert all(word in str(error.value) for word in words), str(error.value)


def test_a_folder_of_monthly_files_is_one_log(tmp_path):
  line = '2019-{}-01 00:00:02 UTC,purchase,5,70,a.b,{},2.50,{},s\n'
  for month, text in (
    ('Nov', line.format(11, 'new', 1) + line.format(11, 'new', 3)),
    ('Oct', line.format(10, 'old', 1) + line.format(10, 'old', 2)),
  ):
    (tmp_path / f'2019-{month}.csv').write_text(REES46 + text)
  events, items, left_out = ADAPTERS['rees46'](tmp_path, DataConfig('rees46', 'x'))
  assert events['user_id'].to_list() == [1, 3, 1, 2] and left_out == {'cut_last_line': 0}
  assert items['brand'].to_list() == ['new']  # by time, not by the order of the files
  events, _, left_out = ADAPTERS['rees46'](tmp_path, DataConfig('rees46', 'x', max_users=2))
  assert events['user_id'].to_list() == [1, 3, 1]
  assert left_out == {'cut_last_line': 0, 'other_users': 1}
  (tmp_path / '2019-Oct.csv').write_text(REES46 + line.format(13, 'old', 1))
  with pytest.raises(DataError, match="2019-Oct.csv: line 2, field 'event_time'"):
    ADAPTERS['rees46'](tmp_path, DataConfig('rees46', 'x'))


@pytest.mark.parametrize('name', ['2019-Dec.tsv', '2019-Dec.csv.zip', '2019-Dec', '2019.csv.bak'])
def test_a_file_of_a_folder_that_would_not_be_read_is_named(tmp_path, name):
  (tmp_path / 'a.csv').write_text(ALIBABA + '9,5,0,4-15\n')
  (tmp_path / name).write_text(ALIBABA)
  with pytest.raises(DataError, match=rf'{name}: would not be read; must be named \*.csv, '):
    ADAPTERS['alibaba2014'](tmp_path, DataConfig('alibaba2014', 'x'))
  (tmp_path / 'a.csv').unlink()
  (tmp_path / name).unlink()
  with pytest.raises(DataError, match='has no file of events; must have one named'):
    ADAPTERS['alibaba2014'](tmp_path, DataConfig('alibaba2014', 'x'))


def test_a_taobao_log_in_milliseconds_is_refused(tmp_path):
  with pytest.raises(DataError, match='1511539200000 in the first line and in no line in seconds'):
    adapt(tmp_path, 'taobao_userbehavior', '1,7,70,pv,1511539200000\n')


def ranked(tmp_path, **columns):
  table = {
    'user_id': [1, 1, 2],
    'item_id': [5, 6, 5],
    'event': ['purchase'] * 3,
    'pos': [1, 0, 0],
    'timestamp': [9, None, 9],
  }
  pl.DataFrame(table | columns).write_parquet(tmp_path / 'events.parquet')
  pl.DataFrame({'item_id': [5, 6], 'text': ['x', 'y'], 'other': [1, 2]}).write_parquet(
    tmp_path / 'items.parquet'
  )
  return ADAPTERS['ranked_sequences'](tmp_path, DataConfig(max_users=1))


def test_ranked_sequences_use_the_rank_as_timestamp(tmp_path):
  events, items, _ = ranked(tmp_path)
  assert events.rows() == [(1, 5, 'purchase', 2), (1, 6, 'purchase', 1)]
  assert items.columns == ['item_id', 'text']
  with pytest.raises(DataError, match="column 'pos', row 2: 1 again; must be unique"):
    ranked(tmp_path, pos=[1, 1, 0])
  for pos in (-1, None, 2**31 - 1, 2**63 - 1):
    with pytest.raises(
      DataError, match=f"column 'pos', row 1: {pos}; must be from 0 to 2114380799"
    ):
      ranked(tmp_path, pos=[pos, 1, 0])
  with pytest.raises(DataError, match="'pos' is missing or no integer"):
    ranked(tmp_path, pos=[0.0, 1.0, 0.0])
  with pytest.raises(DataError, match="'user_id' has type Float64"):
    ranked(tmp_path, user_id=[0.0, 1.0, 0.5])


def test_ranked_sequences_are_in_one_file(tmp_path):
  ranked(tmp_path)
  (tmp_path / 'events').mkdir()
  for name in ('a.parquet', 'b.parquet'):
    (tmp_path / 'events' / name).write_bytes((tmp_path / 'events.parquet').read_bytes())
  (tmp_path / 'events.parquet').unlink()
  with pytest.raises(DataError, match='b.parquet: is a second file'):
    ADAPTERS['ranked_sequences'](tmp_path, DataConfig())


def test_contract_keeps_the_first_users(tmp_path):
  events = pl.DataFrame(
    {'user_id': ['b', 'a', 'b'], 'item_id': [1, 1, 1], 'event': 'view', 'timestamp': [10**9] * 3}
  )
  events.write_parquet(tmp_path / 'events.parquet')
  pl.DataFrame({'item_id': [1]}).write_parquet(tmp_path / 'items.parquet')
  events, _, _ = ADAPTERS['contract'](tmp_path, DataConfig(max_users=1))
  assert events['user_id'].to_list() == ['b', 'b']


def test_absent_log_error_says_where_it_must_be_and_where_to_get_it(tmp_path, monkeypatch):
  data = DataConfig(format='taobao_userbehavior', path='sub/UserBehavior.csv')
  monkeypatch.setenv('ROLEGEN_DATA', str(tmp_path))
  with pytest.raises(DataError) as error:
    adapters.log_path(data)
  for word in (
    str(tmp_path / 'sub/UserBehavior.csv'),
    '$ROLEGEN_DATA',
    'tianchi.aliyun.com/dataset/649',
  ):
    assert word in str(error.value)
  monkeypatch.delenv('ROLEGEN_DATA')
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'data/sub').mkdir(parents=True)
  (tmp_path / 'data/sub/UserBehavior.csv').touch()
  assert adapters.log_path(data) == tmp_path / 'data/sub/UserBehavior.csv'


@pytest.mark.parametrize(
  'kind, folder, columns',
  [
    ('alibaba2014', 'alibaba2014', EVENT),
    ('taobao_userbehavior', 'taobao_userbehavior_1k', EVENT),
    ('rees46', 'rees46_oct_head', [*EVENT, 'session_id', 'price']),
  ],
)
def test_real_logs_equal_the_tables_that_other_code_made(kind, folder, columns):
  data = real_logs.RAW[kind]
  events, items, left_out = ADAPTERS[kind](real_logs.need(data.path), data)
  expected = pl.read_parquet(real_logs.need(f'{folder}/events.parquet')).select(columns)
  expected_items = pl.read_parquet(real_logs.need(f'{folder}/items.parquet'))
  if kind == 'rees46':
    # The head was cut inside its last line, which that table has with half a user id.
    assert left_out['cut_last_line'] == 1
    assert expected.filter(pl.col('session_id').is_null()).height == 1
    expected = expected.filter(pl.col('session_id').is_not_null())
  found = events.select(columns).with_columns(pl.col('event').cast(pl.String))
  assert found.sort(columns).equals(expected.sort(columns))
  if kind == 'rees46':
    assert items.equals(expected_items.select(items.columns).sort('item_id'))
  assert items['item_id'].sort().equals(expected_items['item_id'].sort())
  if kind == 'taobao_userbehavior':
    assert left_out['dropped_outside_window'] == 44
    assert events['user_id'].n_unique() == data.max_users


def mutated(rng: random.Random, content: bytes) -> bytes:
  """Return `content` with a few bytes, lines or its end changed."""
  for _ in range(rng.randint(1, 3)):
    at = rng.randrange(len(content) + 1)
    lines = content.splitlines(keepends=True)
    line = rng.randrange(max(len(lines), 1))
    content = rng.choice(
      (
        lambda: content[:at],
        lambda: content[:at] + rng.randbytes(rng.randint(1, 3)) + content[at:],
        lambda: content[:at] + rng.choice((b',', b'\n', b'\r\n', b'0', b'"', b' ')) + content[at:],
        lambda: b''.join(lines[:line] + lines[line + 1 :]),
        lambda: b''.join(lines[:line] + lines[line:] * 2),
        lambda: b'\xef\xbb\xbf' + content,
        lambda: content.replace(b'\n', b'\r\n'),
        lambda: content[:at].rstrip(b'\n'),
      )
    )()
  return content


@pytest.mark.parametrize('files', [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_text_is_read_in_full_or_refused(tmp_path, files):
  first = shops.TAOBAO_WINDOW[0]
  good = {
    'alibaba2014': ALIBABA + '9,5,0,4-15\n9,5,1,8-1\n8,4,2,12-31\n',
    'taobao_userbehavior': f'1,7,70,pv,{first}\n1,8,80,buy,{first + 5}\n2,8,81,fav,{first - 1}\n',
    'rees46': REES46
    + '2019-10-01 00:00:02 UTC,cart,5,70,a.b,acme,2.50,1,s\n'
    + '2019-10-01 00:00:03 UTC,purchase,5,70,,,,2,\n' * 2,
  }
  rng, refused = random.Random(0), 0
  for number in range(files):
    kind = rng.choice(sorted(good))
    content = mutated(rng, good[kind].encode())
    folder = tmp_path / str(number)
    folder.mkdir()
    (folder / 'a.csv').write_bytes(good[kind].encode())
    path = folder / 'b.csv'
    path.write_bytes(gzip.compress(content) if number % 5 == 0 else content)
    data = DataConfig(kind, 'x', max_users=rng.choice((0, 2)))
    try:
      events, items, left_out = ADAPTERS[kind](rng.choice((folder, path)), data)
      events, _ = validate(events, items)
    except DataError as error:
      refused += 1
      assert 'must' in str(error) and '\n' not in str(error), str(error)
      continue
    lines = content.count(b'\n') + (not content.endswith(b'\n')) - (kind != 'taobao_userbehavior')
    assert events.height + sum(left_out.values()) in (lines, lines + 3), (kind, content)
  assert 0.3 * files < refused < 0.9 * files
