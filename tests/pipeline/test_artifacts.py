"""A stage is lost only to a command that was told to, and a difference is named."""

import json
import shutil

import numpy as np
import pytest

from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data import digests
from rolegen_jax.data.files import DataError
from rolegen_jax.overrides import apply
from rolegen_jax.pipeline import artifacts, keys
from rolegen_jax.pipeline.artifacts import RunFolder, saved_config
from rolegen_jax.pipeline.records import Record

SETTINGS = {'backbone.context': 64, 'loop.interventions': ['remove', 'role']}
FILES = {'events/part-0.parquet': [10, 'aa'], 'items.parquet': [5, 'bb']}


def record(stage='warmup', settings=SETTINGS, files=FILES, inputs=(('log', 'a'),)):
  return Record(stage, dict(settings), dict(files), dict(inputs))


def finish(folder, *records, **opened):
  """Run stages to their end; each leaves one file."""
  run = RunFolder(folder, **opened)
  for each in records or (record(),):
    stage = run.begin(each)
    if not stage.is_complete:
      (stage.folder / 'weights').write_text(each.key)
      stage.finish('trained')
  return folder


def content(folder):
  """Every file below a folder, with what is in it and when it was written.

  But for the digests of outside files that this process has taken, for whichever run.
  """
  files = (path for path in folder.rglob('*') if path.is_file() and path.name != digests.FILE)
  return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


OTHERS = {
  'another value': (
    dict(settings=SETTINGS | {'backbone.context': 128}),
    r'stage warmup was trained with backbone.context=64, now 128; give the old value, use another '
    r'--workdir, or --retrain to train it again$',
  ),
  'two values': (
    dict(settings={'backbone.context': 32, 'loop.interventions': ['role']}),
    r"trained with backbone.context=64, now 32, and loop.interventions=\('remove', 'role'\), now "
    r"\('role',\); ",
  ),
  'a field more': (
    dict(settings=SETTINGS | {'backbone.new': 1}),
    'trained with backbone.new=nothing, now 1; ',
  ),
  'a file more': (
    dict(files=FILES | {'events/part-1.parquet': [7, 'cc']}),
    'stage warmup was made from other files: events/part-1.parquet is new; put them back, ',
  ),
  'other files': (
    dict(files={'items.parquet': [6, 'bb']}),
    'other files: events/part-0.parquet is gone, items.parquet has changed; ',
  ),
  'another log': (
    dict(inputs=(('log', 'b'),)),
    'was trained on another log; use another --workdir',
  ),
}


def test_of_files_that_older_versions_read_the_size_counts(tmp_path):
  folder = finish(tmp_path, record('data', files={'items.parquet': [5, 1_700_000_000_000_000_000]}))
  now = record('data', files={'items.parquet': [5, 'a1b2']})
  assert RunFolder(folder, may_train=False).begin(now).is_complete
  with pytest.raises(ConfigError, match='made from other files: items.parquet has changed'):
    RunFolder(folder).begin(record('data', files={'items.parquet': [6, 'a1b2']}))
  newer = finish(tmp_path / 'newer', now)
  with pytest.raises(ConfigError, match='made from other files: items.parquet has changed'):
    RunFolder(newer).begin(record('data', files={'items.parquet': [5, 'c3d4']}))


