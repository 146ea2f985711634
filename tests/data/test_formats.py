"""Logs of shops: a few invented rows in each original form, what becomes of them, and faults."""

import pathlib

import polars as pl
import pytest
from format_files import MS, S, read, row, write

from rolegen_jax.config import FORMATS, DataConfig
from rolegen_jax.data import adapters
from rolegen_jax.data.files import DataError


@pytest.fixture
def root(tmp_path, monkeypatch):
  monkeypatch.setenv(adapters.ROOT_VARIABLE, str(tmp_path))
  return tmp_path


def test_retailrocket(root):
  write(
    root / 'log',
    events__csv='timestamp,visitorid,event,itemid,transactionid\n'
    f'{MS},1,view,10,\n{MS + 2000},1,transaction,10,77\n{MS + 1000},2,addtocart,20,\n',
    item_properties_part1__csv='timestamp,itemid,property,value\n'
    f'{MS + 9},10,categoryid,5\n{MS},10,888,n12.000 x\n{MS},20,categoryid,6\n',
    item_properties_part2__csv=f'timestamp,itemid,property,value\n{MS},10,categoryid,4\n',
    category_tree__csv='categoryid,parentid\n5,\n',
  )
  events, items, _ = read('retailrocket')
  assert events == [
    row(1, 10, 'view', S),
    row(1, 10, 'purchase', S + 2),
    row(2, 20, 'cart', S + 1),
  ]
  # The latest, whichever file it is in: both of item 10 are in the same second, in order of files.
  assert items == {10: dict(category_id='4'), 20: dict(category_id='6')}


def test_tmall(root):
  header = 'user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type\n'
  write(
    root / 'log',
    user_log_format1__csv=header
    + '1,10,5,2,9,829,0\n1,10,5,2,,1111,2\n2,20,6,2,9,0511,1\n2,20,6,2,9,1111,3\n',
    user_info_format1__csv='user_id,age_range,gender\n',
  )
  events, items, _ = read('tmall')
  assert [(e['event'], e['timestamp']) for e in events] == [
    ('view', 1_409_270_400),  # 2014-08-29
    ('purchase', 1_415_664_000),  # 2014-11-11
    ('cart', 1_399_766_400),
    ('fav', 1_415_664_000),
  ]
  assert items[10] == dict(category_id=5, brand='9')
  for wrong in ('1131', '29', '+829', '82', '08290'):
    (root / 'log/user_log_format1.csv').write_text(header + f'1,10,5,2,9,{wrong},0\n')
    with pytest.raises(DataError, match="field 'time_stamp': .*; must be a day MMDD of 2014"):
      read('tmall')


def test_otto(root):
  sessions = [
    dict(
      session=1,
      events=[
        dict(aid=10, ts=MS, type='clicks'),
        dict(aid=10, ts=MS + 1000, type='carts'),
        dict(aid=20, ts=MS + 2000, type='orders'),
      ],
    ),
    dict(session=2, events=[dict(aid=20, ts=MS, type='clicks')]),
    dict(session=3, events=[]),
  ]
  write(root / 'log', **{'otto-recsys-train__jsonl': sessions})
  events, items, _ = read('otto')
  expected = [
    row(1, 10, 'view', S),
    row(1, 10, 'cart', S + 1),
    row(1, 20, 'purchase', S + 2),
    row(2, 20, 'view', S),
  ]
  assert events == expected and set(items) == {10, 20}
  assert read('otto', max_users=1)[::2] == (expected[:3], {'cut_last_line': 0, 'other_users': 1})
  sessions[0]['events'][1]['type'] = 'likes'
  sessions[1] = dict(session=2, events=[7])
  write(root / 'log', **{'otto-recsys-train__jsonl': sessions})
  with pytest.raises(
    DataError, match="line 1, field 'type': 'likes'; must be one of clicks, carts"
  ):
    read('otto')
  events, _, left_out = read('otto', on_error='skip')
  assert events == [expected[0], expected[2]]
  assert left_out == {'cut_last_line': 0, 'wrong_event': 1, 'broken_line': 1}


