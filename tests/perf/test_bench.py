import copy

import jax
import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.perf import throughput
from rolegen_jax.perf.flops import Flops
from tests import tiny


@pytest.fixture(scope='module')
def found():
  config = tiny.config('loop_stage.batch=8', 'mesh.data=8')
  return config, throughput.measure(config, '', ['step'], 'random', 60, 3)


def test_rates_follow_from_the_medians(found):
  config, result = found
  phase = result['phases']['step']
  assert (
    phase['users'] == 8
    and len(phase['seconds']) == 3
    and sorted(phase['seconds'])[1] == phase['median_s'] > 0
  )
  rates, chips = phase['per_second_per_chip'], jax.device_count()
  assert rates['rollouts'] == pytest.approx(8 * tiny.WORLDS / phase['median_s'] / chips)
  layout = tiny.rolegen().layout
  scored = (2 * tiny.WORLDS + 1) * (
    layout.prompt_length + layout.length
  )  # chains by policy and reference, and a demonstration
  assert rates['tokens'] == pytest.approx(
    rates['trajectories'] * (tiny.WORLDS * layout.length + scored)
  )
  assert phase['model_flops'] == sum(work.model for work in Flops(config).phases(8).values())
  memory = phase['memory_per_device']
  assert (
    memory['temporaries'] > 0 and memory['arguments'] > memory['aliased'] > 0
  )  # the state is donated, the batch is not
  assert phase['mfu'] is None and phase['hbm_share'] is None  # no peak is known for a CPU
  assert result['provenance']['device_kind'] == '8 x cpu'
  assert 'step ' in throughput.show(result) and 'peak memory' in throughput.show(result)


def test_comparing_refuses_other_devices_and_gives_ratios(found):
  first = found[1]
  second = copy.deepcopy(first)
  second['phases']['step']['median_s'] = first['phases']['step']['median_s'] / 2
  assert (
    throughput.compare(first, second).split() == 'step the second is 2.00 times as fast'.split()
  )
  second['provenance']['device_kind'] = '8 x NVIDIA H100 80GB HBM3'
  with pytest.raises(ConfigError, match='the first ran on 8 x cpu, the second on 8 x NVIDIA H100'):
    throughput.compare(first, second)


def test_unknown_phases_and_impossible_catalogues_are_named():
  with pytest.raises(ConfigError, match='--phases=decode: must be some of input, rollout'):
    throughput.measure(tiny.config(), '', ['decode'], 'random', 60, 3)
  with pytest.raises(ConfigError, match='--phases=input'):
    throughput.measure(tiny.config(), '', ['input'], 'random', 60, 3)
  with pytest.raises(ConfigError, match='--items=600: must be at most .* 512'):
    throughput.measure(tiny.config('mesh.data=8'), '', ['rollout'], 'random', 600, 3)
