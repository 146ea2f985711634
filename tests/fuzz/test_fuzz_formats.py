"""Mutated logs in the form of public ones: each row is read, left out and counted, or refused."""

import random

import mutate
import polars as pl
import public_logs
import pytest

from rolegen_jax.config import DataConfig
from rolegen_jax.data.adapters import ROOT_VARIABLE
from rolegen_jax.data.prepare import read_tables


@pytest.fixture
def root(tmp_path, monkeypatch):
  monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
  return tmp_path


def settings(form, **more) -> DataConfig:
  return DataConfig(form.kind, 'log', **form.settings | more)


def events_of(tables) -> list[tuple]:
  """Rows without the columns that are null everywhere, which text in which they are not has."""
  known = ['user_id', 'item_id', 'event', 'timestamp']
  return tables.events.select(*known).with_columns(pl.col('event').cast(pl.String)).rows()


NO_OBJECTS = (
  '',
  '7',
  '[]',
  'null',
  '{',
  '{}}',
  '"x"',
  '[' * 99_999,
  '{"a": \ud800}',
  'NaN',
  '{1: 2}',
)


def wrong_row(rng, form, row):
  """Return a row, or line, that is no row of the log."""
  if rng.random() < 0.3 and form.layout in ('jsonl', 'otto'):
    return rng.choice((*NO_OBJECTS, public_logs.line(form, row)[: rng.randint(1, 20)]))
  if rng.random() < 0.3 and form.layout in (',', '\t', '::'):
    parts = list(row.values())
    return form.layout.join(rng.choice((parts[:-1], [*parts, ''], parts * 2, ['x'], [])))
  column = rng.choice(sorted(form.wrong))
  return row | {column: rng.choice(form.wrong[column])}


@mutate.seeds(500)
def test_a_wrong_row_is_refused_or_left_out(root, attempt, seed):
  rng = random.Random(seed)
  form = public_logs.FORMS[seed % len(public_logs.FORMS)]
  rows = [form.row(rng) for _ in range(public_logs.ROWS)]
  public_logs.write(root / 'log', form, rows)
  clean = events_of(read_tables(settings(form)))
  assert len(clean) == len(rows)
  places = sorted(rng.sample(range(len(rows)), rng.choice((1, 1, 2, 5))))
  for place in places:
    wrong = wrong_row(rng, form, rows[place])
    while wrong == '' and place == len(rows) - 1:  # a blank line at the very end is no row
      wrong = wrong_row(rng, form, rows[place])
    rows[place] = wrong
  path = public_logs.write(root / 'log', form, rows)
  stopped = attempt(lambda: read_tables(settings(form)))
  assert 'must' in stopped.refusal and str(path) in stopped.refusal
  header = form.header and form.layout in (',', '\t', '::')
  if form.kind != 'contract':
    assert any(f' {place + 1 + header}' in stopped.refusal for place in places)
  read = attempt(lambda: read_tables(settings(form, on_error='skip')))
  assert not read.refusal
  assert events_of(read.value) == [row for k, row in enumerate(clean) if k not in places]
  assert sum(read.value.left_out.values()) == len(places)


TYPES = (pl.Binary(), pl.List(pl.Int64()), pl.Date(), pl.Struct({'a': pl.Int64()}))


def spoiled(rng, form, path) -> bytes:
  """Return the content of a file with damage that no row explains, or bytes changed anywhere."""
  content = path.read_bytes()
  if path.suffix == '.parquet' and rng.random() < 0.5:
    table = pl.read_parquet(path, hive_partitioning=False)
    column = rng.choice(sorted(form.wrong))
    if rng.random() < 0.3:
      table.drop(column).write_parquet(path)
    else:
      null = pl.lit(None).cast(rng.choice(TYPES)).alias(column)
      table.with_columns(null).write_parquet(path)
    return path.read_bytes()
  if rng.random() < 0.2:
    lines = content.split(b'\n')
    return b'\n'.join(lines[1:]) if rng.random() < 0.5 else content.replace(b'\n', b'\r')
  if rng.random() < 0.1:
    return content.decode('latin-1').encode('utf-16')
  return mutate.mutated(rng, content)


@mutate.seeds(500)
def test_a_damaged_file_is_refused_or_keeps_its_rows(root, attempt, seed):
  rng = random.Random(seed)
  form = public_logs.FORMS[seed % len(public_logs.FORMS)]
  path = public_logs.write(root / 'log', form, [form.row(rng) for _ in range(public_logs.ROWS)])
  rest = [root / 'log' / name for name in form.others]
  damaged = rng.choice((path, path, path, *rest))
  content = spoiled(rng, form, damaged)
  damaged.write_bytes(content)
  skips = rng.random() < 0.5
  more = dict(max_users=rng.choice((0, 0, 2)), on_error='skip' if skips else 'stop')
  read = attempt(lambda: read_tables(settings(form, **more)))
  if read.refusal:
    assert 'must' in read.refusal and 'log' in read.refusal
    return
  tables = read.value
  assert tables.events.height and set(tables.events['item_id']) <= set(tables.items['item_id'])
  told = public_logs.ROWS
  if damaged == path and form.layout != 'parquet':
    lines = content.removeprefix(b'\xef\xbb\xbf').split(b'\n')
    told = len(lines) - (lines[-1] == b'') - (form.header and form.layout in (',', '\t', '::'))
  counted = {kind: n for kind, n in tables.left_out.items() if not kind.startswith('items_')}
  if damaged != path and form.kind == 'contract' or form.layout == 'otto':
    return  # a line cut inside a list of events may end early, and an item may be lost
  assert tables.events.height + sum(counted.values()) == told
