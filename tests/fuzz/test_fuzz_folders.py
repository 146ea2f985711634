"""Mutated folders of logs: every file is read in full, named in an error, or ignored by name."""

import os
import random

import logs
import mutate
import polars as pl
import pytest

from rolegen_jax.config import Config, DataConfig
from rolegen_jax.data.adapters import ROOT_VARIABLE, log_fingerprint
from rolegen_jax.data.prepare import read_tables
from rolegen_jax.data.shards import convert

PLACES = ('', 'a/', 'a/b/c/', '2026/11/28/', 'day=2026-11-28/', '_day=3/', 'x y%20[1]*/', 'Events/')
PARTS = ('part-N.parquet', 'PART-N.PARQUET', 'N.pq', '00000N_0', 'part-0000N-c000.snappy.parquet')
PARTS += ('items.parquet', 'events.parquet', 'N', 'N.parquet~', 'ü N?.parquet', 'N.tsv', 'N.tmp')
LEFT_BY_TOOLS = ('_SUCCESS', '._N.parquet', '.part.crc', 'README', 'N.md', '_metadata', 'x.crc')
LEFT_BY_TOOLS += ('.DS_Store', '_temporary/0/part-0.parquet', '.git/config', 'READMEs.parquet')
STRAY = ('events-2.parquet', 'x/y.parquet', 'items/0.parquet', 'events.parquet.bak', 'log.csv')
WRONG = ('text', 'nothing', 'half', 'gone', 'loop', 'twice', 'pipe', 'event=', 'price=', 'delta')
WRONG += ('stray', 'other ids', 'no items', 'both', 'fewer columns')


@pytest.fixture
def root(tmp_path, monkeypatch):
  monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
  return tmp_path


def pieces(rng: random.Random, rows, most: int = 5) -> list:
  """Split a table or list into consecutive pieces; some may be empty."""
  cuts = sorted(rng.choices(range(len(rows) + 1), k=rng.randint(0, most - 1)))
  return [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)])]


def put(path, table):
  path.parent.mkdir(parents=True, exist_ok=True)
  table.write_parquet(path)
  return path


def write_parts(rng, log, events) -> list:
  """Write the events as parts at any depth and return their paths; all of them are to be read."""
  paths = []
  for number, part in enumerate(pieces(rng, events)):
    if rng.random() < 0.3:  # what is null everywhere may be missing
      part = part.drop([c for c in ('session_id', 'price') if part[c].null_count() == len(part)])
    part = part.select(rng.sample(part.columns, len(part.columns)))
    name = f'{number}{rng.choice(PARTS)}' if rng.random() < 0.3 else rng.choice(PARTS)
    name = name.replace('N', str(number))
    path = log / 'events' / rng.choice(PLACES) / name
    while path.exists():
      path = path.with_name(f'{number}{path.name}')
    if rng.random() < 0.15:  # a link to a file elsewhere
      path.parent.mkdir(parents=True, exist_ok=True)
      path.symlink_to(put(log.parent / 'elsewhere' / f'{number}.parquet', part))
    else:
      put(path, part)
    paths.append(path)
  return paths


def leave_beside(rng, log) -> None:
  """Leave what tools leave; nothing of it is data."""
  for name in rng.sample(LEFT_BY_TOOLS, rng.randint(0, 3)):
    path = log / rng.choice(('', 'events/', 'events/a/')) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rng.choice((b'', b'PAR1 no data', b'user_id\n1\n')))


# One branch for each kind of fault.
def spoil(rng, log, paths, events) -> None:
  """Do one of WRONG, after which the folder must be refused."""
  fault, path = rng.choice(WRONG), log / 'events' / rng.choice(PLACES) / 'wrong.parquet'
  path.parent.mkdir(parents=True, exist_ok=True)
  if fault in ('text', 'nothing', 'half'):
    whole = paths[0].read_bytes()
    path.write_bytes(
      dict(text=b'a,b\n', nothing=b'', half=whole[: rng.randrange(len(whole))])[fault]
    )
  elif fault == 'gone':
    path.symlink_to('nowhere')
  elif fault == 'loop':
    path.symlink_to(rng.choice(('.', str(log / 'events'), str(log))))
  elif fault == 'twice':
    path.symlink_to(rng.choice(paths))
  elif fault == 'pipe':
    os.mkfifo(path)
  elif fault in ('event=', 'price='):
    value = rng.choice(('purchase', '2', 'NaN'))
    column = fault[:-1]
    put(path.parent / f'{fault}{value}' / 'a.parquet', events.drop(column))
  elif fault == 'delta':
    (path.parent / rng.choice(('_delta_log', '.hoodie'))).mkdir()
  elif fault == 'stray':
    put(log / rng.choice(STRAY), events)
  elif fault == 'other ids':
    put(path, events.with_columns(pl.col(rng.choice(('user_id', 'item_id'))).cast(pl.String)))
  elif fault == 'no items':
    (log / 'items.parquet').unlink()
  elif fault == 'both':
    put(log / 'events.parquet', events)
  else:
    put(path, events.drop(rng.choice(logs.COLUMNS[:4])).head(rng.choice((0, 5))))


