"""Tiny random models of the real architectures, saved by transformers with real tokenizer files."""

import pathlib

import numpy as np
import tokenizers

from rolegen_jax.text.tokenizers import save, train

WORDS = (
  'red blue green wool cotton silver leather winter summer light heavy small large shirt dress '
  'shoe lamp table chair cup'
).split()
SIZES = dict(
  hidden_size=64,
  intermediate_size=96,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=32,
  vocab_size=400,
  pad_token_id=None,
)
FAMILIES = ('qwen3', 'qwen3_window', 'llama', 'gemma3')


def texts(count: int = 300) -> list[str]:
  rng = np.random.default_rng(0)
  return [
    ' '.join(rng.choice(WORDS, 6)) + f' {rng.integers(100)} days later, item code a b c'
    for _ in range(count)
  ]


def write_json_tokenizer(folder: pathlib.Path, names=()) -> None:
  """Byte-level BPE, as Qwen3 and Llama 3 have; `names` are pieces that it has beside text."""
  tokenizer = tokenizers.ByteLevelBPETokenizer()
  delimiters = ['<|endoftext|>', '<|im_end|>']
  tokenizer.train_from_iterator(texts(), vocab_size=300, special_tokens=delimiters)
  tokenizer.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])
  tokenizer.save(str(folder / 'tokenizer.json'))


def qwen3_config(**changes):
  import transformers

  settings = dict(
    num_hidden_layers=3,
    tie_word_embeddings=True,
    rope_parameters=dict(rope_type='default', rope_theta=1e6),
    bos_token_id=0,
    eos_token_id=1,
  )
  return transformers.Qwen3Config(**SIZES | settings | changes)


def qwen3_window_config(**changes):
  settings = dict(
    use_sliding_window=True, sliding_window=6, max_window_layers=1, tie_word_embeddings=False
  )
  return qwen3_config(**settings | changes)


def llama_config(**changes):
  import transformers

  rotary = dict(
    rope_type='llama3',
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
  )
  settings = dict(
    num_hidden_layers=2,
    tie_word_embeddings=False,
    rope_parameters=rotary,
    rms_norm_eps=1e-5,
    bos_token_id=0,
    eos_token_id=[0, 1],
  )
  return transformers.LlamaConfig(**SIZES | settings | changes)


def gemma3_config(**changes):
  import transformers

  rotary = dict(
    full_attention=dict(rope_type='linear', factor=8.0, rope_theta=1e4),
    sliding_attention=dict(rope_type='default', rope_theta=100.0),
  )
  settings = dict(
    num_hidden_layers=4,
    sliding_window=7,
    layer_types=['sliding_attention'] * 2 + ['full_attention', 'sliding_attention'],
    rope_parameters=rotary,
    query_pre_attn_scalar=24,
    final_logit_softcapping=20.0,
    bos_token_id=1,
    eos_token_id=2,
  )
  return transformers.Gemma3TextConfig(**SIZES | settings | changes)


# All switches that a family has are on: windows shorter than the sequences, scaled rotary
# positions, soft-cap, tables tied and apart.
CONFIG_FNS = dict(
  qwen3=qwen3_config,
  qwen3_window=qwen3_window_config,
  llama=llama_config,
  gemma3=gemma3_config,
)


def random_model(family: str, dtype: str = 'float32', seed: int = 0, **changes):
  """A model whose parameters are all away from their initial values, logits a few nats apart."""
  import torch
  import transformers

  torch.manual_seed(seed)
  torch.set_num_threads(1)
  model = transformers.AutoModelForCausalLM.from_config(
    CONFIG_FNS[family](**changes), attn_implementation='eager'
  ).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if parameter.ndim > 1:
        # Gemma multiplies embeddings by 8.
        is_gemma_table = family == 'gemma3' and 'embed' in name
        parameter.normal_(0.0, 0.12 if is_gemma_table else 0.25)
      elif family == 'gemma3':
        # Its layers must outweigh the embeddings, or it repeats itself.
        parameter.normal_(2.0 if 'post_' in name else 0.0, 0.2)
      else:
        parameter.normal_(1.0, 0.2)
  return model.to(getattr(torch, dtype))


def save_model(
  family: str, folder: pathlib.Path, dtype: str = 'float32', names: tuple = (), **changes
):
  """Save a random model in several files, with a tokenizer that has `names`; return the model."""
  model = random_model(family, dtype, **changes)
  model.save_pretrained(folder, max_shard_size='200KB')
  if family == 'gemma3':
    save(train(texts(), 340), folder)
  else:
    write_json_tokenizer(folder, names)
  return model
