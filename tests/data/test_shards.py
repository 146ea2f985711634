"""Shards of a log: the very rows that the log gives in memory, whatever cuts it up and whoever runs the parts."""

import collections
import dataclasses
import os
import signal
import subprocess
import sys
import time
import zlib

import grain
import grain.experimental
import numpy as np
import polars as pl
import pytest
from random_logs import random_tables

from rolegen_jax.config import BackboneConfig, Config, ConfigError, DataConfig
from rolegen_jax.data.events import event_chunks, read_contract
from rolegen_jax.data.files import DataError, read_parquet
from rolegen_jax.data.loader import Batches
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import TRAIN, VALID, find_occasions
from rolegen_jax.data.shards import beam, build, convert
from rolegen_jax.data.shards.reader import Shards, training_rows

WIDTH = 32
ROWS, USERS, FILES = 4000, 90, 5


def config(**data) -> Config:
  return Config(
    data=DataConfig(format='contract', path='log', **data), backbone=BackboneConfig(context=WIDTH)
  )


def write_log(folder, files=FILES, order=0, **kwargs):
  """A log with ties and repeated rows, its rows in a random order over `files` files."""
  events, items = random_tables(0, rows=ROWS, users=USERS, **kwargs)
  events = events.with_columns(pl.col('event').cast(pl.String)).sample(
    fraction=1, shuffle=True, seed=order
  )
  (folder / 'events').mkdir(parents=True)
  items.sample(fraction=1, shuffle=True, seed=order).write_parquet(folder / 'items.parquet')
  for number, rows in enumerate(np.array_split(np.arange(ROWS), files)):
    events[rows].write_parquet(folder / f'events/{number}.parquet')
  return folder


def in_memory(folder, config):
  """The log, its occasions and its packed rows."""
  log = InteractionLog.build(*read_contract(folder))
  occasions = find_occasions(log, config.data)
  count, rows = training_rows(config, log, occasions, None)
  return log, occasions, rows(np.arange(count))


def windows(rows) -> collections.Counter:
  """Every window of packed rows as the tuple of its events."""
  found = collections.Counter()
  for item, event, count, timestamp, segment in zip(*rows):
    for number in range(1, segment.max() + 1):
      own = segment == number
      found[tuple(zip(*(column[own].tolist() for column in (item, event, count, timestamp))))] += 1
  return found


def everything(read: Shards):
  return read.rows(np.arange(len(read)))


@pytest.fixture(scope='module')
def log(tmp_path_factory):
  return write_log(tmp_path_factory.mktemp('made') / 'log')


@pytest.fixture(scope='module')
def plan(log):
  """Four shards, chunks of a few hundred rows: many of each file."""
  return dataclasses.replace(
    convert.make_plan(config(), log, 4), chunks=tuple(event_chunks(log, 300))
  )


@pytest.fixture(scope='module')
def built(plan, tmp_path_factory):
  output = tmp_path_factory.mktemp('made') / 'shards'
  build.build(plan, output, workers=2)
  return Shards(output)


def test_one_shard_is_the_rows_in_memory_bit_by_bit(log, tmp_path):
  build.build(convert.make_plan(config(), log), tmp_path / 'one', workers=1)
  for got, want in zip(everything(Shards(tmp_path / 'one')), in_memory(log, config())[2]):
    assert got.dtype == want.dtype == np.int32
    np.testing.assert_array_equal(got, want)


def test_many_shards_hold_the_same_windows_and_cuts(log, built):
  whole, occasions, rows = in_memory(log, config())
  assert len(built.index['shards']) == 4 and windows(everything(built)) == windows(rows)
  assert (
    built.cuts.train
    == occasions.train_cut
    == max(everything(built).timestamp.max(), occasions.train_cut)
  )
  assert (occasions.timestamp[occasions.split == VALID] <= built.cuts.valid).all()
  totals = {
    name: built.index[name] for name in ('source_events', 'events_after_collapse', 'users', 'items')
  }
  assert totals == dict(
    source_events=ROWS,
    events_after_collapse=len(whole.item),
    users=len(whole.users),
    items=whole.items.height,
  )
  assert len(whole.item) < ROWS  # there were repeated rows to count
  assert sorted(path.name for path in built.folder.iterdir()) == [
    '.lock',
    'index.json',
    *(entry['file'] for entry in built.index['shards']),
  ]


