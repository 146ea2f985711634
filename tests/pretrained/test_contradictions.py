"""A config.json that leaves fields out, or says one thing twice: as transformers reads it, or not
at all."""

import json

import pytest

from rolegen_jax.config import RopeScaling
from rolegen_jax.models.transformer import local_layers
from rolegen_jax.pretrained.families import read_config
from rolegen_jax.pretrained.fields import Unsupported
from tests.pretrained.checkpoints import QWEN3_06B
from tests.pretrained.test_families import GEMMA_3_1B, LLAMA_32_1B, without

QWEN3, LLAMA, GEMMA = QWEN3_06B, without(LLAMA_32_1B, 'rope'), without(GEMMA_3_1B, 'rope')
LINEAR = dict(rope_type='linear', factor=8.0)
LLAMA3 = LLAMA_32_1B['rope_scaling']
DEFAULT = dict(rope_type='default')
FULL, WINDOW = 'full_attention', 'sliding_attention'
WINDOWS = dict(use_sliding_window=True, sliding_window=32, max_window_layers=20)
HALF = [FULL] * 14 + [WINDOW] * 14


def by_type(full: dict, window: dict) -> dict:
  return dict(rope_parameters={FULL: full, WINDOW: window})


# What is read, and one field of what it means.
READ = {
  'theta of either spelling': [
    (LLAMA, 'rope_theta', 1e4),
    (LLAMA | dict(rope_theta=5e5), 'rope_theta', 5e5),
    (LLAMA | dict(rope_parameters=DEFAULT | dict(rope_theta=5e5)), 'rope_theta', 5e5),
    (LLAMA | dict(rope_parameters=DEFAULT, rope_theta=5e5), 'rope_theta', 5e5),
    (LLAMA | dict(rope_parameters=dict(rope_theta=5e5), rope_theta=500_000), 'rope_theta', 5e5),
    (LLAMA | dict(rope_theta=5e5), 'local_rope_theta', 5e5),
    (GEMMA, 'rope_theta', 1e6),
    (GEMMA, 'local_rope_theta', 1e4),
    (GEMMA | dict(rope_theta=5e5, rope_local_base_freq=100), 'local_rope_theta', 100.0),
    (GEMMA | by_type(DEFAULT, {}) | dict(rope_theta=5e5), 'rope_theta', 5e5),
    (GEMMA | by_type(DEFAULT, DEFAULT) | dict(rope_local_base_freq=7), 'local_rope_theta', 7.0),
  ],
  'scaling of either spelling': [
    (LLAMA | dict(rope_scaling=LINEAR), 'rope_scaling', RopeScaling('linear', 8.0)),
    (
      LLAMA | dict(rope_scaling=dict(type='linear', factor=8)),
      'rope_scaling',
      RopeScaling('linear', 8.0),
    ),
    (
      LLAMA | dict(rope_scaling=LINEAR, rope_parameters=LINEAR),
      'rope_scaling',
      RopeScaling('linear', 8.0),
    ),
    (
      LLAMA | dict(rope_scaling={}, rope_parameters=LINEAR),
      'rope_scaling',
      RopeScaling('linear', 8.0),
    ),
    (
      LLAMA | dict(rope_scaling=without(LLAMA3, 'original'), max_position_embeddings=64),
      'rope_scaling',
      RopeScaling('llama3', 32.0, 1.0, 4.0, 64),
    ),
    (GEMMA | by_type(LINEAR, {}), 'rope_scaling', RopeScaling('linear', 8.0)),
  ],
  'sizes that are absent': [
    (without(LLAMA, 'num_key_value_heads'), 'kv_heads', 32),
    (LLAMA | dict(num_key_value_heads=None), 'kv_heads', 32),
    (without(QWEN3, 'num_key_value_heads') | dict(num_attention_heads=32), 'kv_heads', 32),
    (QWEN3 | dict(num_key_value_heads=None), 'kv_heads', 16),
    (without(GEMMA, 'num_key_value_heads'), 'kv_heads', 4),
    (without(LLAMA, 'head_dim'), 'head_dim', 64),
    (LLAMA | dict(head_dim=128), 'head_dim', 128),
    (without(QWEN3, 'head_dim'), 'head_dim', 128),
    (without(GEMMA, 'head_dim'), 'head_dim', 256),
  ],
  'flags that are absent': [
    (without(QWEN3, 'tie'), 'tied', False),
    (without(LLAMA, 'tie'), 'tied', False),
    (without(GEMMA, 'tie'), 'tied', True),
  ],
  'names that agree': [
    (QWEN3 | dict(dtype='bfloat16', torch_dtype='torch.bfloat16'), 'activation', 'silu'),
    (GEMMA | dict(hidden_act='gelu_pytorch_tanh'), 'activation', 'gelu_tanh'),
    (GEMMA | dict(final_logit_softcapping=30.0), 'logit_softcap', 30.0),
  ],
}


