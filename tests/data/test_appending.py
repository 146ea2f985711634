"""New days of a log: appended as if all had been indexed at once, and refused in one line."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import DataConfig, SimulatorConfig
from rolegen_jax.data.appending import extended, read_new_days, require_purchase
from rolegen_jax.data.events import validate
from rolegen_jax.data.files import DataError
from rolegen_jax.data.leaks import check_no_leak
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import TEST, TRAIN, Cuts, find_occasions
from rolegen_jax.data.prepare import RawTables, prepare
from rolegen_jax.data.recent import Recent
from tests import days

SIMULATOR = SimulatorConfig(users=60, items=48, categories=8)


def indexed(events, items):
  return InteractionLog.build(*validate(events, items))


def contract(folder):
  return DataConfig(format='contract', path=str(folder))


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  folders = days.cut(tmp_path_factory.mktemp('days'), SIMULATOR, 40, [60, 120])
  for folder in folders:
    events = pl.read_parquet(folder / 'events.parquet')
    repeated = pl.concat([events, events.sample(20, seed=0)])
    repeated.write_parquet(folder / 'events.parquet')
  return folders


@pytest.fixture(scope='module')
def log(folders):
  return indexed(*(pl.read_parquet(folders[0] / f'{name}.parquet') for name in ('events', 'items')))


def test_a_log_in_parts_is_the_log_as_a_whole(folders, log):
  whole = [
    pl.concat([pl.read_parquet(folder / f'{name}.parquet') for folder in folders])
    for name in ('events', 'items')
  ]
  for folder in folders[1:]:
    new_events, new_items, _ = read_new_days(contract(folder), log)
    log = extended(log, new_events, new_items)
  assert log.digest == indexed(*whole).digest


def test_what_was_before_new_days_is_told_from_what_is_learned(folders, log):
  new_events, new_items, _ = read_new_days(contract(folders[1]), log)
  last = int(log.timestamp.max())
  longer, data = extended(log, new_events, new_items), DataConfig()
  before = find_occasions(longer, data, Cuts(last, last))
  check_no_leak(longer, before)
  is_new = before.timestamp > last
  has_target = np.diff(before.target_offsets) > 0
  assert (before.split[is_new & has_target] == TEST).all()
  learned = before.all_training(longer)
  check_no_leak(longer, learned)
  assert (learned.split[has_target] == TRAIN).all()
  assert (learned.train_end(longer) == longer.offsets[1:]).all()


def new_days(folder, events=None, items=None):
  """A day after the log's end, with some column replaced."""
  base = pl.DataFrame(
    dict(
      user_id=[1, 2], item_id=[3, 10_000], event=['view', 'purchase'], timestamp=[1_800_000_000] * 2
    )
  )
  table = pl.DataFrame(
    dict(item_id=[10_000], title=['new'], category_code=['a.b'], brand=['c'], price=[1.0])
  )
  days.write(folder, base.with_columns(**(events or {})), table.with_columns(**(items or {})))
  return contract(folder)


def test_new_users_and_items_are_fine(tmp_path, log):
  config = new_days(tmp_path / 'day', dict(user_id=pl.Series([1, 999])))
  events, items, left_out = read_new_days(config, log)
  longer = extended(log, events, items)
  assert len(longer.users) == len(log.users) + 1 and longer.items.height == log.items.height + 1
  assert left_out == {'items_known_already': 0}


EARLY = pl.Series([1_704_070_000, 1_800_000_000])
# Message -> the column that is replaced, of events or items.
WRONG = {
  r"events.parquet: column 'timestamp', row 1: 1704070000; must be after the last event of the "
  r'log, at \d+ \(2024': (
    'events',
    dict(timestamp=EARLY),
  ),
  r"\(events\): column 'user_id' has type String, in the log that it continues Int64": (
    'events',
    dict(user_id=pl.Series(['a', 'b'])),
  ),
  r"items.parquet: column 'item_id' has type String, in the log that it continues Int64": (
    'items',
    dict(item_id=pl.Series(['x'])),
  ),
  r"column 'item_id', row 1: 777777; must be an item of .*items.parquet or the log that it": (
    'events',
    dict(item_id=pl.Series([777777, 10_000])),
  ),
  r"\(items\): column 'category_id' is none of the items of the log; must be one of item_id, ": (
    'items',
    dict(category_id=pl.Series([4])),
  ),
}


@pytest.mark.parametrize('message', WRONG)
def test_days_that_do_not_continue_the_log_are_one_line(tmp_path, log, message):
  config = new_days(tmp_path / 'day', **dict([WRONG[message]]))
  with pytest.raises(DataError, match=message) as refused:
    read_new_days(config, log)
  assert '\n' not in str(refused.value)


def test_items_without_a_column_of_the_log_are_refused(tmp_path, log):
  config = new_days(tmp_path / 'day')
  pl.DataFrame(dict(item_id=[10_000])).write_parquet(tmp_path / 'day' / 'items.parquet')
  with pytest.raises(DataError, match=r"\(items\): column 'title' is missing"):
    read_new_days(config, log)


