"""What the files of each pretrained family mean.

A config.json becomes a TransformerConfig, and tensor names become paths of our parameters. There is
one transformer (`models/transformer.py`); a family is a case of the functions here and nothing
else. Whatever a config.json asks for that the transformer does not compute is refused, so that a
folder either loads with its true meaning or not at all.

Both spellings of rotary settings are read: `rope_theta`, `rope_scaling`, `rope_local_base_freq`,
`sliding_window_pattern`, as the published checkpoints have them; and `rope_parameters`,
`layer_types`, as transformers 5 writes them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rolegen_jax.config import ConfigError, RopeScaling, TransformerConfig

Groups = tuple[tuple[int, ...], ...]


class Unsupported(ConfigError):
  """A config.json asks for something that is not supported. The message names the field."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of the files."""

  name: str
  # Which axes of our parameter, in order, make up each dimension of the tensor.
  groups: Groups


MATRIX: Groups = ((1,), (0,))  # theirs is [out, in]
HEADS: Groups = ((1, 2), (0,))  # [heads x head_dim, width] of our [width, heads, head_dim]
OUT: Groups = ((2,), (0, 1))  # [width, heads x head_dim] of our [heads, head_dim, width]
VECTOR: Groups = ((0,),)

# Architecture -> model type.
FAMILIES = {
  'Qwen3ForCausalLM': 'qwen3',
  'LlamaForCausalLM': 'llama',
  'Gemma3ForCausalLM': 'gemma3_text',
}
# Ends of tensor names that older files carry and no model reads.
UNUSED = ('rotary_emb.inv_freq',)
FINAL_NORM = Tensor('model.norm.weight', VECTOR)

# Fields of config.json -> the only value that is supported; the field may be absent.
_ONLY = {
  'attention_bias': False,
  'mlp_bias': False,
  'attn_logit_softcapping': None,
  'use_bidirectional_attention': False,
  'quantization_config': None,
  'partial_rotary_factor': 1.0,
}
_ACTIVATIONS = {'silu': 'silu', 'gelu_pytorch_tanh': 'gelu_tanh'}  # theirs -> ours
_LAYER_TYPES = {'full_attention': 'G', 'sliding_attention': 'L'}  # theirs -> ours


# Tensors


def layer_tensors(config: TransformerConfig) -> dict[tuple[str, ...], Tensor]:
  """Return the path of each parameter inside `blocks` -> the tensor of one layer.

  Tensor names are those after `model.layers.N.`.
  """
  names: dict[tuple[str, ...], tuple[str, Groups]] = {
    ('attention_norm', 'scale'): ('input_layernorm', VECTOR),
    ('attention', 'wq'): ('self_attn.q_proj', HEADS),
    ('attention', 'wk'): ('self_attn.k_proj', HEADS),
    ('attention', 'wv'): ('self_attn.v_proj', HEADS),
    ('attention', 'wo'): ('self_attn.o_proj', OUT),
    ('mlp_norm', 'scale'): ('post_attention_layernorm', VECTOR),
    ('mlp', 'gate'): ('mlp.gate_proj', MATRIX),
    ('mlp', 'up'): ('mlp.up_proj', MATRIX),
    ('mlp', 'down'): ('mlp.down_proj', MATRIX),
  }
  if config.qk_norm:
    names |= {
      ('attention', 'q_norm', 'scale'): ('self_attn.q_norm', VECTOR),
      ('attention', 'k_norm', 'scale'): ('self_attn.k_norm', VECTOR),
    }
  if config.post_norms:  # theirs are named after the sublayer that they follow, as ours are
    names |= {
      ('attention_post_norm', 'scale'): ('post_attention_layernorm', VECTOR),
      ('mlp_norm', 'scale'): ('pre_feedforward_layernorm', VECTOR),
      ('mlp_post_norm', 'scale'): ('post_feedforward_layernorm', VECTOR),
    }
  return {path: Tensor(f'{name}.weight', groups) for path, (name, groups) in names.items()}


def tables(config: TransformerConfig) -> dict[str, str]:
  """Return our tables with one row per token -> the tensor that holds their rows."""
  names = {'tokens': 'model.embed_tokens.weight'}
  return names if config.tied else names | {'readout': 'lm_head.weight'}


def layer_name(layer: int, tensor: Tensor) -> str:
  """Return the name of a layer's tensor in the files."""
  return f'model.layers.{layer}.{tensor.name}'


# Settings


def read_config(hf_config: dict) -> TransformerConfig:
  """Return the transformer that the content of a config.json describes. Raises Unsupported."""
  architectures, kind = hf_config.get('architectures') or [], hf_config.get('model_type')
  if kind not in FAMILIES.values() or any(FAMILIES.get(name) != kind for name in architectures):
    known = ', '.join(map('='.join, FAMILIES.items()))
    raise Unsupported(
      f'config.json: model_type={kind!r}, architectures={architectures}: must be one of {known}'
    )
  for name, supported in _ONLY.items():
    if _get(hf_config, name, supported) != supported:
      raise Unsupported(
        f'config.json: {name}={hf_config[name]!r}: must be {supported!r}, or absent'
      )
  try:
    return _transformer(hf_config)
  except KeyError as error:
    raise Unsupported(f'config.json: {error.args[0]} is missing') from error


def _get(hf_config: dict, name: str, default: Any = None) -> Any:
  """Return a field; `default` where it is absent or null."""
  value = hf_config.get(name)
  return default if value is None else value


