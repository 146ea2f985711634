"""Folders of logs: every file is read or named in an error, and a change of any shows."""

import hashlib
import json
import os
import random
import shutil

import polars as pl
import pytest

from rolegen_jax.config import ConfigError, DataConfig
from rolegen_jax.data import digests
from rolegen_jax.data.adapters import ADAPTERS, log_fingerprint
from rolegen_jax.data.contract import read_contract
from rolegen_jax.data.files import DataError
from rolegen_jax.data.folders import differing

PARTS = 3


def part(number: int, rows: int = 4) -> pl.DataFrame:
  return pl.DataFrame(
    {
      'user_id': [10 * number + row for row in range(rows)],
      'item_id': [1, 2] * (rows // 2),
      'event': ['view', 'purchase'] * (rows // 2),
      'timestamp': range(10**9, 10**9 + rows),
    }
  )


@pytest.fixture
def folder(tmp_path):
  """Return a log of items.parquet and events/part-0.parquet."""
  (tmp_path / 'events').mkdir()
  pl.DataFrame({'item_id': [1, 2]}).write_parquet(tmp_path / 'items.parquet')
  part(0).write_parquet(tmp_path / 'events/part-0.parquet')
  return tmp_path


def put(path, table):
  path.parent.mkdir(parents=True, exist_ok=True)
  table.write_parquet(path)
  return path


NAMES = {
  'flat': ('part-1.parquet', 'part-2.parquet'),
  'short suffix': ('part-1.pq', 'part-2.parq'),
  'upper case': ('part-1.PARQUET', 'PART-2.Parquet'),
  'Hive': ('000001_0', '000002_0'),
  'Spark': ('part-00001-8c1f.c000.snappy.parquet', 'part-00002-8c1f.c000.snappy.parquet'),
  'partitions': ('date=2026-11-27/part-0.parquet', 'date=2026-11-28/part-0.parquet'),
  'partitions beside a part': ('date=2026-11-28/part-0.parquet', 'part-today.parquet'),
  'deep': ('2026/11/28/a.parquet', '2026/11/a.parquet'),
  'marked partition': ('_date=2026-11-28/a.parquet', 'a b%20[c]*.parquet'),
}


@pytest.mark.parametrize('names', NAMES.values(), ids=NAMES)
def test_every_part_is_read_whatever_its_name_and_depth(folder, names):
  for number, name in enumerate(names, 1):
    put(folder / 'events' / name, part(number))
  events, _ = read_contract(folder)
  expected = [10 * number + row for number in range(PARTS) for row in range(4)]
  assert sorted(events['user_id']) == expected
  found = ADAPTERS['contract'](folder, DataConfig('contract', 'x', max_users=5))
  assert found[0].height == 5 and found[2] == {'other_users': 4 * PARTS - 5}


def test_what_tools_leave_beside_data_is_ignored(folder, capsys):
  for name in ('_SUCCESS', '_committed_12', '.DS_Store', '._part-0.parquet', '.part-0.parquet.crc'):
    (folder / 'events' / name).write_bytes(b'no parquet')
    (folder / name).write_bytes(b'no parquet')
  for name in ('README', 'README.txt', 'notes.md', 'items.parquet.crc', '.git/config'):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('no parquet')
  assert read_contract(folder)[0].height == 4
  err = capsys.readouterr().err  # of what looks like data it is said
  assert '._part-0.parquet (and 1 more): ignored, as are all _*, .*, *.crc' in err
  assert len(err.splitlines()) == 1


STRAY = (
  'events-2.parquet',
  'items2.parquet',
  'events.parquet.bak',
  'part-1.parquet',
  'x/y.parquet',
)


@pytest.mark.parametrize('name', (*STRAY, 'EVENTS/a.parquet', 'log.csv'))
def test_a_file_beside_the_log_is_named(folder, name):
  put(folder / name, part(1))
  with pytest.raises(
    DataError, match=rf'{name}: would not be read; .* must hold items.parquet and'
  ):
    read_contract(folder)


def test_a_table_is_one_file_or_a_folder(folder):
  put(folder / 'items/part-0.parquet', part(1))
  with pytest.raises(DataError, match='has both items.parquet and a folder items/; must have one'):
    read_contract(folder)
  (folder / 'items/part-0.parquet').unlink()
  (folder / 'items').rmdir()
  (folder / 'items.csv').write_text('item_id\n1\n')
  with pytest.raises(DataError, match='has items.parquet and items.csv; must have one of them'):
    read_contract(folder)


def test_files_of_other_kinds_among_the_parts_are_named(folder):
  for name, content in (
    ('part-1.tsv', b'user_id\n1\n'),
    ('empty.parquet', b''),
    ('x.parquet', b'PAR1'),
  ):
    path = folder / 'events' / name
    path.write_bytes(content)
    with pytest.raises(
      DataError, match=f'{name}: cannot be read .* must be a readable parquet file'
    ):
      read_contract(folder)
    path.unlink()


def test_links_and_what_is_no_file(folder):
  elsewhere = put(folder.parent / 'elsewhere/day/a.parquet', part(1))
  (folder / 'events/linked').symlink_to(elsewhere.parent)
  assert read_contract(folder)[0].height == 8
  for name, target, message in (
    ('broken.parquet', 'nothing', 'broken.parquet: is neither a file nor a folder'),
    ('again.parquet', 'part-0.parquet', 'part-0.parquet.* once more'),
    ('loop', '.', 'once more; its rows must be there once'),
  ):
    link = folder / 'events' / name
    link.symlink_to(target)
    with pytest.raises(DataError, match=message):
      read_contract(folder)
    link.unlink()
  twice = folder / 'events' / 'hard.parquet'
  twice.hardlink_to(folder / 'events' / 'part-0.parquet')
  with pytest.raises(DataError, match='once more; its rows must be there once'):
    read_contract(folder)
  twice.unlink()
  os.mkfifo(folder / 'events/pipe')
  with pytest.raises(DataError, match='pipe: is neither a file nor a folder'):
    read_contract(folder)


@pytest.mark.parametrize('name, kind', [('_delta_log', 'Delta Lake'), ('.hoodie', 'Apache Hudi')])
def test_tables_whose_files_hold_deleted_rows_are_refused(folder, name, kind):
  (folder / 'events' / name).mkdir()
  with pytest.raises(DataError, match=f'events: is a table of {kind}.*must be plain parquet'):
    read_contract(folder)


@pytest.mark.parametrize('archive', ['gz', 'zst', 'GZ'])
def test_a_file_and_its_archive_are_the_same_rows(folder, archive):
  for name in ('a.csv', f'a.csv.{archive}', 'b.csv.gz'):
    (folder / 'events' / name).write_bytes(b'')
  with pytest.raises(DataError, match='a.csv.*: is .*a.csv.* once more; its rows must be there'):
    read_contract(folder)


def test_a_folder_that_is_no_log_is_refused(folder):
  with pytest.raises(DataError, match='items.parquet: is no folder; must be one that holds items'):
    read_contract(folder / 'items.parquet')
  (folder / 'items.parquet').unlink()
  with pytest.raises(DataError, match='items.parquet: no such file; must be'):
    read_contract(folder)


def test_columns_in_names_of_folders_are_not_lost(folder):
  named = folder / 'events/event=purchase/a.parquet'
  put(named, part(1).drop('event'))
  with pytest.raises(
    DataError, match="a.parquet: column 'event' is in the name of its folder only"
  ):
    read_contract(folder)
  put(named, part(1))
  with pytest.raises(DataError, match="'event', row 1: 'view'; must be 'purchase', as the name"):
    read_contract(folder)
  put(named, part(1).filter(pl.col('event') == 'purchase'))
  put(folder / 'events/price=2/a.parquet', part(2))
  with pytest.raises(DataError, match="column 'price' is in the name of its folder only"):
    read_contract(folder)
  (folder / 'events/price=2/a.parquet').unlink()
  assert read_contract(folder)[0].height == 6


def test_parts_without_rows(folder):
  path = put(folder / 'events/part-1.parquet', part(1).clear())
  assert read_contract(folder)[0].height == 4
  put(path, part(1).clear().cast({'timestamp': pl.Float64}))
  with pytest.raises(DataError, match="part-1.parquet: column 'timestamp' has type Float64"):
    read_contract(folder)
  put(path, part(1).clear().drop('event'))
  with pytest.raises(DataError, match="part-1.parquet: column 'event' is missing"):
    read_contract(folder)
  put(path, part(1).clear())
  put(folder / 'events/part-0.parquet', part(0).clear())
  with pytest.raises(DataError, match='part-0.parquet: has no rows; must have at least one'):
    read_contract(folder)


def test_columns_that_differ_between_parts(folder, capsys):
  path = put(
    folder / 'events/part-1.parquet', part(1).with_columns(price=2, session_id=pl.lit('s'))
  )
  events, _ = read_contract(folder)
  assert events['price'].to_list() == [None] * 4 + [2.0] * 4
  assert events['session_id'].null_count() == 4
  assert "part-0.parquet: no column 'price' here" in capsys.readouterr().err
  put(path, part(1).drop('timestamp'))
  with pytest.raises(DataError, match="part-1.parquet: column 'timestamp' is missing"):
    read_contract(folder)
  put(path, part(1).cast({'item_id': pl.String}))
  with pytest.raises(DataError, match="part-1.parquet: column 'item_id' has type string"):
    read_contract(folder)


@pytest.fixture
def fingerprint(folder, monkeypatch):
  """Return a function that takes the fingerprint of the log."""
  monkeypatch.setenv('ROLEGEN_DATA', str(folder))
  return lambda path='.', kind='contract': log_fingerprint(DataConfig(kind, path))


def test_the_fingerprint_shows_every_change(folder, fingerprint):
  before = fingerprint()
  assert list(before) == ['items.parquet', 'events/part-0.parquet']
  assert json.loads(json.dumps(before)) == before
  content = (folder / 'items.parquet').read_bytes()
  assert before['items.parquet'] == [len(content), hashlib.sha256(content).hexdigest()[:16]]
  (folder / 'events/_SUCCESS').touch()
  assert fingerprint() == before
  new = put(folder / 'events/date=2026-11-28/part-1.parquet', part(1))
  after = fingerprint()
  assert differing(after, before) == 'events/date=2026-11-28/part-1.parquet is new'
  assert differing(before, after) == 'events/date=2026-11-28/part-1.parquet is gone'
  assert differing(before, before) is None
  shutil.copy(new, folder / 'copy')
  os.replace(folder / 'copy', new)
  os.utime(new, ns=(1, 1))
  assert fingerprint() == after
  content = bytearray(new.read_bytes())
  content[len(content) // 2] ^= 1
  new.write_bytes(content)
  assert differing(fingerprint(), after) == 'events/date=2026-11-28/part-1.parquet has changed'
  put(folder / 'events-2.parquet', part(2))
  with pytest.raises(DataError, match='events-2.parquet: would not be read'):
    fingerprint()


@pytest.fixture
def no_digests(monkeypatch):
  """A process that knows no digest."""
  monkeypatch.setattr(digests, '_known', {})
  monkeypatch.setattr(digests, '_taken', set())
  monkeypatch.setattr(digests, '_recalled', set())


@pytest.mark.usefixtures('no_digests')
def test_a_file_is_read_again_once_it_was_written_again(folder, fingerprint, tmp_path, monkeypatch):
  monkeypatch.setattr(digests, '_SETTLED_S', -1.0)
  before, path = fingerprint(), folder / 'items.parquet'
  digests.keep(tmp_path / digests.FILE)
  digests._known.clear()
  digests._recalled.clear()
  digests.recall(tmp_path / digests.FILE)
  content, stat = path.read_bytes(), path.stat()
  monkeypatch.setattr(hashlib, 'file_digest', lambda *_: pytest.fail('must not be read'))
  assert fingerprint() == before
  monkeypatch.undo()
  monkeypatch.setenv('ROLEGEN_DATA', str(folder))
  path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as if nothing had happened
  assert path.stat().st_size == stat.st_size
  assert differing(fingerprint(), before) == 'items.parquet has changed'


@pytest.mark.usefixtures('no_digests')
def test_a_file_of_this_moment_is_read_each_time(folder, fingerprint):
  (folder / 'items.parquet').touch()
  fingerprint()
  assert not digests._known


@pytest.mark.usefixtures('no_digests')
@pytest.mark.parametrize('text', ['', '[]', '{"a": 1}', '{"a"', '\0'])
def test_kept_digests_that_are_damaged_are_none(tmp_path, text):
  (tmp_path / digests.FILE).write_text(text)
  digests.recall(tmp_path / digests.FILE)
  assert digests._known == {}


def test_the_fingerprint_of_text_files(folder, fingerprint):
  logs = folder / 'csv'
  logs.mkdir()
  for name in ('2019-Oct.csv', '2019-Nov.CSV', '.hidden'):
    (logs / name).write_text('x')
  assert list(fingerprint('csv', 'rees46')) == ['2019-Nov.CSV', '2019-Oct.csv']
  assert list(fingerprint('csv/2019-Oct.csv', 'rees46')) == ['2019-Oct.csv']


def test_a_negative_number_of_users_never_drops_the_last(folder):
  for kind in ('contract', 'ranked_sequences'):
    if kind == 'ranked_sequences':
      (folder / 'events/part-0.parquet').unlink()
      put(folder / 'events/part-0.parquet', part(0).with_columns(pos=0))
    with pytest.raises(ConfigError, match='data.max_users=-1: must be at least 0'):
      ADAPTERS[kind](folder, DataConfig(kind, 'x', max_users=-1))


PLACES = ('', 'events/', 'events/date=2026-11-28/', 'events/_day=1/', 'events/a/b/', 'x/', 'items/')
FILES = ('a.parquet', 'b.pq', 'C.PARQUET', '000000_0', 'd', 'events.parquet', 'e.tsv', 'f.parquet~')
LEFT_BY_TOOLS = ('_SUCCESS', '.a.parquet.crc', '.DS_Store', 'README.md', '_metadata', 'x.crc')
CONTENTS = {
  'rows': lambda path: part(3).write_parquet(path),
  'no rows': lambda path: part(3).clear().write_parquet(path),
  'fewer columns': lambda path: part(3).drop('item_id').write_parquet(path),
  'text': lambda path: path.write_text('user_id\n1\n'),
  'nothing': lambda path: path.touch(),
  'half': lambda path: path.write_bytes(b'PAR1 half a file'),
  'link': lambda path: path.symlink_to('gone'),
}


@pytest.mark.parametrize('folders', [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_folders_are_read_in_full_or_refused(tmp_path, folders):
  rng, refused = random.Random(0), 0
  for number in range(folders):
    folder = tmp_path / str(number)
    (folder / 'events').mkdir(parents=True)
    pl.DataFrame({'item_id': [1, 2]}).write_parquet(folder / 'items.parquet')
    part(0).write_parquet(folder / 'events/part-0.parquet')
    rows = 4
    for _ in range(rng.randint(0, 3)):
      is_data = rng.random() < 0.7
      place = rng.choice(PLACES[1:5] if rng.random() < 0.8 else PLACES)
      path = folder / place / rng.choice(FILES if is_data else LEFT_BY_TOOLS)
      content = 'rows' if rng.random() < 0.7 else rng.choice(sorted(CONTENTS))
      path.parent.mkdir(parents=True, exist_ok=True)
      if not os.path.lexists(path):
        CONTENTS[content](path)
        rows += 4 * (is_data and content == 'rows')
    try:
      events, _ = read_contract(folder)
    except DataError as error:
      refused += 1
      assert str(folder) in str(error) and 'must' in str(error)
    else:
      assert events.height == rows
  assert 0.1 * folders < refused < 0.8 * folders