def test_items_of_the_log_stay_as_they_are_and_none_need_be_new(tmp_path, log):
  known = log.items.head(1).with_columns(title=pl.lit('renamed'))
  for items in (known, known.clear()):
    folder = tmp_path / f'{items.height}'
    config = new_days(folder, dict(item_id=pl.Series([3, 3])))
    items.write_parquet(folder / 'items.parquet')
    events, new, left_out = read_new_days(config, log)
    assert not new.height and left_out['items_known_already'] == items.height
    assert extended(log, events, new).items.equals(log.items)


def test_all_recent_rows_and_a_share_of_the_others():
  latest = np.array([5, 50, 7, 60, 1, 2, 10, 4])  # the row at 10 is none of those after it
  for replay, others in ((0.0, 0), (0.5, 2), (0.75, 6)):
    picked = Recent(since=10, replay=replay, seed=0).pick(latest)
    assert {1, 3} <= set(picked) and len(set(picked)) == len(picked) == 2 + others
    assert (np.diff(picked) > 0).all()
  assert list(Recent(since=100, replay=0.5, seed=0).pick(latest)) == list(range(8))


def test_an_early_row_of_a_second_file_is_named_by_its_file(tmp_path, log):
  config, folder = new_days(tmp_path / 'day'), tmp_path / 'day'
  rows = pl.read_parquet(folder / 'events.parquet').with_columns(item_id=3)
  (folder / 'events').mkdir()
  (folder / 'events.parquet').rename(folder / 'events/a.parquet')
  last = int(log.timestamp.max())  # at the very second: which of the two is earlier?
  late = rows.with_columns(timestamp=pl.Series([last + 1, last]))
  late.write_parquet(folder / 'events/b.parquet')
  with pytest.raises(
    DataError, match=rf"events/b.parquet: column 'timestamp', row 2: {last}; must"
  ):
    read_new_days(config, log)


@pytest.mark.parametrize('end', ['parquet', 'csv'])
def test_a_column_may_be_null_in_all_new_items(tmp_path, end):
  whole = pl.DataFrame(
    dict(user_id=['1'], item_id=['3'], event=['view'], timestamp=[1_700_000_000])
  )
  items = pl.DataFrame(dict(item_id=['3'], title=['a'], brand=['b'], price=[1.0]))
  config = new_days(tmp_path / 'day', dict(item_id=pl.Series([3, 10_000])))
  for name in ('events', 'items'):
    table = pl.read_parquet(tmp_path / 'day' / f'{name}.parquet').cast({pl.Int64: pl.String})
    if name == 'items':
      table = table.select('item_id', 'title', brand=None, price=None)
    else:
      table = table.cast({'timestamp': pl.Int64})
    (tmp_path / 'day' / f'{name}.parquet').unlink()
    getattr(table, f'write_{end}')(tmp_path / 'day' / f'{name}.{end}')
  log = indexed(whole, items)
  longer = extended(log, *read_new_days(config, log)[:2])
  assert longer.items.schema == log.items.schema
  assert longer.items.rows() == [('10000', 'new', None, None), ('3', 'a', 'b', 1.0)]


def test_items_that_are_known_need_their_ids_alone(tmp_path, log):
  config = new_days(tmp_path / 'day', dict(item_id=pl.Series([3, 3])))
  log.items.select('item_id').write_parquet(tmp_path / 'day' / 'items.parquet')
  assert read_new_days(config, log)[1].equals(log.items.clear())


def test_embeddings_are_as_long_as_those_of_the_log(tmp_path, log):
  vector = pl.Series([[1.0, 2.0, 3.0]] * log.items.height, dtype=pl.List(pl.Float32))
  vectors = dataclasses.replace(log, items=log.items.with_columns(embedding=vector))
  config = new_days(tmp_path / 'day', items=dict(embedding=pl.Series([[1.0, 2.0]])))
  with pytest.raises(
    DataError, match="'embedding', item 10000: 2 numbers; must be 3, as the items"
  ):
    read_new_days(config, vectors)


def test_days_without_an_occasion_to_be_asked_about_are_refused(tmp_path, log):
  """A purchase is one where its user did something before, in the log or in the days themselves."""
  late, bought = [1_800_000_000, 1_800_000_001], pl.Series(['view', 'purchase'])
  for number, (users, times, event, is_one) in enumerate(
    [
      ([1, 2], late, bought, True),
      ([999, 999], late, bought, True),
      ([1, 999], late, bought, False),
      ([999, 999], late[:1] * 2, bought, False),
      ([1, 2], late, pl.Series(['view', 'cart']), False),
    ]
  ):
    changed = dict(user_id=pl.Series(users), timestamp=pl.Series(times), event=event)
    events = read_new_days(new_days(tmp_path / f'{number}', changed), log)[0]
    if is_one:
      require_purchase(events, log, 'days')
    else:
      with pytest.raises(DataError, match="^days: column 'event': no user .* more days at once$"):
        require_purchase(events, log, 'days')


def test_new_days_are_told_from_a_split_that_was_asked_for(tmp_path, folders, log, capfd):
  events, items, left_out = read_new_days(contract(folders[1]), log)
  tables = RawTables(events, items, left_out, planted=None, earlier=log)
  last = int(log.timestamp.max())
  prepare(DataConfig(), tables, tmp_path, Cuts(last, last))
  said = capfd.readouterr().err
  assert 'data: new days, with purchases from 20' in said and 'asked for' not in said