@pytest.mark.parametrize('other, message', OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize('may_train', [True, False])
def test_a_stage_that_read_something_else_is_named_and_kept(tmp_path, other, message, may_train):
  before = content(finish(tmp_path))
  with pytest.raises(ConfigError, match=message) as refused:
    RunFolder(tmp_path, may_train).begin(record(**other))
  assert '\n' not in str(refused.value) and content(tmp_path) == before


@pytest.mark.parametrize('other, message', OTHERS.values(), ids=OTHERS)
def test_it_starts_afresh_when_told_to(tmp_path, capfd, other, message):
  finish(tmp_path, record(), record('loop'), record('loop/calibration'), record('roles'))
  kept = content(tmp_path / 'loop') | content(tmp_path / 'roles')
  capfd.readouterr()
  finish(tmp_path, record(**other), retrain=True)
  said = capfd.readouterr().err
  assert 'starting afresh' in said and 'warmup: running' in said
  assert (tmp_path / 'warmup' / 'weights').read_text() == record(**other).key
  assert content(tmp_path / 'loop') | content(tmp_path / 'roles') == kept
  assert not list(tmp_path.glob('.warmup*'))


def test_a_stage_that_begun_is_as_safe_as_a_complete_one(tmp_path):
  RunFolder(tmp_path).begin(record())
  (tmp_path / 'warmup' / 'checkpoints').mkdir()
  (tmp_path / 'warmup' / 'checkpoints' / '100').write_text('hours')
  before = content(tmp_path)
  with pytest.raises(ConfigError, match='backbone.context=64, now 128'):
    RunFolder(tmp_path).begin(record(settings=SETTINGS | {'backbone.context': 128}))
  with pytest.raises(ConfigError, match='its stage warmup is not complete'):
    RunFolder(tmp_path, may_train=False, retrain=True).begin(record())
  assert content(tmp_path) == before
  assert not RunFolder(tmp_path).begin(record()).is_complete
  assert (tmp_path / 'warmup' / 'checkpoints' / '100').read_text() == 'hours'


def test_a_stage_that_made_nothing_is_free_for_other_settings(tmp_path):
  RunFolder(tmp_path).begin(record())  # and then it met wrong data
  other = record(settings=SETTINGS | {'backbone.context': 128})
  assert not RunFolder(tmp_path).begin(other).is_complete
  (tmp_path / 'warmup' / 'weights').write_text('hours')
  with pytest.raises(ConfigError, match='backbone.context=128, now 64'):
    RunFolder(tmp_path).begin(record())


def test_what_was_complete_stays_so(tmp_path):
  before = content(finish(tmp_path))
  assert RunFolder(tmp_path, may_train=False).begin(record()).is_complete
  assert RunFolder(tmp_path, retrain=True).begin(record()).is_complete
  assert content(tmp_path) == before


@pytest.mark.parametrize('damage', [b'', b'{"key": "0123', b'[]', b'\xff\xfe'])
def test_files_that_a_crash_cut_off(tmp_path, damage):
  finish(tmp_path)
  done, key = tmp_path / 'warmup' / 'DONE.json', tmp_path / 'warmup' / 'KEY.json'
  whole = done.read_bytes()
  key.write_bytes(damage)
  assert RunFolder(tmp_path, may_train=False).begin(record()).is_complete  # DONE.json says it too
  with pytest.raises(ConfigError, match='backbone.context=64, now 3'):
    RunFolder(tmp_path).begin(record(settings=SETTINGS | {'backbone.context': 3}))
  key.write_bytes(whole)
  done.write_bytes(damage)
  with pytest.raises(ConfigError, match='its stage warmup is not complete'):
    RunFolder(tmp_path, may_train=False).begin(record())
  assert not RunFolder(tmp_path).begin(record()).is_complete
  assert (tmp_path / 'warmup' / 'weights').exists()
  key.write_bytes(damage)
  for lost in (lambda: None, done.unlink, key.unlink):
    lost()
    with pytest.raises(
      ConfigError, match='warmup is damaged: its KEY.json is missing or cut off; '
    ):
      RunFolder(tmp_path).begin(record())
    assert (tmp_path / 'warmup' / 'weights').exists()
  assert not RunFolder(tmp_path, retrain=True).begin(record()).is_complete
  assert not (tmp_path / 'warmup' / 'weights').exists()


@pytest.mark.parametrize('change', [dict(settings=None), dict(files=5), dict(inputs={'log': 'b'})])
def test_a_record_that_is_not_what_was_written_is_damaged(tmp_path, change):
  """Its key says so."""
  finish(tmp_path)
  for name in ('KEY.json', 'DONE.json'):
    path = tmp_path / 'warmup' / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
  before = content(tmp_path)
  with pytest.raises(ConfigError, match='stage warmup is damaged: its KEY.json is missing or cut'):
    RunFolder(tmp_path).begin(record())
  assert content(tmp_path) == before


def test_a_folder_in_the_place_of_a_record_is_named(tmp_path):
  finish(tmp_path)
  (tmp_path / 'warmup/DONE.json').unlink()
  (tmp_path / 'warmup/DONE.json').mkdir()
  with pytest.raises(DataError, match='warmup/DONE.json: cannot be read .Is a directory.; must be'):
    RunFolder(tmp_path).begin(record())


def test_files_of_a_stage_are_read_or_named(tmp_path):
  arrays, values = tmp_path / 'a.npz', tmp_path / 'a.json'
  np.savez(arrays, x=[1], y=[2])
  values.write_text('[1]')
  assert set(artifacts.read_arrays(arrays)) == {'x', 'y'}
  assert list(artifacts.read_arrays(arrays, 'y')) == ['y'] and artifacts.read_json(values) == [1]
  right = 'must be what its stage wrote; remove the DONE.json of the stage to run it again'
  with pytest.raises(DataError, match=f'a.npz: cannot be read .KeyError: .*{right}'):
    artifacts.read_arrays(arrays, 'z')
  for path, read in ((arrays, artifacts.read_arrays), (values, artifacts.read_json)):
    path.write_bytes(path.read_bytes()[:-1][:90])
    with pytest.raises(DataError, match=f'{path.name}: cannot be read .*{right}'):
      read(path)
    path.unlink()
    with pytest.raises(DataError, match=f'{path.name}: no such file; {right}'):
      read(path)


def test_what_a_kill_leaves_of_the_first_write_is_no_stage(tmp_path):
  (tmp_path / 'warmup').mkdir()
  (tmp_path / 'warmup' / '.KEY.json.12.tmp').write_text('{')
  assert not RunFolder(tmp_path).begin(record()).is_complete


@pytest.mark.parametrize('retrain', [False, True])
def test_folders_of_another_version_are_never_touched(tmp_path, retrain):
  finish(tmp_path)
  for name in ('KEY.json', 'DONE.json'):
    (tmp_path / 'warmup' / name).write_text('{"key": "0123456789abcdef"}')
  before = content(tmp_path)
  with pytest.raises(ConfigError, match='stage warmup was written by another version.*another --w'):
    RunFolder(tmp_path, retrain=retrain).begin(record())
  assert content(tmp_path) == before


def test_a_killed_removal_leaves_no_half_of_a_stage(tmp_path, monkeypatch):
  finish(tmp_path)
  other = record(inputs=(('log', 'b'),))

  def killed(path, **_):
    if path.exists():
      raise KeyboardInterrupt

  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(shutil, 'rmtree', killed)
    RunFolder(tmp_path, retrain=True).begin(other)
  assert not (tmp_path / 'warmup').exists()
  finish(tmp_path, other)  # needs no second --retrain
  assert {path.name for path in tmp_path.iterdir()} == {'warmup', artifacts.RUN_LOCK}


def begun(folder, config, stages):
  """A run folder in which `stages` were run under `config`."""
  folder.mkdir()
  RunFolder(folder).adopt(config, [])
  return finish(folder, *(keys.record(stage, config, {}) for stage in stages))


def adopt(folder, config, **opened):
  read = [keys.record(stage, config, {}) for stage in keys.stages(config)]
  RunFolder(folder, **opened).adopt(config, read)


def test_the_saved_settings_are_those_of_the_stages(tmp_path):
  config = Config()
  folder = begun(tmp_path / 'run', config, ['data', 'warmup', 'loop'])
  before = content(folder)
  with pytest.raises(ConfigError, match=r'stage loop was trained with loop.kl=0.02, now 0.5; '):
    adopt(folder, apply(config, ['loop.kl=0.5', 'evaluation.bootstrap=7']))
  assert content(folder) == before
  # What is asked of a trained run is no setting of it, nor is what was never trained.
  asked = apply(config, ['evaluation.bootstrap=7', 'backbone.beam=60', 'calibration.steps=7'])
  adopt(folder, asked)
  assert saved_config(folder) == asked
  adopt(folder, apply(config, ['loop.kl=0.5']), retrain=True)
  assert saved_config(folder).loop.kl == 0.5


def test_a_stage_that_is_not_asked_for_does_not_count(tmp_path):
  config = Config()
  varied = apply(config, ["evaluation.ablations=('no_reflection',)"])
  folder = begun(tmp_path / 'run', varied, ['ablations/no_reflection'])
  adopt(folder, apply(config, ['loop.kl=0.5']))
  with pytest.raises(
    ConfigError, match='stage ablations/no_reflection was trained with loop.kl=0.02'
  ):
    adopt(folder, apply(varied, ['loop.kl=0.5']))


@pytest.mark.parametrize('damage', [b'', b'{"name": ', b'[]', b'{"data": 3}', b'\xff'])
def test_a_damaged_config_is_named_and_written_again_by_the_same_command(tmp_path, damage):
  config = Config()
  folder = begun(tmp_path / 'run', config, ['data'])
  (folder / 'config.json').write_bytes(damage)
  with pytest.raises(ConfigError, match='config.json') as refused:
    saved_config(folder)
  assert '\n' not in str(refused.value)
  adopt(folder, config)
  assert saved_config(folder) == config


def test_records_say_what_was_read(tmp_path):
  finish(tmp_path)
  said = json.loads((tmp_path / 'warmup' / 'KEY.json').read_text())
  assert said == dict(
    key=record().key, stage='warmup', settings=SETTINGS, files=FILES, inputs=dict(log='a')
  )


def test_the_version_in_use_is_the_one_that_is_named(tmp_path):
  assert artifacts.current(tmp_path) == tmp_path  # none is
  version = tmp_path / artifacts.VERSIONS / '2026-11-29'
  finish(version, record('loop'))
  for name, folder in ((f'versions/{version.name}', version), ('.', tmp_path)):
    (tmp_path / artifacts.CURRENT).write_text(json.dumps(dict(version=name)))
    assert artifacts.current(tmp_path) == folder
  assert RunFolder(version).root == RunFolder(tmp_path).root == tmp_path
  for wrong in ('{"version": "versions/gone"}', '{"version": "/etc"}', '{', '3', '[]'):
    (tmp_path / artifacts.CURRENT).write_text(wrong)
    with pytest.raises(ConfigError, match='current.json: names no version in .*--go_back=VERSION'):
      artifacts.current(tmp_path)
