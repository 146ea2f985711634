"""Which version of a run is in use and which folder days go to; nothing is trained."""

import dataclasses
import json
import shutil

import polars as pl
import pytest

from rolegen_jax import config as configs
from rolegen_jax import overrides
from rolegen_jax.config import Config, ConfigError, DataConfig, digest
from rolegen_jax.data.adapters import log_fingerprint
from rolegen_jax.data.cuts import Cuts
from rolegen_jax.data.events import validate
from rolegen_jax.data.files import DataError, write_json
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from rolegen_jax.pipeline import inputs, keys, versions
from rolegen_jax.pipeline.artifacts import RUN_LOCK, RunFolder, current, last_key, saved_config
from rolegen_jax.pipeline.context import Run
from rolegen_jax.pipeline.parent import Parent, check_same_models
from rolegen_jax.pipeline.records import Record
from tests import days

START = 1_700_000_000
ITEMS = pl.DataFrame(dict(item_id=[1, 2]))


def events(day):
  event = 'purchase' if day else 'view'
  return pl.DataFrame(
    dict(user_id=[1, 2], item_id=[1, 2], event=event, timestamp=START + day * days.DAY)
  )


def complete(folder, config, name):
  """A run folder as far as its place among versions goes; the log is saved there beside it."""
  write_json(configs.to_dict(config), folder / 'config.json')
  write_json(dict(log_digest='l', occasions_digest='o'), folder / 'data' / 'notes.json')
  write_json(dict(digest='s'), folder / 'semantic_ids' / 'report.json')
  read = dict(log='l', occasions='o', semantic_ids='s', of=name)
  for stage in ('data', 'semantic_ids', 'warmup', 'reason', 'loop', 'loop/calibration'):
    files = log_fingerprint(config.data) if stage == 'data' and config.update.appends else {}
    record = Record(stage, keys.settings(stage, config), files, dict(read))
    write_json(record.to_json(), folder / stage / 'DONE.json')
    read |= {} if stage == 'semantic_ids' else {stage: record.key}


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / 'run'
  complete(folder, Config(data=DataConfig('contract', 'shop')), 'first')
  InteractionLog.build(*validate(events(0), ITEMS)).save(folder / 'data')
  return folder


@pytest.fixture
def updated(root, monkeypatch):
  """What `update` does but for the stages: a version with its record of the days, put to use."""

  def update(log, *assignments, **options):
    def begun(root, parent, config, retrain):
      del retrain
      folder = versions._version(root, parent, config)
      complete(folder, config, folder.name)
      InteractionLog.build(*validate(pl.read_parquet(log / 'events.parquet'), ITEMS)).save(
        folder / 'data'
      )
      return type('run', (), dict(workdir=folder)), None

    monkeypatch.setattr(versions, '_begun', begun)
    monkeypatch.setattr(versions, 'train_models', lambda *_: None)
    monkeypatch.setattr(versions, 'train_ablation', lambda *_: None)
    return versions.update(str(root), str(log), list(assignments), **options)

  return update


def test_days_go_to_a_version_by_their_last_day_and_count_once(root, updated, tmp_path):
  logs = [days.write(tmp_path / f'{day}', events(day), ITEMS) for day in (1, 2)]
  first = updated(logs[0])
  assert first == current(root) == root / 'versions' / '2023-11-15'
  assert saved_config(first).update.parent == str(root)
  copy = days.write(tmp_path / 'copy', events(1), ITEMS)
  assert updated(copy) == first  # the same content under another name
  for wrong, message in (
    (dict(retrain=True), r'-15: is in use and of these days .*--retrain was .* --go_back=first$'),
    (dict(steps=0.3), r'its stage warmup was trained with warmup.steps=\d+, now \d+; must be'),
  ):
    assignments = [f'update.{name}={value}' for name, value in wrong.items() if name == 'steps']
    with pytest.raises(ConfigError, match=message):
      updated(logs[0], *assignments, retrain='retrain' in wrong)
  with pytest.raises(DataError, match='must be after the last event of the log'):
    updated(days.write(tmp_path / 'other', events(1).reverse(), ITEMS))  # not those days
  second = updated(logs[1])
  assert second.name == '2023-11-16' and saved_config(second).update.parent_key == last_key(first)
  versions.go_back(str(root), first.name)
  assert updated(logs[1]) == second  # which continues: its parent is in use again
  versions.go_back(str(root), versions.FIRST)
  assert updated(logs[1]).name == '2023-11-16.2'


