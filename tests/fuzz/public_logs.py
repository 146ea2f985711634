"""Small logs in the form of public ones and of the contract, as tables of texts or values."""

import json
import pathlib
import random
from typing import Any, NamedTuple

import polars as pl

ROWS, USERS, ITEMS = 24, 4, 6
START = 1_600_000_000
NO_ID = ('', 'x', '1.0', '007', '+1', ' 1', '9' * 19, '-', '\u0661')
NO_TIME = ('', 'x', '-1', '0', '12', '1' * 25, '2023-11-14', '1e9', 'nan', '4102444800000000000000')
NO_NUMBER = ('', 'x', '1,5', '--1', '0x1')
NO_KIND = ('', 'X', 'clicked', '7', ' view')
NO_TEXT = ('',)


class Form(NamedTuple):
  """One form of a log. A row is a dict from names in the file to texts or values."""

  kind: str  # data.format
  settings: dict[str, Any]  # more of DataConfig
  name: str  # of the file of events
  layout: str  # a separator, jsonl, parquet or otto
  row: Any  # rng -> row
  wrong: dict[str, tuple]  # column that must be right -> texts that are not
  others: dict[str, str] = {}  # further files, as text  # noqa: RUF012
  header: bool = True


def _time(rng: random.Random, factor: int = 1) -> str:
  return str((START + rng.randrange(10**6)) * factor)


def _ids(rng: random.Random) -> tuple[str, str]:
  return str(rng.randrange(1, USERS + 1)), str(rng.randrange(10, 10 + ITEMS))


def _retailrocket(rng):
  user, item = _ids(rng)
  act = rng.choice(('view', 'addtocart', 'transaction'))
  return dict(timestamp=_time(rng, 1000), visitorid=user, event=act, itemid=item, transactionid='')


def _tmall(rng):
  user, item = _ids(rng)
  day = rng.choice(('511', '0829', '1111'))
  rest = dict(brand_id=rng.choice(('', '5')), time_stamp=day, action_type=rng.choice('0123'))
  return dict(user_id=user, item_id=item, cat_id='3', seller_id='4') | rest


def _movielens(rng):
  user, item = _ids(rng)
  return dict(userId=user, movieId=item, rating=rng.choice(('1', '3.5', '5')), timestamp=_time(rng))


def _recbole(rng):
  user, item = _ids(rng)
  return {'user_id:token': user, 'item_id:token': item, 'timestamp:float': _time(rng) + '.0'}


def _kuairand(rng):
  user, item = _ids(rng)
  flags = {name: rng.choice('01') for name in ('is_click', 'is_like', 'long_view')}
  return dict(user_id=user, video_id=item, time_ms=_time(rng, 1000), **flags, tab='1')


def _amazon(rng):
  user, item = _ids(rng)
  time = int(_time(rng, 1000))
  return dict(rating=5.0, title='a "b"', user_id=user, parent_asin=item, timestamp=time)


def _otto(rng):
  user, item = _ids(rng)
  act = rng.choice(('clicks', 'carts', 'orders'))
  return dict(session=int(user), aid=int(item), ts=int(_time(rng, 1000)), type=act)


def _yambda(rng):
  user, item = _ids(rng)
  act = rng.choice(('listen', 'like', 'dislike', 'unlike', 'undislike'))
  played = rng.choice((None, 10, 80)) if act == 'listen' else None
  time = 5 * rng.randrange(10**6)
  return dict(
    uid=int(user), item_id=int(item), timestamp=time, event_type=act, played_ratio_pct=played
  )


def _merrec(rng):
  user, item = _ids(rng)
  act = rng.choice(('item_view', 'item_like', 'buy_comp'))
  time, rest = int(_time(rng, 10**6)), dict(name='mug', c2_id=3, brand_name=None)
  known = dict(user_id=int(user), item_id=int(item), session_id=1, event_id=act, stime=time)
  return known | dict(price=1.5) | rest


def _contract(rng, factor=1):
  user, item = _ids(rng)
  act = rng.choice(('view', 'cart', 'purchase'))
  price = rng.choice(('', '1.5'))
  return dict(user_id=user, item_id=item, event=act, timestamp=_time(rng, factor), price=price)


def _contract_values(rng, factor=1):
  row = _contract(rng, factor)
  price = float(row['price']) if row['price'] else None
  return row | dict(timestamp=int(row['timestamp']), price=price)


