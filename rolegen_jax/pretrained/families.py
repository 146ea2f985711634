"""What the files of each pretrained family mean.

A config.json becomes a TransformerConfig, and tensor names become paths of our parameters. There is
one transformer (`models/transformer.py`); a family is a case of the functions here and nothing
else. Whatever a config.json asks for that the transformer does not compute is refused, so that a
folder either loads with its true meaning or not at all.

A field that is absent has the default that transformers gives it. Where two fields speak of one
thing and differ, the file is refused; but `layer_types` always outranks `max_window_layers`, which
transformers writes beside it whether or not it is in force.
"""

from __future__ import annotations

import dataclasses

from rolegen_jax.config import TransformerConfig
from rolegen_jax.pretrained.fields import (
  Unsupported,
  count,
  flag,
  get,
  number,
  refusal,
  shown,
)
from rolegen_jax.pretrained.rotary import rotary, rotary_by_layer_type

Groups = tuple[tuple[int, ...], ...]


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

# Architecture -> model type. Those without a head are of folders that have none.
FAMILIES = {
  'Qwen3ForCausalLM': 'qwen3',
  'Qwen3Model': 'qwen3',
  'LlamaForCausalLM': 'llama',
  'LlamaModel': 'llama',
  'Gemma3ForCausalLM': 'gemma3_text',
  'Gemma3TextModel': 'gemma3_text',
}
TOKENS, HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
FINAL_NORM = Tensor('model.norm.weight', VECTOR)

# Fields of config.json -> the only value that is supported; the field may be absent.
_ONLY = {
  'attention_bias': False,
  'mlp_bias': False,
  'attn_logit_softcapping': None,
  'use_bidirectional_attention': False,
  'is_causal': True,
  'is_encoder_decoder': False,
  'add_cross_attention': False,
  'quantization_config': None,
  'compression_config': None,
  'transformers_weights': None,  # weights in a file of another name
  'partial_rotary_factor': 1.0,
}
# Model type -> fields that only other families have.
_FOREIGN = {
  'qwen3': (
    'sliding_window_pattern',
    'rope_local_base_freq',
    'query_pre_attn_scalar',
    'final_logit_softcapping',
  ),
  'gemma3_text': ('use_sliding_window', 'max_window_layers'),
}
_FOREIGN['llama'] = (*_FOREIGN['qwen3'], 'sliding_window', 'max_window_layers')
# What transformers takes where num_key_value_heads is absent; elsewhere, and where it is null, it
# takes the number of query heads.
_KV_HEADS = {'qwen3': 32, 'gemma3_text': 4}
_HEAD_DIM = {'qwen3': 128, 'gemma3_text': 256}
_ACTIVATIONS = {'silu': 'silu', 'gelu_pytorch_tanh': 'gelu_tanh'}  # theirs -> ours
_LAYER_TYPES = {'full_attention': 'G', 'sliding_attention': 'L'}  # theirs -> ours
_DTYPES = ('float32', 'bfloat16', 'float16')
_MOST_LAYERS = 10_000


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
  return {'tokens': TOKENS} if config.tied else {'tokens': TOKENS, 'readout': HEAD}


def layer_name(layer: int, tensor: Tensor) -> str:
  """Return the name of a layer's tensor in the files."""
  return f'model.layers.{layer}.{tensor.name}'


# Settings


def read_config(hf_config: dict) -> TransformerConfig:
  """Return the transformer that the content of a config.json describes. Raises Unsupported."""
  kind = _model_type(hf_config)
  for name, supported in _ONLY.items():
    value = get(hf_config, name, supported)
    if value != supported:
      raise refusal(name, value, f'must be {supported!r}, or absent')
  for name in _FOREIGN[kind]:
    if hf_config.get(name) is not None:
      raise refusal(name, hf_config[name], f'must be absent, as {kind} has no such setting')
  _check_dtype(hf_config)
  config = _transformer(hf_config)
  if kind != 'gemma3_text':
    return config
  softcap = get(hf_config, 'final_logit_softcapping')
  return dataclasses.replace(
    config,
    post_norms=True,
    norm_offset=1.0,
    embedding_scale=config.width**0.5,
    attention_scale=number(hf_config, 'query_pre_attn_scalar', 256) ** -0.5,
    logit_softcap=0.0 if softcap is None else number(hf_config, 'final_logit_softcapping'),
  )


