"""Public logs: a few invented rows in each original form, what becomes of them, and faults."""

import gzip
import json
import pathlib

import polars as pl
import pytest

from rolegen_jax.config import FORMATS, Config, DataConfig
from rolegen_jax.data import adapters
from rolegen_jax.data.files import DataError
from rolegen_jax.data.formats import media
from rolegen_jax.data.prepare import read_tables

S = 1_600_000_000  # 2020-09-13 12:26:40 UTC
MS = S * 1000


def write(folder: pathlib.Path, **files) -> None:
  """Write files by name, `__` for a dot: text, bytes, a list of JSON objects or a table."""
  folder.mkdir(exist_ok=True, parents=True)
  for key, content in files.items():
    path = folder / key.replace('__', '.')
    if isinstance(content, pl.DataFrame):
      content.write_parquet(path)
      continue
    if isinstance(content, list):
      content = ''.join(json.dumps(value) + '\n' for value in content)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


@pytest.fixture
def root(tmp_path, monkeypatch):
  monkeypatch.setenv(adapters.ROOT_VARIABLE, str(tmp_path))
  return tmp_path


def read(kind, path='log', **settings):
  data = Config(data=DataConfig(kind, path, **settings)).validated().data
  tables = read_tables(data)
  events = tables.events.with_columns(pl.col('event').cast(pl.String)).rows(named=True)
  items = {item.pop('item_id'): item for item in tables.items.rows(named=True)}
  return events, items, tables.left_out


def row(user, item, event, seconds, **more):
  return dict(user_id=user, item_id=item, event=event, timestamp=seconds, **more)


RATINGS = [row(1, 10, 'purchase', S), row(1, 20, 'view', S + 5), row(2, 10, 'purchase', S + 9)]
MOVIELENS = {
  'csv': dict(
    ratings__csv='userId,movieId,rating,timestamp\n'
    f'1,10,4.0,{S}\n1,20,3.5,{S + 5}\n2,10,5.0,{S + 9}\n',
    movies__csv='movieId,title,genres\n'
    '10,"Film, A (1999)",Drama|War\n20,"""B"" (2001)",Drama\n30,C,War\n',
    tags__csv='userId,movieId,tag,timestamp\n',
    links__csv='movieId,imdbId,tmdbId\n',
    README__txt='about',
  ),
  '1m': dict(
    ratings__dat=f'1::10::4::{S}\n1::20::3::{S + 5}\n2::10::5::{S + 9}\n',
    movies__dat='10::Film, A (1999)::Drama|War\n20::"B" (2001)::Drama\n'.encode('latin-1'),
    users__dat='1::F::1::10::48067\n',
  ),
  '100k': dict(
    u__data=f'1\t10\t4\t{S}\n1\t20\t3\t{S + 5}\n2\t10\t5\t{S + 9}\n',
    u__item='10|Film, A (1999)|01-Jan-1999||http://x|' + '|'.join('0' * 19) + '\n',
    u1__base='',
    u__user='1|24|M|technician|85711\n',
  ),
}


@pytest.mark.parametrize('form', MOVIELENS)
def test_movielens(root, form):
  write(root / 'log', **MOVIELENS[form])
  events, items, left_out = read('movielens')
  assert events == RATINGS and set(items) == {10, 20} and set(left_out.values()) == {0}
  assert items[10]['title'] == 'Film, A (1999)'
  if form != '100k':
    assert items[10]['category_id'] == 'Drama|War' and items[20]['title'] == '"B" (2001)'
  name = {'csv': 'ratings.csv', '1m': 'ratings.dat', '100k': 'u.data'}[form]
  assert read('movielens', f'log/{name}')[0] == RATINGS


def test_movielens_titles_in_latin_1(root):
  write(root / 'log', **MOVIELENS['1m'])
  (root / 'log/movies.dat').write_bytes('10::Café (1999)::Drama\n20::B::War\n'.encode('latin-1'))
  assert read('movielens')[1][10]['title'] == 'Café (1999)'
  (root / 'log/movies.dat').write_text('10::Café (1999)::Drama\n20::B::War\n', encoding='utf-8')
  assert read('movielens')[1][10]['title'] == 'Café (1999)'


def test_two_forms_of_a_log_are_refused(root):
  write(root / 'log', **MOVIELENS['1m'], ratings__csv=MOVIELENS['csv']['ratings__csv'])
  with pytest.raises(DataError, match='has ratings.csv and ratings.dat, two forms of a log; must'):
    read('movielens')


REVIEW = dict(rating=5.0, title='t', text='x\u2028y', images=[], asin='B1', helpful_vote=0)
META = dict(
  main_category='Tea',
  title='Green tea',
  features=['loose', '100 g'],
  description=['From a hill.'],
  price=12.5,
  store='Hill',
  categories=['Grocery', 'Tea & Mate', 'No. 1'],
  parent_asin='P1',
)


