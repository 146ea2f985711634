"""What the files of each pretrained family mean: config.json -> TransformerConfig, tensor names -> our parameters.

There is one transformer (`models/transformer.py`); a family is the two functions here and nothing else. Whatever a config.json asks
for that the transformer does not compute is refused, so that a folder either loads with its true meaning or not at all.

Both spellings of rotary settings are read: `rope_theta`, `rope_scaling`, `rope_local_base_freq`, `sliding_window_pattern`, as the
published checkpoints have them, and `rope_parameters`, `layer_types`, as transformers 5 writes them.
"""

from __future__ import annotations

import dataclasses

from rolegen_jax.config import ConfigError, RopeScaling, TransformerConfig


class Unsupported(ConfigError):
  """A config.json asks for what is not there. The message names the field."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of the files. `groups`: which axes of our parameter, in order, make up each of its dimensions."""

  name: str
  groups: tuple[tuple[int, ...], ...]


MATRIX = ((1,), (0,))  # theirs is [out, in]
HEADS = ((1, 2), (0,))  # [heads x head_dim, width] of our [width, heads, head_dim]
OUT = ((2,), (0, 1))  # [width, heads x head_dim] of our [heads, head_dim, width]
VECTOR, TABLE = ((0,),), ((0,), (1,))

FAMILIES = {
  'Qwen3ForCausalLM': 'qwen3',
  'LlamaForCausalLM': 'llama',
  'Gemma3ForCausalLM': 'gemma3_text',
}
UNUSED = ('rotary_emb.inv_freq',)  # ends of names that older files carry and no model reads


