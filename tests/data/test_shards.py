"""Shards of a log: the same rows as from the log in memory, whoever builds them and however cut."""

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
from shard_logs import ROWS, WIDTH, config, index_of, make_plan, write_log

from rolegen_jax.config import BackboneConfig, Config, ConfigError, DataConfig
from rolegen_jax.data.contract import CHUNK_ROWS, event_chunks, read_contract
from rolegen_jax.data.events import MAX_TIMESTAMP
from rolegen_jax.data.files import DataError, read_parquet
from rolegen_jax.data.loader import Batches
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import TRAIN, VALID, find_occasions
from rolegen_jax.data.shards import beam, build, convert
from rolegen_jax.data.shards.reader import Shards, training_rows


def in_memory(folder, config):
  """Return the log, its occasions and its packed rows."""
  log = InteractionLog.build(*read_contract(folder))
  occasions = find_occasions(log, config.data)
  count, rows = training_rows(config, log, occasions, None)
  return log, occasions, rows(np.arange(count))


def windows(rows) -> collections.Counter:
  """Count the windows of packed rows, each as the tuple of its events."""
  counts = collections.Counter()
  for item, event, count, timestamp, segment in zip(*rows):
    for number in range(1, segment.max() + 1):
      in_window = segment == number
      columns = (column[in_window].tolist() for column in (item, event, count, timestamp))
      counts[tuple(zip(*columns))] += 1
  return counts


def all_rows(shards: Shards):
  return shards.rows(np.arange(len(shards)))


@pytest.fixture(scope='module')
def log(tmp_path_factory):
  return write_log(tmp_path_factory.mktemp('made') / 'log')


@pytest.fixture(scope='module')
def plan(log):
  """Return a plan of four shards, with many chunks of a few hundred rows in each file."""
  return make_plan(log, event_chunks(log, rows=300))


@pytest.fixture(scope='module')
def built(plan, tmp_path_factory):
  output = tmp_path_factory.mktemp('made') / 'shards'
  build.build(plan, output, workers=2)
  return Shards(output)


def test_one_shard_equals_the_rows_in_memory(log, tmp_path):
  build.build(convert.make_plan(config(), log), tmp_path / 'one', workers=1)
  for found, expected in zip(all_rows(Shards(tmp_path / 'one')), in_memory(log, config())[2]):
    assert found.dtype == expected.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


def test_many_shards_hold_the_same_windows_and_cuts(log, built):
  full_log, occasions, rows = in_memory(log, config())
  assert len(built.index['shards']) == 4 and windows(all_rows(built)) == windows(rows)
  assert built.cuts.train == occasions.train_cut >= all_rows(built).timestamp.max()
  assert (occasions.timestamp[occasions.split == VALID] <= built.cuts.valid).all()
  expected = dict(
    source_events=ROWS,
    events_after_collapse=len(full_log.item),
    users=len(full_log.users),
    items=full_log.items.height,
  )
  assert {name: built.index[name] for name in expected} == expected
  assert len(full_log.item) < ROWS  # there were repeated rows to count
  shard_files = [entry['file'] for entry in built.index['shards']]
  assert sorted(os.listdir(built.folder)) == ['.lock', 'index.json', *shard_files]


def test_leave_one_out_and_text_ids(tmp_path):
  by_user = config(split='leave_one_out')
  folder = write_log(tmp_path / 'log', text_ids=True)
  build.build(convert.make_plan(by_user, folder, 3), tmp_path / 'shards', workers=1)
  shards = Shards(tmp_path / 'shards')
  assert shards.cuts is None
  assert windows(all_rows(shards)) == windows(in_memory(folder, by_user)[2])


def test_content_depends_on_neither_order_nor_files_nor_chunks(log, built, tmp_path):
  for number, (files, rows) in enumerate([(1, 10_000), (7, 999)]):
    folder = write_log(tmp_path / f'log{number}', files, order=number + 5)
    other = make_plan(folder, event_chunks(folder, rows=rows))
    assert index_of(other)['digest'] == built.digest
  fewer = make_plan(log, event_chunks(log, rows=300)[:-1])
  assert index_of(fewer)['digest'] != built.digest


def test_beam_writes_the_same_bytes(plan, built, tmp_path):
  pytest.importorskip('apache_beam', reason='requirements-cluster.txt is not installed')
  index = beam.build(plan, tmp_path / 'beam', ['--runner=DirectRunner'])
  assert index == built.index
  for entry in index['shards']:
    beam_file, file = tmp_path / 'beam' / entry['file'], built.folder / entry['file']
    assert beam_file.read_bytes() == file.read_bytes()
  assert sorted(os.listdir(tmp_path / 'beam')) == sorted(os.listdir(built.folder))