def test_merrec(root):
  kinds = ['item_view', 'item_like', 'item_add_to_cart_tap', 'offer_make', 'buy_start', 'buy_comp']
  table = pl.DataFrame(
    {
      'user_id': [1] * 6,
      'sequence_id': [1] * 6,
      'session_id': [3] * 6,
      'item_id': [10] * 3 + [20] * 3,
      'event_id': kinds,
      'stime': [S + k for k in range(6)],
      'price': [5.0] * 3 + [7.5] * 3,
      'name': ['mug'] * 6,
      'c2_id': [8.0, 8.0, 8.0, None, None, None],
      'brand_name': ['acme', 'acme', 'acme', None, None, ''],
    }
  )
  for column in (pl.from_epoch('stime'), pl.from_epoch('stime').dt.replace_time_zone('UTC')):
    write(root / 'log/20230501', a__parquet=table.with_columns(column)[:4])
    write(root / 'log/20230601', b__parquet=table.with_columns(column)[4:])
    events, items, _ = read('merrec')
    assert [event['event'] for event in events] == [
      'view',
      'fav',
      'cart',
      'cart',
      'cart',
      'purchase',
    ]
    assert [event['timestamp'] for event in events] == [S + k for k in range(6)]
    assert items == {
      '10': dict(title='mug', category_id='8.0', brand='acme', price=5.0),
      '20': dict(title='mug', category_id=None, brand=None, price=7.5),
    }
  write(root / 'log/20230601', b__parquet=table.with_columns(pl.col('event_id').str.to_uppercase()))
  with pytest.raises(
    DataError, match="b.parquet: row 1, field 'event_id': 'ITEM_VIEW'; must be one"
  ):
    read('merrec')


def test_a_glob_chooses_files(root):
  header = (
    'event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n'
  )
  for month in (10, 11, 12):
    line = f'2019-{month}-01 00:00:02 UTC,purchase,5,70,a.b,x,2.50,{month},s\n'
    write(root / 'log', **{f'2019-{month}__csv__gz': header + line})
  events, _, _ = read('rees46', 'log/2019-1[01].csv*')
  assert [event['user_id'] for event in events] == [10, 11]
  fingerprint = adapters.log_fingerprint(DataConfig('rees46', 'log/2019-1[01].csv*'))
  assert list(fingerprint) == ['2019-10.csv.gz', '2019-11.csv.gz']


def test_wrong_rows_of_public_logs_are_counted(root, capsys):
  write(
    root / 'log',
    events__csv='timestamp,visitorid,event,itemid,transactionid\n'
    f'{MS},1,view,10,\n{S},1,view,10,\n{MS},x,view,10,\n{MS},1,view\n{MS},1,like,10,\n',
    item_properties__csv='timestamp,itemid,property,value\n'
    f'{MS},10,categoryid,5\n{MS},y,categoryid,5\n',
  )
  events, items, left_out = read('retailrocket', on_error='skip')
  assert events == [row(1, 10, 'view', S)] and items == {10: dict(category_id='5')}
  assert left_out == {
    'cut_last_line': 0,
    'wrong_timestamp': 1,
    'wrong_user_id': 1,
    'broken_line': 1,
    'wrong_event': 1,
    'items_cut_last_line': 0,
    'items_wrong_item_id': 1,
  }
  assert f"events.csv: line 3, field 'timestamp': '{S}'" in capsys.readouterr().err


def test_every_format_has_a_row_in_the_guide():
  guide = pathlib.Path(__file__).parents[2] / 'docs' / 'logs.md'
  text = guide.read_text(encoding='utf-8')
  for kind in adapters.FORMATS:
    assert f'--set data.format={kind} ' in text
  assert set(adapters.ADAPTERS) == set(FORMATS) - {'simulated'}