def with_head(hf_config: dict) -> str:
  """Return the architecture of this model type that has a head."""
  kind = hf_config['model_type']
  return next(name for name in FAMILIES if FAMILIES[name] == kind and 'CausalLM' in name)


def _model_type(hf_config: dict) -> str:
  kind, architectures = hf_config.get('model_type'), get(hf_config, 'architectures', [])
  is_list = isinstance(architectures, list) and all(isinstance(a, str) for a in architectures)
  if (
    not isinstance(kind, str)
    or kind not in FAMILIES.values()
    or not is_list
    or any(FAMILIES.get(name) != kind for name in architectures)
  ):
    known = ', '.join(map('='.join, FAMILIES.items()))
    raise Unsupported(
      f'config.json: model_type={shown(kind)}, architectures={shown(architectures)}: '
      f'must be one of {known}'
    )
  return kind


def _check_dtype(hf_config: dict) -> None:
  """Refuse what says that the weights are quantized, and two names of their type that differ.

  The tensors say themselves what they are, and are read as that.
  """
  said = {name: get(hf_config, name) for name in ('dtype', 'torch_dtype')}
  said = {name: value for name, value in said.items() if value is not None}
  for name, value in said.items():
    if not isinstance(value, str) or value.removeprefix('torch.') not in _DTYPES:
      raise refusal(name, value, f'must be one of {", ".join(_DTYPES)}, or absent')
  if len({value.removeprefix('torch.') for value in said.values()}) > 1:
    raise refusal('dtype', said['dtype'], f'must be as torch_dtype={said["torch_dtype"]!r} says')


def _transformer(hf_config: dict) -> TransformerConfig:
  """Return what all families have."""
  kind = hf_config['model_type']
  is_gemma = kind == 'gemma3_text'
  width, heads = count(hf_config, 'hidden_size'), count(hf_config, 'num_attention_heads')
  layers = count(hf_config, 'num_hidden_layers', most=_MOST_LAYERS)
  pattern = _layer_pattern(hf_config, layers)
  if is_gemma:
    theta, local_theta, scaling = rotary_by_layer_type(hf_config)
  else:
    theta, scaling = rotary(hf_config)
    local_theta = theta
    if scaling.kind != 'none' and 'L' in pattern:
      raise refusal('rope_type', scaling.kind, 'must be default on layers with sliding attention')
  return TransformerConfig(
    layers=layers,
    width=width,
    heads=heads,
    kv_heads=_kv_heads(hf_config, heads),
    head_dim=_head_dim(hf_config, width, heads),
    mlp=count(hf_config, 'intermediate_size'),
    rope_theta=theta,
    local_rope_theta=local_theta,
    rope_scaling=scaling,
    norm_epsilon=number(hf_config, 'rms_norm_eps', 1e-6),
    activation=_activation(hf_config),
    layer_pattern=pattern,
    window=count(hf_config, 'sliding_window', 4096) if 'L' in pattern else 0,
    qk_norm=kind != 'llama',
    tied=flag(hf_config, 'tie_word_embeddings', is_gemma),
  )


def _kv_heads(hf_config: dict, heads: int) -> int:
  kind = hf_config['model_type']
  is_absent = 'num_key_value_heads' not in hf_config
  kv_heads = count(
    hf_config, 'num_key_value_heads', _KV_HEADS.get(kind, heads) if is_absent else heads
  )
  if heads % kv_heads:
    raise refusal('num_key_value_heads', kv_heads, f'must divide num_attention_heads={heads}')
  return kv_heads


