"""A small log of the contract, written in any of its forms."""

import gzip

import polars as pl

from rolegen_jax.config import Config, DataConfig
from rolegen_jax.data.prepare import read_tables

TIME = 1_700_000_000  # 2023-11-14 22:13:20 UTC
EVENTS = pl.DataFrame(
  {
    'user_id': [7, 7, 8, 8],
    'item_id': [1, 2, 1, 2],
    'event': ['view', 'purchase', 'cart', 'purchase'],
    'timestamp': [TIME, TIME + 1, TIME + 2, TIME + 3],
    'price': [1.5, None, 0.0, 2.0],
  }
)
ITEMS = pl.DataFrame({'item_id': [1, 2], 'title': ['Tea, "green"', None]})
ROWS = EVENTS.rows()
TEXT_ROWS = [(str(user), str(item), *rest) for user, item, *rest in ROWS]


def put(path, table=EVENTS):
  """Write a table in the format that the name of the file says."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.zst':  # polars compresses CSV: here it has the lines of the file in its cells
    plain = path.with_suffix('')
    put(plain, table)
    lines = pl.DataFrame({'line': plain.read_text(encoding='utf-8').splitlines()})
    lines.write_csv(path, include_header=False, quote_style='never', compression='zstd')
    plain.unlink()
    return None
  name = path.name.removesuffix('.gz')
  if name.endswith('.csv'):
    content = table.write_csv()
  elif name.endswith(('.jsonl', '.ndjson')):
    content = table.write_ndjson()
  else:
    return table.write_parquet(path)
  data = content.encode()
  path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


def read(path='shop', **settings):
  data = Config(data=DataConfig('contract', path, **settings)).validated().data
  return read_tables(data)


def rows(tables):
  return tables.events.with_columns(pl.col('event').cast(pl.String)).rows()