@pytest.mark.parametrize('suffix', ['jsonl', 'jsonl__gz'])
def test_amazon_reviews2023(root, suffix):
  reviews = [
    REVIEW | dict(parent_asin='P1', user_id='A1', timestamp=MS + 7),
    REVIEW | dict(parent_asin='P2', user_id='A2', timestamp=MS + 1999),
  ]
  meta = [META, dict(parent_asin='P2', title='Mug', price='from 3.99'), dict(parent_asin='P3')]
  write(root / 'log', **{f'Grocery__{suffix}': reviews, f'meta_Grocery__{suffix}': meta})
  events, items, _ = read('amazon_reviews2023')
  assert events == [row('A1', 'P1', 'purchase', S), row('A2', 'P2', 'purchase', S + 1)]
  assert items['P1'] == dict(
    title='Green tea',
    text='Green tea\nloose\n100 g\nFrom a hill.',
    category_code='Grocery.Tea & Mate.No  1',
    brand='Hill',
    price=12.5,
  )
  assert (
    items['P2']['title'] == 'Mug' and items['P2']['price'] is None and set(items) == {'P1', 'P2'}
  )
  reviews[1]['timestamp'] = S
  write(root / 'log', **{f'Grocery__{suffix}': reviews})
  with pytest.raises(DataError, match=f"line 2, field 'timestamp': '{S}'; .*; {S} looks like s"):
    read('amazon_reviews2023')


def test_recbole(root):
  inter = 'user_id:token\titem_id:token\trating:float\ttimestamp:float\n'
  write(
    root / 'log',
    shop__inter=inter + f'u1\t07\t4.0\t{S}.0\nu1\t7\t1.0\t1.6e9\n',
    shop__item='item_id:token\tname:token_seq\tclass:token\tembedding:float_seq\n'
    '07\tGreen tea\tc\t0.5 1\n7\tMug\t\t1 2\n',
    shop__user='user_id:token\tage:float\nu1\t3\n',
  )
  columns = ('title=name', 'category_id=class')
  events, items, _ = read('recbole', columns=columns)
  assert events == [row('u1', '07', 'purchase', S), row('u1', '7', 'purchase', S)]
  assert items['07'] == dict(title='Green tea', category_id='c', embedding=[0.5, 1.0])
  write(root / 'log', shop__inter=inter.replace('rating', 'kind') + f'u1\t07\tview\t{S}\n')
  events, _, _ = read('recbole', columns=(*columns, 'event=kind'))
  assert events == [row('u1', '07', 'view', S)]
  with pytest.raises(DataError, match='line 1 is .*; must be the header user_id,item_id,when'):
    read('recbole', columns=('timestamp=when',))


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


KUAIRAND = (
  'user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,'
  'long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,'
  'tab\n'
)


def test_kuairand(root):
  def line(user, video, second, click, like, long_view):
    time = MS + 1000 * second
    return f'{user},{video},20200913,1226,{time},{click},{like},0,0,0,0,{long_view},1,2,0,0,0,0,1\n'

  write(
    root / 'log/data',
    log_standard_4_08_to_4_21_1k__csv=KUAIRAND + line(1, 10, 0, 0, 0, 0) + line(1, 10, 1, 1, 0, 0),
    log_random_4_22_to_5_08_1k__csv=KUAIRAND + line(1, 20, 2, 1, 1, 0) + line(2, 20, 3, 1, 1, 1),
    video_features_basic_1k__csv='video_id,author_id,tag\n10,5,"1,2"\n20,6,\n',
    video_features_statistic_1k__csv='video_id\n',
    user_features_1k__csv='user_id\n',
  )
  write(root / 'log', load_data_1k__py='')
  events, items, _ = read('kuairand')
  assert {(e['item_id'], e['event'], e['timestamp'] - S) for e in events} == {
    (10, 'impression', 0),
    (10, 'view', 1),
    (20, 'fav', 2),
    (20, 'purchase', 3),
  }
  assert items == {
    10: dict(category_id='1,2', brand='5'),
    20: dict(category_id=None, brand='6'),
  }


def test_yambda(root):
  kinds = ['listen', 'listen', 'like', 'unlike', 'dislike', 'undislike']
  table = pl.DataFrame(
    {
      'uid': [1] * 6,
      'timestamp': range(0, 30, 5),
      'item_id': [10, 20] * 3,
      'is_organic': [1] * 6,
      'played_ratio_pct': [50, 49, None, None, None, None],
      'track_length_seconds': [200] * 2 + [None] * 4,
      'event_type': kinds,
    },
    schema_overrides={
      **dict.fromkeys(('uid', 'timestamp', 'item_id'), pl.UInt32),
      'event_type': pl.Enum(sorted(set(kinds))),
      'played_ratio_pct': pl.UInt16,
    },
  )
  write(root / 'log', multi_event__parquet=table, likes__parquet=table, listens__parquet=table)
  events, items, left_out = read('yambda')
  assert [event['event'] for event in events] == [
    'purchase',
    'view',
    'fav',
    'remove',
    'remove',
    'view',
  ]
  assert [event['timestamp'] - media.YAMBDA_START for event in events] == list(range(0, 30, 5))
  assert set(items) == {10, 20} and left_out == {}
  write(root / 'log', multi_event__parquet=table.drop('uid'))
  with pytest.raises(DataError, match='multi_event.parquet: has columns .*; must have uid,item_id'):
    read('yambda')


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
    'items_wrong_item_id': 1,
  }
  assert f"events.csv: line 3, field 'timestamp': '{S}'" in capsys.readouterr().err


def test_every_format_has_a_row_in_the_guide():
  guide = pathlib.Path(__file__).parents[2] / 'docs' / 'logs.md'
  text = guide.read_text(encoding='utf-8')
  for kind in adapters.FORMATS:
    assert f'--set data.format={kind} ' in text
  assert set(adapters.ADAPTERS) == set(FORMATS) - {'simulated'}