def test_leave_one_out_and_text_ids(tmp_path):
  wanted = config(split='leave_one_out')
  folder = write_log(tmp_path / 'log', text_ids=True)
  build.build(convert.make_plan(wanted, folder, 3), tmp_path / 'shards', workers=1)
  read = Shards(tmp_path / 'shards')
  assert read.cuts is None and windows(everything(read)) == windows(in_memory(folder, wanted)[2])


def test_neither_order_nor_files_nor_chunks_change_the_content(log, built, tmp_path):
  for number, (files, rows) in enumerate([(1, 10_000), (7, 999)]):
    folder = write_log(tmp_path / f'log{number}', files, order=number + 5)
    other = dataclasses.replace(
      convert.make_plan(config(), folder, 4), chunks=tuple(event_chunks(folder, rows))
    )
    assert build.build(other, tmp_path / f'shards{number}', workers=1)['digest'] == built.digest
  fewer = dataclasses.replace(
    convert.make_plan(config(), log, 4), chunks=tuple(event_chunks(log, 300)[:-1])
  )
  assert build.build(fewer, tmp_path / 'fewer', workers=1)['digest'] != built.digest


def test_beam_writes_the_same_bytes(plan, built, tmp_path):
  pytest.importorskip('apache_beam', reason='requirements-cluster.txt is not installed')
  index = beam.build(plan, tmp_path / 'beam', ['--runner=DirectRunner'])
  assert index == built.index
  for entry in index['shards']:
    assert (tmp_path / 'beam' / entry['file']).read_bytes() == (
      built.folder / entry['file']
    ).read_bytes()
  assert sorted(p.name for p in (tmp_path / 'beam').iterdir()) == sorted(
    p.name for p in built.folder.iterdir()
  )


def test_beam_tells_bad_input_in_one_line(tmp_path):
  pytest.importorskip('apache_beam', reason='requirements-cluster.txt is not installed')
  folder = spoil(write_log(tmp_path / 'log'))
  with pytest.raises(
    DataError,
    match=r"^\S*events/3.parquet: column 'timestamp', row 701: -5; must be whole seconds UTC.*2147483647$",
  ):
    beam.build(
      convert.make_plan(config(), folder, 2), tmp_path / 'shards', ['--runner=DirectRunner']
    )


def test_an_error_that_a_cluster_tells_as_text_is_the_same():
  told = "Traceback (most recent call last):\n  raise X\nrolegen_jax.data.files.DataError: x.parquet: row 3: -5 [while running 'split']\n"
  assert repr(beam._ours(RuntimeError(told))) == repr(DataError('x.parquet: row 3: -5'))
  other = RuntimeError('no worker')
  assert beam._ours(other) is other


def test_a_users_shard_is_the_crc_of_the_id():
  users = pl.Series(['a', 'b', 'a', 'Ü'])
  assert convert.shard_of(users, 1000).to_list() == [zlib.crc32(u.encode()) % 1000 for u in users]
  assert (
    convert.shard_of(pl.Series([12, 7, 12]), 1000).to_list()
    == convert.shard_of(pl.Series(['12', '7', '12']), 1000).to_list()
  )


def test_work_that_is_done_is_not_done_again(plan, built, tmp_path):
  assert build.begin(plan, tmp_path) is None
  path = tmp_path / 'building/split/00002.parquet'
  path.parent.mkdir()
  convert.split(plan, plan.chunks[2])[1:].write_parquet(
    path
  )  # as if finished before, and told apart by a missing row
  index = build.build(plan, tmp_path, workers=1)
  assert index['digest'] != built.digest
  assert build.build(plan, tmp_path, workers=1) == index


