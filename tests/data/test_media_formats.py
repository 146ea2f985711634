"""Logs of reviews, films, videos and music: invented rows in each original form, and faults."""

import polars as pl
import pytest
from format_files import MS, S, read, row, write

from rolegen_jax.data import adapters
from rolegen_jax.data.files import DataError
from rolegen_jax.data.formats import media


@pytest.fixture
def root(tmp_path, monkeypatch):
  monkeypatch.setenv(adapters.ROOT_VARIABLE, str(tmp_path))
  return tmp_path


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
