"""Files, stages and checkpoints in buckets, on real servers of this machine."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data import files
from rolegen_jax.data.files import DataError
from rolegen_jax.pipeline import artifacts, keys
from rolegen_jax.pipeline.artifacts import RunFolder
from rolegen_jax.runtime import storage


def listed(path):
  """The names of all objects below a path."""
  root = str(path).partition('://')[2]
  names = storage.file_system(path).find(root)
  return sorted(name.removeprefix(f'{root}/') for name in names)


def test_tables_arrays_and_json_come_back(url):
  folder = storage.path(url)
  frame = pl.DataFrame(dict(user=[1, 2], item=['a', 'b']))
  files.write_parquet(frame, folder / 'log.parquet', dict(content='x'))
  files.write_json(dict(a=1), folder / 'notes.json')
  files.write_npz(dict(x=np.arange(5)), folder / 'x.npz')
  assert files.read_parquet(folder / 'log.parquet').equals(frame)
  assert files.read_metadata(f'{url}/log.parquet')['content'] == 'x'
  assert artifacts.read_json(folder / 'notes.json') == dict(a=1)
  assert artifacts.read_arrays(folder / 'x.npz')['x'].tolist() == [0, 1, 2, 3, 4]
  assert listed(url) == ['log.parquet', 'notes.json', 'x.npz']


def test_a_file_is_there_whole_or_not_at_all(url):
  path = storage.path(url) / 'notes.json'
  files.write_json('before', path)
  with pytest.raises(RuntimeError), files.renamed(path) as temporary:
    temporary.write_text('half of')
    raise RuntimeError
  assert artifacts.read_json(path) == 'before'
  assert listed(url) == ['notes.json']


def test_a_copy_follows_its_object(url):
  path = storage.path(url) / 'x.npz'
  for value in (1, 2):
    files.write_npz(dict(x=np.full(3, value)), path)
    first, again = storage.local(path), storage.local(path)
    assert first == again and first.is_file()
    assert artifacts.read_arrays(path)['x'].tolist() == [value] * 3


def test_what_is_missing_or_damaged_is_named(url):
  folder = storage.path(url)
  with pytest.raises(DataError, match=f'{url}/log.parquet: no such file; must be a readable'):
    files.read_parquet(folder / 'log.parquet')
  (folder / 'log.parquet').write_bytes(b'PAR1, and no more')
  with pytest.raises(DataError, match=f'{url}/log.parquet: cannot be read'):
    files.read_parquet(folder / 'log.parquet')
  with pytest.raises(ConfigError, match=f'--workdir={url}: no config.json there'):
    artifacts.saved_config(url)


def test_a_spool_sends_whole_files_and_goes_on_with_the_last(url):
  path = storage.path(url) / 'metrics.jsonl'
  for row in ('a', 'b'):
    spool = storage.Spool(path)
    with spool.here.open('a') as file:
      file.write(f'{row}\n')
    spool.flush()
  assert path.read_text() == 'a\nb\n'
  board = storage.Spool(storage.path(url) / 'board')
  (board.here / 'stage').mkdir(parents=True)
  (board.here / 'stage' / 'events').write_text('1')
  board.flush()
  assert listed(url) == ['board/stage/events', 'metrics.jsonl']


def test_a_local_spool_is_the_file_itself(tmp_path):
  spool = storage.Spool(tmp_path / 'metrics.jsonl')
  assert spool.here == tmp_path / 'metrics.jsonl'
  spool.flush()
  assert not list(tmp_path.iterdir())


def test_a_folder_moves_whole(url):
  folder = storage.path(url)
  files.write_json(1, folder / 'a' / 'x.json')
  files.write_json(2, folder / 'a' / 'b' / 'y.json')
  storage.move(folder / 'a', folder / 'aside')
  assert listed(url) == ['aside/b/y.json', 'aside/x.json']


def record(seed=0):
  return keys.record('warmup', Config(seed=seed), {})


def test_a_stage_is_cached_and_only_retrained_on_demand(url):
  stage = RunFolder(url).begin(record())
  assert not stage.is_complete and listed(url) == ['.run.lock', 'warmup/KEY.json']
  files.write_json(1, stage.folder / 'made.json')
  stage.finish('fine')
  assert RunFolder(url, may_train=False).begin(record()).is_complete
  with pytest.raises(ConfigError, match='was trained with seed=0, now 1'):
    RunFolder(url).begin(record(seed=1))
  assert 'warmup/made.json' in listed(url)
  again = RunFolder(url, retrain=True).begin(record(seed=1))
  assert not again.is_complete and listed(url) == ['.run.lock', 'warmup/KEY.json']
  assert json.loads((again.folder / 'KEY.json').read_text())['settings']['seed'] == 1
  artifacts._locks.pop(storage.path(url)).close()
  assert listed(url) == ['warmup/KEY.json']


@pytest.mark.parametrize('scheme', ['s3', 'gs'])
def test_a_bucket_that_is_not_there_is_one_clear_error(stores, scheme, tmp_path):
  url = f'{scheme}://no-such-bucket/run'
  with pytest.raises(ConfigError, match=f'^{scheme}://no-such-bucket: cannot be listed .*must be'):
    storage.path(url)
  done = subprocess.run(
    [sys.executable, '-m', 'rolegen_jax', 'train', f'--workdir={url}'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith(f'{scheme}://no-such-bucket: cannot be listed')
  assert done.stderr.count('\n') == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize('package, scheme', [('s3fs', 's3'), ('gcsfs', 'gs')])
def test_a_missing_package_names_the_file_to_install(package, scheme, tmp_path):
  code = (
    f'import sys; sys.modules[{package!r}] = None\n'
    'from rolegen_jax.runtime import storage\n'
    f'storage.path("{scheme}://bucket/run")'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  last = done.stderr.splitlines()[-1]
  assert last.endswith(f'{scheme}://bucket: needs {package}: pip install -r requirements-cloud.txt')


def test_local_paths_stay_what_they_are(tmp_path):
  assert type(storage.path(tmp_path)) is type(tmp_path)
  assert storage.path('a') / 'b' == type(tmp_path)('a/b')
  assert storage.local(tmp_path / 'x') == tmp_path / 'x'
  assert not storage.is_remote('runs/s3') and not storage.is_remote('gs:/bucket/x')


HOLD = """
import sys, time
from rolegen_jax.runtime import storage
storage._NEW_S = -1.0
print(storage.scratch('x').parent.parent, flush=True)
time.sleep(float(sys.argv[1]))
"""


def test_copies_of_a_killed_process_are_removed_and_those_of_a_living_one_stay(tmp_path):
  (tmp_path / 'rolegen_mine').mkdir()

  def start(seconds):
    process = subprocess.Popen(
      [sys.executable, '-c', HOLD, str(seconds)],
      env=os.environ | {'TMPDIR': str(tmp_path)},
      stdout=subprocess.PIPE,
      text=True,
    )
    return process, pathlib.Path(process.stdout.readline().strip())

  (killed, left), (living, kept) = start(60), start(60)
  killed.kill()
  killed.wait()
  assert left.is_dir() and kept.is_dir()
  ended, own = start(0)
  assert ended.wait() == 0
  assert not left.exists() and not own.exists() and kept.is_dir()
  living.kill()
  living.wait()
  assert (tmp_path / 'rolegen_mine').is_dir()


def test_a_folder_of_copies_that_was_just_made_stays(tmp_path, monkeypatch):
  """Its process may not have locked it yet."""
  monkeypatch.setattr(storage.tempfile, 'tempdir', str(tmp_path))
  new, old = tmp_path / f'{storage._PREFIX}new', tmp_path / f'{storage._PREFIX}old'
  new.mkdir()
  old.mkdir()
  os.utime(old, (0, 0))
  monkeypatch.setattr(storage, '_kept', [])
  own = storage._scratch.__wrapped__()
  assert own.is_dir() and new.is_dir() and not old.exists()
