import jax
import pytest

from experiments import pod
from rolegen_jax import overrides
from rolegen_jax.config import ConfigError, MeshConfig
from rolegen_jax.perf import hardware
from rolegen_jax.perf.aot import advice, check, search, topology
from rolegen_jax.perf.flops import parameters
from rolegen_jax.pretrained import folder
from tests.pretrained.checkpoints import PUBLISHED

ROOM = 1 << 17  # items


@pytest.mark.parametrize(
  'text, chips, domain',
  [
    ('tpu:v5e:4x4', 16, 16),
    ('tpu:v5p:8x16x16', 2048, 2048),
    ('tpu:v6e:16x16:slices=2', 512, 256),
    ('gpu:h100:8x8', 64, 8),
  ],
)
def test_topologies(text, chips, domain):
  found = topology.parse(text)
  assert (found.chips, found.domain) == (chips, domain)


@pytest.mark.parametrize(
  'text, message',
  [
    ('v5e:4x4', 'must be like tpu:v5e:4x4'),
    ('tpu:v3:4x4', "chip 'v3': must be one of v4"),
    ('tpu:h100:8x8', 'h100 is a gpu'),
    ('gpu:h100:64', 'hosts x GPUs'),
  ],
)
def test_wrong_topologies_say_what_is_right(text, message):
  with pytest.raises(ConfigError, match=message):
    topology.parse(text)


@pytest.mark.parametrize(
  'kind, name',
  [
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v6 lite', 'v6e'),
    ('NVIDIA H100 80GB HBM3', 'h100'),
    ('cpu', None),
  ],
)
def test_chips_by_their_device_kind(kind, name):
  found = hardware.of_kind(kind)
  assert (found and found.name) == name


def test_pod_models_have_the_sizes_that_they_are_named_after():
  """The item table apart, which grows with the catalogue."""
  small, large = (parameters(pod.get_config(size), 0) for size in ('v5e_16', 'v5p_128'))
  assert small['reasoner'] == pytest.approx(0.6e9, rel=0.05) and small['backbone'] == pytest.approx(
    0.3e9, rel=0.07
  )
  assert large['reasoner'] == pytest.approx(8e9, rel=0.05) and large['backbone'] == pytest.approx(
    1e9, rel=0.05
  )


@pytest.mark.parametrize(
  'name, billions',
  [
    ('qwen3_0.6b', 0.60),
    ('qwen3_1.7b', 1.72),
    ('qwen3_8b', 8.19),
    ('gemma3_1b', 1.00),
    ('llama3.2_1b', 1.24),
  ],
)
def test_published_models_have_the_parameters_that_they_are_published_with(name, billions):
  """The rows of our own tokens and adapters apart, a percent or two."""
  config = pod.get_config('v5p_128')
  path = str(PUBLISHED / f'{name}.json')
  config = folder.sized(overrides.apply(config, [f'reasoner.pretrained={path}']))
  assert parameters(config, 0)['reasoner'] == pytest.approx(billions * 1e9, rel=0.02)


def test_search_keeps_tensor_in_a_host_and_drops_what_cannot_fit():
  config, place = pod.get_config('h100_64'), topology.parse('gpu:h100:8x8')
  found = [c.mesh for c in search.candidates(config, place, ROOM)]
  assert MeshConfig(1, 8, 8, 'tensor') in found
  assert all(m.tensor <= 8 and m.fsdp * m.tensor > 1 for m in found)
  assert not list(search.candidates(config, topology.parse('tpu:v5e:2x2'), ROOM))


def test_the_compilers_sizes_and_the_advice_are_in_the_message():
  text = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory \
space hbm. Used 34.52G of 15.75G hbm. Exceeded hbm capacity by 18.77G.

Total hbm usage >= 34.77G:
    reserved        260.00M
    program          20.52G
    arguments        14.00G
"""
  sizes = check._sizes(text)
  assert 'Used 34.52G of 15.75G hbm' in sizes and 'arguments 14.00G' in sizes


def test_advice_can_be_pasted_and_fits_the_program():
  config, place = pod.get_config('v5p_128'), topology.parse('tpu:v5e:4x4')
  whole = overrides.apply(
    config, ['mesh.rollout=replicated', 'mesh.tensor=1', 'mesh.fsdp=8', 'mesh.data=2']
  )
  mesh = dict(data=2, fsdp=8, tensor=1)
  state, decoding, batch = advice.advice(whole, 'step', mesh, place, ROOM)
  assert 'training state: 21.' in state and '--set mesh.data=1 --set mesh.fsdp=16' in state
  assert '--set mesh.rollout=tensor --set mesh.tensor=2 --set mesh.fsdp=4' in decoding
  assert 'a smaller --set loop_stage.batch, a multiple of 16,' in batch
  assert (
    advice.advice(
      whole,
      'step',
      mesh,
      place,
      ROOM,
      'the total memory required for HLO temporaries (76.51G) exceeds',
    )[0]
    == batch
  )
  kept = overrides.apply(whole, ['reasoner.transformer.remat=none'])
  assert any(
    'reasoner.transformer.remat=full' in line
    for line in advice.advice(kept, 'step', mesh, place, ROOM)
  )
  lines = advice.advice(kept, 'recommend', mesh, place, ROOM)
  assert (
    not any('remat' in line or 'training state' in line for line in lines)
    and 'evaluation.batch' in lines[-1]
  )


class Unreadable:
  """What a compiler newer than jaxlib leaves: sizes, and a program that jaxlib cannot parse."""

  def as_text(self):
    raise jax.errors.JaxRuntimeError('INTERNAL: RET_CHECK failure\nand a trace')


def test_a_program_that_cannot_be_read_back_keeps_what_is_known():
  config, place = pod.get_config('v5e_16'), topology.parse('tpu:v5e:4x4')
  sent = check.collectives(Unreadable(), place)
  roofline = check.roofline(config, 'step', place, dict(data=1, fsdp=16, tensor=1), sent, ROOM)
  assert (
    sent['unknown'].endswith('RET_CHECK failure') and not sent['phases'] and roofline['seconds'] > 0
  )