def test_beam_reports_bad_input_in_one_line(tmp_path):
  pytest.importorskip('apache_beam', reason='requirements-cluster.txt is not installed')
  folder = spoil(write_log(tmp_path / 'log'))
  plan = convert.make_plan(config(), folder, 2)
  with pytest.raises(DataError, match=rf'^\S*{SPOILED}.*{MAX_TIMESTAMP}$'):
    beam.build(plan, tmp_path / 'shards', ['--runner=DirectRunner'])


def test_an_error_that_a_cluster_reports_as_text_is_the_same():
  text = (
    'Traceback (most recent call last):\n  raise X\n'
    "rolegen_jax.data.files.DataError: x.parquet: row 3: -5 [while running 'split']\n"
  )
  expected = DataError('x.parquet: row 3: -5')
  assert repr(beam._as_data_error(RuntimeError(text))) == repr(expected)
  other = RuntimeError('no worker')
  assert beam._as_data_error(other) is other


def test_the_shard_of_a_user_is_the_crc_of_the_id():
  users = pl.Series(['a', 'b', 'a', 'Ü'])
  expected = [zlib.crc32(user.encode()) % 1000 for user in users]
  assert convert.shard_of(users, 1000).to_list() == expected
  integers, texts = pl.Series([12, 7, 12]), pl.Series(['12', '7', '12'])
  assert convert.shard_of(integers, 1000).equals(convert.shard_of(texts, 1000))


def test_finished_work_is_not_repeated(plan, built, tmp_path):
  assert build.begin(plan, tmp_path) is None
  path = tmp_path / 'building/split/00002.parquet'
  path.parent.mkdir()
  # As if finished before, and told apart by later times.
  rows = convert.split(plan, plan.chunks[2])
  rows.with_columns(pl.col('timestamp') + 1).write_parquet(path)
  index = build.build(plan, tmp_path, workers=1)
  assert index['digest'] != built.digest
  assert build.build(plan, tmp_path, workers=1) == index


@pytest.mark.parametrize('when', ['split/00001.parquet', 'times/00000.npz'])
def test_a_killed_command_continues_and_leaves_no_partial_file(log, built, tmp_path, when):
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
  message = 'index.json: no such file; must be .* the same command continues'
  with pytest.raises(DataError, match=message):
    Shards(tmp_path / 'shards')
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  shards = Shards(tmp_path / 'shards')
  assert shards.digest == built.digest and 'pack: 4/4' in done.stderr
  assert sorted(os.listdir(shards.folder)) == sorted(os.listdir(built.folder))


SPOILED = "events/3.parquet: column 'timestamp', row 701: -5; must be a time UTC"


def spoil(folder):
  """Put a wrong time into row 701 of file 3, and one into file 4, which must not be reported."""
  for name, row in ((3, 700), (4, 10)):
    path = folder / f'events/{name}.parquet'
    wrong_time = pl.when(pl.int_range(pl.len()) == row).then(-5).otherwise('timestamp')
    read_parquet(path).with_columns(timestamp=wrong_time).write_parquet(path)
  return folder


@pytest.mark.parametrize('rows', [300, pytest.param(CHUNK_ROWS, marks=pytest.mark.slow)])
def test_errors_name_the_file_and_row(tmp_path, rows):
  folder = spoil(write_log(tmp_path / 'log'))
  plan = make_plan(folder, event_chunks(folder, rows=rows))
  with pytest.raises(DataError, match=SPOILED):
    build.build(plan, tmp_path / 'shards', workers=2)
  assert not (tmp_path / 'shards/index.json').exists()


def test_settings_and_folders_that_do_not_fit_are_refused(log, plan, built, tmp_path):
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
    {
      'user_id': [1, 1, 2],
      'item_id': [5, 5, 5],
      'event': ['view'] * 3,
      'timestamp': [10**9, 10**9 + 1, 10**9 + 2],
    }
  )
  pl.DataFrame({'item_id': [5]}).write_parquet(tmp_path / 'log/items.parquet')
  for event, message in (
    ('view', 'has no event purchase'),
    ('purchase', 'no user has two events before'),
  ):
    views.with_columns(event=pl.lit(event)).write_parquet(tmp_path / 'log/events.parquet')
    with pytest.raises(DataError, match=message):
      index_of(convert.make_plan(config(), tmp_path / 'log'))


