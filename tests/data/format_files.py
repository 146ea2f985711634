"""What the tests of public logs share: files in their forms, and what is read of them."""

import gzip
import json
import pathlib

import polars as pl

from rolegen_jax.config import Config, DataConfig
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


def read(kind, path='log', **settings):
  data = Config(data=DataConfig(kind, path, **settings)).validated().data
  tables = read_tables(data)
  events = tables.events.with_columns(pl.col('event').cast(pl.String)).rows(named=True)
  items = {item.pop('item_id'): item for item in tables.items.rows(named=True)}
  return events, items, tables.left_out


def row(user, item, event, seconds, **more):
  return dict(user_id=user, item_id=item, event=event, timestamp=seconds, **more)
