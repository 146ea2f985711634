"""Preparing data: files on disk, counts in the notes, clear refusals."""

import dataclasses
import datetime
import json
import os

import numpy as np
import polars as pl
import pytest
import real_logs
from random_logs import random_tables

from rolegen_jax.config import DataConfig, SimulatorConfig
from rolegen_jax.data.events import validate
from rolegen_jax.data.files import DataError, write_json
from rolegen_jax.data.occasions import D1, D2, TEST, TRAIN, VALID
from rolegen_jax.data.prepare import RawTables, load_prepared, prepare, read_tables
from rolegen_jax.simulator import world


@pytest.fixture
def contract(tmp_path, monkeypatch):
  """Return the config of a log in contract form, and a function that writes its events."""
  monkeypatch.setenv('ROLEGEN_DATA', str(tmp_path))
  (tmp_path / 'log').mkdir()
  events, items = random_tables(0)
  items.write_parquet(tmp_path / 'log/items.parquet')

  def write(change=lambda e: e):
    change(events.with_columns(pl.col('event').cast(pl.String))).write_parquet(
      tmp_path / 'log/events.parquet'
    )

  write()
  return DataConfig('contract', 'log', first_conversion_min_views=6), write


def prepare_real(data, folder):
  return prepare(data, read_tables(data), folder)


def test_files_and_notes(contract, tmp_path):
  log, occasions, notes = prepare_real(contract[0], tmp_path / 'out')
  assert json.loads((tmp_path / 'out/notes.json').read_text()) == notes
  assert notes['rows'] == 1500
  assert notes['rows_by_event']['purchase'] == log.count[log.event == 5].sum()
  assert notes['users'] == 25 and notes['items'] == 13 and not notes['simulated']
  assert sum(sum(row.values()) for row in notes['occasions'].values()) == len(occasions.user)
  assert sum(by_split['test'] for by_split in notes['targets'].values()) > 0
  assert notes['targets']['D3']['none'] == 0
  again, same = load_prepared(tmp_path / 'out')
  assert (again.digest, same.digest) == (notes['log_digest'], notes['occasions_digest'])
  assert not list((tmp_path / 'out').glob('*.tmp'))


def test_notes_and_a_line_say_what_was_left_out(contract, tmp_path, capsys):
  data, write = contract
  is_wrong = pl.int_range(pl.len()) % 500 == 7
  write(
    lambda e: e.with_columns(pl.when(is_wrong).then(0).otherwise('timestamp').alias('timestamp'))
  )
  with pytest.raises(DataError, match='row 8: 0; must be a time .* .and 2 more such rows here.'):
    prepare_real(data, tmp_path / 'out')
  data = dataclasses.replace(data, on_error='skip')
  notes = prepare_real(data, tmp_path / 'out')[2]
  assert notes['left_out'] == {'wrong_timestamp': 3} and notes['rows'] == 1497
  assert 'data: 3 rows left out (wrong_timestamp)' in capsys.readouterr().err


def test_notes_and_a_line_say_where_the_cuts_lie(contract, tmp_path, capsys):
  data, _ = contract
  _, occasions, notes = prepare_real(data, tmp_path / 'out')
  dormant = np.isin(occasions.cohort, (D1, D2))
  shares = [(occasions.split[dormant] == split).mean() for split in (TRAIN, VALID, TEST)]
  assert list(notes['shares'].values()) == pytest.approx(shares, abs=1e-4)
  assert notes['train_cut'] == occasions.train_cut
  first = {split: occasions.timestamp[occasions.split == split].min() for split in (VALID, TEST)}
  assert notes['train_cut'] < first[VALID] <= notes['valid_cut'] < first[TEST]
  days = [datetime.datetime.fromtimestamp(int(t), datetime.UTC).date() for t in first.values()]
  assert [notes['valid_from'], notes['test_from']] == [str(day) for day in days]
  percent = ' / '.join(f'{100 * share:.1f}' for share in shares)
  assert (
    f'data: validation from {days[0]}, test from {days[1]}: {percent} % of dormant occasions '
    '(asked for 55.0 / 15.0 / 30.0)'
  ) in capsys.readouterr().err