@pytest.mark.parametrize('is_complete', [True, False])
def test_shards_of_other_settings_or_events_are_kept(plan, tmp_path, is_complete):
  if is_complete:
    build.build(plan, tmp_path, workers=1)
  else:
    build.begin(plan, tmp_path)
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  others = {
    r'shards of data.test_fraction=[.\d]+, now 0.5; use another --output': dict(
      config=config(test_fraction=0.5)
    ),
    'shards of another log, number of shards or version; use another': dict(shards=3),
  }
  for message, changes in others.items():
    with pytest.raises(ConfigError, match=message):
      build.build(dataclasses.replace(plan, **changes), tmp_path, workers=1)
  assert all(path.read_bytes() == content for path, content in before.items())
  for path in before:
    if path.suffix == '.json':
      path.write_bytes(b'')  # as a power cut leaves it
  with pytest.raises(DataError, match='json: cannot be read'):
    build.build(plan, tmp_path, workers=1)


def test_rows_are_read_by_number_and_by_grain(built):
  rows = all_rows(built)
  numbers = np.array([len(built) - 1, 0, 3, 3])
  for found, expected in zip(built.rows(numbers), rows):
    np.testing.assert_array_equal(found, expected[numbers])
  for found, expected in zip(built[-1], rows):
    np.testing.assert_array_equal(found, expected[-1])
  with pytest.raises(IndexError):
    built[len(built)]
  batch = next(iter(grain.MapDataset.source(built).shuffle(seed=1).batch(4).to_iter_dataset()))
  assert batch.item.shape == (4, WIDTH) and batch.item.dtype == np.int32


@pytest.mark.parametrize('processes', [1, 4])
def test_the_order_of_batches_is_that_of_grain(processes):
  rows, batch, seed = 50, 12, 3
  order = grain.MapDataset.range(rows).shuffle(seed=seed).repeat()
  for process in range(processes):
    options = grain.sharding.ShardOptions(process, processes)
    expected = grain.experimental.ElasticIterator(order, batch, options)
    here = np.arange(process, batch, processes)
    batches = Batches(rows, batch, seed, lambda numbers: numbers, here)
    for _ in range(15):  # into the fourth epoch
      np.testing.assert_array_equal(next(batches), next(expected))


def test_batches_of_shards_read_every_row_once_an_epoch_and_continue(built):
  batch = len(built) // 3
  first, again = (Batches(len(built), batch, 7, built.rows) for _ in range(2))
  epoch = [next(first) for _ in range(3)]
  assert sum((windows(rows) for rows in epoch), collections.Counter()) <= windows(all_rows(built))
  again.seek(first.position)
  for found, expected in zip(next(again), next(first)):
    np.testing.assert_array_equal(found, expected)


def test_training_refuses_shards_of_other_settings_or_items(log, built):
  full_log, occasions, _ = in_memory(log, config())
  count, rows = training_rows(config(), full_log, occasions, built)
  assert count == len(built) and (rows(np.arange(3)).item == built.rows(np.arange(3)).item).all()
  ids = full_log.items['item_id']
  with pytest.raises(ConfigError, match=r'backbone.context=64: the shards in .* were made with 32'):
    built.check(dataclasses.replace(config(), backbone=BackboneConfig(context=64)), ids)
  with pytest.raises(ConfigError, match=r'data.test_fraction=0.2'):
    built.check(config(test_fraction=0.2), ids)
  with pytest.raises(DataError, match='made with another items.parquet'):
    built.check(config(), ids[1:])


def test_damaged_shards_are_noticed(plan, tmp_path):
  build.build(plan, tmp_path, workers=1)
  shards = Shards(tmp_path)
  shards.verify()
  path = tmp_path / shards.index['shards'][2]['file']
  content = path.read_bytes()
  path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
  with pytest.raises(DataError, match=f'{path.name}: its content is not what was written'):
    Shards(tmp_path).verify()
  path.write_bytes(content[:-100])
  with pytest.raises(DataError, match=path.name):
    Shards(tmp_path)
  path.unlink()
  with pytest.raises(DataError, match=f'{path.name}: no such file'):
    Shards(tmp_path)


def test_a_run_on_some_users_holds_out_no_time_that_the_shards_train_on(log, built):
  part = InteractionLog.build(*read_contract(log, DataConfig('contract', '.', max_users=20)))
  assert len(part.users) == 20
  events = pl.concat([read_parquet(path) for path in sorted((log / 'events').iterdir())])
  first_users = events['user_id'].unique(maintain_order=True)[:20]
  assert part.users.to_list() == sorted(first_users.to_list())
  occasions = find_occasions(part, config().data, built.cuts)
  has_target = np.diff(occasions.target_offsets) > 0
  held_out = occasions.timestamp[(occasions.split != TRAIN) & has_target]
  assert held_out.min() > all_rows(built).timestamp.max()
  assert occasions.train_cut == built.cuts.train
