"""What the stages before training leave for those that train: here, text vectors."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from rolegen_jax.cli import entry
from rolegen_jax.config import ConfigError, UpdateConfig
from rolegen_jax.data import log as log_lib
from rolegen_jax.data.files import DataError, write_json
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.shards import sort
from rolegen_jax.evaluation.choices import Choices
from rolegen_jax.features.item_transitions import Kernel
from rolegen_jax.pipeline import inputs, keys
from rolegen_jax.pipeline.artifacts import RunFolder
from rolegen_jax.pipeline.context import Run, open_run
from rolegen_jax.pipeline.inputs import SCRATCH, prepare_data, prepare_inputs
from rolegen_jax.pipeline.parent import Parent
from rolegen_jax.semantic_ids import minilm
from tests.runs import SMALL, open_inputs


def test_text_vectors_are_read_from_the_stage_of_semantic_ids(tmp_path):
  config = entry.experiment('demo', [*SMALL, 'semantic_ids.text_dim=12'])
  _, inputs = open_inputs(config, tmp_path)
  vectors = inputs.text_vectors.vectors
  assert vectors.shape == (64, 12) and vectors.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  assert inputs.hashes['text_vectors'] == inputs.text_vectors.digest
  # A run that is there does not embed again.
  _, again = prepare_inputs(open_run(config, tmp_path, may_train=False))
  np.testing.assert_array_equal(again.text_vectors.vectors, vectors)


def test_without_text_there_are_no_text_vectors_and_their_width_is_not_read(tmp_path):
  config = entry.experiment('demo', [*SMALL, 'semantic_ids.text='])
  _, inputs = open_inputs(config, tmp_path)
  assert inputs.text_vectors is None and 'text_vectors' not in inputs.hashes
  assert not (tmp_path / 'semantic_ids' / 'text.npz').exists()
  read = {
    text: keys.settings('semantic_ids', entry.experiment('demo', [f'semantic_ids.text={text}']))
    for text in ('', 'minilm')
  }
  assert ['semantic_ids.text_dim' in settings for settings in read.values()] == [False, True]


def test_an_embedder_that_is_not_installed_ends_the_run_in_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(minilm, 'PACKAGE', 'a_package_that_nobody_has')
  with pytest.raises(ConfigError, match="^semantic_ids.text='minilm': needs .*-text.txt$"):
    open_inputs(entry.experiment('demo', [*SMALL, 'semantic_ids.text=minilm']), tmp_path)


def test_a_run_that_starts_from_another_keeps_its_words(tmp_path, monkeypatch):
  """What kinds of users have learned is of words by their numbers."""
  theirs = Choices(Kernel(), Kernel(), False, {}, words=('rug', 'home'))
  write_json(dataclasses.asdict(theirs), tmp_path / 'parent' / 'choices' / 'choices.json')
  monkeypatch.setattr(Parent, 'of', lambda run: SimpleNamespace(folder=tmp_path / 'parent'))
  monkeypatch.setattr(inputs.choices, 'choose', lambda *_: Choices(Kernel(), Kernel(), True, {}))
  monkeypatch.setattr(inputs, 'choose_words', lambda *_: ('home', 'sofa'))
  run = open_run(entry.experiment('demo', [*SMALL, 'reasoner.kinds=2']), tmp_path / 'run')
  log = SimpleNamespace(digest='', items=None)
  data = inputs.Data(log, SimpleNamespace(digest=''), None)
  assert inputs.choose_on_validation(run, data).words == ('home', 'sofa')
  for appends, bars_history in ((False, True), (True, False)):
    update = UpdateConfig(parent='parent', parent_key='key', appends=appends)
    config = dataclasses.replace(run.config, update=update)
    continues = open_run(config, tmp_path / f'continues_{appends}')
    chosen = inputs.choose_on_validation(continues, data)
    assert chosen.words == theirs.words and chosen.bars_history == bars_history


class ThisProcess:
  """In place of a pool of processes."""

  def __init__(self, workers):
    self.calls = []

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def run(self, work, calls, label):
    del label
    return [work(*call) for call in calls]


@pytest.fixture
def long_log(tmp_path, monkeypatch):
  """A log of several parts, of which a row is wrong, and its right events."""
  rng = np.random.default_rng(0)
  events = pl.DataFrame(
    dict(
      user_id=rng.integers(300, size=3000),
      item_id=rng.integers(8, size=3000),
      event=rng.choice(['view', 'purchase'], 3000),
      timestamp=1_700_000_000 + rng.integers(10_000_000, size=3000),
    )
  )
  folder = tmp_path / 'log'
  (folder / 'events').mkdir(parents=True)
  pl.DataFrame(dict(item_id=range(8))).write_parquet(folder / 'items.parquet')
  events[:1000].write_parquet(folder / 'events' / 'a.parquet')
  events[1000:].with_columns(item_id=99).write_parquet(folder / 'events' / 'b.parquet')
  monkeypatch.setattr(sort, 'Pool', ThisProcess)
  monkeypatch.setattr(log_lib, 'PART_ROWS', 1000)
  return folder, events


def test_a_long_log_with_a_wrong_row_may_be_put_right_and_a_kill_costs_a_part(
  long_log, tmp_path, monkeypatch
):
  folder, events = long_log

  def opened(name):
    return Run(config.validated(), RunFolder(tmp_path / name), None, None, None)

  config = entry.experiment('demo', [*SMALL, 'data.format=contract', f'data.path={folder}'])
  with pytest.raises(DataError, match="b.parquet: column 'item_id', row 1: 99"):
    prepare_data(opened('run'))
  events[1000:].write_parquet(folder / 'events' / 'b.parquet')
  sort_part = sort._sort

  def dies(folder, number, *rest):
    if number == 2:
      raise KeyboardInterrupt
    sort_part(folder, number, *rest)

  monkeypatch.setattr(sort, '_sort', dies)
  with pytest.raises(KeyboardInterrupt):
    prepare_data(opened('run'))
  scratch = tmp_path / 'run' / 'data' / SCRATCH
  assert sorted(path.name for path in scratch.glob('part-*')) == ['part-00000', 'part-00001']
  monkeypatch.setattr(sort, '_sort', sort_part)
  built, build = [], InteractionLog.build
  monkeypatch.setattr(InteractionLog, 'build', lambda *tables: built.append(0) or build(*tables))
  log = prepare_data(opened('run')).log
  assert not scratch.exists() and len(list(log.parts())) > 1
  assert len(built) == 1  # the third part; those that were there are taken
  monkeypatch.setattr(log_lib, 'PART_ROWS', 4_000_000)
  assert prepare_data(opened('short')).log.digest == log.digest
