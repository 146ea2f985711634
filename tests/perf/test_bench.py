import copy
import functools

import jax
import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.perf import throughput
from rolegen_jax.perf.flops import Flops
from rolegen_jax.semantic_ids.trie import default_capacity
from tests import tiny

CONFIG = tiny.config('loop_stage.batch=8', 'mesh.data=8')


@functools.cache
def measured(phase: str):
  return throughput.measure(CONFIG, '', [phase], 'random', 60, 3)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['rollout', 'step'])
def test_rates_follow_from_the_medians(name):
  result = measured(name)
  phase = result['phases'][name]
  assert phase['users'] == 8 and len(phase['seconds']) == 3
  assert sorted(phase['seconds'])[1] == phase['median_s'] > 0
  rates, chips = phase['per_second_per_chip'], jax.device_count()
  assert rates['rollouts'] == pytest.approx(8 * tiny.WORLDS / phase['median_s'] / chips)
  layout, tokens = tiny.rolegen().layout, tiny.WORLDS * tiny.rolegen().layout.length
  if name == 'step':  # scores chains by policy and reference, and a demonstration
    tokens += (2 * tiny.WORLDS + 1) * (layout.prompt_length + layout.length)
  assert rates['tokens'] == pytest.approx(rates['trajectories'] * tokens)
  of_phases = Flops(CONFIG, default_capacity(60)).phases(8).items()
  assert phase['model_flops'] == sum(
    work.model for of_phase, work in of_phases if name == 'step' or of_phase.startswith('rollout')
  )
  memory = phase['memory_per_device']
  assert memory['temporaries'] > 0 and memory['arguments'] > memory['aliased']
  assert (memory['aliased'] > 0) == (name == 'step')  # its state is donated, its batch is not
  assert phase['mfu'] is None and phase['hbm_share'] is None  # no peak is known for a CPU
  assert result['provenance']['device_kind'] == '8 x cpu'
  assert f'{name} ' in throughput.show(result) and 'peak memory' in throughput.show(result)


@pytest.mark.slow
def test_comparing_refuses_other_devices_and_gives_ratios():
  first = measured('rollout')
  second = copy.deepcopy(first)
  second['phases']['rollout']['median_s'] = first['phases']['rollout']['median_s'] / 2
  words = throughput.compare(first, second).split()
  assert words == 'rollout the second is 2.00 times as fast'.split()
  second['provenance']['device_kind'] = '8 x NVIDIA H100 80GB HBM3'
  with pytest.raises(ConfigError, match='the first ran on 8 x cpu, the second on 8 x NVIDIA H100'):
    throughput.compare(first, second)


def test_unknown_phases_and_impossible_catalogues_are_named():
  with pytest.raises(ConfigError, match='--phases=: must be some of input, rollout'):
    throughput.measure(CONFIG, '', [], 'random', 100, 3)
  with pytest.raises(ConfigError, match='--phases=decode: must be some of input, rollout'):
    throughput.measure(tiny.config(), '', ['decode'], 'random', 60, 3)
  with pytest.raises(ConfigError, match='--phases=input'):
    throughput.measure(tiny.config(), '', ['input'], 'random', 60, 3)
  with pytest.raises(ConfigError, match='--items=600: must be at most .* 512'):
    throughput.measure(tiny.config('mesh.data=8'), '', ['rollout'], 'random', 600, 3)