def test_what_is_no_complete_run_is_not_put_to_use(root, tmp_path):
  with pytest.raises(ConfigError, match='no config.json there'):
    versions.go_back(str(tmp_path / 'nowhere'), versions.FIRST)
  assert not (tmp_path / 'nowhere').exists()
  (root / 'loop' / 'DONE.json').unlink()
  with pytest.raises(ConfigError, match='--go_back=first: must be of a complete run'):
    versions.go_back(str(root), versions.FIRST)
  assert current(root) == root


def test_a_run_that_is_trained_again_is_no_complete_one_until_its_end(root):
  """A kill has left stages of what was there before behind those that ran again."""
  key = last_key(root)
  again = dict(
    data=lambda: write_json(dict(log_digest='l', occasions_digest='p'), root / 'data/notes.json'),
    log=lambda: write_json(dict(log_digest='m', occasions_digest='o'), root / 'data/notes.json'),
    semantic_ids=lambda: write_json(dict(digest='t'), root / 'semantic_ids' / 'report.json'),
    **{
      stage: lambda stage=stage: write_json(
        Record(stage, {}, {}, dict(log='m')).to_json(), root / stage / 'DONE.json'
      )
      for stage in ('warmup', 'reason', 'loop')
    },
    missing=(root / 'loop' / 'calibration' / 'DONE.json').unlink,
  )
  for begin in again.values():
    begin()
    with pytest.raises(ConfigError, match='is no complete run; must be the folder of a run'):
      last_key(root)
    complete(root, saved_config(root), 'first')
    assert last_key(root) == key


def test_the_version_in_use_is_looked_up_by_who_holds_the_run(root, updated, tmp_path, monkeypatch):
  """Another update may just have ended: its version is the one to continue."""
  log = days.write(tmp_path / 'day', events(3), ITEMS)
  found = []

  def look(folder):
    found.append((folder / RUN_LOCK).exists())
    return current(folder)

  monkeypatch.setattr(versions, 'current', look)
  updated(log)
  assert found == [True]


def test_a_parent_is_found_where_the_run_was_moved_to(root, updated, tmp_path):
  logs = [days.write(tmp_path / f'{day}', events(day), ITEMS) for day in (1, 2)]
  made = [updated(log).relative_to(root) for log in logs]
  moved = root.rename(tmp_path / 'moved')

  def parent(version):
    folder = RunFolder(moved / version)
    run = Run(saved_config(folder.path), folder, None, None, None)
    return Parent.of(run).folder

  assert [parent(version) for version in made] == [moved, moved / made[0]]
  shutil.rmtree(moved / made[0])
  with pytest.raises(ConfigError, match='^update.parent=.*15: is not there; must be, to continue'):
    parent(made[1])


def test_current_json_names_a_version_of_this_run(root, tmp_path):
  complete(tmp_path / 'other', Config(), 'other')
  for wrong in ('../other', 'versions/none', 'data'):
    (root / 'current.json').write_text(json.dumps(dict(version=wrong)))
    with pytest.raises(ConfigError, match='names no version in'):
      current(root)


def test_what_may_not_be_continued_is_told_by_its_field(root, tmp_path):
  saved = saved_config(root)
  for wrong, field in ((dict(split='leave_one_out'), 'split'), (dict(shards='s'), 'data.shards')):
    data = dataclasses.replace(saved.data, **wrong)
    complete(root, dataclasses.replace(saved, data=data), 'first')
    with pytest.raises(ConfigError, match=field):
      versions.update(str(root), str(tmp_path), [])