def _transformer(hf_config: dict) -> TransformerConfig:
  kind = hf_config['model_type']
  is_gemma = kind == 'gemma3_text'
  heads, width = hf_config['num_attention_heads'], hf_config['hidden_size']
  pattern = _layer_pattern(hf_config)
  theta, local_theta, scaling = _rotary(hf_config)
  default_head_dim = {'gemma3_text': 256, 'qwen3': 128}.get(kind, width // heads)
  config = TransformerConfig(
    layers=hf_config['num_hidden_layers'],
    width=width,
    heads=heads,
    kv_heads=_get(hf_config, 'num_key_value_heads', heads),
    head_dim=_get(hf_config, 'head_dim', default_head_dim),
    mlp=hf_config['intermediate_size'],
    rope_theta=theta,
    local_rope_theta=local_theta,
    rope_scaling=scaling,
    norm_epsilon=_get(hf_config, 'rms_norm_eps', 1e-6),
    activation=_activation(hf_config),
    layer_pattern=pattern,
    window=_get(hf_config, 'sliding_window', 4096) if 'L' in pattern else 0,
    qk_norm=kind != 'llama',
    tied=_get(hf_config, 'tie_word_embeddings', is_gemma),
    logit_softcap=_get(hf_config, 'final_logit_softcapping', 0.0),
  )
  if not is_gemma:
    return config
  return dataclasses.replace(
    config,
    post_norms=True,
    norm_offset=1.0,
    embedding_scale=width**0.5,
    attention_scale=_get(hf_config, 'query_pre_attn_scalar', 256) ** -0.5,
  )


def _activation(hf_config: dict) -> str:
  if hf_config['model_type'] == 'gemma3_text':
    name = _get(hf_config, 'hidden_activation', 'gelu_pytorch_tanh')
  else:
    name = _get(hf_config, 'hidden_act', 'silu')
  if name not in _ACTIVATIONS:
    raise Unsupported(
      f'config.json: hidden activation {name!r}: must be one of {", ".join(_ACTIVATIONS)}'
    )
  return _ACTIVATIONS[name]


def _layer_pattern(hf_config: dict) -> str:
  """Return one letter per layer, G or L (see TransformerConfig); '' when all are G."""
  kind, layers = hf_config['model_type'], hf_config['num_hidden_layers']
  types = _get(hf_config, 'layer_types')
  if types is not None:
    if len(types) != layers or set(types) - set(_LAYER_TYPES):
      raise Unsupported(
        f'config.json: layer_types={types}: must be {layers} of {", ".join(_LAYER_TYPES)}'
      )
    pattern = ''.join(_LAYER_TYPES[layer_type] for layer_type in types)
  elif kind == 'gemma3_text':
    period = _get(hf_config, 'sliding_window_pattern', 6)
    pattern = ''.join('L' if (layer + 1) % period else 'G' for layer in range(layers))
  elif kind == 'qwen3' and _get(hf_config, 'use_sliding_window', False):
    first = _get(hf_config, 'max_window_layers', 28)
    pattern = ''.join('L' if layer >= first else 'G' for layer in range(layers))
  else:
    return ''
  return pattern if 'L' in pattern else ''


def _rotary(hf_config: dict) -> tuple[float, float, RopeScaling]:
  """Return (theta of G layers, theta of L layers, scaling of G layers)."""
  is_gemma = hf_config['model_type'] == 'gemma3_text'
  default_theta = 1_000_000.0 if is_gemma else 10_000.0
  parameters = _get(hf_config, 'rope_parameters')
  if is_gemma and parameters and 'full_attention' in parameters:
    settings = parameters['full_attention']
    local_settings = parameters.get('sliding_attention') or {}
  else:
    settings = {'rope_theta': _get(hf_config, 'rope_theta', default_theta)}
    settings |= parameters or _get(hf_config, 'rope_scaling', {})
    local_theta = _get(hf_config, 'rope_local_base_freq', 10_000.0)
    local_settings = {'rope_theta': local_theta} if is_gemma else {}
  rope_type = _rope_type(settings)
  if (
    _rope_type(local_settings) != 'default'
    or rope_type not in ('default', 'linear', 'llama3')
    or settings.get('partial_rotary_factor', 1.0) != 1.0
  ):
    raise Unsupported(
      f'config.json: rotary settings {parameters or hf_config.get("rope_scaling")}: '
      'must be default, linear or llama3, of whole heads, on layers with full attention'
    )
  scaling = RopeScaling()
  if rope_type == 'linear':
    scaling = RopeScaling('linear', float(settings['factor']))
  elif rope_type == 'llama3':
    scaling = RopeScaling(
      'llama3',
      factor=float(settings['factor']),
      low_frequency=float(settings['low_freq_factor']),
      high_frequency=float(settings['high_freq_factor']),
      context=settings['original_max_position_embeddings'],
    )
  is_scaled = scaling.kind != 'none'
  if is_scaled and not is_gemma and 'sliding_attention' in _get(hf_config, 'layer_types', ()):
    raise Unsupported('config.json: scaled rotary positions on layers with sliding attention')
  theta = float(settings.get('rope_theta', default_theta))
  if not is_gemma:
    return theta, theta, scaling
  return theta, float(local_settings.get('rope_theta', 10_000.0)), scaling


def _rope_type(settings: dict) -> str:
  return settings.get('rope_type', settings.get('type', 'default'))
