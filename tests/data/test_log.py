"""The indexed log: nothing is lost, rows are in order, and files that do not fit are refused."""

import collections
import dataclasses

import numpy as np
import polars as pl
import pytest
from random_logs import random_tables

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.files import DataError, write_parquet
from rolegen_jax.data.log import InteractionLog


@pytest.mark.parametrize('text_ids', [False, True])
def test_rows_of_the_source_are_all_kept_counted_and_sorted(text_ids):
  events, items = random_tables(0, text_ids=text_ids)
  log = InteractionLog.build(events, items)
  rows = events.select('user_id', 'item_id', pl.col('event').cast(pl.String), 'timestamp')
  expected = collections.Counter(rows.iter_rows())
  columns = log.user, log.item, log.event, log.timestamp.tolist(), log.count.tolist()
  found = {
    (log.users[int(user)], log.items['item_id'][int(item)], EVENT_NAMES[event], time): count
    for user, item, event, time, count in zip(*columns)
  }
  assert found == expected and max(expected.values()) > 1
  assert log.users.is_sorted()
  assert log.items['item_id'].is_sorted() and log.items.columns[0] == 'item_id'
  assert log.items.height == items.height  # items that nobody touched stay
  keys = np.stack([log.user, log.timestamp, log.event, log.item])
  assert (np.lexsort(keys[::-1]) == np.arange(len(log.item))).all()
  assert [(log.user == u).sum() for u in range(len(log.users))] == np.diff(log.offsets).tolist()
  columns = log.offsets, log.item, log.event, log.timestamp, log.count
  assert [column.dtype for column in columns] == ['i8', 'i4', 'i1', 'i8', 'i4']


def test_digest_depends_on_all_content_and_not_on_the_order_of_the_source():
  events, items = random_tables(1)
  digest = InteractionLog.build(events, items).digest
  shuffled = InteractionLog.build(events.sample(fraction=1, shuffle=True, seed=3), items.reverse())
  assert shuffled.digest == digest and len(digest) == 16
  later = events.with_columns(
    timestamp=pl.when(pl.int_range(pl.len()) == 5).then(1).otherwise('timestamp')
  )
  others = [
    (events.head(-1), items),
    (later, items),
    (pl.concat([events, events.head(1)]), items),
    (events, items.with_columns(title=pl.lit('x'))),
    (events, items.rename({'title': 'text'})),
  ]
  assert len({digest, *(InteractionLog.build(*tables).digest for tables in others)}) == 6


def test_saved_logs_load_again_and_wrong_files_are_refused(tmp_path):
  log, other = (
    InteractionLog.build(*random_tables(0, users=users, text_ids=True)) for users in (25, 20)
  )
  log.save(tmp_path / 'a')
  loaded = InteractionLog.load(tmp_path / 'a')
  assert loaded.digest == log.digest
  assert loaded.items.equals(log.items) and loaded.users.equals(log.users)
  for field in dataclasses.fields(log)[2:]:
    np.testing.assert_array_equal(getattr(loaded, field.name), getattr(log, field.name))
    if isinstance(getattr(log, field.name), np.ndarray):
      assert isinstance(getattr(loaded, field.name).base, np.memmap), field.name  # not read
  assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == [
    'log_count.npy',
    'log_event.npy',
    'log_item.npy',
    'log_items.parquet',
    'log_offsets.npy',
    'log_timestamp.npy',
    'log_users.parquet',
  ]

  counts = np.load(tmp_path / 'a/log_count.npy')
  np.save(tmp_path / 'a/log_count.npy', counts + 1)
  with pytest.raises(DataError, match=f'saved was {log.digest}'):
    InteractionLog.load(tmp_path / 'a')
  other.save(tmp_path / 'b')
  (tmp_path / 'b/log_count.npy').replace(tmp_path / 'a/log_count.npy')
  with pytest.raises(DataError, match='columns have .* rows for 25 users'):
    InteractionLog.load(tmp_path / 'a')
  (tmp_path / 'a/log_count.npy').write_bytes(b'half')
  with pytest.raises(DataError, match='log_count.npy'):
    InteractionLog.load(tmp_path / 'a')
  (tmp_path / 'a/log_items.parquet').write_bytes(b'PAR1 half a file')
  with pytest.raises(DataError, match='log_items.parquet'):
    InteractionLog.load(tmp_path / 'a')


def test_a_log_of_an_earlier_version_loads_until_it_is_written_again(tmp_path):
  """Its rows were in one parquet file, which carried the digest."""
  log = InteractionLog.build(*random_tables(0))
  names = ('user', 'timestamp', 'event', 'item', 'count')
  write_parquet(log.items, tmp_path / 'log_items.parquet')
  write_parquet(log.users.to_frame(), tmp_path / 'log_users.parquet')
  rows = pl.DataFrame({name: getattr(log, name) for name in names})
  write_parquet(rows, tmp_path / 'log_events.parquet', {'digest': log.digest})
  assert InteractionLog.load(tmp_path).digest == log.digest
  other = InteractionLog.build(*random_tables(1))
  other.save(tmp_path)
  assert InteractionLog.load(tmp_path).digest == other.digest


def test_a_failed_write_is_no_log_of_two_halves(tmp_path, monkeypatch):
  log = InteractionLog.build(*random_tables(0))
  log.save(tmp_path)

  def fail(frame, path, **_):
    path.write_bytes(b'half')
    raise OSError('disk full')

  monkeypatch.setattr(pl.DataFrame, 'write_parquet', fail)
  with pytest.raises(OSError):
    InteractionLog.build(*random_tables(1)).save(tmp_path)
  monkeypatch.undo()
  with pytest.raises(DataError, match='prepare the data again'):
    InteractionLog.load(tmp_path)
  assert len(list(tmp_path.iterdir())) == 7
