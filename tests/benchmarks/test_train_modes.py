"""The table of training modes: counts from the models, sizes from compile_check's file, and a mode that does not fit."""

import json

import pytest

from experiments.benchmarks import train_modes_parts as lib
from experiments.benchmarks import train_modes_plot
from experiments.benchmarks.measure import FOLDER
from tests import tiny


@pytest.fixture
def made() -> dict:
  """The committed result of compile_check for 16 chips, and so the form of what the command writes."""
  return json.loads((FOLDER / 'compile_v5e_16.json').read_text())


def test_counts_are_those_of_the_models():
  found = {mode: lib.counts(tiny.config(f'reasoner.train={mode}', 'reasoner.lora.rank=2')) for mode in lib.MODES}
  rows = tiny.rolegen().vocab.own * 32
  intent = found['frozen']['trained'] - rows
  # wq and wo 32 to 32, wk and wv 32 to 16, gate, up and down between 32 and 48.
  adapters = 2 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
  assert 0 < intent < 100 and found['lora']['trained'] == found['frozen']['trained'] + adapters
  assert found['lora']['frozen'] == found['frozen']['frozen'] == found['all']['trained'] - intent and found['all']['frozen'] == 0
  assert found['all']['checkpoint_bytes'] - found['lora']['checkpoint_bytes'] == 16 * (found['all']['trained'] - found['lora']['trained'])


def test_what_is_found_is_not_compiled_again(made, monkeypatch):
  asked = []
  monkeypatch.setattr(lib, 'check', lambda flags: asked.append(flags[-1]) or lib.essential(made))
  config, saved = lambda assignment: tiny.config(assignment), []
  found = lib.compiled(config, ['--items=10'], {}, lambda r: saved.append(len(r['modes'])))
  assert asked == [f'--set=reasoner.train={mode}' for mode in lib.MODES] and saved == [1, 2, 3]
  assert lib.compiled(config, ['--items=10'], found, lambda r: None) == found and len(asked) == 3
  assert found['modes']['lora']['memory']['hbm'] == 2**34


def test_table_and_picture(made, tmp_path):
  of = lambda mode: lib.essential(made) | lib.counts(tiny.config(f'reasoner.train={mode}'))
  full = dict(programs=[dict(program='step', error='step of it does not fit\nUsed 20G')])
  found = dict(modes=dict(all=lib.essential(made | full) | lib.counts(tiny.config()), lora=of('lora'), frozen=of('frozen')))
  assert 'all' in lib.table(found) and 'does not fit: step of it does not fit' in lib.table(found)
  train_modes_plot.draw(found, tmp_path / 'train_modes.png')
  assert 2_000 < (tmp_path / 'train_modes.png').stat().st_size < 200_000
