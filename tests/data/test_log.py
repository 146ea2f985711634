"""The indexed log: nothing is lost, rows are in order, and files that do not fit are refused."""

import collections
import dataclasses

import numpy as np
import polars as pl
import pytest
from random_logs import random_tables

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.files import DataError
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
  assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == [
    'log_events.parquet',
    'log_items.parquet',
    'log_users.parquet',
  ]

  other.save(tmp_path / 'b')
  (tmp_path / 'b/log_events.parquet').replace(tmp_path / 'a/log_events.parquet')
  with pytest.raises(DataError, match=f'saved was {other.digest}'):
    InteractionLog.load(tmp_path / 'a')
  pl.DataFrame({'x': [1]}).write_parquet(tmp_path / 'a/log_events.parquet')
  with pytest.raises(DataError, match='log_events.parquet'):
    InteractionLog.load(tmp_path / 'a')
  (tmp_path / 'a/log_items.parquet').write_bytes(b'PAR1 half a file')
  with pytest.raises(DataError, match='log_items.parquet'):
    InteractionLog.load(tmp_path / 'a')


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  log = InteractionLog.build(*random_tables(0))
  log.save(tmp_path)

  def fail(frame, path, **_):
    path.write_bytes(b'half')
    raise OSError('disk full')

  monkeypatch.setattr(pl.DataFrame, 'write_parquet', fail)
  with pytest.raises(OSError):
    InteractionLog.build(*random_tables(1)).save(tmp_path)
  monkeypatch.undo()
  assert InteractionLog.load(tmp_path).digest == log.digest
  assert len(list(tmp_path.iterdir())) == 3
