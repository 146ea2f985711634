"""Tiny random models of the real architectures, saved by transformers, with tokenizers of the real formats."""

import pathlib

import numpy as np
import tokenizers

from rolegen_jax.text.tokenizers import save, train

WORDS = 'red blue green wool cotton silver leather winter summer light heavy small large shirt dress shoe lamp table chair cup'.split()
ROWS = 400  # of the token tables
SIZES = dict(
  hidden_size=64,
  intermediate_size=96,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=32,
  vocab_size=ROWS,
  pad_token_id=None,
)


def texts(count: int = 300) -> list[str]:
  rng = np.random.default_rng(0)
  return [
    ' '.join(rng.choice(WORDS, 6)) + f' {rng.integers(100)} days later, item code a b c'
    for _ in range(count)
  ]


def json_tokenizer(folder: pathlib.Path, marks=('<|endoftext|>', '<|im_end|>'), more=()) -> None:
  """Byte-level BPE, as Qwen3 and Llama 3 have."""
  made = tokenizers.ByteLevelBPETokenizer()
  made.train_from_iterator(texts(), vocab_size=300, special_tokens=list(marks))
  made.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in more])
  made.save(str(folder / 'tokenizer.json'))


def model_tokenizer(folder: pathlib.Path) -> None:
  save(train(texts(), 340), folder)


def config(family: str, **changes):
  """Switches that each family has are all on: windows shorter than the sequences, scaling, soft-cap, both kinds of tables."""
  import transformers

  if family == 'qwen3':
    return transformers.Qwen3Config(
      **SIZES
      | dict(
        num_hidden_layers=3,
        tie_word_embeddings=True,
        rope_parameters=dict(rope_type='default', rope_theta=1e6),
        bos_token_id=0,
        eos_token_id=1,
      )
      | changes
    )
  if family == 'qwen3_window':
    return config(
      'qwen3',
      **dict(
        use_sliding_window=True, sliding_window=6, max_window_layers=1, tie_word_embeddings=False
      )
      | changes,
    )
  if family == 'llama':
    scaling = dict(
      rope_type='llama3',
      rope_theta=500.0,
      factor=8.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=32,
    )
    return transformers.LlamaConfig(
      **SIZES
      | dict(
        num_hidden_layers=2,
        tie_word_embeddings=False,
        rope_parameters=scaling,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=[0, 1],
      )
      | changes
    )
  assert family == 'gemma3'
  rotary = dict(
    full_attention=dict(rope_type='linear', factor=8.0, rope_theta=1e4),
    sliding_attention=dict(rope_type='default', rope_theta=100.0),
  )
  return transformers.Gemma3TextConfig(
    **SIZES
    | dict(
      num_hidden_layers=4,
      sliding_window=7,
      layer_types=['sliding_attention'] * 2 + ['full_attention', 'sliding_attention'],
      rope_parameters=rotary,
      query_pre_attn_scalar=24,
      final_logit_softcapping=20.0,
      bos_token_id=1,
      eos_token_id=2,
    )
    | changes
  )


FAMILIES = ('qwen3', 'qwen3_window', 'llama', 'gemma3')


def model(family: str, dtype: str = 'float32', seed: int = 0, **changes):
  """All parameters away from their initial values, logits a few nats apart."""
  import torch
  import transformers

  torch.manual_seed(seed)
  torch.set_num_threads(1)
  made = transformers.AutoModelForCausalLM.from_config(
    config(family, **changes), attn_implementation='eager'
  ).eval()
  with torch.no_grad():
    for name, p in made.named_parameters():
      if p.ndim > 1:
        p.normal_(
          0.0, 0.12 if family == 'gemma3' and 'embed' in name else 0.25
        )  # Gemma multiplies embeddings by 8
      elif family == 'gemma3':  # its layers must outweigh them, or it repeats itself
        p.normal_(2.0 if 'post_' in name else 0.0, 0.2)
      else:
        p.normal_(1.0, 0.2)
  return made.to(getattr(torch, dtype))


def save_folder(
  family: str,
  folder: pathlib.Path,
  dtype: str = 'float32',
  file_size: str = '200KB',
  more=(),
  **changes,
):
  """The model, saved in several files, and its tokenizer. `more`: names that the tokenizer has beside text."""
  made = model(family, dtype, **changes)
  made.save_pretrained(folder, max_shard_size=file_size)
  if family == 'gemma3':
    model_tokenizer(folder)
  else:
    json_tokenizer(folder, more=more)
  return made
