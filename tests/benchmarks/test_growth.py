"""Cost growth at the tiny size: what is measured, that nothing is measured twice, slopes, and the picture."""

import copy
import json

import numpy as np
import pytest

from experiments.benchmarks import growth_chips, growth_parts, growth_plot
from rolegen_jax.config import ConfigError
from rolegen_jax.flops import Flops
from tests import tiny

FACTORS = (2,)  # the eight devices of the tests do not share half a batch


@pytest.fixture(scope='module')
def config():
  return tiny.config('loop_stage.batch=8', 'mesh.data=8')


@pytest.fixture(scope='module')
def found(config):
  saved = []
  result = json.loads(json.dumps(growth_parts.measured(config, 60, ['batch'], 3, {}, lambda r: saved.append(copy.deepcopy(r)), FACTORS)))
  assert saved == [result]
  return result


def test_a_point_has_times_sizes_and_work(config, found):
  batch = found['axes']['batch']
  assert batch['base'] == 8 and list(batch['points']) == ['16']
  point = batch['points']['16']
  rounds = np.divide(point['step']['seconds'], point['base_step']['seconds'])
  assert len(rounds) == 3 and point['ratio']['median'] == pytest.approx(np.median(rounds))
  assert point['flops'] == {name: 2 * flops for name, flops in found['base']['flops'].items()}
  assert point['flops'] == {name: work.hardware for name, work in Flops(config).phases(16).items()}
  assert point['memory']['temporaries'] > 1.3 * found['base']['memory']['temporaries']
  assert batch['slopes']['flops']['all'] == pytest.approx(1.0)


def test_what_was_found_is_not_measured_again(config, found, monkeypatch):
  measured = []
  real = growth_parts.compiled
  monkeypatch.setattr(growth_parts, 'compiled', lambda *point: measured.append(point) or real(*point))
  again = growth_parts.measured(config, 60, ['batch'], 3, found, pytest.fail, FACTORS)
  assert json.loads(json.dumps(again)) == found and not measured
  # Another number of rounds is another measurement: nothing of the old one stays.
  other = growth_parts.measured(config, 60, [], 4, found, pytest.fail, FACTORS)
  assert other['base'] is None and not any(axis['points'] for axis in other['axes'].values())


def test_the_points_of_the_page_are_possible_configs_that_differ_on_one_axis():
  base = growth_parts.base()
  for name, axis in growth_parts.points(base, growth_parts.ITEMS).items():
    assert len(axis) == 3
    for value, (config, items) in axis.items():
      changed = {f'{room}.{field}' for room, fields in config_fields(config).items() for field, x in fields.items() if x != config_fields(base)[room][field]}
      right = dict(
          batch={'loop_stage.batch'}, context={'backbone.context'}, events={'reasoner.events'}, worlds={'loop.worlds'},
          candidates={'reasoner.candidates'}, width={'backbone.temporal', 'reasoner.transformer'}, catalogue=set())[name]
      assert changed == right and (items != growth_parts.ITEMS) == (name == 'catalogue') and int(value) > 0
  with pytest.raises(ConfigError, match='--axes=depth: must be some of batch, context'):
    growth_parts.measured(base, 10, ['depth'], 3, {}, pytest.fail)


def config_fields(config) -> dict:
  return {room: vars(getattr(config, room)) for room in ('loop_stage', 'backbone', 'reasoner', 'loop', 'semantic_ids')}


def test_a_slope_is_the_exponent():
  x = np.array([8, 16, 32, 64])
  assert growth_parts.slope(x, 3.0 * x**1.5) == pytest.approx(1.5)


def test_chips_share_users_and_a_mesh_of_whole_dimensions(tmp_path):
  for chips, (torus, *mesh) in growth_chips.MESHES.items():
    sizes = [int(n) for n in torus.split('x')]
    assert np.prod(sizes) == np.prod(mesh) == chips
    # Each axis takes whole dimensions, each once: some order of them is cut into the mesh.
    assert fits(sizes, list(mesh)), chips
    assert f'--set=loop_stage.batch={growth_chips.USERS * chips}' in growth_chips.command(chips, tmp_path)
  with pytest.raises(ConfigError, match='--chips=17: must be some of 16, 64'):
    growth_chips.compiled([17], {}, pytest.fail)


def fits(dimensions: list[int], mesh: list[int]) -> bool:
  if not dimensions:
    return all(n == 1 for n in mesh)
  first, *rest = dimensions
  return any(n % first == 0 and fits(rest, [*mesh[:i], n // first, *mesh[i + 1:]]) for i, n in enumerate(mesh))


@pytest.fixture(scope='module')
def check():
  """The committed result of compile_check for 128 chips, and so the form of what the command writes."""
  return json.loads((growth_parts.measure.FOLDER / 'compile_v5p_128.json').read_text())


def test_a_point_of_chips_is_read_from_the_check(check):
  point = growth_chips.point(check)
  assert point['users'] == 512 and point['mesh'] == dict(data=1, fsdp=32, tensor=4) and point['bound']['reflection'] == 'compute'
  step = check['programs'][0]
  assert sum(point['roof'].values()) == pytest.approx(point['seconds'])
  assert point['sent']['reflection'] == step['collectives']['phases']['reflection']['link'] and sum(point['sent'].values()) > 0
  assert '128' in growth_chips.table(dict(points={'128': point}))


def test_the_page_is_drawn_from_either_part(found, check, tmp_path):
  chips = dict(users_per_chip=4, experiment='pod:v5p_128', points={'128': growth_chips.point(check), '16': growth_chips.point(check)})
  for i, page in enumerate((dict(measured=found), dict(chips=chips), dict(measured=found, chips=chips))):
    growth_plot.draw(page, tmp_path / f'{i}.png')
    assert (tmp_path / f'{i}.png').read_bytes().startswith(b'\x89PNG')
  assert 'batch' in growth_parts.table(found)