def make(rng, root):
  """Write a log into `root`/log; return its events, the paths of its parts and if it is right."""
  catalogue = logs.items(rng)
  events, log = logs.events(rng, catalogue), root / 'log'
  put(log / 'items.parquet', catalogue)
  paths = write_parts(rng, log, events)
  leave_beside(rng, log)
  is_right = rng.random() < 0.65
  if not is_right:
    spoil(rng, log, paths, events)
  return events, paths, is_right


def in_order(rows):
  return sorted(rows, key=repr)


@mutate.seeds(150)
def test_every_part_is_read_or_named(root, attempt, seed):
  rng = random.Random(seed)
  events, paths, is_right = make(rng, root)
  data = DataConfig('contract', 'log', max_users=rng.choice((0, 0, 0, 2)))
  read = attempt(lambda: read_tables(data))
  if not is_right:
    assert 'must' in read.refusal and 'log' in read.refusal
    return
  assert not read.refusal
  files = {path.relative_to(root / 'log').as_posix() for path in paths}
  assert set(log_fingerprint(data)) == files | {'items.parquet'}
  by_path = sorted(paths, key=lambda path: path.relative_to(root / 'log').parts)
  order = {path: place for place, path in enumerate(paths)}
  written = [
    row
    for path in by_path
    for row in logs.rows_of(pl.read_parquet(path, glob=False, hive_partitioning=False))
  ]
  assert in_order(written) == in_order(logs.rows_of(events)) and len(order) == len(paths)
  users = list(dict.fromkeys(row[0] for row in written))[: data.max_users or None]
  assert logs.rows_of(read.value.events) == [row for row in written if row[0] in users]
  assert read.value.events.height + sum(read.value.left_out.values()) == logs.ROWS


@mutate.seeds(90)
def test_shards_hold_every_row(root, attempt, seed):
  rng = random.Random(seed)
  events, _, is_right = make(rng, root)
  config = Config(data=DataConfig('contract', 'log'))
  shards = rng.randint(1, 4)

  def split():
    plan = convert.make_plan(config, root / 'log', shards)
    return plan, [convert.split(plan, chunk) for chunk in plan.chunks]

  made = attempt(split)
  if not is_right:
    assert 'must' in made.refusal
    return
  assert not made.refusal
  plan, tables = made.value
  assert plan.events == events.height == sum(table.height for table in tables)
  item_ids = convert.catalogue(plan.folder, config.data)['item_id']
  found = [
    (row['user_id'], item_ids[row['item_id']], row['event'], row['timestamp'])
    for table in tables
    for row in table.iter_rows(named=True)
  ]
  assert in_order(found) == in_order(row[:4] for row in logs.rows_of(events))
  shards_of = {
    (row[0], row[1]) for table in tables for row in table.select('user_id', 'shard').rows()
  }
  assert len(shards_of) == len({user for user, _ in shards_of})  # a user is in one shard
  held = [
    convert.shard_log(plan, rows.drop('shard')) for _, rows in pl.concat(tables).group_by('shard')
  ]
  assert sum(int(log.count.sum()) for log in held) == events.height


NAMES = ('2019-Oct.csv', 'a/2019-Nov.CSV', 'b/c/1.csv.gz', '2.CSV.GZ', 'x y[1]*.csv', 'day=1/0.csv')


@mutate.seeds(60)
def test_folders_of_text_files(root, attempt, seed):
  rng = random.Random(seed)
  kind, folder, written = rng.choice(sorted(logs.KINDS)), root / 'log', {}
  header = [logs.HEADERS[kind]] if logs.HEADERS[kind] else []
  for name, part in zip(rng.sample(NAMES, 5), pieces(rng, logs.lines(rng, kind))):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = '\n'.join([*header, *part, '']).encode()
    path.write_bytes(mutate.zipped(content) if name.lower().endswith('gz') else content)
    written[path] = part
  leave_beside(rng, folder)
  is_right = header != [] or all(written.values())  # a file without a line has no header
  if rng.random() < 0.3:
    path, is_right = (
      folder / 'events' / rng.choice(('log.txt', 'log', 'a.csv~', '1.csv.zip')),
      False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(next(iter(written)).read_bytes())
  read = attempt(lambda: read_tables(DataConfig(kind, 'log')))
  assert bool(read.refusal) != is_right
  if is_right:
    by_path = sorted(written, key=lambda path: path.relative_to(folder).parts)
    rows = [logs.row_of(kind, line) for path in by_path for line in written[path]]
    assert logs.rows_of(read.value.events) == rows
