"""GGUF files of the folders that tests write, as llama.cpp's converter makes them."""

import json
import pathlib

import gguf
import numpy as np

from rolegen_jax.text.tokenizers import SentencePiece, model_proto
from tests.pretrained.checkpoints import read_tensors, write_folder

TINY = dict(
  hidden_size=64,
  intermediate_size=96,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=32,
  vocab_size=400,
  rms_norm_eps=1e-5,
  eos_token_id=0,
)
CONFIGS = dict(
  qwen3=TINY
  | dict(architectures=['Qwen3ForCausalLM'], model_type='qwen3', tie_word_embeddings=True),
  llama=TINY
  | dict(
    architectures=['LlamaForCausalLM'],
    model_type='llama',
    head_dim=16,
    rope_theta=500_000.0,
    rope_scaling=dict(
      rope_type='llama3',
      factor=32.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=8192,
    ),
    tie_word_embeddings=False,
  ),
  gemma3=TINY
  | dict(
    architectures=['Gemma3ForCausalLM'],
    model_type='gemma3_text',
    num_hidden_layers=7,
    rope_theta=1_000_000.0,
    query_pre_attn_scalar=32,
    sliding_window=6,
  ),
)
NAMES = {
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
  'input_layernorm': 'attn_norm',
  'pre_feedforward_layernorm': 'ffn_norm',
  'post_feedforward_layernorm': 'post_ffw_norm',
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
}
LAYER = 'model.layers.'


def write(folder: pathlib.Path, family: str, path: pathlib.Path, quantized='F32', **changes):
  """Write the folder of a family, and the same as a GGUF file; `changes` are of its fields."""
  config = CONFIGS[family]
  write_folder(folder, config)
  architecture = family
  fields = fields_of(config, architecture) | byte_pairs(folder / 'tokenizer.json')
  writer = gguf.GGUFWriter(path, changes.get('general.architecture', architecture))
  for name, value in (fields | changes).items():
    if name != 'general.architecture' and value is not None:
      add(writer, name, value)
  for name, array in read_tensors(folder).items():
    writer.add_tensor(*converted(config, name, array, quantized))
  if config.get('rope_scaling'):
    writer.add_tensor('rope_freqs.weight', slower(config))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def add(writer: gguf.GGUFWriter, name: str, value):
  kinds = {str: 'string', bool: 'bool', int: 'uint32', float: 'float32', list: 'array'}
  getattr(writer, f'add_{kinds[type(value)]}')(name, value)


def fields_of(config: dict, architecture: str) -> dict:
  named = dict(
    block_count='num_hidden_layers',
    embedding_length='hidden_size',
    feed_forward_length='intermediate_size',
    vocab_size='vocab_size',
  )
  attention = dict(head_count='num_attention_heads', head_count_kv='num_key_value_heads')
  fields = {f'{architecture}.{name}': config[field] for name, field in named.items()}
  fields |= {f'{architecture}.attention.{n}': config[field] for n, field in attention.items()}
  fields[f'{architecture}.attention.layer_norm_rms_epsilon'] = config['rms_norm_eps']
  fields[f'{architecture}.rope.freq_base'] = config.get('rope_theta', 10_000.0)
  if architecture == 'llama':
    fields['llama.rope.dimension_count'] = config['head_dim']
  else:
    fields[f'{architecture}.attention.key_length'] = config['head_dim']
  if 'sliding_window' in config:
    fields[f'{architecture}.attention.sliding_window'] = config['sliding_window']
  return fields


def converted(config: dict, name: str, array: np.ndarray, quantized: str):
  """(name, array, its shape, its type), as the converter has them."""
  stem = name.removesuffix('.weight')
  prefix, part = '', stem
  if stem.startswith(LAYER):
    layer, part = stem.removeprefix(LAYER).split('.', 1)
    prefix = f'blk.{layer}.'
  gemma = config['model_type'] == 'gemma3_text'
  names = NAMES | {'post_attention_layernorm': 'post_attention_norm' if gemma else 'ffn_norm'}
  if config['model_type'] == 'llama' and part.endswith(('q_proj', 'k_proj')):
    pairs = array.reshape(-1, 2, config['head_dim'] // 2, array.shape[1])
    array = pairs.swapaxes(1, 2).reshape(array.shape)
  if gemma and array.ndim == 1:
    array = array + 1
  kind = gguf.GGMLQuantizationType[quantized if array.ndim == 2 else 'F32']
  data = gguf.quantize(array, kind)
  return f'{prefix}{names[part]}.weight', data, None, kind


def slower(config: dict) -> np.ndarray:
  """How much slower each rotary pair turns, in the words of Llama 3's own code."""
  scaling, half = config['rope_scaling'], config['head_dim'] // 2
  factors = []
  for pair in range(half):
    length = 2 * np.pi * config['rope_theta'] ** (pair / half)
    context = scaling['original_max_position_embeddings']
    low, high = scaling['low_freq_factor'], scaling['high_freq_factor']
    if length < context / high:
      factors.append(1.0)
    elif length > context / low:
      factors.append(scaling['factor'])
    else:
      smooth = (context / length - low) / (high - low)
      factors.append(1 / ((1 - smooth) / scaling['factor'] + smooth))
  return np.array(factors, np.float32)


def byte_pairs(path: pathlib.Path, rule: str = 'gpt-2') -> dict:
  """The fields of a byte-level tokenizer.json."""
  content = json.loads(path.read_text())
  id_of = {**content['model']['vocab'], **{t['content']: t['id'] for t in content['added_tokens']}}
  special = {token['id']: token['special'] for token in content['added_tokens']}
  pieces = sorted(id_of, key=id_of.__getitem__)
  kinds = [1 if id not in special else 3 if special[id] else 4 for id in range(len(pieces))]
  merges = [' '.join(m) if isinstance(m, list) else m for m in content['model']['merges']]
  named = dict(model='gpt2', pre=rule, tokens=pieces, token_type=kinds, merges=merges)
  return {f'tokenizer.ggml.{name}': value for name, value in named.items()}


def scored_pieces(tokenizer: SentencePiece) -> dict:
  """The fields of a tokenizer.model."""
  proto = model_proto().FromString(tokenizer.content())
  named = dict(
    model='llama',
    tokens=[piece.piece for piece in proto.pieces],
    scores=[piece.score for piece in proto.pieces],
    token_type=[piece.type for piece in proto.pieces],
    unknown_token_id=proto.trainer_spec.unk_id,
    add_space_prefix=proto.normalizer_spec.add_dummy_prefix,
    remove_extra_whitespaces=proto.normalizer_spec.remove_extra_whitespaces,
    merges=None,
    pre='default',
  )
  return {f'tokenizer.ggml.{name}': value for name, value in named.items()}