ITEMS_CSV = 'item_id,title\n' + ''.join(f'{k},"Mug, ""{k}"""\n' for k in range(10, 10 + ITEMS))
ITEMS_JSONL = ''.join(f'{{"item_id": {k}, "title": "Mug"}}\n' for k in range(10, 10 + ITEMS))
CONTRACT = dict(user_id=NO_TEXT, item_id=('', '99'), event=NO_KIND, price=('x', '-1', 'nan', 'inf'))
FORMS = (
  Form(
    'retailrocket',
    {},
    'events.csv',
    ',',
    _retailrocket,
    dict(timestamp=NO_TIME, visitorid=NO_ID, event=NO_KIND, itemid=NO_ID),
    {'item_properties_part1.csv': f'timestamp,itemid,property,value\n{START}000,10,categoryid,5\n'},
  ),
  Form(
    'tmall',
    {},
    'user_log_format1.csv',
    ',',
    _tmall,
    dict(
      user_id=NO_ID,
      item_id=NO_ID,
      cat_id=NO_ID,
      time_stamp=('', '1131', '29', '11.11', '01111'),
      action_type=('', '4', 'x', '0.0'),
    ),
  ),
  Form(
    'movielens',
    {},
    'ratings.csv',
    ',',
    _movielens,
    dict(userId=NO_ID, movieId=NO_ID, rating=NO_NUMBER, timestamp=NO_TIME),
    {'movies.csv': 'movieId,title,genres\n10,"Film, A",Drama|War\n11,B,\n'},
  ),
  Form(
    'movielens',
    {},
    'ratings.dat',
    '::',
    _movielens,
    dict(userId=NO_ID, movieId=NO_ID, rating=NO_NUMBER, timestamp=NO_TIME),
    {'movies.dat': '10::Film, A::Drama\n11::B::War\n'},
    header=False,
  ),
  Form(
    'recbole',
    dict(columns=('title=name',)),
    'shop.inter',
    '\t',
    _recbole,
    {'user_id:token': NO_TEXT, 'item_id:token': NO_TEXT, 'timestamp:float': ('', 'x', '5', 'inf')},
    {'shop.item': 'item_id:token\tname:token_seq\n10\tGreen tea\n'},
  ),
  Form(
    'kuairand',
    {},
    'log_standard_4_08_to_4_21_1k.csv',
    ',',
    _kuairand,
    dict(user_id=NO_ID, video_id=NO_ID, time_ms=NO_TIME, is_click=('', '2', 'x')),
    {'video_features_basic_1k.csv': 'video_id,author_id,tag\n10,5,"1,2"\n'},
  ),
  Form(
    'amazon_reviews2023',
    {},
    'Tea.jsonl',
    'jsonl',
    _amazon,
    dict(user_id=('', None, []), parent_asin=('', None), timestamp=(None, True, 1.5, START, 'x')),
    {'meta_Tea.jsonl': '{"parent_asin": "10", "title": "Tea", "price": null}\n'},
  ),
  Form(
    'otto',
    {},
    'otto-recsys-train.jsonl',
    'otto',
    _otto,
    dict(aid=(None, 1.5, 'x', {}), ts=(None, START, -1), type=(None, 'click', 3)),
  ),
  Form(
    'yambda',
    {},
    'multi_event.parquet',
    'parquet',
    _yambda,
    dict(uid=(None,), item_id=(None,), timestamp=(None, -5, 10**12), event_type=(None, 'skip')),
  ),
  Form(
    'merrec',
    {},
    'a.parquet',
    'parquet',
    _merrec,
    dict(user_id=(None,), item_id=(None,), event_id=(None, 'buy'), stime=(None, 5), price=(-1.0,)),
  ),
  Form(
    'contract',
    dict(time_unit='ms'),
    'events.csv',
    ',',
    lambda rng: _contract(rng, 1000),
    CONTRACT | dict(timestamp=(*NO_TIME, str(START), str(START * 10**6))),
    {'items.csv': ITEMS_CSV},
  ),
  Form(
    'contract',
    dict(columns=('user_id=customer', 'timestamp=ts'), time_unit='us'),
    'events/date=2026-11-28/a.jsonl',
    'jsonl',
    lambda rng: {
      {'user_id': 'customer', 'timestamp': 'ts'}.get(name, name): value
      for name, value in _contract_values(rng, 10**6).items()
    },
    dict(customer=('', None), item_id=(None, '99', [], {}), event=(None, 'x', 1), ts=(None, 1, '')),
    {'items.jsonl': ITEMS_JSONL},
  ),
  Form(
    'contract',
    dict(time_unit='ns'),
    'events/part-0.parquet',
    'parquet',
    lambda rng: _contract_values(rng, 10**9),
    dict(
      user_id=(None, ''),
      item_id=(None, '99'),
      event=(None, 'click'),
      timestamp=(None, 0, START, START * 1000),
      price=(-1.0, float('nan')),
    ),
    {'items.csv': ITEMS_CSV},
  ),
)


def write(folder: pathlib.Path, form: Form, rows: list[dict | str]) -> pathlib.Path:
  """Write the log and return its file of events. A row that is text stands as a line of its own."""
  path = folder / form.name
  path.parent.mkdir(parents=True, exist_ok=True)
  for name, content in form.others.items():
    (folder / name).write_text(content, encoding='utf-8')
  if form.layout == 'parquet':
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    return path
  lines = [row if isinstance(row, str) else line(form, row) for row in rows]
  if form.header and form.layout in (',', '\t', '::'):
    first = next(row for row in rows if isinstance(row, dict))
    lines.insert(0, form.layout.join(first))
  path.write_bytes(('\n'.join(lines) + '\n').encode('utf-8', 'surrogatepass'))
  return path


def line(form: Form, row: dict) -> str:
  """Return a row as a line of the file."""
  if form.layout == 'otto':
    event = {name: value for name, value in row.items() if name != 'session'}
    return json.dumps(dict(session=row.get('session'), events=[event]))
  return json.dumps(row) if form.layout == 'jsonl' else form.layout.join(row.values())