def test_a_sale_day_at_the_end_is_test(contract, tmp_path):
  data, write = contract
  late = pl.col('event') == 'purchase'
  last_day = pl.col('timestamp').max() + 86_400
  is_sale = late & (pl.col('user_id') % 20 == 0)
  write(lambda e: e.with_columns(timestamp=pl.when(is_sale).then(last_day).otherwise('timestamp')))
  _, occasions, notes = prepare_real(dataclasses.replace(data, test_fraction=0.2), tmp_path / 'out')
  dormant = np.isin(occasions.cohort, (D1, D2))
  assert (occasions.timestamp[dormant] == occasions.timestamp[dormant].max()).mean() > 0.2
  assert min(notes['shares'].values()) > 0
  assert {'train', 'valid', 'test'} == set(notes['shares'])
  held_out = occasions.timestamp[dormant & (occasions.split == TEST)]
  assert np.unique(held_out).tolist() == [notes['last_timestamp']]


def test_every_row_is_read_or_reported(contract, tmp_path, capsys):
  data, _ = contract
  _, _, all_notes = prepare_real(data, tmp_path / 'all')
  _, _, notes = prepare_real(dataclasses.replace(data, max_users=15), tmp_path / 'some')
  assert all_notes['rows'] == 1500 and all_notes['left_out'] == {}
  assert notes['users'] == 15 and notes['rows'] + notes['left_out']['other_users'] == 1500
  assert f'data: {notes["left_out"]["other_users"]} rows left out' in capsys.readouterr().err


def test_preparing_twice_gives_the_same(contract, tmp_path):
  first, second = (prepare_real(contract[0], tmp_path / name)[2] for name in 'ab')
  assert first == second


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda e: e.filter(pl.col('event') != 'purchase'), "split 'train' has no purchase"),
    (
      lambda e: e.with_columns(timestamp=10**9),
      "split 'train' has no purchase with an earlier event",
    ),
    (lambda e: e.with_columns(event=pl.lit('pv')), 'events.parquet.*row 1'),
  ],
  ids=['no purchase', 'one time', 'bad event'],
)
def test_logs_that_cannot_be_used_leave_no_files(contract, tmp_path, change, words):
  data, write = contract
  write(change)
  with pytest.raises(DataError, match=words):
    prepare_real(data, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_an_absent_log_is_named(contract):
  with pytest.raises(DataError, match='elsewhere: no such file'):
    read_tables(DataConfig('contract', 'elsewhere'))


def test_planted_truth_of_a_simulated_log_stays_out_of_the_log(tmp_path):
  simulated = world.simulate(SimulatorConfig(users=150, items=120, categories=8))
  events, items = validate(simulated.events, simulated.items)
  tables = RawTables(events, items, left_out={}, planted=simulated.planted)
  log, _, notes = prepare(DataConfig(), tables, tmp_path / 'out')
  assert notes['simulated'] and len(log.users) <= 150
  planted = pl.read_parquet(tmp_path / 'out/planted.parquet')
  assert planted.height and 'role' in planted.columns
  assert not set(log.items.columns) & {'role', 'effect'}


@pytest.mark.parametrize('kind', real_logs.RAW)
def test_real_logs_have_training_targets(kind, tmp_path):
  data = real_logs.RAW[kind]
  path = real_logs.need(data.path)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('ROLEGEN_DATA', str(path).removesuffix(data.path))
    _, _, notes = prepare_real(data, tmp_path)
  assert notes['targets']['ACTIVE']['train'] > 0


@pytest.mark.parametrize('path', ['', 'file/x', '/dev/null', '/proc/nope/x'])
def test_an_output_that_no_file_can_be_put_at_is_refused(tmp_path, path):
  (tmp_path / 'file').write_text('kept')
  with pytest.raises(DataError, match='must be a file, or a name that is free|cannot be written'):
    write_json({}, tmp_path / path)
  assert (tmp_path / 'file').read_text() == 'kept' and not os.path.isfile('/dev/null')
