"""The stage as a whole: files on disk, counts in the notes, clear refusals."""

import json

import polars as pl
import pytest
import real_logs
from random_logs import random_tables

from rolegen_jax.config import Config, DataConfig, SimulatorConfig
from rolegen_jax.data.files import DataError
from rolegen_jax.data.prepare import load_prepared, prepare


@pytest.fixture
def contract(tmp_path, monkeypatch):
  """A config for a log in contract form, and a function that writes its events."""
  monkeypatch.setenv('ROLEGEN_DATA', str(tmp_path))
  (tmp_path / 'log').mkdir()
  events, items = random_tables(0)
  items.write_parquet(tmp_path / 'log/items.parquet')

  def write(change=lambda e: e):
    change(events.with_columns(pl.col('event').cast(pl.String))).write_parquet(
      tmp_path / 'log/events.parquet'
    )

  write()
  return Config(data=DataConfig('contract', 'log', first_conversion_min_views=6)), write


def test_files_and_notes(contract, tmp_path):
  log, occasions, notes = prepare(contract[0], tmp_path / 'out')
  assert json.loads((tmp_path / 'out/notes.json').read_text()) == notes
  assert (
    notes['rows'] == 1500 and notes['rows_by_event']['purchase'] == log.count[log.event == 5].sum()
  )
  assert notes['users'] == 25 and notes['items'] == 13 and not notes['simulated']
  assert sum(sum(row.values()) for row in notes['occasions'].values()) == len(occasions.user)
  assert (
    sum(notes['targets'][c]['test'] for c in notes['targets']) > 0 == notes['targets']['D3']['none']
  )
  again, same = load_prepared(tmp_path / 'out')
  assert (again.digest, same.digest) == (notes['log_digest'], notes['occasions_digest'])
  assert not list((tmp_path / 'out').glob('*.tmp'))


def test_preparing_twice_gives_the_same(contract, tmp_path):
  first, second = (prepare(contract[0], tmp_path / name)[2] for name in 'ab')
  assert first == second


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda e: e.filter(pl.col('event') != 'purchase'), "split 'train' has no purchase"),
    (lambda e: e.with_columns(timestamp=5), "split 'train' has no purchase with an earlier event"),
    (lambda e: e.with_columns(event=pl.lit('pv')), 'events.parquet.*row 1'),
  ],
  ids=['no purchase', 'one time', 'bad event'],
)
def test_logs_that_cannot_be_used_leave_no_files(contract, tmp_path, change, words):
  config, write = contract
  write(change)
  with pytest.raises(DataError, match=words):
    prepare(config, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_an_absent_log_is_named(contract, tmp_path):
  with pytest.raises(DataError, match='elsewhere: no such file'):
    prepare(Config(data=DataConfig('contract', 'elsewhere')), tmp_path / 'out')


def test_the_simulated_world(tmp_path):
  config = Config(simulator=SimulatorConfig(users=150, items=120, categories=8))
  log, occasions, notes = prepare(config, tmp_path / 'out')
  assert notes['simulated'] and len(log.users) <= 150
  planted = pl.read_parquet(tmp_path / 'out/planted.parquet')
  assert planted.height and 'role' in planted.columns
  assert not set(log.items.columns) & {'role', 'effect'}


@pytest.mark.parametrize('kind', real_logs.RAW)
def test_real_logs(kind, tmp_path):
  data = real_logs.RAW[kind]
  path = real_logs.need(data.path)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('ROLEGEN_DATA', str(path).removesuffix(data.path))
    _, _, notes = prepare(Config(data=data), tmp_path)
  assert notes['targets']['ACTIVE']['train'] > 0
