"""What a run reads from buckets: the log, shards, annotations, a pretrained folder."""

import dataclasses
import json
import pathlib

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import Config, ConfigError, DataConfig
from rolegen_jax.data import adapters, digests, files
from rolegen_jax.data.files import DataError
from rolegen_jax.data.prepare import read_tables
from rolegen_jax.data.shards import build, convert
from rolegen_jax.data.shards.reader import Shards
from rolegen_jax.pipeline import keys
from rolegen_jax.pretrained import source
from rolegen_jax.runtime import mirror, storage

DAY = 86_400
START = 1_700_000_000
ON_S3 = pytest.mark.parametrize('url', ['s3'], indirect=True)
ITEMS = pl.DataFrame(dict(item_id=list(range(8))))


def events(seed, users=20):
  rng = np.random.default_rng(seed)
  rows = dict(
    user_id=rng.integers(users, size=200),
    item_id=rng.integers(8, size=200),
    event=rng.choice(['view', 'purchase'], 200),
    timestamp=START + rng.integers(100 * DAY, size=200),
  )
  return pl.DataFrame(rows)


@pytest.fixture
def fresh(monkeypatch):
  """A process that has listed no bucket and knows no digest."""

  def forget():
    mirror._mirrored.cache_clear()
    monkeypatch.setattr(digests, '_known', {})
    monkeypatch.setattr(digests, '_taken', set())
    monkeypatch.setattr(digests, '_recalled', set())

  forget()
  return forget


@pytest.fixture
def shop(url, fresh, monkeypatch):
  """A log of two days in a bucket, under $ROLEGEN_DATA."""
  write_shop(storage.path(url) / 'shop')
  monkeypatch.setenv('ROLEGEN_DATA', url)
  return DataConfig('contract', 'shop')


def write_shop(folder):
  files.write_parquet(ITEMS, folder / 'items.parquet')
  for day in (1, 2):
    files.write_parquet(events(day), folder / f'events/date=2023-11-0{day}/part.parquet')


def test_a_log_in_a_bucket_is_that_of_a_disk(shop, url, tmp_path, monkeypatch):
  write_shop(tmp_path / 'shop')
  there, fingerprint = read_tables(shop), adapters.log_fingerprint(shop)
  whole_url = dataclasses.replace(shop, path=f'{url}/shop')
  assert adapters.log_fingerprint(whole_url) == fingerprint
  monkeypatch.setenv('ROLEGEN_DATA', str(tmp_path))
  here = read_tables(shop)
  assert there.events.equals(here.events) and there.items.equals(here.items)
  assert adapters.log_fingerprint(shop) == fingerprint


@ON_S3
def test_a_glob_fetches_what_it_matches(shop, url):
  day = dataclasses.replace(shop, path='shop/events/date=*-02')
  assert read_tables(day).events.height == len(events(2))
  assert list(adapters.log_fingerprint(day)) == [
    'items.parquet',
    'events/date=2023-11-02/part.parquet',
  ]
  root = mirror.opened(f'{url}/shop')
  left = [path.parent.name for path in mirror._absent if root in path.parents]
  assert left == ['date=2023-11-01']


def test_digests_that_were_kept_spare_the_download(shop, url, fresh, tmp_path, monkeypatch):
  before = adapters.log_fingerprint(shop)
  digests.keep(tmp_path / digests.FILE)
  fresh()
  digests.recall(tmp_path / digests.FILE)
  monkeypatch.setattr(mirror, 'fetch', lambda *paths: pytest.fail('nothing is to be fetched'))
  assert adapters.log_fingerprint(shop) == before
  monkeypatch.undo()
  monkeypatch.setenv('ROLEGEN_DATA', url)
  files.write_parquet(events(3), storage.path(url) / 'shop/events/date=2023-11-02/part.parquet')
  fresh()
  digests.recall(tmp_path / digests.FILE)
  after = adapters.log_fingerprint(shop)
  assert [name for name in before if before[name] != after[name]] == [
    'events/date=2023-11-02/part.parquet'
  ]


@ON_S3
def test_errors_name_the_url(shop, url):
  path = storage.path(url) / 'shop/events/date=2023-11-01/part.parquet'
  files.write_parquet(events(1).with_columns(item_id=pl.lit(99)), path)
  with pytest.raises(DataError, match=f"^{path}: column 'item_id', row 1: 99"):
    read_tables(shop)
  with pytest.raises(DataError, match=f'^{url}/none: no such file or folder .data.path='):
    read_tables(DataConfig('contract', 'none'))


def test_an_object_that_changes_meanwhile_or_cannot_be_a_file_is_named(shop, url):
  folder = storage.path(url) / 'shop'
  opened = mirror.opened(folder)
  file = folder / 'items.parquet'
  file.write_bytes(file.read_bytes()[::-1])  # as long as it was
  with pytest.raises(ConfigError, match=f'^{folder}/items.parquet: has changed since it was'):
    mirror.fetch(opened / 'items.parquet')
  storage.file_system(url).pipe_file(f'{url}/odd/a/../b', b'x')
  with pytest.raises(ConfigError, match=f'^{url}/odd/a/../b: its name is none that a file'):
    mirror.opened(f'{url}/odd')


@ON_S3
def test_shards_in_a_bucket(url, fresh, tmp_path):
  write_shop(tmp_path / 'shop')
  config = Config(data=DataConfig('contract', 'shop', split='leave_one_out'))
  plan = convert.make_plan(config, tmp_path / 'shop', 2)
  build.build(plan, tmp_path / 'shards', workers=1)
  for file in (tmp_path / 'shards').glob('*.*'):
    storage.put(file, storage.path(url) / file.name)
  here, there = Shards(tmp_path / 'shards'), Shards(url)
  assert there.digest == here.digest and len(there) == len(here) > 0
  there.verify()
  there.check_files(plan.files)
  (storage.path(url) / 'index.json').unlink()
  fresh()
  with pytest.raises(DataError, match=f'^{url}/index.json: no such file'):
    Shards(url)


@ON_S3
def test_annotations_count_by_their_content(url, fresh, tmp_path):
  line = json.dumps(dict(a=1))
  for path in (storage.path(url) / 'a.jsonl', tmp_path / 'a.jsonl'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
  config = Config()
  read = [
    keys.record(
      'roles',
      dataclasses.replace(config, roles=dataclasses.replace(config.roles, annotations=str(path))),
      {},
    ).files
    for path in (storage.path(url) / 'a.jsonl', tmp_path / 'a.jsonl')
  ]
  assert read[0] == read[1]


@ON_S3
def test_a_pretrained_folder_comes_without_other_formats(url, fresh):
  folder = storage.path(url)
  for name in ('config.json', 'model.safetensors', 'pytorch_model.bin'):
    (folder / name).write_text(name)
  found = source.open_source(url)
  content = {path.name: path.read_text() for path in found.iterdir()}
  assert content == {
    'config.json': 'config.json',
    'model.safetensors': 'model.safetensors',
    'pytorch_model.bin': '',
  }
  assert isinstance(found, pathlib.Path)
