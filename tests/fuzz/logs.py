"""A small log of known rows, as tables, files and lines of text."""

import datetime
import random
import re

import polars as pl

from rolegen_jax.config import EVENT_NAMES

ROWS, USERS, ITEMS, DAY = 48, 5, 8, 86_400
START = 1_511_600_000  # inside the nine days that the Taobao log covers
WINDOW = (1_511_539_200, 1_512_316_800)
COLUMNS = ('user_id', 'item_id', 'event', 'timestamp', 'session_id', 'price')


def items(rng: random.Random) -> pl.DataFrame:
  """The catalogue, with every column of the contract."""
  ids = rng.sample(range(1, 1000), ITEMS)
  return pl.DataFrame(
    dict(
      item_id=ids,
      title=[rng.choice([f'Tea {number}', 'T\u2028\u0085 \u00e9', '', None]) for number in ids],
      text=['long text'] * ITEMS,
      category_id=[rng.choice([1, 2, None]) for _ in ids],
      category_code=[rng.choice(['a.b', None]) for _ in ids],
      brand=[rng.choice(['b', None]) for _ in ids],
      price=[rng.choice([0.0, 1.5, None]) for _ in ids],
      embedding=[[rng.random(), rng.random()] for _ in ids],
    ),
    schema_overrides=dict(
      title=pl.String, category_id=pl.Int64, category_code=pl.String, brand=pl.String
    )
    | dict(price=pl.Float64),
  )


def events(rng: random.Random, catalogue: pl.DataFrame, rows: int = ROWS) -> pl.DataFrame:
  """Events of USERS users, with ties, equal rows and nulls where they are allowed."""
  users = rng.sample(range(1, 10**9), USERS)
  made = [
    (
      rng.choice(users),
      rng.choice(catalogue['item_id'].to_list()),
      rng.choice((*EVENT_NAMES, 'view', 'purchase', 'purchase')),
      START + DAY * rng.randrange(8) + rng.choice((0, 0, 1, 77)),
      rng.choice((None, 's1', 's2')),
      rng.choice((None, 0.0, 9.99)),
    )
    for _ in range(rows)
  ]
  made[-1] = made[0]
  types = dict(session_id=pl.String, price=pl.Float64)
  return pl.DataFrame(made, COLUMNS, orient='row', schema_overrides=types)


def rows_of(table: pl.DataFrame) -> list[tuple]:
  """The rows as plain values, in COLUMNS; a column that is not there is null."""
  kinds = dict(event=str, price=float, timestamp=_whole_seconds)
  return [
    tuple(
      kinds.get(name, lambda value: value)(row[name]) if row.get(name) is not None else None
      for name in COLUMNS
    )
    for row in table.iter_rows(named=True)
  ]


def _whole_seconds(value: int | datetime.datetime) -> int:
  if not isinstance(value, datetime.datetime):
    return value
  return int(value.timestamp()) if value.tzinfo else _seconds(value)


# Lines of the public logs

KINDS = {
  'alibaba2014': {'0': 'view', '1': 'purchase', '2': 'fav', '3': 'cart'},
  'taobao_userbehavior': {'pv': 'view', 'fav': 'fav', 'cart': 'cart', 'buy': 'purchase'},
  'rees46': {
    'view': 'view',
    'cart': 'cart',
    'remove_from_cart': 'remove',
    'purchase': 'purchase',
  },
}
HEADERS = {
  'alibaba2014': 'user_id,brand_id,type,visit_datetime',
  'taobao_userbehavior': '',
  'rees46': 'event_time,event_type,product_id,category_id,category_code,brand,price,user_id,'
  'user_session',
}
FIELDS = {'alibaba2014': 4, 'taobao_userbehavior': 5, 'rees46': 9}
# Where an integer stands.
NUMBERS = {'alibaba2014': (0, 1), 'taobao_userbehavior': (0, 1, 2, 4), 'rees46': (2, 3, 7)}


def lines(rng: random.Random, kind: str, rows: int = ROWS) -> list[str]:
  """Lines of a log, without the header."""
  return [_line(rng, kind) for _ in range(rows)]


def _line(rng: random.Random, kind: str) -> str:
  user, item = rng.randrange(1, USERS + 1), rng.randrange(100, 100 + ITEMS)
  act, second = rng.choice(list(KINDS[kind])), START + rng.randrange(8 * DAY)
  if kind == 'alibaba2014':
    return f'{user},{item},{act},{rng.randint(4, 8)}-{rng.randint(1, 30)}'
  if kind == 'taobao_userbehavior':
    return f'{user},{item},{item % 3},{act},{second}'
  time = datetime.datetime.fromtimestamp(second, datetime.UTC).strftime('%Y-%m-%d %H:%M:%S UTC')
  code, brand, price = rng.choice(('a.b', '')), rng.choice(('x', '')), rng.choice(('1.5', ''))
  return f'{time},{act},{item},{item % 3},{code},{brand},{price},{user},{rng.choice(("s", ""))}'


def row_of(kind: str, line: str) -> tuple | None:
  """The row that a line means, in COLUMNS; None = it means none."""
  parts = line.split(',')
  if len(parts) != FIELDS[kind]:
    return None
  if kind == 'alibaba2014':
    (user, item, act, day), session, price = parts, '', ''
    time = _day(day)
  elif kind == 'taobao_userbehavior':
    (user, item, category, act, second), session, price = parts, '', ''
    time = _integer(second) if _integer(category) is not None else None
  else:
    when, act, item, category, _, _, price, user, session = parts
    time = _time(when) if _integer(category) is not None else None
  if price and not re.fullmatch(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?', price, re.ASCII):
    return None
  row = (_integer(user), _integer(item), KINDS[kind].get(act), time)
  return None if None in row else (*row, session or None, float(price) if price else None)


def _integer(text: str) -> int | None:
  is_one = re.fullmatch(r'0|-?[1-9][0-9]*', text, re.ASCII)
  return int(text) if is_one and abs(int(text)) < 2**63 else None


def _day(text: str) -> int | None:
  found = re.fullmatch(r'(\d{1,2})-(\d{1,2})', text, re.ASCII)
  try:
    return found and _seconds(datetime.datetime(2013, int(found[1]), int(found[2])))
  except ValueError:
    return None


def _time(text: str) -> int | None:
  if not re.fullmatch(r'\d{4}-\d\d?-\d\d? \d\d?:\d\d?:\d\d? UTC', text, re.ASCII):
    return None
  try:
    return _seconds(datetime.datetime.strptime(text, '%Y-%m-%d %H:%M:%S UTC'))
  except ValueError:
    return None


def _seconds(time: datetime.datetime) -> int:
  return int(time.replace(tzinfo=datetime.UTC).timestamp())