def _head_dim(hf_config: dict, width: int, heads: int) -> int:
  kind = hf_config['model_type']
  if get(hf_config, 'head_dim') is None and kind not in _HEAD_DIM and width % heads:
    raise refusal('hidden_size', width, f'must be a multiple of num_attention_heads={heads}')
  head_dim = count(hf_config, 'head_dim', _HEAD_DIM.get(kind, width // heads))
  if head_dim % 2:
    raise refusal('head_dim', head_dim, 'must be even (rotary pairs)')
  return head_dim


def _activation(hf_config: dict) -> str:
  """Return ours; each family has a field of its own, and the other's must not contradict it."""
  name, other, default = 'hidden_act', 'hidden_activation', 'silu'
  if hf_config['model_type'] == 'gemma3_text':
    name, other, default = other, name, 'gelu_pytorch_tanh'
  activation = get(hf_config, name, default)
  if not isinstance(activation, str) or activation not in _ACTIVATIONS:
    raise refusal(name, activation, f'must be one of {", ".join(_ACTIVATIONS)}')
  if get(hf_config, other, activation) != activation:
    raise refusal(other, hf_config[other], f'must be absent, or as {name}={activation!r} says')
  return _ACTIVATIONS[activation]


def _layer_pattern(hf_config: dict, layers: int) -> str:
  """Return one letter per layer, G or L (see TransformerConfig); '' when all are G."""
  stated = _stated_pattern(hf_config, layers)
  has_window = _has_window(hf_config)
  if hf_config['model_type'] == 'gemma3_text':
    implied = _periodic_pattern(hf_config, layers, stated)
  else:
    first = count(hf_config, 'max_window_layers', 28, least=0) if has_window else layers
    implied = ''.join('L' if layer >= first else 'G' for layer in range(layers))
  pattern = implied if stated is None else stated
  if 'L' not in pattern:
    return ''
  if not has_window:
    raise Unsupported(
      'config.json: layer_types has sliding_attention, but no sliding window is in force '
      f'(use_sliding_window={shown(hf_config.get("use_sliding_window"))}, '
      f'sliding_window={shown(hf_config.get("sliding_window"))}); must be full_attention'
    )
  return pattern


def _stated_pattern(hf_config: dict, layers: int) -> str | None:
  """Return the letters of `layer_types`; None where there is no such field."""
  types = get(hf_config, 'layer_types')
  if types is None:
    return None
  is_known = isinstance(types, list) and all(
    isinstance(layer_type, str) and layer_type in _LAYER_TYPES for layer_type in types
  )
  if not is_known or len(types) != layers:
    raise refusal('layer_types', types, f'must be {layers} of {", ".join(_LAYER_TYPES)}')
  return ''.join(_LAYER_TYPES[layer_type] for layer_type in types)


def _has_window(hf_config: dict) -> bool:
  """Return whether layers with sliding attention have a window."""
  kind = hf_config['model_type']
  is_on = kind == 'gemma3_text' or flag(hf_config, 'use_sliding_window', False)
  if is_on and kind == 'llama':
    raise refusal('use_sliding_window', True, 'must be absent, as llama has no such setting')
  return is_on and hf_config.get('sliding_window', 4096) is not None


def _periodic_pattern(hf_config: dict, layers: int, stated: str | None) -> str:
  """Return Gemma's letters where the file states none, and check the period that it names."""
  period = count(hf_config, 'sliding_window_pattern', 6)
  pattern = ''.join('L' if (layer + 1) % period else 'G' for layer in range(layers))
  is_named = get(hf_config, 'sliding_window_pattern') is not None
  if is_named and stated not in (None, pattern):
    raise refusal('sliding_window_pattern', period, 'must be absent, or as layer_types says')
  # transformers writes the period under this name beside layer_types, and never reads it.
  kept = get(hf_config, '_sliding_window_pattern', period)
  if stated is None and kept != period:
    raise refusal('_sliding_window_pattern', kept, f'must be {period}, the period in force')
  return pattern