def layer_tensors(config: TransformerConfig) -> dict[tuple[str, ...], Tensor]:
  """Path of a parameter inside `blocks` -> the tensor of one layer, its name after `model.layers.N.`."""
  names = {
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
  if config.post_norms:  # theirs named after the sublayer that they follow, as ours
    names |= {
      ('attention_post_norm', 'scale'): ('post_attention_layernorm', VECTOR),
      ('mlp_norm', 'scale'): ('pre_feedforward_layernorm', VECTOR),
      ('mlp_post_norm', 'scale'): ('post_feedforward_layernorm', VECTOR),
    }
  return {path: Tensor(f'{name}.weight', groups) for path, (name, groups) in names.items()}


def tables(config: TransformerConfig) -> dict[str, str]:
  """Our tables of one row a token -> the tensor that holds their rows."""
  return {'tokens': 'model.embed_tokens.weight'} | (
    {} if config.tied else {'readout': 'lm_head.weight'}
  )


FINAL_NORM = Tensor('model.norm.weight', VECTOR)


def layer_name(layer: int, tensor: Tensor) -> str:
  return f'model.layers.{layer}.{tensor.name}'


def read_config(said: dict) -> TransformerConfig:
  """The transformer that a config.json describes. Raises Unsupported."""
  names, kind = said.get('architectures') or [], said.get('model_type')
  if kind not in FAMILIES.values() or any(FAMILIES.get(name) != kind for name in names):
    raise Unsupported(
      f'config.json: model_type={kind!r}, architectures={names}: must be one of {", ".join(map("=".join, FAMILIES.items()))}'
    )
  get = lambda name, default=None: default if said.get(name) is None else said[name]
  for name, only in (
    ('attention_bias', False),
    ('mlp_bias', False),
    ('attn_logit_softcapping', None),
    ('use_bidirectional_attention', False),
    ('quantization_config', None),
    ('partial_rotary_factor', 1.0),
  ):
    if get(name, only) != only:
      raise Unsupported(f'config.json: {name}={said[name]!r}: must be {only!r}, or absent')
  try:
    return _read(kind, said, get)
  except KeyError as error:
    raise Unsupported(f'config.json: {error.args[0]} is missing') from error


def _read(kind: str, said: dict, get) -> TransformerConfig:
  gemma, heads, width = kind == 'gemma3_text', said['num_attention_heads'], said['hidden_size']
  activation = get(
    'hidden_activation' if gemma else 'hidden_act', 'gelu_pytorch_tanh' if gemma else 'silu'
  )
  known = {'silu': 'silu', 'gelu_pytorch_tanh': 'gelu_tanh'}
  if activation not in known:
    raise Unsupported(
      f'config.json: hidden activation {activation!r}: must be one of {", ".join(known)}'
    )
  pattern = _pattern(kind, said, get)
  theta, local_theta, scaling = _rotary(gemma, said, get)
  config = TransformerConfig(
    layers=said['num_hidden_layers'],
    width=width,
    heads=heads,
    kv_heads=get('num_key_value_heads', heads),
    head_dim=get('head_dim', 256 if gemma else 128 if kind == 'qwen3' else width // heads),
    mlp=said['intermediate_size'],
    rope_theta=theta,
    local_rope_theta=local_theta,
    rope_scaling=scaling,
    norm_epsilon=get('rms_norm_eps', 1e-6),
    activation=known[activation],
    layer_pattern=pattern,
    window=get('sliding_window', 4096) if 'L' in pattern else 0,
    qk_norm=kind != 'llama',
    tied=get('tie_word_embeddings', gemma),
    logit_softcap=get('final_logit_softcapping', 0.0),
  )
  if gemma:
    scale = get('query_pre_attn_scalar', 256) ** -0.5
    config = dataclasses.replace(
      config, post_norms=True, norm_offset=1.0, embedding_scale=width**0.5, attention_scale=scale
    )
  return config


def _pattern(kind: str, said: dict, get) -> str:
  """A letter a layer; '' when all see all."""
  layers, letters = said['num_hidden_layers'], {'full_attention': 'G', 'sliding_attention': 'L'}
  types = get('layer_types')
  if types is not None:
    if len(types) != layers or set(types) - set(letters):
      raise Unsupported(
        f'config.json: layer_types={types}: must be {layers} of {", ".join(letters)}'
      )
    pattern = ''.join(letters[t] for t in types)
  elif kind == 'gemma3_text':
    every = get('sliding_window_pattern', 6)
    pattern = ''.join('L' if (i + 1) % every else 'G' for i in range(layers))
  elif kind == 'qwen3' and get('use_sliding_window', False):
    pattern = ''.join('L' if i >= get('max_window_layers', 28) else 'G' for i in range(layers))
  else:
    return ''
  return pattern if 'L' in pattern else ''


def _rotary(gemma: bool, said: dict, get) -> tuple[float, float, RopeScaling]:
  """(theta of layers that see all, theta of local ones, scaling of the former)."""
  new = get('rope_parameters')
  if gemma and new and 'full_attention' in new:
    whole, local = new['full_attention'], new.get('sliding_attention') or {}
  else:
    whole = {'rope_theta': get('rope_theta', 1_000_000.0 if gemma else 10_000.0)} | (
      new or get('rope_scaling', {})
    )
    local = {'rope_theta': get('rope_local_base_freq', 10_000.0)} if gemma else {}
  of = lambda settings: settings.get('rope_type', settings.get('type', 'default'))
  if (
    of(local) != 'default'
    or of(whole) not in ('default', 'linear', 'llama3')
    or whole.get('partial_rotary_factor', 1.0) != 1.0
  ):
    given = new or said.get('rope_scaling')
    raise Unsupported(
      f'config.json: rotary settings {given}: must be default, linear or llama3, of whole heads, on layers that see all'
    )
  scaling = RopeScaling()
  if of(whole) == 'linear':
    scaling = RopeScaling('linear', float(whole['factor']))
  elif of(whole) == 'llama3':
    parts = (whole[name] for name in ('factor', 'low_freq_factor', 'high_freq_factor'))
    scaling = RopeScaling('llama3', *map(float, parts), whole['original_max_position_embeddings'])
  theta = float(whole.get('rope_theta', 1_000_000.0 if gemma else 10_000.0))
  if (
    not gemma
    and scaling.kind != 'none'
    and get('layer_types')
    and 'sliding_attention' in said['layer_types']
  ):
    raise Unsupported('config.json: stretched rotary positions on layers that see a window only')
  return theta, float(local.get('rope_theta', 10_000.0)) if gemma else theta, scaling