@pytest.mark.parametrize('when', ['split/00001.parquet', 'clock/00000.npz'])
def test_a_killed_command_continues_and_leaves_nothing_half(log, built, tmp_path, when):
  command = [
    sys.executable,
    '-m',
    'rolegen_jax',
    'prepare_shards',
    f'--output={tmp_path}/shards',
    '--shards=4',
    '--workers=1',
    f'--set=data.path={log}',
    f'--set=backbone.context={WIDTH}',
  ]
  with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    while process.poll() is None and not (tmp_path / 'shards/building' / when).exists():
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
  assert process.returncode == -signal.SIGKILL and not (tmp_path / 'shards/index.json').exists()
  with pytest.raises(
    DataError, match='index.json: no such file; must be .* the same command continues'
  ):
    Shards(tmp_path / 'shards')
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  read = Shards(tmp_path / 'shards')
  assert read.digest == built.digest and 'pack: 4/4' in done.stderr
  assert sorted(os.listdir(read.folder)) == sorted(os.listdir(built.folder))


def spoil(folder):
  """A wrong time in the 702nd row, counted from 1, of the fourth file; and a later one that must not be told instead."""
  for name, row in ((3, 700), (4, 10)):
    rows = read_parquet(folder / f'events/{name}.parquet').with_row_index('row')
    rows.with_columns(
      timestamp=pl.when(pl.col('row') == row).then(-5).otherwise('timestamp')
    ).write_parquet(folder / f'events/{name}.parquet')
  return folder


def test_bad_rows_are_told_by_file_and_row(tmp_path):
  folder = spoil(write_log(tmp_path / 'log'))
  made = convert.make_plan(config(), folder, 2)
  for chunks in (made.chunks, tuple(event_chunks(folder, 300))):
    with pytest.raises(
      DataError,
      match=r"events/3.parquet: column 'timestamp', row 701: -5; must be whole seconds UTC",
    ):
      build.build(dataclasses.replace(made, chunks=chunks), tmp_path / 'shards', workers=2)
  assert not (tmp_path / 'shards/index.json').exists()


def test_other_bad_input_is_one_clear_error(log, plan, built, tmp_path):
  folder = write_log(tmp_path / 'log')
  second = read_parquet(folder / 'events/2.parquet')
  second.with_columns(pl.col('user_id').cast(pl.String)).write_parquet(folder / 'events/2.parquet')
  with pytest.raises(
    DataError,
    match="2.parquet: column 'user_id' has type string, in .*0.parquet it has type integer; must be the same type",
  ):
    convert.make_plan(config(), folder)
  (folder / 'events/2.parquet').write_bytes(b'PAR1 half a file')
  with pytest.raises(DataError, match='2.parquet: cannot be read'):
    convert.make_plan(config(), folder)
  second.head(0).write_parquet(folder / 'events/2.parquet')  # a job's empty part is nothing wrong
  assert convert.make_plan(config(), folder).events == ROWS - second.height
  second.write_parquet(folder / 'events.parquet')
  with pytest.raises(DataError, match='has both events.parquet and a folder events/'):
    convert.make_plan(config(), folder)
  (tmp_path / 'none/events').mkdir(parents=True)
  with pytest.raises(DataError, match='none/events: has no file'):
    convert.make_plan(config(), tmp_path / 'none')
  with pytest.raises(ConfigError, match="data.format='rees46': must be 'contract'"):
    convert.make_plan(Config(data=DataConfig(format='rees46', path='x')), log)
  with pytest.raises(ConfigError, match='data.max_users=5: must be 0'):
    convert.make_plan(config(max_users=5), log)
  (tmp_path / 'mine.txt').write_text('kept')
  with pytest.raises(ConfigError, match='holds files that are no shards'):
    build.build(plan, tmp_path)
  assert (tmp_path / 'mine.txt').read_text() == 'kept'
  with build.hold(built.folder), pytest.raises(ConfigError, match='being written by process'):
    build.build(plan, built.folder)


def test_a_log_without_purchases_or_training_rows_is_refused(tmp_path):
  (tmp_path / 'log').mkdir()
  views = pl.DataFrame(
    {'user_id': [1, 1, 2], 'item_id': [5, 5, 5], 'event': ['view'] * 3, 'timestamp': [10, 20, 30]}
  )
  pl.DataFrame({'item_id': [5]}).write_parquet(tmp_path / 'log/items.parquet')
  for event, right in (
    ('view', 'has no event purchase'),
    ('purchase', 'no user has two events before'),
  ):
    views.with_columns(event=pl.lit(event)).write_parquet(tmp_path / 'log/events.parquet')
    with pytest.raises(DataError, match=right):
      build.build(convert.make_plan(config(), tmp_path / 'log'), tmp_path / event, workers=1)


