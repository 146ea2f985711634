"""The files that shards are made of: none is skipped, none changes unnoticed, no row is lost."""

import os

import polars as pl
import pytest
from shard_logs import ROWS, config, index_of, write_log

from rolegen_jax.config import BackboneConfig, Config, ConfigError
from rolegen_jax.data.files import DataError, read_parquet
from rolegen_jax.data.shards import build, convert
from rolegen_jax.data.shards.reader import Shards


@pytest.fixture(scope='module')
def log(tmp_path_factory):
  return write_log(tmp_path_factory.mktemp('made') / 'log')


@pytest.fixture(scope='module')
def plan(log):
  return convert.make_plan(config(), log, 4)


@pytest.fixture(scope='module')
def built(plan, tmp_path_factory):
  output = tmp_path_factory.mktemp('made') / 'shards'
  build.build(plan, output, workers=1)
  return Shards(output)


def test_rows_that_got_lost_are_noticed(plan, tmp_path):
  assert build.begin(plan, tmp_path) is None
  path = tmp_path / 'building/split/00002.parquet'
  path.parent.mkdir()
  convert.split(plan, plan.chunks[2])[1:].write_parquet(path)
  with pytest.raises(DataError, match='has 4000 events, 3999 are in the shards; must be as many'):
    build.build(plan, tmp_path, workers=1)
  assert not (tmp_path / 'index.json').exists()


def test_a_file_that_shrinks_after_it_was_listed_is_noticed(tmp_path):
  folder = write_log(tmp_path / 'log')
  plan = convert.make_plan(config(), folder)
  path = folder / 'events/1.parquet'
  read_parquet(path)[:-1].write_parquet(path)
  with pytest.raises(DataError, match='1.parquet: has lost rows'):
    index_of(plan)


def test_parts_in_folders_and_under_other_names_are_all_in_the_shards(tmp_path, built):
  folder = write_log(tmp_path / 'log')
  (folder / 'events/date=2026-11-28').mkdir()
  for number, name in enumerate(
    ('date=2026-11-28/part-0.parquet', 'part-1.pq', 'part-2.PARQUET', '000003_0')
  ):
    (folder / f'events/{number}.parquet').rename(folder / 'events' / name)
  read_parquet(folder / 'events/4.parquet').clear().write_parquet(folder / 'events/none.parquet')
  plan = convert.make_plan(config(), folder, 4)
  assert plan.events == ROWS and index_of(plan)['digest'] == built.digest
  build.build(plan, tmp_path / 'shards', workers=1)
  assert Shards(tmp_path / 'shards').digest == built.digest


def test_the_key_holds_the_paths_of_all_files(tmp_path):
  folder = write_log(tmp_path / 'log')
  keys = [convert.make_plan(config(), folder, 4).key]
  for name in ('a', 'b'):  # the same name, size and time in another folder
    (folder / 'events' / name).mkdir()
    old = sorted((folder / 'events').rglob('4.parquet'))[0]
    old.rename(folder / 'events' / name / '4.parquet')
    keys.append(convert.make_plan(config(), folder, 4).key)
  assert len(set(keys)) == 3 and convert.make_plan(config(), folder, 4).key == keys[2]


def test_shards_of_another_state_of_the_log_are_refused(log, built, tmp_path):
  built.check_files(convert.make_plan(config(), log).files)
  folder = write_log(tmp_path / 'log')
  built.check_files(convert.make_plan(config(), folder).files)  # a copy has other times
  read_parquet(folder / 'events/0.parquet')[:50].write_parquet(folder / 'events/late.parquet')
  with pytest.raises(DataError, match='another state of the log: events/late.parquet is new'):
    built.check_files(convert.make_plan(config(), folder).files)
  os.replace(folder / 'events/late.parquet', folder / 'events/0.parquet')
  with pytest.raises(DataError, match='events/0.parquet has changed'):
    built.check_files(convert.make_plan(config(), folder).files)
  (folder / 'events/0.parquet').unlink()
  with pytest.raises(DataError, match='events/0.parquet is gone'):
    built.check_files(convert.make_plan(config(), folder).files)


def test_rows_wider_than_their_numbers_are_refused(log):
  wide = Config(data=config().data, backbone=BackboneConfig(context=2**17))
  with pytest.raises(ConfigError, match='backbone.context=131072: must be at most 131070'):
    convert.make_plan(wide, log)


def test_malformed_logs_are_refused_before_reading_rows(tmp_path):
  folder = write_log(tmp_path / 'log')
  path = folder / 'events/2.parquet'
  rows = read_parquet(path)
  rows.with_columns(pl.col('user_id').cast(pl.String)).write_parquet(path)
  message = (
    "2.parquet: column 'user_id' has type string, in .*0.parquet it has type integer; "
    'must be the same type'
  )
  with pytest.raises(DataError, match=message):
    convert.make_plan(config(), folder)
  path.write_bytes(b'PAR1 half a file')
  with pytest.raises(DataError, match='2.parquet: cannot be read'):
    convert.make_plan(config(), folder)
  rows.head(0).write_parquet(path)  # an empty part of a job is no fault
  assert convert.make_plan(config(), folder).events == ROWS - rows.height
  rows.write_parquet(folder / 'events.parquet')
  with pytest.raises(DataError, match='has both events.parquet and a folder events/'):
    convert.make_plan(config(), folder)
  (tmp_path / 'none/events').mkdir(parents=True)
  with pytest.raises(DataError, match='none/events: has no file'):
    convert.make_plan(config(), tmp_path / 'none')
