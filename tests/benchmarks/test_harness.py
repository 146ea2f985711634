"""The shared parts of the benchmarks, and that every committed result can be drawn."""

import importlib
import json
import os
import pathlib

import pytest
from absl import flags

from experiments.benchmarks import harness
from rolegen_jax.config import ConfigError

DRAWN = sorted(
  path.stem for path in harness.FOLDER.glob('*.json') if path.with_suffix('.py').exists()
)


@pytest.mark.parametrize('name', DRAWN)
def test_committed_results_are_drawn(name, tmp_path):
  module = importlib.import_module(f'experiments.benchmarks.{name}')
  results_path = harness.FOLDER / f'{name}.json'
  figures = harness.draw(name, module.plot, results_path, tmp_path)
  assert tmp_path / f'{name}.png' in figures
  assert all(figure.read_bytes().startswith(b'\x89PNG') for figure in figures)
  if hasattr(module, 'table'):
    assert module.table(json.loads(results_path.read_text()))


def test_a_missing_result_and_a_large_figure_are_errors(tmp_path, monkeypatch):
  def write_figure(results: dict, figure_path: pathlib.Path) -> None:
    figure_path.write_bytes(b'x' * results['size'])

  with pytest.raises(ConfigError, match='python -m experiments.benchmarks.some makes it'):
    harness.draw('some', write_figure, tmp_path / 'some.json', tmp_path)
  (tmp_path / 'some.json').write_text(json.dumps(dict(size=2000)))
  monkeypatch.setattr(harness, 'MAX_FIGURE_BYTES', 1000)
  with pytest.raises(ConfigError, match='some.png: 2000 bytes; must be at most 1000'):
    harness.draw('some', write_figure, tmp_path / 'some.json', tmp_path)


def test_a_store_measures_a_point_once(tmp_path):
  path = tmp_path / 'some.json'
  first = harness.Store(path).point('a', [1], lambda: dict(value=3))
  # Another process continues from the file; other settings are another measurement.
  store = harness.Store(path)
  assert store.point('a', [1], pytest.fail) == first
  assert store.point('a', [2], lambda: dict(value=4))['value'] == 4
  store.write(dict(unit='s'))
  written = json.loads(path.read_text())
  assert written['unit'] == 's' and written['points'].keys() == {'a'}
  assert written['provenance']['commit'] and written['provenance']['cores'] > 0
  # Of other code or another machine, nothing stays.
  path.write_text(json.dumps(written | dict(environment='another')))
  assert not harness.Store(path).points


def test_keyword_arguments_become_flags():
  def measure(store, *, data: str, rounds: int = 5, sizes: tuple[int, ...] = (1, 2)) -> dict:
    """Measure something.

    rounds: Timed rounds.
    """

  values = flags.FlagValues()
  read_settings = harness._define_flags(measure, values)
  assert values['rounds'].help == 'Timed rounds.'
  values(['command', '--data=here', '--sizes=3,4'])
  assert read_settings() == dict(data='here', rounds=5, sizes=(3, 4))
  values.sizes = ['many']
  with pytest.raises(ConfigError, match='--sizes=many: must be a list of int'):
    read_settings()


def test_sides_take_turns_going_first():
  order = []
  sides = dict(a=lambda: order.append('a'), b=lambda: order.append('b'))
  seconds = harness.alternate(sides, repeats=3)
  assert order == ['a', 'b', 'b', 'a', 'a', 'b', 'b', 'a']
  assert [len(values) for values in seconds.values()] == [3, 3]


def test_summaries():
  assert harness.summary([1.0, 2.0, 4.0]) == dict(median_s=2.0, quartiles_s=[1.5, 3.0], n=3)
  assert harness.ratio_summary([2.0, 9.0], [1.0, 3.0]) == dict(median=2.5, quartiles=[2.25, 2.75])


def test_a_function_is_called_in_a_process_of_its_own():
  """It has other flags than this process, and a result for the arguments."""
  flag = '--xla_cpu_enable_fast_math=false'
  assert flag not in os.environ['XLA_FLAGS'] and harness.processor()
  forced = harness.call_in_process(harness.cpu_devices, 3, environment={'XLA_FLAGS': flag})
  expected = f'{flag} --xla_force_host_platform_device_count=3'
  assert forced == {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': expected}