@pytest.mark.parametrize('appends', [True, False])
def test_what_a_parent_has_learned_of_goes_with_it(appends):
  """An update of it has learned from all of its log, another run from its training events alone."""
  items = pl.DataFrame(dict(item_id=[10, 20, 30]))
  views = pl.DataFrame(
    dict(user_id=1, item_id=[10, 30], event='view', timestamp=[START, START + days.DAY])
  )
  log = InteractionLog.build(*validate(views, items))
  occasions = find_occasions(log, DataConfig(), Cuts(START, START))
  config = configs.Config(update=configs.UpdateConfig(parent='x', appends=appends))
  parent = Parent(None, config, None, pl.Series([5, 10, 20, 30, 40]))
  vars(parent)['prepared'] = log, occasions
  end = START + days.DAY
  assert parent.cuts == Cuts(end if appends else START, end)
  source = parent._source
  assert source[:5].tolist() == [-1, 0, -1, 2 if appends else -1, -1] and (source[5:] == -1).all()


def test_all_rows_with_something_new_are_trained_on():
  """New are the days after what was learned, however few of them `update.recent_days` are."""
  last = START + 30 * days.DAY
  log = InteractionLog.build(
    *validate(pl.concat([events(0), events(30)]).with_columns(item_id=1), ITEMS)
  )
  for learned_until, recent_days, since in ((20, 5, 20), (29, 5, 25)):
    occasions = find_occasions(log, DataConfig(), Cuts(START + learned_until * days.DAY, last + 1))
    config = configs.Config(update=configs.UpdateConfig(recent_days=float(recent_days)))
    run = Run(config, None, None, None, None)
    recent = inputs._recent(run, inputs.Data(log, occasions, None))
    assert recent.since == START + since * days.DAY


def test_a_warm_start_is_of_the_same_models_and_of_what_its_own_test_does_not_hold(root, tmp_path):
  config = saved_config(root)
  wide = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, context=12))
  with pytest.raises(ConfigError, match=r'^backbone.context=12: the run in .* must be the same'):
    versions.warm_started(wide, str(root))
  log = InteractionLog.load(root / 'data')
  until = [find_occasions(log, config.data, Cuts(START + more, START + 9)) for more in (0, -1)]
  until[0].save(root / 'data')
  run = Run(
    versions.warm_started(config, str(root)), RunFolder(tmp_path / 'warm'), None, None, None
  )
  inputs._check_not_seen(run, until[0])
  with pytest.raises(ConfigError, match=f'has learned from events until {START}, past the end'):
    inputs._check_not_seen(run, until[1])


def test_updates_that_were_given_up_are_named(root, capsys):
  given_up = root / 'versions' / '2023-11-15'
  write_json(configs.to_dict(saved_config(root)), given_up / 'config.json')
  complete(root / 'versions' / '2023-11-16', saved_config(root), 'second')
  versions._say_unfinished(root, root / 'versions' / '2023-11-17')
  said = capsys.readouterr().err
  assert f'{root / "versions"}: not finished: 2023-11-15; ' in said and '2023-11-16' not in said
  versions._say_unfinished(root, given_up)
  assert not capsys.readouterr().err


@pytest.mark.parametrize('learned, is_read', [(keys.KINDS, True), (keys.KINDS - 1, False)])
def test_kinds_that_older_equations_learned_are_not_continued(root, learned, is_read):
  config = overrides.apply(saved_config(root), ['reasoner.kinds=2'])
  files = {keys.EQUATIONS: digest(learned)}
  record = Record('kinds', keys.settings('kinds', config), files, {})
  write_json(record.to_json(), root / 'kinds' / 'DONE.json')
  if is_read:
    check_same_models(config, config, root)
    return
  with pytest.raises(ConfigError, match='kinds of users were learned by other equations'):
    check_same_models(config, config, root)
