"""config.json as the families publish it, in the spelling of their checkpoints."""

import dataclasses

import pytest

from rolegen_jax.config import RopeScaling, TransformerConfig
from rolegen_jax.models.transformer import local_layers
from rolegen_jax.pretrained.families import Unsupported, read_config
from tests.pretrained.checkpoints import QWEN3_06B, published

QWEN3 = TransformerConfig(
  layers=28,
  width=1024,
  heads=16,
  kv_heads=8,
  head_dim=128,
  mlp=3072,
  rope_theta=1e6,
  local_rope_theta=1e6,
  qk_norm=True,
)
LLAMA_32_1B, GEMMA_3_1B = published('llama3.2_1b'), published('gemma3_1b')


def without(hf_config: dict, *prefixes: str) -> dict:
  return {name: value for name, value in hf_config.items() if not name.startswith(prefixes)}


def test_qwen3():
  assert read_config(QWEN3_06B) == QWEN3
  window = dict(use_sliding_window=True, sliding_window=32, max_window_layers=20)
  config = read_config(QWEN3_06B | window)
  assert local_layers(config).tolist() == [False] * 20 + [True] * 8 and config.window == 32
  unused = read_config(QWEN3_06B | window | dict(use_sliding_window=False))
  assert not local_layers(unused).any()


def test_llama():
  assert read_config(LLAMA_32_1B) == TransformerConfig(
    layers=16,
    width=2048,
    heads=32,
    kv_heads=8,
    head_dim=64,
    mlp=8192,
    rope_theta=5e5,
    local_rope_theta=5e5,
    norm_epsilon=1e-5,
    rope_scaling=RopeScaling('llama3', 32.0, 1.0, 4.0, 8192),
  )
  plain = read_config(without(LLAMA_32_1B, 'rope_scaling', 'head_dim', 'tie_word_embeddings'))
  assert plain.head_dim == 64 and not plain.tied and plain.rope_scaling == RopeScaling()


def test_gemma_3():
  config = read_config(GEMMA_3_1B)
  assert config == TransformerConfig(
    layers=26,
    width=1152,
    heads=4,
    kv_heads=1,
    head_dim=256,
    mlp=6912,
    rope_theta=1e6,
    local_rope_theta=1e4,
    qk_norm=True,
    post_norms=True,
    norm_offset=1.0,
    activation='gelu_tanh',
    attention_scale=256**-0.5,
    layer_pattern='LLLLLG' * 4 + 'LL',
    window=512,
    embedding_scale=1152**0.5,
  )
  scaled = read_config(GEMMA_3_1B | dict(rope_scaling=dict(factor=8.0, rope_type='linear')))
  assert scaled == dataclasses.replace(config, rope_scaling=RopeScaling('linear', 8.0))
  new_spelling = without(GEMMA_3_1B, 'rope', 'sliding_window_pattern') | dict(
    layer_types=(['sliding_attention'] * 5 + ['full_attention']) * 4 + ['sliding_attention'] * 2,
    rope_parameters=dict(
      full_attention=dict(rope_type='default', rope_theta=1e6),
      sliding_attention=dict(rope_type='default', rope_theta=1e4),
    ),
  )
  assert read_config(new_spelling) == config


@pytest.mark.parametrize(
  'hf_config, message',
  [
    (
      dict(QWEN3_06B, architectures=['LlamaForCausalLM']),
      "model_type='qwen3', architectures=.'LlamaForCausalLM'.: must be one of",
    ),
    (
      dict(LLAMA_32_1B, rope_scaling=dict(type='dynamic', factor=2.0)),
      'must be default, linear or llama3',
    ),
    (dict(GEMMA_3_1B, attn_logit_softcapping=50.0), 'attn_logit_softcapping=50.0: must be None'),
    (dict(GEMMA_3_1B, use_bidirectional_attention=True), 'use_bidirectional_attention=True'),
    (dict(QWEN3_06B, layer_types=['full_attention'] * 3), 'must be 28 of'),
    (dict(model_type='gemma3'), "model_type='gemma3'"),
  ],
)
def test_what_the_transformer_does_not_compute_is_refused(hf_config, message):
  with pytest.raises(Unsupported, match=message):
    read_config(hf_config)