@pytest.mark.parametrize('kind', READ)
def test_what_is_read(kind):
  for hf_config, field, value in READ[kind]:
    assert getattr(read_config(hf_config), field) == value, (hf_config, field)


def test_windows():
  """`layer_types` outranks `max_window_layers`; a null window is none."""
  assert local_layers(read_config(QWEN3 | WINDOWS)).tolist() == [False] * 20 + [True] * 8
  stated = QWEN3 | WINDOWS | dict(layer_types=HALF)
  assert local_layers(read_config(stated)).tolist() == [False] * 14 + [True] * 14
  assert not local_layers(read_config(QWEN3 | WINDOWS | dict(sliding_window=None))).any()
  every_third = dict(sliding_window_pattern=3)
  gemma = local_layers(read_config(GEMMA | every_third)).tolist()
  assert gemma == ([True, True, False] * 9)[:26]
  types = [WINDOW if local else FULL for local in gemma]
  kept = read_config(
    without(GEMMA, 'sliding_window_p') | dict(layer_types=types, _sliding_window_pattern=6)
  )
  assert local_layers(kept).tolist() == gemma


REFUSED = {
  'rotary settings': [
    (
      LLAMA | dict(rope_parameters=LINEAR, rope_scaling=LLAMA3),
      'rope_parameters.rope_type=.linear. beside rope_scaling.rope_type=.llama3.',
    ),
    (
      LLAMA | dict(rope_parameters=LINEAR, rope_scaling=LINEAR | dict(factor=4.0)),
      'rope_parameters.factor=8.0 beside rope_scaling.factor=4.0',
    ),
    (
      LLAMA | dict(rope_parameters=DEFAULT | dict(rope_theta=5e5), rope_theta=1e4),
      'rope_theta=10000.0 beside rope_parameters.rope_theta=500000.0',
    ),
    (
      LLAMA | dict(rope_parameters=LINEAR | dict(rope_theta=5e5), rope_scaling=LINEAR),
      'rope_parameters.rope_theta=500000.0 beside the default rope_theta=10000.0',
    ),
    (
      LLAMA | dict(rope_scaling=dict(type='linear', rope_type='llama3', factor=8)),
      "rope_scaling.type='linear' beside rope_scaling.rope_type='llama3'",
    ),
    (
      LLAMA | dict(rope_scaling=LLAMA3, original_max_position_embeddings=64),
      'original_max_position_embeddings=64 beside rope_scaling.original_max_.*=8192',
    ),
    (
      GEMMA | by_type(LINEAR, {}) | dict(rope_scaling=LINEAR | dict(factor=2)),
      'rope_parameters.full_attention.factor=8.0 beside rope_scaling.factor=2',
    ),
    (
      GEMMA | by_type(dict(rope_theta=1e4), {}) | dict(rope_theta=1e6),
      'rope_theta=1000000.0 beside rope_parameters.full_attention.rope_theta=10000.0',
    ),
    (
      GEMMA | by_type({}, dict(rope_theta=100)) | dict(rope_local_base_freq=1e4),
      'rope_local_base_freq=10000.0 beside rope_parameters.sliding_attention.rope_theta=100',
    ),
    (GEMMA | dict(rope_parameters=dict(rope_theta=1e4)), "rope_parameters has 'rope_theta'"),
    (LLAMA | by_type(DEFAULT, DEFAULT), 'full_attention='),
    (GEMMA | by_type(DEFAULT, LINEAR), 'sliding_attention=.*must be default'),
    (LLAMA | dict(rope_scaling=DEFAULT | dict(factor=8.0)), 'factor=8.0: must be absent'),
    (LLAMA | dict(rope_scaling=dict(rope_type='linear')), 'factor is missing'),
    (LLAMA | dict(rope_scaling=LINEAR | dict(factor='8')), "factor='8': must be a positive number"),
    (LLAMA | dict(rope_scaling=LLAMA3 | dict(low_freq_factor=4.0)), 'must be the smaller first'),
    (LLAMA | dict(rope_scaling='linear'), "rope_scaling='linear': must be an object"),
    (LLAMA | dict(partial_rotary_factor=0.5), 'partial_rotary_factor=0.5: must be 1.0'),
    (
      LLAMA | dict(rope_parameters=DEFAULT | dict(partial_rotary_factor=0.5)),
      'partial_rotary_factor=0.5',
    ),
    (QWEN3 | WINDOWS | dict(rope_scaling=LINEAR), 'must be default on layers with sliding'),
    *(
      (
        config | dict(rope_scaling=dict(rope_type=kind, factor=4.0)),
        f'rope_type={kind!r}: must be default, linear or llama3',
      )
      for config in (QWEN3, LLAMA, GEMMA)
      for kind in ('yarn', 'dynamic', 'longrope', 'mrope')
    ),
  ],
  'windows': [
    (QWEN3 | dict(layer_types=HALF), 'layer_types has sliding_attention, but no sliding window'),
    (
      QWEN3 | WINDOWS | dict(layer_types=HALF, sliding_window=None),
      'no sliding window is in force',
    ),
    (GEMMA | dict(sliding_window=None), 'no sliding window is in force'),
    (GEMMA | dict(layer_types=[FULL] * 26), 'sliding_window_pattern=6: must be absent, or as'),
    (
      without(GEMMA, 'sliding_window_p') | dict(_sliding_window_pattern=4),
      '_sliding_window_pattern=4: must be 6',
    ),
    (GEMMA | dict(sliding_window_pattern=0), 'sliding_window_pattern=0: must be a whole number'),
    (QWEN3 | dict(layer_types=['chunked_attention'] * 28), 'must be 28 of full_attention'),
    (QWEN3 | dict(layer_types=[[]] * 28), 'must be 28 of full_attention'),
    (LLAMA | dict(sliding_window=32), 'sliding_window=32: must be absent, as llama has no such'),
    (LLAMA | dict(use_sliding_window=True), 'use_sliding_window=True: must be absent'),
    (LLAMA | dict(layer_types=[WINDOW] * 16), 'no sliding window is in force'),
  ],
  'what is not computed': [
    (QWEN3 | dict(attention_bias=True), 'attention_bias=True: must be False'),
    (LLAMA | dict(mlp_bias=True), 'mlp_bias=True: must be False'),
    (QWEN3 | dict(quantization_config=dict(quant_method='gptq')), 'quantization_config=.*gptq'),
    (GEMMA | dict(attn_logit_softcapping=50.0), 'attn_logit_softcapping=50.0: must be None'),
    (GEMMA | dict(final_logit_softcapping=0.0), 'final_logit_softcapping=0.0: must be a positive'),
    (LLAMA | dict(final_logit_softcapping=30.0), 'final_logit_softcapping=30.0: must be absent'),
    (QWEN3 | dict(query_pre_attn_scalar=256), 'query_pre_attn_scalar=256: must be absent'),
    (QWEN3 | dict(is_causal=False), 'is_causal=False: must be True'),
    (QWEN3 | dict(transformers_weights='other.safetensors'), 'transformers_weights'),
  ],
  'two names of one thing': [
    (QWEN3 | dict(dtype='float8_e4m3fn'), "dtype='float8_e4m3fn': must be one of float32"),
    (QWEN3 | dict(torch_dtype='int8'), "torch_dtype='int8': must be one of float32"),
    (
      QWEN3 | dict(dtype='float32', torch_dtype='bfloat16'),
      "dtype='float32': must be as torch_dtype='bfloat16'",
    ),
    (
      QWEN3 | dict(hidden_activation='gelu_pytorch_tanh'),
      "hidden_activation=.*as hidden_act='silu'",
    ),
    (GEMMA | dict(hidden_act='silu'), "hidden_act='silu': .*as hidden_activation="),
  ],
  'sizes and types': [
    (LLAMA | dict(num_key_value_heads=5), 'num_key_value_heads=5: must divide'),
    (without(LLAMA, 'head_dim') | dict(hidden_size=2050), 'hidden_size=2050: must be a multiple'),
    (LLAMA | dict(head_dim=63), 'head_dim=63: must be even'),
    (LLAMA | dict(hidden_size='2048'), "hidden_size='2048': must be a whole number"),
    (LLAMA | dict(hidden_size=2048.0), 'hidden_size=2048.0: must be a whole number'),
    (LLAMA | dict(num_hidden_layers=10**9), 'num_hidden_layers=1000000000: must be .* to 10000'),
    (LLAMA | dict(num_attention_heads=0), 'num_attention_heads=0'),
    (LLAMA | dict(intermediate_size=True), 'intermediate_size=True'),
    (LLAMA | dict(rms_norm_eps=-1e-5), 'rms_norm_eps=-1e-05: must be a positive number'),
    (LLAMA | dict(rope_theta=float('nan')), 'rope_theta=nan'),
    (QWEN3 | dict(tie_word_embeddings='false'), "tie_word_embeddings='false': must be true or"),
    (QWEN3 | dict(hidden_act=['silu']), 'hidden_act='),
    (QWEN3 | dict(architectures='Qwen3ForCausalLM'), 'architectures=.Qwen3ForCausalLM.: must be'),
    (QWEN3 | dict(model_type=['qwen3']), 'model_type='),
    (QWEN3 | dict(architectures=['Qwen3ForSequenceClassification']), 'must be one of'),
  ],
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_is_refused(kind):
  for hf_config, message in REFUSED[kind]:
    with pytest.raises(Unsupported, match=message) as refused:
      read_config(hf_config)
    assert str(refused.value).startswith('config.json: ') and '\n' not in str(refused.value)


# Against transformers


def of_transformers(hf_config: dict) -> dict:
  """What transformers makes of a config.json, in our words."""
  transformers = pytest.importorskip('transformers')
  config = transformers.AutoConfig.for_model(**json.loads(json.dumps(hf_config)))
  rope = config.rope_parameters
  full, window = (rope.get(kind, rope) for kind in (FULL, WINDOW))
  local = [kind == WINDOW for kind in getattr(config, 'layer_types', None) or ()]
  return dict(
    rope_theta=full['rope_theta'],
    local_rope_theta=window['rope_theta'],
    scaling=(full['rope_type'].replace('default', 'none'), full.get('factor', 1.0)),
    context=full.get('original_max_position_embeddings', 8192),
    kv_heads=config.num_key_value_heads,
    head_dim=config.head_dim,
    tied=config.tie_word_embeddings,
    local=local or [False] * config.num_hidden_layers,
    window=config.sliding_window if any(local) else 0,
    norm_epsilon=config.rms_norm_eps,
    logit_softcap=getattr(config, 'final_logit_softcapping', None) or 0.0,
  )


def test_what_is_read_is_what_transformers_reads():
  windows = [
    QWEN3 | WINDOWS,
    QWEN3 | WINDOWS | dict(layer_types=HALF),
    QWEN3 | WINDOWS | dict(sliding_window=None),
  ]
  published = [QWEN3_06B, LLAMA_32_1B, GEMMA_3_1B, GEMMA | dict(sliding_window_pattern=3)]
  read = [hf_config for cases in READ.values() for hf_config, *_ in cases]
  for hf_config in [*read, *windows, *published]:
    config = read_config(hf_config)
    ours = dict(
      {name: getattr(config, name) for name in of_transformers(QWEN3) if hasattr(config, name)},
      scaling=(config.rope_scaling.kind, config.rope_scaling.factor),
      context=config.rope_scaling.context,
      local=local_layers(config).tolist(),
    )
    assert ours == of_transformers(hf_config), hf_config