def test_other_settings_or_events_start_afresh(log, plan, tmp_path):
  first = build.build(plan, tmp_path, workers=1)
  later = dataclasses.replace(plan, config=config(test_fraction=0.5))
  assert later.key != plan.key
  second = build.build(later, tmp_path, workers=1)
  assert second['cuts']['valid'] < first['cuts']['valid'] and second == Shards(tmp_path).index


def test_rows_by_number_and_by_grain(built):
  rows = everything(built)
  pick = np.array([len(built) - 1, 0, 3, 3])
  for got, want in zip(built.rows(pick), rows):
    np.testing.assert_array_equal(got, want[pick])
  for got, want in zip(built[-1], rows):
    np.testing.assert_array_equal(got, want[-1])
  with pytest.raises(IndexError):
    built[len(built)]
  batch = next(iter(grain.MapDataset.source(built).shuffle(seed=1).batch(4).to_iter_dataset()))
  assert batch.item.shape == (4, WIDTH) and batch.item.dtype == np.int32


@pytest.mark.parametrize('processes', [1, 4])
def test_the_order_of_batches_is_grains(processes):
  rows, batch, seed = 50, 12, 3
  order = grain.MapDataset.range(rows).shuffle(seed=seed).repeat()
  for process in range(processes):
    want = grain.experimental.ElasticIterator(
      order, batch, grain.sharding.ShardOptions(process, processes)
    )
    got = Batches(rows, batch, seed, lambda numbers: numbers, np.arange(process, batch, processes))
    for _ in range(15):  # into the fourth epoch
      np.testing.assert_array_equal(next(got), next(want))


def test_batches_read_every_row_once_an_epoch_and_continue(built):
  batch = len(built) // 3
  first, again = (Batches(len(built), batch, 7, built.rows) for _ in range(2))
  epoch = [next(first) for _ in range(3)]
  assert sum((windows(rows) for rows in epoch), collections.Counter()) <= windows(everything(built))
  again.seek(first.position)
  for got, want in zip(next(again), next(first)):
    np.testing.assert_array_equal(got, want)


def test_training_reads_shards_of_its_own_settings_and_items_only(log, built):
  whole, occasions, _ = in_memory(log, config())
  count, rows = training_rows(config(), whole, occasions, built)
  assert count == len(built) and (rows(np.arange(3)).item == built.rows(np.arange(3)).item).all()
  ids = whole.items['item_id']
  with pytest.raises(ConfigError, match=r'backbone.context=64: the shards in .* were made with 32'):
    built.check(dataclasses.replace(config(), backbone=BackboneConfig(context=64)), ids)
  with pytest.raises(ConfigError, match=r'data.test_fraction=0.2'):
    built.check(config(test_fraction=0.2), ids)
  with pytest.raises(DataError, match='made with another items.parquet'):
    built.check(config(), ids[1:])


def test_damaged_shards_are_noticed(plan, tmp_path):
  build.build(plan, tmp_path, workers=1)
  read = Shards(tmp_path)
  read.verify()
  path = tmp_path / read.index['shards'][2]['file']
  whole = path.read_bytes()
  path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
  with pytest.raises(DataError, match=f'{path.name}: its content is not what was written'):
    Shards(tmp_path).verify()
  path.write_bytes(whole[:-100])
  with pytest.raises(DataError, match=path.name):
    Shards(tmp_path)
  path.unlink()
  with pytest.raises(DataError, match=f'{path.name}: no such file'):
    Shards(tmp_path)


def test_some_users_under_the_cuts_of_all(log, built):
  """A run on a part of the users holds out no time that the shards train on."""
  part = InteractionLog.build(*read_contract(log, max_users=20))
  assert len(part.users) == 20
  first = pl.concat([read_parquet(path) for path in sorted((log / 'events').iterdir())])[
    'user_id'
  ].unique(maintain_order=True)[:20]
  assert part.users.to_list() == sorted(first.to_list())
  occasions = find_occasions(part, config().data, built.cuts)
  held_out = occasions.timestamp[
    (occasions.split != TRAIN) & (np.diff(occasions.target_offsets) > 0)
  ]
  assert (
    held_out.min() > everything(built).timestamp.max() and occasions.train_cut == built.cuts.train
  )
